"""Kernels run on the GPU where there is one, else in Triton's interpreter on the CPU (tests/conftest.py chooses)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="kernel tests need pip install 'octavo[gpu]'")
pytest.importorskip("triton", reason="kernel tests need pip install 'octavo[gpu]'")

import numpy as np
import torch
from octavo.triton_kernels.interpreter import make_bfloat16_right
from octavo.triton_kernels.launch import INTERPRETED

make_bfloat16_right()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _as_hardware() -> Iterator[None]:
    """Overflow to infinity and NaN in kernels are values, not warnings; one thread, as the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with np.errstate(all="ignore"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache: Path = tmp_path_factory.mktemp("triton")
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache))


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """Random numbers that depend on the test's name alone, so that a failure replays."""
    return torch.Generator().manual_seed(sum(request.node.name.encode()))
