"""Stored responses: bounded in number, size and age, and apart for each API key."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from octavo.server.config import Limits
from octavo.server.http import dumps
from octavo.server.response import new_id

# Prefixes of ids by the type of an item.
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "reasoning": "rs",
    "mcp_approval_response": "mcpar",
}
# Types of items that have no status.
_WITHOUT_STATUS = frozenset({"reasoning", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response"})


class StoredItem(NamedTuple):
    """An item as JSON: responses of one conversation share it."""

    id: str
    data: bytes


@dataclass(frozen=True)
class StoredResponse:
    """A response with all that was read for it.

    Attributes:
        response: the response, as the API returns it.
        input: the items that the model read, those of earlier responses included.
        output: the items of the response.
        expires: time on the store's clock.
    """

    id: str
    response: bytes
    input: tuple[StoredItem, ...]
    output: tuple[StoredItem, ...]
    expires: float

    @property
    def size(self) -> int:
        # Items that other responses share count in each of them: the limit holds in any case.
        return len(self.response) + sum(len(item.data) for item in (*self.input, *self.output))

    @property
    def status(self) -> str:
        return str(json.loads(self.response)["status"])

    @property
    def history(self) -> list[dict[str, Any]]:
        """The conversation that the next response continues."""
        return [json.loads(item.data) for item in (*self.input, *self.output)]


@dataclass
class _Shelf:
    """The responses of one key, the longest unused first."""

    responses: OrderedDict[str, StoredResponse] = field(default_factory=OrderedDict)
    # Item -> response that gave it.
    items: dict[str, str] = field(default_factory=dict)
    size: int = 0

    def add(self, stored: StoredResponse) -> None:
        self.responses[stored.id] = stored
        self.items.update((item.id, stored.id) for item in stored.output)
        self.size += stored.size

    def remove(self, response_id: str) -> bool:
        found = self.responses.pop(response_id, None)
        if found is None:
            return False
        for item in found.output:
            if self.items.get(item.id) == response_id:
                del self.items[item.id]
        self.size -= found.size
        return True


class ResponseStore:
    """Responses by id. All methods may be called from any thread.

    Args:
        limits: how many responses, of how many bytes together, are kept for each key, and for how long after their last
            use. Beyond that the longest unused ones go first.
        clock: seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._shelves: dict[str | None, _Shelf] = {}

    @property
    def enabled(self) -> bool:
        return self._limits.stored_responses > 0 and self._limits.stored_responses_bytes > 0

    def put(
        self,
        owner: str | None,
        response: dict[str, Any],
        given: Iterable[StoredItem],
        output: Iterable[StoredItem] = (),
    ) -> bool:
        """Stores `response`, or replaces it; False if it alone is larger than the store."""
        expires = self._clock() + self._limits.stored_responses_seconds
        made = StoredResponse(response["id"], dumps(response), tuple(given), tuple(output), expires)
        with self._lock:
            shelf = self._shelves.setdefault(owner, _Shelf())
            shelf.remove(made.id)
            if not self.enabled or made.size > self._limits.stored_responses_bytes:
                return False
            shelf.add(made)
            while (
                len(shelf.responses) > self._limits.stored_responses
                or shelf.size > self._limits.stored_responses_bytes
                or next(iter(shelf.responses.values())).expires <= self._clock()
            ):
                shelf.remove(next(iter(shelf.responses)))
        return True

    def get(self, owner: str | None, response_id: str) -> StoredResponse | None:
        """The response of `owner`; None if it is not here, or no longer. Reading it keeps it longer."""
        with self._lock:
            shelf = self._shelves.get(owner)
            found = shelf.responses.get(response_id) if shelf else None
            if shelf is None or found is None:
                return None
            shelf.remove(response_id)
            if found.expires <= self._clock():
                return None
            kept = replace(found, expires=self._clock() + self._limits.stored_responses_seconds)
            shelf.add(kept)
            return kept

    def delete(self, owner: str | None, response_id: str) -> bool:
        """Removes a response; False if it was not here."""
        with self._lock:
            shelf = self._shelves.get(owner)
            return shelf is not None and shelf.remove(response_id)

    def item(self, owner: str | None, item_id: str) -> dict[str, Any] | None:
        """An item that a stored response gave; None if it is not here."""
        with self._lock:
            shelf = self._shelves.get(owner)
            stored = shelf.responses.get(shelf.items.get(item_id, "")) if shelf else None
            if stored is None or stored.expires <= self._clock():
                return None
            data = next(item.data for item in stored.output if item.id == item_id)
        return dict(json.loads(data))

    def __len__(self) -> int:
        with self._lock:
            return sum(len(shelf.responses) for shelf in self._shelves.values())

    @property
    def size(self) -> int:
        """Bytes of all responses."""
        with self._lock:
            return sum(shelf.size for shelf in self._shelves.values())


def stored_item(item: dict[str, Any]) -> StoredItem:
    """`item` as it is stored. An item of a client gets an id, and a message without a type its type."""
    kind = item.get("type") or "message"
    item_id = item.get("id")
    if not isinstance(item_id, str) or not item_id:
        item_id = new_id(_PREFIXES.get(kind, "item"))
    whole = {"id": item_id, "type": kind, **{k: v for k, v in item.items() if k not in ("id", "type")}}
    if kind == "message" and isinstance(item.get("content"), str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        more: dict[str, Any] = {"annotations": []} if part == "output_text" else {}
        whole["content"] = [{"type": part, "text": item["content"], **more}]
    if kind not in _WITHOUT_STATUS:
        whole.setdefault("status", "completed")
    return StoredItem(item_id, dumps(whole))
