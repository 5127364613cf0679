"""Cases that call operations with valid arguments, and those of the MCP endpoint.

Only idempotent operations without consequences are called.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from octavo.plugins.conformance.case import case
from octavo.plugins.conformance.context import Context, Skip, Violation, expect, typed, version
from octavo.plugins.conformance.sample import variants
from octavo.plugins.conformance.target import Reply
from octavo.plugins.manifest import OperationEntry
from octavo.plugins.protocol import DIGEST_HEADER, IDEMPOTENCY_HEADER, JSON
from octavo.plugins.validation import faults, matches

_MCP_REVISION = "2026-07-28"
# An operation and its arguments.
_Call = tuple[OperationEntry, Any]


def _successes(context: Context) -> list[tuple[OperationEntry, Any, Reply]]:
    """The operations that a call succeeds with; a plugin may refuse made-up arguments that its schema accepts.

    Raises:
        Violation: a call ends with 5xx, or with a refusal of arguments that were given.
        Skip: no call succeeds.
    """
    found, refused = [], []
    for entry, arguments in context.callable_entries():
        reply = context.invoke(entry, arguments)
        expect(reply.status < 500, f"{entry.id} with {arguments!r}: {reply.status} came: {reply.shown}")
        given = entry.id in context.samples and matches(context.schemas(entry)[0], arguments)
        expect(
            reply.status == 200 or not given, f"{entry.id} refuses the given arguments: {reply.status}: {reply.shown}"
        )
        if reply.status == 200:
            found.append((entry, arguments, reply))
        else:
            refused.append(f"{entry.id} {reply.status}")
    if not found:
        raise Skip(f"the plugin refuses all made-up arguments ({', '.join(refused)}): give some with --arguments")
    return found


@case("P-INVOKE-1")
def success_has_a_result(context: Context) -> None:
    """A success is 200 with a result that fits the schema."""
    for entry, _, reply in _successes(context):
        value = reply.json()
        expect(reply.media_type == JSON, f"{entry.id}: {JSON} expected, {reply.media_type or 'no type'} came")
        expect(isinstance(value, dict) and "result" in value, f"{entry.id}: a success without result: {reply.shown}")
        found = faults(context.schemas(entry)[1], value["result"])
        expect(not found, f"{entry.id}: the result does not fit its schema: {[f.detail for f in found[:3]]}")


@case("P-VERSION-5")
def success_has_a_version(context: Context) -> None:
    """A success has the plugin's own version."""
    for entry, _, reply in _successes(context):
        version(context, reply, f"a success of {entry.id}")


@case("P-DIGEST-4", level=2)
def success_has_a_digest(context: Context) -> None:
    """A success has the operation's digest."""
    for entry, _, reply in _successes(context):
        shown = reply.headers.get(DIGEST_HEADER.lower())
        expect(shown == entry.digest, f"a success of {entry.id}: {DIGEST_HEADER} is {shown!r}, {entry.digest} expected")


@case("P-DIGEST-5", level=2)
def digest_is_optional(context: Context) -> None:
    """A call without a digest succeeds as one with it."""
    entry, arguments, _ = _successes(context)[0]
    reply = context.invoke(entry, arguments, {DIGEST_HEADER: ""})
    expect(reply.status == 200, f"{entry.id} without {DIGEST_HEADER}: 200 expected, {reply.status} came")


@case("P-IDEMPOTENCY-1", "P-IDEMPOTENCY-2", level=2)
def keys_are_kept(context: Context) -> None:
    """A repeated idempotency key gets the first answer; with another body it is refused."""
    (entry, arguments), other = _others(context)
    key = _key()
    first = context.invoke(entry, arguments, {IDEMPOTENCY_HEADER: key})
    again = context.invoke(entry, arguments, {IDEMPOTENCY_HEADER: key})
    expect((again.status, again.body) == (first.status, first.body), f"{entry.id}: a repeated key got another answer")
    if other is None:
        raise Skip("no second body that succeeds can be made up: whether a key belongs to one body is not tested")
    what = f"{other[0].id}: a key with another body"
    reply = context.invoke(*other, {IDEMPOTENCY_HEADER: key})
    expect(reply.status == 422, f"{what}: 422 expected, {reply.status} came")
    found = typed(reply, what)
    expect(found.code != "invalid-arguments", f"{what}: invalid-arguments came, but the arguments are valid")


def _key() -> str:
    return f'"{uuid.uuid4()}"'


def _others(context: Context) -> tuple[_Call, _Call | None]:
    """Two calls with other bodies, each of which succeeds under a key of its own; None: there is no second."""
    calls = _successes(context)
    for entry, arguments, _ in calls:
        for each in variants(context.schemas(entry)[0], arguments):
            # A control: the body is valid, thus only the key can be refused.
            if context.invoke(entry, each, {IDEMPOTENCY_HEADER: _key()}).status == 200:
                return (entry, arguments), (entry, each)
    # A plugin may keep the keys of each operation apart, thus another operation comes last.
    first = calls[0][:2]
    return first, next((call[:2] for call in calls[1:] if call[1] != first[1]), None)


@case("P-MCP-1")
def mcp_lists_the_operations(context: Context) -> None:
    """The MCP endpoint lists the operations of the highest API major."""
    manifest = context.manifest
    if manifest.mcp is None:
        raise Skip("the plugin has no MCP endpoint")
    names = {entry.id for entry in context.entries if entry.major == max(manifest.majors)}
    meta = {
        "io.modelcontextprotocol/protocolVersion": _MCP_REVISION,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "octavo-check", "version": "1"},
    }
    found: set[str] = set()
    cursor: str | None = None
    for _ in range(100):
        params: dict[str, Any] = {"_meta": meta} | ({"cursor": cursor} if cursor else {})
        result = _mcp(context, manifest.mcp, "tools/list", params)
        found |= {tool["name"] for tool in result.get("tools", []) if isinstance(tool, dict) and "name" in tool}
        cursor = result.get("nextCursor")
        if not cursor:
            break
    expect(found == names, f"tools/list has {sorted(found)}, {sorted(names)} expected")


def _mcp(context: Context, path: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    headers = {
        "Content-Type": JSON,
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": _MCP_REVISION,
        "Mcp-Method": method,
    }
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    reply = context.target.send("POST", path, headers, body)
    value = reply.json()
    if reply.status != 200 or not isinstance(value, dict) or not isinstance(value.get("result"), dict):
        raise Violation(f"{method}: a result expected, {reply.status} came: {reply.shown}")
    expect(value["result"].get("resultType") == "complete", f"{method}: resultType is missing")
    return dict(value["result"])


CASES = (
    success_has_a_result,
    success_has_a_version,
    success_has_a_digest,
    digest_is_optional,
    keys_are_kept,
    mcp_lists_the_operations,
)
