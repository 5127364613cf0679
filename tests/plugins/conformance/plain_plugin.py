"""A plugin written from docs/plugin-protocol.md alone: `http.server`, nothing of octavo. `fault` breaks one rule."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ARGUMENTS = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 100},
        "times": {"type": "integer", "default": 1, "minimum": 1},
    },
    "required": ["text"],
    "additionalProperties": False,
}
RESULT = {"type": "object", "properties": {"words": {"type": "integer"}}, "required": ["words"]}
# Both schemas are canonical as they are.
_CANONICAL = json.dumps({"arguments": ARGUMENTS, "result": RESULT}, sort_keys=True, separators=(",", ":"))
DIGEST = "sha256:" + hashlib.sha256(_CANONICAL.encode()).hexdigest()
_PREFIX = "urn:octavo-plugin:"


class PlainPlugin:
    """`ran`: the operations that ran. Those whose ids begin with `del` have consequences."""

    def __init__(self, fault: str, ids: Sequence[str], limit: int) -> None:
        self.fault, self.ids, self.limit = fault, list(ids), limit
        self.ran: list[str] = []
        self.keys: dict[str, bytes] = {}
        self.document = json.dumps(self._document()).encode()
        operations: Any = [self.entry(name) for name in ids]
        manifest = {
            "octavo_plugin": {"protocol": {"1": 0}},
            **{"name": "plain", "version": "1.0.0"},
            "majors": "1" if fault == "majors" else [1],
            "openapi": {"url": "openapi.json", "sha256": hashlib.sha256(self.document).hexdigest()},
            "operations": [] if fault == "no-operations" else operations,
            "limits": {"body_bytes": limit, "timeout_s": 10},
        }
        self.manifest = json.dumps(manifest).encode()

    def entry(self, name: str) -> dict[str, Any]:
        effects = name.startswith("del")
        return {"id": name, "major": 1, "digest": DIGEST, "consequential": effects, "idempotent": not effects}

    def _document(self) -> dict[str, Any]:
        def content(member: str, schema: Any) -> dict[str, Any]:
            whole = {"type": "object", "properties": {member: schema}, "required": [member]}
            return {"description": "", "content": {"application/json": {"schema": whole}}}

        body, answer = content("arguments", ARGUMENTS), content("result", RESULT)
        parts: dict[str, Any] = {"requestBodies": {"B": body}, "responses": {"R": answer}}
        if self.fault == "references":
            body = {"$ref": "#/components/requestBodies/B"}
            answer = {"$ref": "#/components/responses/R"}
        post = {"requestBody": body, "responses": {"200": answer}}
        paths = {f"/v1/invoke/{name}": {"post": post} for name in self.ids}
        return {"openapi": "3.1.0", "info": {"title": "p", "version": "1.0.0"}, "paths": paths, "components": parts}

    def faults(self, arguments: dict[str, Any]) -> list[dict[str, str]]:
        known = ARGUMENTS["properties"]
        bad = [] if self.fault == "ignores-unknown" else [name for name in arguments if name not in known]  # type: ignore[operator]
        if self.fault not in ("no-types", "ignores-unknown"):
            text, times = arguments.get("text"), arguments.get("times", 1)
            bad += ["text"] if not isinstance(text, str) or len(text) > 100 else []
            least = -1000 if self.fault == "no-ranges" else 1
            bad += ["times"] if type(times) is not int or times < least else []
        start = "$." if self.fault == "pointers" else "/"
        found = [{"pointer": start + name, "detail": f"{name} is wrong"} for name in bad]
        return found or [{"pointer": "", "detail": "never"}] * (self.fault == "always-422")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plugin: PlainPlugin

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content_Type": kind, "Content_Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _problem(self, code: str, status: int, headers: dict[str, str] | None = None, **members: Any) -> None:
        body = {"type": _PREFIX + code, "status": status, "detail": "no", **members}
        sent = {"Octavo_Protocol": "1.0", **(headers or {})}
        self._answer(status, json.dumps(body).encode(), "application/problem+json", **sent)

    def do_GET(self) -> None:
        for path, body in (
            ("/.well-known/octavo-plugin.json", self.plugin.manifest),
            ("/openapi.json", self.plugin.document),
        ):
            if self.path == path:
                tag = f'"{hashlib.sha256(body).hexdigest()[:8]}"'
                if self.headers.get("If-None-Match") == tag:
                    self.send_response(304)
                    self.end_headers()
                    return
                self._answer(200, body, ETag=tag)
                return
        self._other()

    def _other(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.plugin.fault == "untyped-405":
            self._answer(405, b"no", "text/plain", Allow="POST")
        else:
            self._problem("method-not-allowed", 405, {"Allow": "POST"})

    do_PUT = do_DELETE = _other  # noqa: N815 - names of http.server

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > self.plugin.limit:
            if self.plugin.fault == "early-413":
                # RFC 9110, 15.5.14: a server may answer at once, and close.
                self.close_connection = True
            else:
                self.rfile.read(length)
            self._problem("body-too-large", 413)
            return
        body = self.rfile.read(length)
        offered = self.headers.get("Octavo-Protocol")
        if offered and "1" not in {item.partition(".")[0].strip() for item in offered.split(",") if item != " 1.x"}:
            self._problem("unsupported-version", 400, supported=["1.0"])
            return
        parts = self.path.strip("/").split("/")
        if parts[0] != "v1" or parts[-1] not in self.plugin.ids:
            near = [name for name in self.plugin.ids if parts[0] == "v1" and parts[-1].startswith(name)]
            self._problem("unknown-operation", 404, nearest=near)
            return
        self._invoke(parts[-1], body)

    def _invoke(self, name: str, body: bytes) -> None:
        plugin, headers = self.plugin, {"Octavo_Digest": DIGEST}
        try:
            arguments = json.loads(body)["arguments"]
        except (ValueError, KeyError, TypeError, RecursionError):
            arguments = None
        key = self.headers.get("Idempotency-Key")
        if not isinstance(arguments, dict):
            self._problem("malformed-request", 400, headers)
        elif self.headers.get("Octavo-Digest", DIGEST) != DIGEST:
            operation = {**plugin.entry(name), "arguments": ARGUMENTS, "result": RESULT}
            self._problem("schema-changed", 409, headers, digest=DIGEST, operation=operation)
        elif found := plugin.faults(arguments):
            self._problem("invalid-arguments", 422, headers, errors=found)
        elif key and plugin.fault != "no-keys" and plugin.keys.setdefault(key, body) != body:
            self._problem("idempotency-key-reused", 422, headers)
        else:
            plugin.ran.append(name)
            result: Any = {"words": len(str(arguments.get("text")).split())}
            if plugin.fault == "second-wrong" and name == plugin.ids[-1]:
                result = "nonsense"
            sent = {} if plugin.fault == "no-headers" else {"Octavo_Protocol": "1.0", **headers}
            self._answer(200, json.dumps({"result": result, "warnings": []}).encode(), **sent)


@contextlib.contextmanager
def serve(
    fault: str = "", ids: Sequence[str] = ("count", "echo"), limit: int = 100_000
) -> Iterator[tuple[str, PlainPlugin]]:
    """The base URL of a plugin, and the plugin."""
    plugin = PlainPlugin(fault, ids, limit)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"plugin": plugin}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", plugin
    finally:
        server.shutdown()
        server.server_close()
        thread.join(20)
