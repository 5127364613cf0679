"""Token ids in the JSON files of a model folder: which there are, and the same files with new ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["ids_in_config", "with_new_ids"]

# `eos_token_id`, `image_token_index`, `eoi_token_index` and their like hold ids of tokens that must stay.
_NEEDED = re.compile(r".*_token_(id|ids|index)|decoder_start_token_id")
# Lists that forbid or favour tokens: a dropped token needs no entry.
_LISTS = {"suppress_tokens", "begin_suppress_tokens"}
_SEQUENCES = {"bad_words_ids", "force_words_ids"}


def ids_in_config(value: Any) -> set[int]:
    """Ids of tokens that a config names: they must stay. Negative numbers are no ids."""
    found: set[int] = set()
    if isinstance(value, dict):
        for name, part in value.items():
            if _NEEDED.fullmatch(name):
                found |= {n for n in (part if isinstance(part, list) else [part]) if type(n) is int and n >= 0}
            elif name == "forced_decoder_ids" and part:
                found |= {number for _, number in part if number is not None}
            else:
                found |= ids_in_config(part)
    elif isinstance(value, list):
        for part in value:
            found |= ids_in_config(part)
    return found


def with_new_ids(value: Any, new_ids: Mapping[int, int]) -> Any:
    """A config with new ids. Entries of lists that forbid or favour dropped tokens are left out."""
    if isinstance(value, list):
        return [with_new_ids(part, new_ids) for part in value]
    if not isinstance(value, dict):
        return value
    return {name: _field(name, part, new_ids) for name, part in value.items()}


def _field(name: str, part: Any, new_ids: Mapping[int, int]) -> Any:
    if _NEEDED.fullmatch(name):
        if isinstance(part, list):
            return [_new(number, new_ids) for number in part]
        return _new(part, new_ids)
    if name == "vocab_size" and type(part) is int:
        return len(new_ids)
    if part and name in _LISTS:
        return [new_ids[number] for number in part if number in new_ids]
    if part and name in _SEQUENCES:
        return [list(map(new_ids.__getitem__, ids)) for ids in part if all(n in new_ids for n in ids)]
    if part and name == "forced_decoder_ids":
        return [[place, _new(number, new_ids)] for place, number in part]
    if part and name == "sequence_bias" and isinstance(part, list):
        return [[[new_ids[n] for n in ids], bias] for ids, bias in part if all(n in new_ids for n in ids)]
    return with_new_ids(part, new_ids)


def _new(number: Any, new_ids: Mapping[int, int]) -> Any:
    return new_ids[number] if type(number) is int and number >= 0 else number
