"""What the tests of training share: a small tokenizer, made once."""

from __future__ import annotations

import pytest

# The whole folder needs the [train] extra.
pytest.importorskip("torch", reason="training needs pip install 'octavo[train]'")
pytest.importorskip("tokenizers", reason="training needs pip install 'octavo[train]'")

from collections.abc import Iterator

import torch
from tokenizers import Tokenizer

from training import corpus
from training.tokenizer import train_tokenizer


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Trained on 1,500 documents, 1,024 tokens: as the real one, smaller."""
    return train_tokenizer(corpus.texts(1, 1500), 1024)


@pytest.fixture(scope="session")
def encoder(tokenizer: Tokenizer) -> corpus.Encoder:
    """An encoder over the small tokenizer."""
    return corpus.Encoder(tokenizer)
