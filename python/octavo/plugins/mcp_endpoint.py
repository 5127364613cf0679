"""MCP over the same table: Streamable HTTP without sessions, one JSON answer for one request.

The stateless revision 2026-07-28 is served in full for tools. Clients of the handshake era (`initialize`) are answered
too, without a session. Tools are the operations of the newest API major.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.plugins import protocol
from octavo.plugins.convert import Endpoint, Table
from octavo.plugins.exchange import Request, Response, json_response, read_json
from octavo.plugins.operation import accept
from octavo.plugins.problems import Problem, ProblemError
from octavo.plugins.running import Done, Job

STATELESS = "2026-07-28"
HANDSHAKE = ("2025-03-26", "2025-06-18", "2025-11-25")
_META = "io.modelcontextprotocol/"
# JSON-RPC code -> HTTP status, by the revision's transport rules. Other codes are sent with 200.
_PARSE, _INVALID_REQUEST, _NO_METHOD, _INVALID_PARAMS = -32700, -32600, -32601, -32602
_HEADER_MISMATCH, _UNSUPPORTED = -32020, -32022
_STATUS = {_NO_METHOD: 404, **dict.fromkeys((_PARSE, _INVALID_REQUEST, _INVALID_PARAMS, _HEADER_MISMATCH), 400)}
_STATUS[_UNSUPPORTED] = 400
_OK_STATUS = 200


class _RpcError(Exception):
    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code, self.data = code, data


@dataclass(frozen=True)
class McpServer:
    """The MCP side of a plugin."""

    name: str
    version: str
    description: str
    table: Table

    def begin(self, request: Request) -> Response | Job:
        """Answers a POST to the endpoint, or returns the job of a `tools/call`."""
        number: Any = None
        try:
            body = self._read(request)
            number = body.get("id")
            if "id" not in body:
                # Notifications change nothing here: there is no session.
                return Response(202)
            modern = self._is_stateless(request, body)
            return self._dispatch(request, body, modern)
        except _RpcError as error:
            fault = {"code": error.code, "message": str(error)}
            if error.data is not None:
                fault["data"] = error.data
            status = _STATUS.get(error.code, _OK_STATUS)
            return json_response({"jsonrpc": "2.0", "id": number, "error": fault}, status)

    def _read(self, request: Request) -> dict[str, Any]:
        try:
            body = read_json(request.body)
        except ProblemError as error:
            raise _RpcError(_PARSE, error.problem.detail) from None
        if not isinstance(body, dict) or body.get("jsonrpc") != "2.0" or not isinstance(body.get("method"), str):
            raise _RpcError(_INVALID_REQUEST, "the body must be one JSON-RPC 2.0 request with a method")
        number = body.get("id", 0)
        if isinstance(number, bool) or not isinstance(number, (int, str)):
            body.pop("id")
            raise _RpcError(_INVALID_REQUEST, "id must be a text or an integer")
        if not isinstance(body.get("params", {}), dict):
            raise _RpcError(_INVALID_PARAMS, "params must be an object")
        return body

    def _is_stateless(self, request: Request, body: Mapping[str, Any]) -> bool:
        """Whether the request is of the stateless era, whose rules are then checked.

        Raises:
            _RpcError: the first rule that it breaks.
        """
        params = body.get("params", {})
        meta = params.get("_meta")
        meta = meta if isinstance(meta, dict) else {}
        header = request.header("mcp-protocol-version")
        if body["method"] == "initialize" or (_META + "protocolVersion" not in meta and header in (None, *HANDSHAKE)):
            return False
        missing = [key for key in ("protocolVersion", "clientCapabilities") if _META + key not in meta]
        if missing:
            names = ", ".join(_META + key for key in missing)
            raise _RpcError(_INVALID_PARAMS, f"params._meta lacks {names}")
        version = meta[_META + "protocolVersion"]
        name = params.get("name")
        expected = [("mcp-protocol-version", version), ("mcp-method", body["method"])]
        expected += [("mcp-name", name)] if body["method"] == "tools/call" and name is not None else []
        for key, value in expected:
            if _decoded(request.header(key)) != value:
                raise _RpcError(_HEADER_MISMATCH, f"the header {key} differs from the body: send the same value")
        if version != STATELESS:
            data = {"supported": [STATELESS], "requested": version}
            raise _RpcError(_UNSUPPORTED, "Unsupported protocol version", data)
        return True

    def _dispatch(self, request: Request, body: Mapping[str, Any], modern: bool) -> Response | Job:
        params, method = body.get("params", {}), body["method"]
        results: dict[str, Callable[[], dict[str, Any]]] = {"tools/list": lambda: self._list(params, modern)}
        if modern:
            results["server/discover"] = self._discover
        else:
            results |= {"initialize": lambda: self._initialize(params), "ping": dict}
        if method == "tools/call":
            return self._call(request, body, modern)
        if method not in results:
            served = ", ".join(sorted([*results, "tools/call"]))
            raise _RpcError(_NO_METHOD, f"no method is called {method[:80]!r} here: {served} are served")
        return self._reply(body, results[method](), modern)

    def _discover(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "supportedVersions": [*HANDSHAKE, STATELESS],
            "capabilities": {"tools": {}},
            **self._caching(),
        }
        return found | ({"instructions": self.description} if self.description else {})

    def _initialize(self, params: Mapping[str, Any]) -> dict[str, Any]:
        asked = params.get("protocolVersion")
        found: dict[str, Any] = {
            "protocolVersion": asked if asked in HANDSHAKE else HANDSHAKE[-1],
            "capabilities": {"tools": {}},
            "serverInfo": self._info(),
        }
        return found | ({"instructions": self.description} if self.description else {})

    def _list(self, params: Mapping[str, Any], modern: bool) -> dict[str, Any]:
        if params.get("cursor") is not None:
            raise _RpcError(_INVALID_PARAMS, "cursor is not one of this server: the list has one page")
        tools = [_tool(endpoint, modern) for endpoint in self._endpoints().values()]
        return {"tools": tools, **(self._caching() if modern else {})}

    def _call(self, request: Request, body: Mapping[str, Any], modern: bool) -> Response | Job:
        params = body.get("params", {})
        name = params.get("name")
        endpoint = self._endpoints().get(name) if isinstance(name, str) else None
        arguments = params.get("arguments")
        if endpoint is None:
            names = ", ".join(list(self._endpoints())[:20])
            raise _RpcError(_INVALID_PARAMS, f"no tool is called {str(name)[:80]!r}: there are {names}")
        if arguments is not None and not isinstance(arguments, dict):
            raise _RpcError(_INVALID_PARAMS, "arguments must be an object")

        def respond(outcome: Done | Problem) -> Response:
            result = _failure(outcome) if isinstance(outcome, Problem) else _success(endpoint, outcome, modern)
            return self._reply(body, result, modern)

        named, notes = accept(arguments or {}, endpoint.entry)
        try:
            bound = endpoint.bind(named)
        except ProblemError as error:
            # The model can correct its arguments: this is a result, not an error of the protocol.
            return respond(error.problem)
        return Job(endpoint, bound, request, respond, tuple(notes), detached=endpoint.entry.consequential)

    def _reply(self, body: Mapping[str, Any], result: dict[str, Any], modern: bool) -> Response:
        if modern:
            meta = {**result.get("_meta", {}), _META + "serverInfo": self._info()}
            result = {"resultType": "complete", **result, "_meta": meta}
        return json_response({"jsonrpc": "2.0", "id": body["id"], "result": result})

    def _info(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version}

    def _caching(self) -> dict[str, Any]:
        # Private: with credentials, another user may get another answer.
        return {"ttlMs": protocol.MANIFEST_MAX_AGE_S * 1000, "cacheScope": "private"}

    def _endpoints(self) -> dict[str, Endpoint]:
        newest = max((major for _, major in self.table), default=0)
        return {name: endpoint for (name, major), endpoint in self.table.items() if major == newest}


def _tool(endpoint: Endpoint, modern: bool) -> dict[str, Any]:
    entry = endpoint.entry
    tool = {
        "name": entry.id,
        "description": entry.description,
        "inputSchema": entry.arguments,
        "annotations": {
            "readOnlyHint": not entry.consequential,
            "destructiveHint": entry.consequential,
            "idempotentHint": entry.idempotent,
        },
        "_meta": {"octavo/digest": entry.digest},
    }
    if entry.result:
        tool["outputSchema"] = entry.result if modern or _is_object(entry.result) else _wrapped(entry.result)
    return tool


def _is_object(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "object"


def _wrapped(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An object with the result as its member: the handshake era takes objects alone."""
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    found: dict[str, Any] = {"type": "object", "properties": {"result": inner}, "required": ["result"]}
    return {**found, "$defs": schema["$defs"]} if "$defs" in schema else found


def _success(endpoint: Endpoint, outcome: Done, modern: bool) -> dict[str, Any]:
    value = outcome.result
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    plain = modern or _is_object(endpoint.entry.result) or (isinstance(value, dict) and not endpoint.entry.result)
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": False}
    result["structuredContent"] = value if plain else {"result": value}
    if outcome.warnings:
        result["_meta"] = {"octavo/warnings": list(outcome.warnings)}
    return result


def _failure(problem: Problem) -> dict[str, Any]:
    lines = [problem.detail or problem.code]
    lines += [f"{e.get('pointer')}: {e.get('detail')}" for e in problem.extensions.get("errors", ())]
    content = [{"type": "text", "text": "\n".join(dict.fromkeys(lines))}]
    return {"content": content, "isError": True, "_meta": {"octavo/problem": problem.to_json()}}


def _decoded(header: str | None) -> str | None:
    """A header's value; `=?base64?...?=` holds text that a header cannot."""
    if header is None or not (header.startswith("=?base64?") and header.endswith("?=") and len(header) > 10):
        return header
    try:
        return base64.b64decode(header[9:-2], validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None
