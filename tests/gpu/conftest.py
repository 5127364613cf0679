"""Where the torch executor runs: tensors of the CPU with torch ops, and the GPU with its kernels if there is one."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="tests of the GPU executor need pip install 'octavo[test]'")
pytest.importorskip("transformers", reason="tests of the GPU executor need pip install 'octavo[test]'")

# The random models and the comparisons are those of the CPU executor's tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import torch
import transformers
from backends import BACKENDS
from octavo.gpu import load
from random_models import CASES, write_model


@pytest.fixture(autouse=True, scope="package")
def _quiet_reference() -> Iterator[None]:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=BACKENDS, ids=lambda make: make.__name__)
def backend(request: pytest.FixtureRequest) -> load.Backend:
    make: Callable[[], load.Backend] = request.param
    return make()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights: folder."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(next(c for c in CASES if c.name == "llama"), folder)
    return folder
