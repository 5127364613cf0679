"""Rows as token ids with labels: only what the model shall say is a target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.finetune.data import Example

__all__ = ["NOT_A_TARGET", "Row", "cut", "encode", "p99_length"]

NOT_A_TARGET = -100
"""Label of a position without loss, as in torch."""
_MAX_NAMED = 5


@dataclass(frozen=True)
class Row:
    """Token ids [length] and labels [length]: an id where there is loss, else NOT_A_TARGET.

    A replayed row is one of the base model: its loss is the distance to the base model's distribution.
    """

    ids: list[int]
    labels: list[int]
    replayed: bool = False


def encode(tokenizer: Any, examples: Sequence[Example]) -> list[Row]:
    """Tokenises rows with the model's own template and tokenizer (of transformers).

    Raises:
        InvalidRequestError: answers cannot be told from prompts in a row, or there is no chat template; the message
            has the numbers of the lines.
    """
    if any(example.messages for example in examples) and not tokenizer.chat_template:
        raise InvalidRequestError("the model has no chat template: give rows of prompt and completion, or of text")
    rows, bad = [], []
    for example in examples:
        try:
            rows.append(_encode(tokenizer, example))
        except ValueError as error:
            bad.append(f"line {example.line}: {error}")
    if bad:
        more = f"; and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
        raise InvalidRequestError(f"{'; '.join(bad[:_MAX_NAMED])}{more}")
    return rows


def p99_length(rows: Sequence[Row], limit: int) -> int:
    """Length in tokens that 99 % of the rows fit in, rounded up to 64, at most `limit`."""
    lengths = sorted(len(row.ids) for row in rows)
    at = lengths[max(0, math.ceil(0.99 * len(lengths)) - 1)]
    return min(-(-at // 64) * 64, limit)


def cut(rows: Sequence[Row], length: int) -> tuple[list[Row], int, int]:
    """Rows of at most `length` tokens; how many were cut, and how many had no target left and are gone."""
    kept, shortened, gone = [], 0, 0
    for row in rows:
        if len(row.ids) > length:
            row = dataclasses.replace(row, ids=row.ids[:length], labels=row.labels[:length])
            if all(label == NOT_A_TARGET for label in row.labels):
                gone += 1
                continue
            shortened += 1
        kept.append(row)
    return kept, shortened, gone


def _encode(tokenizer: Any, example: Example) -> Row:
    if example.messages is None:
        return _plain(tokenizer, example)
    messages = [dict(message) for message in example.messages]
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        made = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = list(made["input_ids"]), made["assistant_masks"]
        if any(mask):
            return Row(ids, [i if m else NOT_A_TARGET for i, m in zip(ids, mask, strict=True)])
    return _by_prefix(tokenizer, messages)


def _by_prefix(tokenizer: Any, messages: list[dict[str, str]]) -> Row:
    """What each answer adds to the rendered conversation: its prompt must be a prefix of it in tokens."""
    ids = _ids(tokenizer, messages, False)
    labels = [NOT_A_TARGET] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, both = _ids(tokenizer, messages[:i], True), _ids(tokenizer, messages[: i + 1], False)
        if both[: len(prompt)] != prompt or ids[: len(both)] != both:
            raise ValueError(
                f"message {i + 1}: the template does not write the conversation before it as a prefix in tokens: "
                "give each answer a row of its own"
            )
        labels[len(prompt) : len(both)] = both[len(prompt) :]
    return Row(ids, labels)


def _ids(tokenizer: Any, messages: list[dict[str, str]], prompt: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _plain(tokenizer: Any, example: Example) -> Row:
    """A prompt with its completion, or a text; the token that ends a document follows."""
    prompt = list(tokenizer(example.prompt)["input_ids"]) if example.prompt else []
    whole = list(tokenizer(example.prompt + example.answer)["input_ids"])
    if whole[: len(prompt)] != prompt:
        raise ValueError("the prompt is no prefix of prompt + completion in tokens: begin the completion with a space")
    end = tokenizer.eos_token_id
    if end is not None and (not whole or whole[-1] != end):
        whole.append(end)
    if len(whole) < 2:
        raise ValueError("one token: there is nothing to predict")
    return Row(whole, [NOT_A_TARGET] * len(prompt) + whole[len(prompt) :])
