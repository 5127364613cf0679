"""Cases that call operations with valid arguments, and those of the MCP endpoint.

Only idempotent operations without consequences are called.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from octavo.plugins.conformance.case import case
from octavo.plugins.conformance.context import Context, Skip, Violation, expect
from octavo.plugins.conformance.target import Reply
from octavo.plugins.manifest import OperationEntry
from octavo.plugins.protocol import DIGEST_HEADER, IDEMPOTENCY_HEADER, JSON
from octavo.plugins.validation import faults

_MCP_REVISION = "2026-07-28"


def _succeeds(context: Context, key: str = "") -> tuple[OperationEntry, Any, Reply]:
    """The first operation that a made-up call succeeds with; a plugin may refuse what its schema accepts.

    Raises:
        Violation: a call ends with 5xx.
        Skip: no call succeeds.
    """
    refused = []
    for entry, arguments in context.callable_entries():
        reply = context.invoke(entry, arguments, {IDEMPOTENCY_HEADER: key})
        expect(reply.status < 500, f"{entry.id} with {arguments!r}: {reply.status} came: {reply.body[:200]!r}")
        if reply.status == 200:
            return entry, arguments, reply
        refused.append(f"{entry.id} {reply.status}")
    raise Skip(f"the plugin refuses all made-up arguments ({', '.join(refused)}): give some with --arguments")


@case("P-INVOKE-1")
def success_has_a_result(context: Context) -> None:
    """A success is 200 with a result that fits the schema."""
    entry, _, reply = _succeeds(context)
    value = reply.json()
    expect(reply.media_type == JSON, f"{entry.id}: {JSON} expected, {reply.media_type or 'no type'} came")
    expect(isinstance(value, dict) and "result" in value, f"{entry.id}: a success without result: {reply.body[:200]!r}")
    found = faults(context.schemas(entry)[1], value["result"])
    expect(not found, f"{entry.id}: the result does not fit its schema: {[f.detail for f in found[:3]]}")


@case("P-DIGEST-5", level=2)
def digest_is_optional(context: Context) -> None:
    """A call without a digest succeeds as one with it."""
    entry, arguments, _ = _succeeds(context)
    reply = context.invoke(entry, arguments, {DIGEST_HEADER: ""})
    expect(reply.status == 200, f"{entry.id} without {DIGEST_HEADER}: 200 expected, {reply.status} came")


@case("P-IDEMPOTENCY-1", "P-IDEMPOTENCY-2", level=2)
def keys_are_kept(context: Context) -> None:
    """A repeated idempotency key gets the first answer; with another body it is refused."""
    key = f'"{uuid.uuid4()}"'
    entry, arguments, first = _succeeds(context, key)
    again = context.invoke(entry, arguments, {IDEMPOTENCY_HEADER: key})
    expect((again.status, again.body) == (first.status, first.body), f"{entry.id}: a repeated key got another answer")
    other = context.invoke(entry, {**arguments, "octavo_check": 1}, {IDEMPOTENCY_HEADER: key})
    expect(other.status == 422, f"{entry.id}: a key with another body: 422 expected, {other.status} came")


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
        raise Violation(f"{method}: a result expected, {reply.status} came: {reply.body[:200]!r}")
    expect(value["result"].get("resultType") == "complete", f"{method}: resultType is missing")
    return dict(value["result"])


CASES = (success_has_a_result, digest_is_optional, keys_are_kept, mcp_lists_the_operations)
