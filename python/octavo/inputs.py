"""Converts prompts and messages to the types of the engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from octavo.errors import InvalidRequestError

# The mapping is vLLM's form: {"prompt": text} or {"prompt_token_ids": ids}.
Prompt: TypeAlias = str | Sequence[int] | Mapping[str, Any]

# Maximum length of a rejected value in an error message.
_SHOWN = 80
_INSTEAD = {
    "cache_salt": "give SamplingParams(cache_salt=...)",
    "multi_modal_data": "octavo reads text only",
    "prompt_embeds": "octavo reads text or token ids",
    "content": "a list of messages is for LLM.chat",
    "input_ids": 'give "prompt_token_ids"',
    "messages": "use LLM.chat",
    "role": "a list of messages is for LLM.chat",
}


def as_token_ids(ids: Iterable[Any]) -> list[int]:
    if type(ids) is list and set(map(type, ids)) <= {int}:
        return list(ids)
    try:
        return [int(i) if hasattr(i, "__index__") and i is not True and i is not False else _refuse_id(i) for i in ids]
    except TypeError as error:
        raise InvalidRequestError(f"token ids: a list of integers is expected ({error})") from error


def _refuse_id(value: object) -> int:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    hint = ""
    if isinstance(value, Mapping):
        hint = ": a list of messages is for chat"
    elif isinstance(value, str) or hasattr(value, "__iter__"):
        hint = ": one prompt is a text or a list of token ids; generate and embed take many"
    raise InvalidRequestError(f"token ids: {shown} is not an integer{hint}")


def one_prompt(prompt: Prompt) -> str | list[int]:
    if isinstance(prompt, Mapping):
        return _of_mapping(prompt)
    return prompt if isinstance(prompt, str) else as_token_ids(prompt)


def _of_mapping(prompt: Mapping[str, Any]) -> str | list[int]:
    given = {name: value for name, value in prompt.items() if value is not None}
    for name in given.keys() - {"prompt", "prompt_token_ids"}:
        remedy = _INSTEAD.get(name, 'known are "prompt" and "prompt_token_ids"')
        raise InvalidRequestError(f"a prompt has no key {name!r}: {remedy}")
    if len(given) != 1:
        raise InvalidRequestError('a prompt in a dict: exactly one of "prompt" and "prompt_token_ids" is expected')
    if "prompt" not in given:
        return as_token_ids(given["prompt_token_ids"])
    text = given["prompt"]
    if not isinstance(text, str):
        raise InvalidRequestError('a prompt in a dict: "prompt" is a text, "prompt_token_ids" is a list of token ids')
    return text


def many_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many as a list of prompts. A list of integers, or a 1-d array, is one prompt of token ids."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if isinstance(prompts, bytes) or not hasattr(prompts, "__iter__"):
        raise InvalidRequestError(
            f"prompts is a {type(prompts).__name__}: a text, a list of token ids, or a list of these is expected"
        )
    items = list(prompts)
    if items and all(hasattr(i, "__index__") for i in items) and not any(getattr(i, "ndim", 0) for i in items):
        return [as_token_ids(items)]
    return cast("list[Prompt]", items)


def as_name(name: object) -> str:
    """The name of an adapter or a pack, if it is a text."""
    if not isinstance(name, str):
        raise InvalidRequestError(f"name is a {type(name).__name__}: a text is expected")
    if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
        raise InvalidRequestError(f"name is {name[:_SHOWN]!r}: it has a lone surrogate, which is no character")
    return name


def as_path(path: object, what: str) -> str:
    """The path of a folder, with the home directory in place of `~`. `what` names the folder in the error."""
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidRequestError(f"path is a {type(path).__name__}: the folder of {what} is expected")
    return os.path.expanduser(os.fspath(path))


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
