"""Typed problems (RFC 9457): what a plugin answers instead of a result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.plugins.protocol import PROBLEM_JSON, PROBLEM_PREFIX
from octavo.plugins.values import json_fault

# Code -> (status, title).
CODES: Mapping[str, tuple[int, str]] = {
    "unsupported-version": (400, "No common protocol version"),
    "malformed-request": (400, "The request cannot be read"),
    "unauthorized": (401, "The request lacks valid credentials"),
    "forbidden": (403, "The credentials do not permit this"),
    "unknown-operation": (404, "No operation has this id"),
    "not-found": (404, "Nothing has this path"),
    "method-not-allowed": (405, "The path has other methods"),
    "schema-changed": (409, "The operation's schema is another one"),
    "idempotency-conflict": (409, "A request with this idempotency key is in progress"),
    "body-too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body is not JSON"),
    "invalid-arguments": (422, "The arguments do not fit the operation's schema"),
    "idempotency-key-reused": (422, "The idempotency key belongs to another request"),
    "rate-limited": (429, "Too many requests"),
    "internal": (500, "The plugin failed"),
    # No 4xx: a client would take the arguments for wrong, and call again under another key.
    "answer-not-kept": (500, "The request ran before, and its answer is not kept any more"),
    "unavailable": (503, "The plugin is not available"),
    "timeout": (504, "The operation took too long"),
}
# Members that RFC 9457 defines; all others are extensions.
_MEMBERS = {"type", "title", "status", "detail", "instance"}
_LONGEST_TEXT = 4096


@dataclass(frozen=True)
class Problem:
    """A typed problem.

    Attributes:
        code: `invalid-arguments` for the type `urn:octavo-plugin:invalid-arguments`; see `CODES`.
        detail: one sentence that names the input and the remedy.
        status: the HTTP status.
        extensions: further members: `supported`, `nearest`, `errors`, `digest`, `operation`.
        retry_after: seconds after which the client may retry, for the Retry-After header.
    """

    code: str
    detail: str = ""
    status: int = 0
    extensions: Mapping[str, Any] = field(default_factory=dict)
    retry_after: float | None = None

    def __post_init__(self) -> None:
        if not self.status:
            object.__setattr__(self, "status", CODES[self.code][0] if self.code in CODES else 500)

    @property
    def type(self) -> str:
        return PROBLEM_PREFIX + self.code

    def to_json(self) -> dict[str, Any]:
        """The members of the body, in RFC 9457's order."""
        members: dict[str, Any] = {"type": self.type}
        if self.code in CODES:
            members["title"] = CODES[self.code][1]
        members["status"] = self.status
        if self.detail:
            members["detail"] = self.detail
        return {**members, **{k: v for k, v in self.extensions.items() if k not in _MEMBERS}}

    @classmethod
    def from_json(cls, value: object, status: int = 0) -> Problem | None:
        """Reads a problem; None if `value` is no problem of this protocol.

        Args:
            status: the response's status, which RFC 9457 puts above the member. 0: the member counts.
        """
        if not isinstance(value, dict):
            return None
        kind = value.get("type")
        if not isinstance(kind, str) or not kind.startswith(PROBLEM_PREFIX):
            return None
        code = kind.removeprefix(PROBLEM_PREFIX)
        detail = value.get("detail")
        member = value.get("status")
        if not status and isinstance(member, int) and not isinstance(member, bool) and 400 <= member <= 599:
            status = member
        return cls(
            code=code[:64],
            detail=detail[:_LONGEST_TEXT] if isinstance(detail, str) else "",
            status=status,
            extensions={k: v for k, v in value.items() if k not in _MEMBERS},
        )

    @classmethod
    def from_response(cls, status: int, content_type: str, body: bytes) -> Problem | None:
        """Reads the problem of a response; None if the response is not typed, thus no plugin's own answer."""
        if content_type.partition(";")[0].strip().lower() != PROBLEM_JSON:
            return None
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return None
        return cls.from_json(value, status) if json_fault(value) is None else None


class ProblemError(Exception):
    """Carries a problem out of an operation or a stage; `Plugin.handle` answers with it.

    An operation may raise it: `raise ProblemError("unavailable", "the weather station is off", retry_after=30)`.
    """

    def __init__(self, code: str, detail: str = "", *, retry_after: float | None = None, **extensions: Any) -> None:
        super().__init__(detail or code)
        self.problem = Problem(code, detail, extensions=extensions, retry_after=retry_after)
