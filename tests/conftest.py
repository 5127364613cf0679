"""What all tests share: the embedded model, and a look at the engine's books."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# GPU kernels run in Triton's interpreter where there is no GPU. Triton reads this while it is imported, which another
# test's library may do before the kernels' own tests come.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from octavo import LLM

# An example may take long on a busy machine: no test depends on its load.
settings.register_profile("octavo", deadline=None)
settings.load_profile("octavo")


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """The embedded model as users get it."""
    with LLM() as made:
        yield made


def assert_all_blocks_free(llm: LLM, seconds: float = 60.0) -> None:
    """Waits until nothing runs, then asserts that no request holds a KV block: each is free, an unreferenced cache
    entry, or a loaded pack's."""
    deadline = time.monotonic() + seconds
    while True:
        stats = llm.stats()
        blocks, requests = stats["blocks"], stats["requests"]
        if requests["running"] == 0 and requests["waiting"] == 0 and blocks["live"] == 0:
            break
        assert time.monotonic() < deadline, f"still held after {seconds} s: {blocks}, {requests}"
        time.sleep(0.01)
    held = blocks["free"] + blocks["cached"] + blocks["pinned"]
    assert held == blocks["total"], f"blocks lost: {blocks}"


@pytest.fixture(scope="session")
def check_blocks() -> Callable[[LLM], None]:
    """`assert_all_blocks_free`, for tests with an engine of their own."""
    return assert_all_blocks_free


@pytest.fixture(autouse=True)
def _nothing_held(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that used the shared model, all its blocks are free, and no pack is loaded."""
    yield
    if "llm" in request.fixturenames:
        shared: LLM = request.getfixturevalue("llm")
        assert_all_blocks_free(shared)
        assert shared.packs() == []
