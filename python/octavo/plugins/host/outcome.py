"""What a call through the host ends with. A call never raises for a plugin's fault: it ends with an `Outcome`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from octavo.plugins.problems import Problem

Status = Literal[
    "ok",
    "unsupported_version",
    "unknown_operation",
    "invalid_arguments",
    "schema_changed",
    "unauthorized",
    "rate_limited",
    "unavailable",
    "timeout",
    "too_large",
    "bad_response",
    "approval_required",
    "refused",
    "denied",
    "limit",
    "internal",
]
RepairKind = Literal["rename", "drop", "default", "coerce", "wrap"]

# The model's context is dear, and a plugin's text is untrusted: longer results are cut, and say where.
TEXT_CHARACTERS = 16_384


@dataclass(frozen=True)
class Repair:
    """One change that made arguments fit a newer schema of the same operation.

    Attributes:
        kind: what was done.
        pointer: the JSON pointer (RFC 6901) of the changed argument, in the arguments as they were given.
        detail: one sentence that says why this keeps the meaning.
        before: the value as given; None for a default that was filled in.
        after: the value as sent; None for a dropped argument.
    """

    kind: RepairKind
    pointer: str
    detail: str
    before: Any = None
    after: Any = None


@dataclass(frozen=True)
class Outcome:
    """The end of one call: a result, or a typed failure.

    Attributes:
        tool: the tool's name, `weather__get_forecast`.
        plugin, operation: what the tool belongs to.
        arguments: as sent, after the repairs; as given if nothing was sent.
        status: `ok`, or the code of the failure. `denied` and `limit` are of the model's
            loop: a person refused the approval, or the rounds were over.
        content: the result, a JSON value; None for a failure.
        text: the tool message for the model: the result, or the failure and its remedy; cut at `TEXT_CHARACTERS`.
        error: the failure; None if `ok`.
        repairs: each change of the arguments. Never silent.
        version: the plugin's version; "" if it has none.
        digest: the digest of the operation's schema under which the call was sent.
        requests: the HTTP requests of this call, with those for the manifest and the document.
        seconds: the time of the call on the host's clock.
        warnings: deprecations, a cut result, a result that does not fit its schema.
        schema: the new schema of the arguments, where the model must generate them anew; else None.
        sent: whether the operation may have run.
        deprecated: whether the plugin marks the operation as deprecated (RFC 9745).
    """

    tool: str
    plugin: str
    operation: str
    arguments: Any
    status: Status
    content: Any = None
    text: str = ""
    error: Problem | None = None
    repairs: tuple[Repair, ...] = ()
    version: str = ""
    digest: str = ""
    requests: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    sent: bool = False
    deprecated: bool = False

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class Tool:
    """One operation as the model sees it.

    Attributes:
        name: `plugin__operation`, at most 64 characters.
        plugin, operation: what it calls.
        description: the operation's own text. It comes from the plugin: untrusted.
        parameters: the JSON Schema of the arguments, without references to other documents.
        consequential: whether a call has effects, thus may wait for an approval.
        digest: the digest of the schema; pass it to `PluginHost.call` with the arguments made under it.
        result: the JSON Schema of the result; None if the plugin gives none.
        deprecated: the plugin's own note on the operation's end; None if it has none.
    """

    name: str
    plugin: str
    operation: str
    description: str
    parameters: dict[str, Any]
    consequential: bool
    digest: str
    result: Any = None
    deprecated: Any = None

    def openai(self) -> dict[str, Any]:
        """The tool in OpenAI's shape, `{"type": "function", "function": {...}}`."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


class ToolList(list[Tool]):
    """The tools that can be called now.

    Attributes:
        missing: the plugins whose tools could not be read, each with the reason. Never dropped in silence.
    """

    def __init__(self, tools: list[Tool], missing: Mapping[str, Problem] | None = None) -> None:
        super().__init__(tools)
        self.missing: dict[str, Problem] = dict(missing or {})


@dataclass
class Failure(Exception):
    """Carries a failure out of a stage of a call; the host makes the outcome of it.

    Attributes:
        status: the outcome's code.
        detail: one sentence that names the input and the remedy.
        problem: the plugin's own problem, if it sent one.
        schema: the new schema of the arguments, where they must be generated anew.
        retry_after: seconds before another try.
        sent: whether the operation may have run.
        damaged: whether the answer was cut or garbled on its way: another may be whole.
    """

    status: Status
    detail: str
    problem: Problem | None = None
    schema: dict[str, Any] | None = None
    retry_after: float | None = None
    sent: bool = False
    damaged: bool = False

    def __str__(self) -> str:
        return f"{self.status}: {self.detail}"

    def to_problem(self) -> Problem:
        """The plugin's own problem, or one with this failure's code."""
        if self.problem is not None:
            return self.problem if self.problem.detail else replace(self.problem, detail=self.detail)
        return Problem(self.status.replace("_", "-"), self.detail, retry_after=self.retry_after)


def result_text(content: Any, limit: int = TEXT_CHARACTERS) -> tuple[str, list[str]]:
    """The tool message of a result, and the warnings: a long one is cut, and ends with a mark that says so."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    if len(text) <= limit:
        return text, []
    mark = f"\n[cut: {limit} of {len(text)} characters]"
    return text[:limit] + mark, [f"the result has {len(text)} characters: the model sees the first {limit}"]


def failure_text(failure: Failure) -> str:
    """The tool message of a failure: JSON with the code, the reason and the wrong arguments."""
    problem = failure.to_problem()
    members: dict[str, Any] = {"error": failure.status, "detail": (failure.detail or problem.detail)[:2000]}
    for key in ("errors", "nearest", "supported"):
        if key in problem.extensions:
            members[key] = problem.extensions[key]
    text = json.dumps(members, ensure_ascii=False, default=str)
    return text if len(text) <= TEXT_CHARACTERS else json.dumps({k: members[k] for k in ("error", "detail")})
