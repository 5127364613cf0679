"""Approved calls run once: a client that sends its request again, as OpenAI's clients do by themselves, buys once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace

from octavo.plugins.host.outcome import Outcome
from octavo.plugins.loop import PluginCall

# The oldest are forgotten. An id has at least 29 random bits, and a caller sees its own only.
_KEPT = 4096


class Approved:
    """Outcomes of approved calls by the caller and the id of the call. All methods may be called from any thread."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        # None: it runs.
        self._outcomes: OrderedDict[tuple[str | None, str], Outcome | None] = OrderedDict()

    def of(self, owner: str | None) -> ApprovedOf:
        """The approved calls of one caller."""
        return ApprovedOf(self, owner)

    def begin(self, owner: str | None, call: PluginCall, unknown: Outcome) -> Outcome | None:
        """None: the call may run, and does. Else its outcome; `unknown` while it runs."""
        key = (owner, call.id)
        with self._lock:
            if key in self._outcomes:
                return self._outcomes[key] or unknown
            self._outcomes[key] = None
            while len(self._outcomes) > self._kept:
                self._outcomes.popitem(last=False)
        return None

    def end(self, owner: str | None, call: PluginCall, outcome: Outcome | None) -> None:
        """Notes the outcome. A call that cannot have run may be sent again."""
        key = (owner, call.id)
        with self._lock:
            if outcome is not None and (outcome.ok or outcome.sent):
                self._outcomes[key] = replace(outcome, warnings=(*outcome.warnings, "the approved call ran once"))
            elif outcome is not None:
                self._outcomes.pop(key, None)


class ApprovedOf:
    """The approved calls of one caller; see `octavo.plugins.loop.Once`."""

    def __init__(self, approved: Approved, owner: str | None) -> None:
        self._approved = approved
        self._owner = owner

    def begin(self, call: PluginCall, unknown: Outcome) -> Outcome | None:
        return self._approved.begin(self._owner, call, unknown)

    def end(self, call: PluginCall, outcome: Outcome | None) -> None:
        self._approved.end(self._owner, call, outcome)
