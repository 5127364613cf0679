"""Ids of tool calls. Some chat templates accept only ids of nine letters and digits."""

from __future__ import annotations

import hashlib
import secrets
import string
from collections import deque
from collections.abc import Iterable
from typing import Any

_ALPHABET = string.digits + string.ascii_letters
# Length that Mistral's templates require.
_SHORT = 9
# Characters of a mark in such an id.
_MARK = 4


def new_call_id(taken: Iterable[str] = (), *, short: bool) -> str:
    """A random id that is not in `taken`. `short`: nine letters and digits."""
    while True:
        made = "".join(secrets.choice(_ALPHABET) for _ in range(_SHORT)) if short else f"call-{secrets.token_hex(12)}"
        if made not in taken:
            return made


def is_short(call_id: str) -> bool:
    """Whether `call_id` has nine ASCII letters and digits."""
    return len(call_id) == _SHORT and call_id.isascii() and call_id.isalnum()


def id_with(call_id: str, fact: str) -> str:
    """`call_id` with the mark of `fact`, in the same form."""
    if is_short(call_id):
        return call_id[:-_MARK] + _mark(fact)[0]
    return f"{call_id}-{_mark(fact)[1]}"


def id_has(call_id: str, fact: str) -> bool:
    """Whether `call_id` was made by `id_with` and the same `fact`."""
    short, long = _mark(fact)
    return call_id.endswith(short if is_short(call_id) else f"-{long}")


def _mark(fact: str) -> tuple[str, str]:
    """The mark in a short id and in a long one."""
    digest = hashlib.sha256(fact.encode("utf-8", "surrogatepass")).digest()
    number = int.from_bytes(digest[:8], "big")
    short = "".join(_ALPHABET[number // len(_ALPHABET) ** place % len(_ALPHABET)] for place in range(_MARK))
    return short, digest.hex()[:12]


def short_ids(call_ids: Iterable[str]) -> dict[str, str]:
    """A short id for each of `call_ids`: short ones stay, others are hashed. The same ids always get the same ids."""
    given = list(dict.fromkeys(call_ids))
    taken = {call_id for call_id in given if is_short(call_id)}
    found: dict[str, str] = {}
    for call_id in given:
        short, tries = call_id, 0
        while not is_short(short) or (short in taken and short != call_id):
            digest = hashlib.sha256(f"{tries}\n{call_id}".encode("utf-8", "surrogatepass")).digest()
            number = int.from_bytes(digest[:16], "big")
            short = "".join(_ALPHABET[number // len(_ALPHABET) ** place % len(_ALPHABET)] for place in range(_SHORT))
            tries += 1
        taken.add(short)
        found[call_id] = short
    return found


def link(turns: list[dict[str, Any]]) -> None:
    """Gives an id to every call without one, and to a result without one the id of the call that it answers."""
    waiting = _Waiting(())
    count = 0
    for turn in turns:
        calls = turn.get("tool_calls")
        if calls:
            for call in calls:
                count += 1
                call["id"] = call["id"] or f"call_{count}"
            waiting = _Waiting(calls)
        elif turn["role"] == "tool":
            found = waiting.take(turn.get("tool_call_id"), turn.get("name"))
            if found is not None:
                turn["tool_call_id"] = found


class _Waiting:
    """Calls of one turn that have no result yet, in order."""

    def __init__(self, calls: Iterable[dict[str, Any]]) -> None:
        self._open: dict[str, None] = {}
        self._by_name: dict[str, deque[str]] = {}
        for call in calls:
            self._open[call["id"]] = None
            self._by_name.setdefault(call["function"]["name"], deque()).append(call["id"])

    def take(self, call_id: str | None, name: str | None) -> str | None:
        """The id of the call that a result answers: by its id, by its name, or the next one."""
        if call_id:
            self._open.pop(call_id, None)
            return None
        if name is None:
            found = next(iter(self._open), None)
        else:
            ids = self._by_name.get(name, deque())
            while ids and ids[0] not in self._open:
                ids.popleft()
            found = ids[0] if ids else None
        if found is not None:
            del self._open[found]
        return found


def shorten(turns: list[dict[str, Any]]) -> None:
    """Makes all ids in `turns` short, calls and results alike."""
    calls = [call for turn in turns for call in turn.get("tool_calls") or ()]
    results = [turn for turn in turns if turn.get("tool_call_id")]
    short = short_ids([*(c["id"] for c in calls), *(t["tool_call_id"] for t in results)])
    for call in calls:
        call["id"] = short[call["id"]]
    for turn in results:
        turn["tool_call_id"] = short[turn["tool_call_id"]]
