"""Log-probabilities in the forms of the API: names of tokens, their bytes, and their places in the text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from octavo import _core
from octavo.llm import LLM


def finite(logprob: float) -> float:
    """JSON has no -inf: an impossible token gets a number that no other token has."""
    return max(logprob, -9999.0)


def chat_logprobs(row: list[_core.Logprob], *, as_ids: bool) -> dict[str, Any]:
    """An entry of `logprobs.content`: the chosen token, and the candidates in `top_logprobs`.

    Args:
        as_ids: tokens are named "token_id:ID".
    """

    def one(c: _core.Logprob) -> dict[str, Any]:
        token = _id_name(c.token_id) if as_ids else c.token
        return {"token": token, "logprob": finite(c.logprob), "bytes": list(c.bytes)}

    return {**one(row[0]), "top_logprobs": [one(c) for c in row[1:]]}


def prompt_logprobs(rows: list[list[_core.Logprob] | None] | None) -> list[dict[str, Any] | None] | None:
    """vLLM's form, and the bytes: per prompt token a map of token id to candidate."""
    if rows is None:
        return None
    return [
        None
        if row is None
        else {
            str(c.token_id): {
                "logprob": finite(c.logprob),
                "rank": c.rank,
                "decoded_token": c.token,
                "bytes": list(c.bytes),
            }
            for c in reversed(row)
        }
        for row in rows
    ]


def name(token_id: int, text: str, data: bytes, *, as_ids: bool) -> str:
    r"""Name of a token in completions: its text, or `bytes:\xNN...` for a part of a character, as OpenAI's."""
    if as_ids:
        return _id_name(token_id)
    try:
        data.decode()
    except UnicodeDecodeError:
        return _bytes_name(data)
    return text


def by_name(candidates: Iterable[_core.Logprob], *, as_ids: bool) -> dict[str, float]:
    """An entry of `top_logprobs` in completions. Tokens of equal text have different names."""
    found: dict[str, float] = {}
    ids: set[int] = set()
    for c in candidates:
        if c.token_id in ids:
            continue
        ids.add(c.token_id)
        names = (name(c.token_id, c.token, c.bytes, as_ids=as_ids), _bytes_name(c.bytes), _id_name(c.token_id))
        found[next(n for n in names if n not in found)] = finite(c.logprob)
    return found


def _id_name(token_id: int) -> str:
    return f"token_id:{token_id}"


def _bytes_name(data: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class TextOffsets:
    """Places of tokens in a text, in characters. A token that continues a character has the place of that character.

    Args:
        start: number of characters before the first token.
    """

    def __init__(self, start: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._chars = start

    def push(self, data: bytes) -> int:
        """Adds the bytes of a token; returns its place."""
        if data and data[0] & 0xC0 != 0x80:
            # A new character begins. One that is not complete never will be.
            self._chars += len(self._decoder.decode(b"", final=True))
        place = self._chars
        self._chars += len(self._decoder.decode(data))
        return place


class CompletionLogprobs:
    """The `logprobs` of one choice in completions, since the last `take`.

    Args:
        count: candidates of a token beside the chosen one.
        as_ids: tokens are named "token_id:ID".
        skip_special_tokens: the generated text lacks special tokens.
    """

    def __init__(self, llm: LLM, count: int, *, as_ids: bool, skip_special_tokens: bool) -> None:
        self._llm = llm
        self._count = count
        self._as_ids = as_ids
        self._skip_special_tokens = skip_special_tokens
        self._offsets = TextOffsets()
        self._clear()

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        self._places: list[int] = []

    def echo(self, text: str, ids: list[int], rows: list[list[_core.Logprob] | None]) -> None:
        """Adds the tokens of the prompt, whose text is `text`."""
        first = self._llm.detokenize(ids[:1], skip_special_tokens=False)
        data = self._llm.token_bytes(ids[0])
        if data.decode("utf-8", "replace") != first:
            # At the beginning of a text, a word lacks its space.
            data = first.encode()
        self._tokens.append(name(ids[0], first, data, as_ids=self._as_ids))
        self._logprobs.append(None)
        self._top.append(None)
        self._places.append(self._offsets.push(data))
        for row in rows[1:]:
            self._add(row or [], in_text=True)
        self._offsets = TextOffsets(len(text))

    def add(self, row: list[_core.Logprob]) -> None:
        """Adds a generated token."""
        special = self._skip_special_tokens and not self._llm.detokenize([row[0].token_id], skip_special_tokens=True)
        self._add(row, in_text=not special)

    def _add(self, row: list[_core.Logprob], *, in_text: bool) -> None:
        chosen = row[0]
        self._tokens.append(name(chosen.token_id, chosen.token, chosen.bytes, as_ids=self._as_ids))
        self._logprobs.append(finite(chosen.logprob))
        self._top.append(by_name([*row[1 : self._count + 1], chosen], as_ids=self._as_ids))
        self._places.append(self._offsets.push(chosen.bytes if in_text else b""))

    def take(self, length: int | None) -> dict[str, Any]:
        """The API's form. `length`: number of characters of the whole text, if it is complete."""
        body = {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top,
            # A stop string ends the text before its tokens.
            "text_offset": self._places if length is None else [min(place, length) for place in self._places],
        }
        self._clear()
        return body
