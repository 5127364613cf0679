"""What the cases share: the target, its manifest, its document, and ways to invoke an operation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.plugins.conformance.sample import sample
from octavo.plugins.conformance.target import Reply, Target
from octavo.plugins.manifest import Manifest, OperationEntry
from octavo.plugins.problems import Problem
from octavo.plugins.protocol import (
    DIGEST_HEADER,
    JSON,
    MANIFEST_PATH,
    PROTOCOL_HEADER,
    answered_version,
    invoke_path,
    is_operation_id,
)
from octavo.plugins.schema import dereference

# No argument has this name.
UNKNOWN_ARGUMENT = "octavo_check_unknown_argument"
# References that are followed from one part of a document to the next.
_MAX_REFERENCES = 10


class Violation(Exception):
    """The plugin breaks a rule; the message says what was expected and what came."""


class Skip(Exception):
    """A case that does not apply, with the reason."""


def expect(condition: object, message: str) -> None:
    """Raises `Violation` with `message` unless `condition` holds."""
    if not condition:
        raise Violation(message)


@dataclass
class Context:
    """One run against one target.

    Attributes:
        samples: operation -> arguments that the plugin accepts, for operations whose schema gives no example.
        call: whether idempotent operations without consequences may be called with valid arguments.
    """

    target: Target
    samples: Mapping[str, Any] = field(default_factory=dict)
    call: bool = True
    # An operation that ran in spite of an unknown argument.
    ran_unknown: str = field(default="", init=False)

    @cached_property
    def manifest_reply(self) -> Reply:
        return self.target.send("GET", MANIFEST_PATH)

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest.

        Raises:
            Skip: it cannot be read; the case of the manifest reports why.
        """
        if self.manifest_reply.status in (401, 403):
            raise Skip(f"the manifest answers {self.manifest_reply.status}: give credentials with --header-env")
        try:
            return Manifest.from_json(self.manifest_reply.json())
        except InvalidRequestError as error:
            raise Skip(f"the manifest cannot be read: {error}") from None

    @cached_property
    def document_reply(self) -> Reply:
        return self.target.send("GET", self.manifest.openapi_url)

    @cached_property
    def document(self) -> dict[str, Any]:
        value = self.document_reply.json()
        if not isinstance(value, dict):
            raise Skip("the OpenAPI document cannot be read")
        return value

    def schemas(self, entry: OperationEntry) -> tuple[Any, Any]:
        """The schemas of arguments and result of an entry, as the document has them, without references.

        Raises:
            Violation: the document does not describe the entry.
        """
        path = "/" + invoke_path(entry.major, entry.id)
        try:
            post = self._part(self.document["paths"][path])["post"]
            body, answer = self._part(post["requestBody"]), self._part(post["responses"]["200"])
            arguments = self._member(body["content"][JSON]["schema"], "arguments")
            return arguments, self._member(answer["content"][JSON]["schema"], "result")
        except (KeyError, TypeError, AttributeError, InvalidRequestError) as error:
            raise Violation(f"the OpenAPI document does not describe POST {path}: {error!r}") from None

    def _part(self, value: Any) -> Any:
        """A path, a request body or a response of the document, with its references followed.

        Raises:
            InvalidRequestError: a reference that is not local, has no target, or refers to itself.
        """
        for _ in range(_MAX_REFERENCES):
            ref = value.get("$ref")
            if not isinstance(ref, str):
                return value
            if not ref.startswith("#/"):
                raise InvalidRequestError(f"{ref[:200]!r} is a reference out of the document")
            value = self.document
            for name in ref.split("/")[1:]:
                value = value[name.replace("~1", "/").replace("~0", "~")]
        raise InvalidRequestError(f"more than {_MAX_REFERENCES} references, each to the next")

    def _member(self, schema: dict[str, Any], name: str) -> Any:
        """The schema of a member of an envelope. Only the envelope's own reference is followed before it is read."""
        if "properties" not in schema:
            schema = dereference(schema, self.document)
        return dereference(schema["properties"][name], schema if "$defs" in schema else self.document)

    @property
    def entries(self) -> list[OperationEntry]:
        if not self.manifest.operations:
            raise Skip("the plugin has no operations")
        return list(self.manifest.operations)

    @property
    def refusable(self) -> list[OperationEntry]:
        """The entries that `refused` may invoke, those without consequences first.

        Raises:
            Skip: there are none.
        """
        found = [entry for entry in self.entries if not entry.consequential]
        found += [entry for entry in self.entries if entry.consequential and self._refuses(entry)]
        if not found:
            raise Skip(
                "all operations have consequences, and their schemas have no required argument or lack"
                " additionalProperties: false"
            )
        return found

    def _refuses(self, entry: OperationEntry) -> bool:
        """Whether a schema excludes a call with an unknown argument alone, for two reasons."""
        arguments = self.schemas(entry)[0]
        closed = isinstance(arguments, dict) and arguments.get("additionalProperties") is False
        return closed and bool(arguments.get("required"))

    def unknown_id(self, entry: OperationEntry) -> str:
        """An id that no entry has, which differs in one character or more from that of `entry`."""
        taken = {each.id for each in self.manifest.operations}
        made = (stem + "x" * n for n in range(1, 60) for stem in (entry.id, entry.id[:-n], entry.id[: 64 - n]))
        return next(name for name in made if name not in taken and is_operation_id(name))

    def invoke(
        self,
        entry: OperationEntry,
        arguments: Any,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> Reply:
        """Sends an invocation with the current digest. `headers` adds to and replaces the usual ones; "" removes."""
        usual = {"Content-Type": JSON, PROTOCOL_HEADER: "1", DIGEST_HEADER: entry.digest}
        sent = {name: value for name, value in {**usual, **(headers or {})}.items() if value}
        body = json.dumps({"arguments": arguments, **members}).encode()
        return self.target.send("POST", invoke_path(entry.major, entry.id), sent, body)

    def refused(self, entry: OperationEntry, headers: Mapping[str, str] | None = None, **members: Any) -> Reply:
        """An invocation that no right plugin runs: it has an unknown argument.

        Raises:
            Skip: the operation has consequences, and its schema does not say that it refuses this call.
            Violation: it has consequences, and such a call has run: no other is made.
        """
        if entry.consequential:
            if not self._refuses(entry):
                raise Skip(
                    f"{entry.id} has consequences, and its schema has no required argument or lacks"
                    " additionalProperties: false"
                )
            if self.ran_unknown:
                raise Violation(
                    f"{self.ran_unknown} runs with an unknown argument: {entry.id} has consequences, and is not called"
                )
        reply = self.invoke(entry, {UNKNOWN_ARGUMENT: 1}, headers, **members)
        if reply.status < 300:
            self.ran_unknown = entry.id
        return reply

    def callable_entries(self) -> list[tuple[OperationEntry, Any]]:
        """Entries that may run, each with valid arguments: idempotent and without consequences.

        Raises:
            Skip: there are none, or `call` is off.
        """
        if not self.call:
            raise Skip("calls are off")
        found = []
        for entry in self.entries:
            if entry.idempotent and not entry.consequential:
                arguments = self.samples.get(entry.id, sample(self.schemas(entry)[0]))
                if arguments is not None:
                    found.append((entry, arguments))
        if not found:
            raise Skip("no operation is idempotent, without consequences, and has arguments that can be made up")
        return found


def problem(reply: Reply, code: str, status: int, what: str) -> Problem:
    """The typed problem of an answer.

    Raises:
        Violation: it has another status or type.
    """
    expect(reply.status == status, f"{what}: {status} expected, {reply.status} came: {reply.shown}")
    found = Problem.from_response(reply.status, reply.headers.get("content-type", ""), reply.body)
    if found is None:
        raise Violation(
            f"{what}: application/problem+json with a type urn:octavo-plugin:{code} expected, "
            f"{reply.media_type or 'no content type'} came: {reply.shown}"
        )
    expect(found.code == code, f"{what}: the code {code} expected, {found.code} came")
    return found


def version(context: Context, reply: Reply, what: str) -> str:
    """The version of an answer.

    Raises:
        Violation: it has none, or one that the manifest does not list.
    """
    header = reply.headers.get(PROTOCOL_HEADER.lower())
    found = answered_version(header, context.manifest.protocol)
    if found is None or found.minor != context.manifest.protocol[found.major]:
        listed = [f"{major}.{minor}" for major, minor in context.manifest.protocol.items()]
        raise Violation(f"{what}: {PROTOCOL_HEADER} is {header!r}, one of {listed} expected")
    return str(found)


def typed(reply: Reply, what: str) -> Problem:
    """The typed problem of an answer with any 4xx.

    Raises:
        Violation: it has another status, or no type.
    """
    expect(400 <= reply.status < 500, f"{what}: a 4xx expected, {reply.status} came")
    found = Problem.from_response(reply.status, reply.headers.get("content-type", ""), reply.body)
    if found is None:
        raise Violation(f"{what}: a typed problem expected, {reply.media_type or 'no type'} came: {reply.shown}")
    return found


def check_faults(found: Problem, argument: str = "") -> None:
    """Checks the member `errors` of `invalid-arguments`.

    Args:
        argument: what a pointer or a sentence must name.

    Raises:
        Violation: it is missing, or an item lacks a JSON pointer or a sentence.
    """
    errors = found.extensions.get("errors")
    if not isinstance(errors, list) or not errors:
        raise Violation("invalid-arguments has no errors")
    for error in errors:
        pointer = error.get("pointer") if isinstance(error, dict) else None
        shaped = isinstance(pointer, str) and (not pointer or pointer.startswith("/")) and error.get("detail")
        expect(shaped, f"errors has {str(error)[:200]}: a JSON pointer and a detail expected")
    expect(argument in str(errors), f"errors does not name {argument}")
