"""Tokenizer, chat format and packing."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training import corpus
from training.document import SPECIAL_TOKENS, Turn, chat, prompt
from training.held_out import DISTANCES, lookup_case
from training.tokenizer import token_id, train_tokenizer


def test_segments_encode_as_the_whole_text(encoder: corpus.Encoder) -> None:
    rng = random.Random(3)
    for _ in range(300):
        document = corpus.document(rng, 400, corpus.MIX)
        ids, weights = encoder.encode(document)
        assert ids[:-1] == encoder.tokenizer.encode(document.text).ids, document.text
        assert len(ids) == len(weights)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    tokenizer = train_tokenizer(["a b c"], 300)
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_each_digit_is_a_token_and_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("is 4821.").tokens[-5:] == ["4", "8", "2", "1", "."]
    assert [token_id(tokenizer, token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    with pytest.raises(ValueError, match="no <absent>"):
        token_id(tokenizer, "<absent>")


def test_the_chat_text_begins_with_the_prompt() -> None:
    assert chat("x", [Turn("Hi", "Hello!")], "Be kind.").text.startswith(prompt("Hi", "Be kind."))
    assert chat("x", [Turn("Hi", "Hello!")]).text == prompt("Hi") + "Hello!<|im_end|>\n"


def test_a_batch_is_a_function_of_seed_and_step(encoder: corpus.Encoder) -> None:
    ids, weights = corpus.batch(encoder, 5, 11, rows=2, length=256, mix=corpus.MIX)
    again, _ = corpus.batch(encoder, 5, 11, rows=2, length=256, mix=corpus.MIX)
    other, _ = corpus.batch(encoder, 5, 12, rows=2, length=256, mix=corpus.MIX)
    assert ids.shape == weights.shape == (2, 257)
    assert np.array_equal(ids, again)
    assert not np.array_equal(ids, other)


def test_packed_rows_hold_whole_documents(encoder: corpus.Encoder) -> None:
    for seed in range(5):
        ids, weights = encoder.row(random.Random(seed), 300, corpus.MIX)
        assert len(ids) == len(weights) == 300
        filled = max(index for index, weight in enumerate(weights) if weight > 0)
        assert ids[filled] == encoder.end, f"seed {seed}: the last document is cut"
        assert filled > 150, f"seed {seed}: more than half of the row is empty"


def test_long_rows_are_long(encoder: corpus.Encoder) -> None:
    _, weights = encoder.long_row(random.Random(1), 2049)
    assert sum(weight == 0 for weight in weights) < 800


@pytest.mark.parametrize("distance", DISTANCES)
def test_lookup_cases_have_their_distance(tokenizer: Tokenizer, distance: int) -> None:
    turn, found = lookup_case(tokenizer, random.Random(2), distance)
    assert distance * 0.8 - 12 <= found <= distance
    assert turn.question.startswith(turn.answer)
