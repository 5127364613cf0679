"""What an answer of an operation means: a result, or a typed failure. Nothing is guessed from a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.plugins.host.client import content_type, read_json
from octavo.plugins.host.outcome import Failure, Status
from octavo.plugins.host.retry import retry_after
from octavo.plugins.host.transport import HttpAnswer
from octavo.plugins.problems import Problem
from octavo.plugins.protocol import DIGEST_HEADER, PROTOCOL_HEADER, answered_version

_TYPED: Mapping[str, Status] = {
    "unsupported-version": "unsupported_version",
    "unknown-operation": "unknown_operation",
    "not-found": "unknown_operation",
    "method-not-allowed": "unknown_operation",
    "schema-changed": "schema_changed",
    "invalid-arguments": "invalid_arguments",
    "unauthorized": "unauthorized",
    "forbidden": "unauthorized",
    "rate-limited": "rate_limited",
    "unavailable": "unavailable",
    "idempotency-conflict": "unavailable",
    "idempotency-key-reused": "internal",
    "answer-not-kept": "internal",
    "timeout": "timeout",
    "body-too-large": "too_large",
    "unsupported-media-type": "internal",
    "malformed-request": "internal",
    "internal": "internal",
}
_BY_STATUS: Mapping[int, Status] = {
    401: "unauthorized",
    403: "unauthorized",
    405: "unknown_operation",
    408: "timeout",
    413: "too_large",
    414: "too_large",
    429: "rate_limited",
    500: "internal",
    501: "unknown_operation",
    502: "unavailable",
    503: "unavailable",
    504: "timeout",
}
# Problems that say that the operation did not run.
_NOT_RUN = {
    *("unsupported-version", "unknown-operation", "not-found", "method-not-allowed", "schema-changed"),
    *("invalid-arguments", "unauthorized", "forbidden", "rate-limited", "body-too-large", "unsupported-media-type"),
    *("malformed-request", "idempotency-key-reused"),
}
_LONGEST = 1000


@dataclass(frozen=True)
class Answered:
    """A result.

    Attributes:
        content: the result.
        warnings: the plugin's own.
        genuine: whether the answer has the protocol's headers, from the plugin's own table.
        digest: the digest under which the plugin served the call; "" if it did not say.
    """

    content: Any
    warnings: tuple[str, ...] = ()
    genuine: bool = False
    digest: str = ""


def protocol_answer(name: str, answer: HttpAnswer, offered: Mapping[int, int]) -> Answered:
    """Reads the answer of `v{major}/invoke/{operation}`.

    Raises:
        Failure: anything but a result.
    """
    genuine = answered_version(answer.header(PROTOCOL_HEADER), offered) is not None
    if not 200 <= answer.status < 300:
        raise failure_of(name, answer)
    if answer.status != 200:
        raise _bad(f"the plugin {name!r} answered with status {answer.status}: an operation answers with 200")
    body = read_json(answer, f"the answer of the plugin {name!r}")
    if not isinstance(body, dict) or "result" not in body:
        raise _bad(f"the answer of the plugin {name!r} has no member 'result'")
    listed = body.get("warnings")
    warnings = tuple(str(w)[:_LONGEST] for w in listed[:20]) if isinstance(listed, list) else ()
    return Answered(body["result"], warnings, genuine, answer.header(DIGEST_HEADER) or "")


def plain_answer(name: str, answer: HttpAnswer, text: bool) -> Answered:
    """Reads the answer of a plain operation.

    Args:
        text: whether plain text is a result.

    Raises:
        Failure: anything but a result.
    """
    if not 200 <= answer.status < 300:
        raise failure_of(name, answer)
    if answer.status in (204, 205) or (not answer.body and answer.status != 206):
        return Answered(None)
    if answer.status == 206:
        raise _bad(f"the service {name!r} answered with a part of its result (status 206)")
    if text and content_type(answer) == "text/plain":
        try:
            return Answered(answer.body.decode("utf-8"))
        except UnicodeDecodeError:
            raise _bad(f"the answer of the service {name!r} is no text in UTF-8") from None
    return Answered(read_json(answer, f"the answer of the service {name!r}"))


def failure_of(name: str, answer: HttpAnswer) -> Failure:
    """The typed failure of an answer that is no success."""
    wait = retry_after(answer.header("retry-after"))
    problem = Problem.from_response(answer.status, answer.header("content-type") or "", answer.body)
    if problem is not None:
        status = _TYPED.get(problem.code) or _by_status(answer.status)
        detail = problem.detail or f"the plugin {name!r} answered with the problem {problem.code}"
        return Failure(status, detail, problem, retry_after=wait, sent=problem.code not in _NOT_RUN)
    status = _by_status(answer.status)
    # What a server refuses with 4xx did not run, 408 apart.
    sent = answer.status >= 500 or answer.status == 408 or answer.status < 400
    detail = f"{name!r} answered with status {answer.status}"
    said = _said(answer)
    return Failure(status, f"{detail}: {said}" if said else detail, retry_after=wait, sent=sent)


def _by_status(status: int) -> Status:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return "internal"
    return "invalid_arguments" if status >= 400 else "bad_response"


def _said(answer: HttpAnswer) -> str:
    """What a plain service says of a failure, for the model: `detail`, `message`, `error` or `title` of its JSON."""
    try:
        body = read_json(answer, "the failure")
    except Failure:
        return ""
    if not isinstance(body, dict):
        return ""
    for key in ("detail", "message", "error", "title"):
        if body.get(key):
            return str(body[key])[:_LONGEST]
    return ""


def _bad(detail: str) -> Failure:
    return Failure("bad_response", detail, sent=True)
