"""Converts prompts and messages to the types of the engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from octavo.errors import InvalidRequestError

Prompt: TypeAlias = str | Sequence[int]


def as_token_ids(ids: Iterable[Any]) -> list[int]:
    if type(ids) is list and set(map(type, ids)) <= {int}:
        return list(ids)
    try:
        return [int(i) if hasattr(i, "__index__") else _refuse_id(i) for i in ids]
    except TypeError as error:
        raise InvalidRequestError(f"token ids: a list of integers is expected ({error})") from error


def _refuse_id(value: object) -> int:
    raise InvalidRequestError(f"token ids: {value!r} is not an integer")


def one_prompt(prompt: Prompt) -> str | list[int]:
    return prompt if isinstance(prompt, str) else as_token_ids(prompt)


def many_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many as a list of prompts. A list of integers, or a 1-d array, is one prompt of token ids."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, (bytes, Mapping)) or not hasattr(prompts, "__iter__"):
        raise InvalidRequestError(
            f"prompts is a {type(prompts).__name__}: a text, a list of token ids, or a list of these is expected"
        )
    items = list(prompts)
    if items and all(hasattr(i, "__index__") for i in items) and not any(getattr(i, "ndim", 0) for i in items):
        return [as_token_ids(items)]
    return cast("list[Prompt]", items)


def json_default(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump()
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
