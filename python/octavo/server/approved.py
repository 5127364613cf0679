"""What an approval holds for: one operation, its schema, these arguments, and one run.

A client that sends its request again, as OpenAI's clients do by themselves, buys once.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import replace

from octavo.plugins.host.outcome import Outcome, Tool
from octavo.plugins.loop import PluginCall
from octavo.plugins.schema import SchemaError, canonical_json

# Number and characters of the kept outcomes: the oldest are forgotten. An id has at least 29 random bits, and a caller
# sees its own only.
_KEPT = 4096
_KEPT_CHARACTERS = 16 << 20


def written_call(tool: Tool, arguments: str) -> str:
    """What the id of a call has a mark of: the operation, its schema and the arguments.

    Args:
        arguments: JSON text. Another order of members or other spaces are the same arguments.
    """
    return f"{tool.digest}\n{tool.name}\n{_canonical(arguments)}"


def _canonical(arguments: str) -> str:
    try:
        return canonical_json(json.loads(arguments or "{}"))
    except (ValueError, RecursionError, SchemaError):
        return arguments


# The caller; the call's id, name and arguments.
_Key = tuple[str | None, str, str, str]


class Approved:
    """Outcomes of approved calls by the caller and the call. All methods may be called from any thread.

    Args:
        kept: number of outcomes.
        characters: of their results together.
    """

    def __init__(self, kept: int = _KEPT, characters: int = _KEPT_CHARACTERS) -> None:
        self._kept = kept
        self._characters = characters
        self._lock = threading.Lock()
        # None: it runs, or its end is not known.
        self._outcomes: OrderedDict[_Key, Outcome | None] = OrderedDict()
        self._sizes: dict[_Key, int] = {}
        self._size = 0

    def of(self, owner: str | None) -> ApprovedOf:
        """The approved calls of one caller."""
        return ApprovedOf(self, owner)

    def begin(self, owner: str | None, call: PluginCall, unknown: Outcome) -> Outcome | None:
        """None: the call may run, and does. Else its outcome; `unknown` while it runs."""
        key = _key(owner, call)
        with self._lock:
            if key in self._outcomes:
                return self._outcomes[key] or unknown
            self._outcomes[key] = None
            self._forget()
        return None

    def end(self, owner: str | None, call: PluginCall, outcome: Outcome | None) -> None:
        """Notes the outcome. A call that cannot have run may be sent again."""
        key = _key(owner, call)
        with self._lock:
            if outcome is not None and (outcome.ok or outcome.sent):
                self._outcomes[key] = replace(outcome, warnings=(*outcome.warnings, "the approved call ran once"))
                size = len(json.dumps(outcome.content)) + len(outcome.text)
                self._size += size - self._sizes.get(key, 0)
                self._sizes[key] = size
                self._forget()
            elif outcome is not None:
                self._outcomes.pop(key, None)

    def _forget(self) -> None:
        while len(self._outcomes) > self._kept or self._size > self._characters:
            key, _ = self._outcomes.popitem(last=False)
            self._size -= self._sizes.pop(key, 0)


def _key(owner: str | None, call: PluginCall) -> _Key:
    return owner, call.id, call.name, _canonical(call.arguments)


class ApprovedOf:
    """The approved calls of one caller; see `octavo.plugins.loop.Once`."""

    def __init__(self, approved: Approved, owner: str | None) -> None:
        self._approved = approved
        self._owner = owner

    def begin(self, call: PluginCall, unknown: Outcome) -> Outcome | None:
        return self._approved.begin(self._owner, call, unknown)

    def end(self, call: PluginCall, outcome: Outcome | None) -> None:
        self._approved.end(self._owner, call, outcome)
