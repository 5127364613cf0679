"""The reference implementations: transformers, in float32, on one thread, without the network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="parity tests need pip install 'octavo[test]'")
pytest.importorskip("transformers", reason="parity tests need pip install 'octavo[test]'")

import torch
import transformers
from octavo import LLM
from octavo.hub import embedded_model


@pytest.fixture(autouse=True, scope="package")
def _quiet_reference() -> Iterator[None]:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    return embedded_model()


@pytest.fixture(scope="session")
def embedded_reference(embedded_folder: Path) -> transformers.PreTrainedModel:
    """The embedded model in transformers, float32."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        embedded_folder, dtype=torch.float32, attn_implementation="eager"
    )
    return loaded.eval()


@pytest.fixture(scope="session")
def embedded_tokenizer(embedded_folder: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(embedded_folder)


@pytest.fixture(scope="session")
def embedded_float32() -> Iterator[LLM]:
    """The embedded model in octavo, float32 throughout."""
    with LLM(dtype="float32", quantization=None) as llm:
        yield llm
