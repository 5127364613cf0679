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
from octavo.plugins.protocol import DIGEST_HEADER, JSON, MANIFEST_PATH, PROTOCOL_HEADER, invoke_path
from octavo.plugins.schema import dereference

# No operation has this name.
UNKNOWN_ARGUMENT = "octavo_check_unknown_argument"


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

    @cached_property
    def manifest_reply(self) -> Reply:
        return self.target.send("GET", MANIFEST_PATH)

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest.

        Raises:
            Skip: it cannot be read; the case of the manifest reports why.
        """
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
            post = self.document["paths"][path]["post"]
            arguments = self._member(post["requestBody"]["content"][JSON]["schema"], "arguments")
            return arguments, self._member(post["responses"]["200"]["content"][JSON]["schema"], "result")
        except (KeyError, TypeError, InvalidRequestError) as error:
            raise Violation(f"the OpenAPI document does not describe POST {path}: {error!r}") from None

    @cached_property
    def _open_digests(self) -> set[str]:
        """The digests of entries whose schemas do not exclude unknown arguments."""
        found = set()
        for entry in self.manifest.operations:
            arguments = self.schemas(entry)[0]
            if not isinstance(arguments, dict) or arguments.get("additionalProperties") is not False:
                found.add(entry.digest)
        return found

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
        """An invocation that never runs: it has an unknown argument.

        Raises:
            Skip: the operation has consequences, and its schema does not say that it refuses unknown arguments.
        """
        closed = entry.digest not in self._open_digests
        if entry.consequential and not closed:
            raise Skip(f"{entry.id} has consequences, and its schema lacks additionalProperties: false")
        return self.invoke(entry, {UNKNOWN_ARGUMENT: 1}, headers, **members)

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
    expect(reply.status == status, f"{what}: {status} expected, {reply.status} came: {reply.body[:200]!r}")
    found = Problem.from_response(reply.status, reply.headers.get("content-type", ""), reply.body)
    if found is None:
        raise Violation(
            f"{what}: application/problem+json with a type urn:octavo-plugin:{code} expected, "
            f"{reply.media_type or 'no content type'} came: {reply.body[:200]!r}"
        )
    expect(found.code == code, f"{what}: the code {code} expected, {found.code} came")
    return found
