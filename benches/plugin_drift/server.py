"""A simulated plugin on the level of its wire, written from the specification and not from the SDK.

It speaks levels 0 to 2, and has the quirks that plugins and the machines before them have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs

from octavo.plugins.schema import digest

from benches.plugin_drift.oracle import Execution
from benches.plugin_drift.releases import RefusedError, Release

Reply = tuple[int, dict[str, str], bytes]
PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Quirks:
    """How a plugin differs from the plain one.

    Attributes:
        protocol: protocol major -> minor.
        drops_answer_headers, drops_request_headers: a proxy removes headers that it does not list.
        echoes: answers with the headers of the request, as a naive machine does; it checks nothing.
        strict_list: accepts only the exact versions that it lists.
        stale: caches before the plugin keep the old manifest and document.
        chatty: members and headers that no client has seen, everywhere.
        no_manifest: what a service without a manifest answers: `404` or `page`.
        query: at level 0, the operation is a GET with query parameters.
    """

    protocol: Mapping[int, int] = field(default_factory=lambda: {1: 0})
    drops_answer_headers: bool = False
    drops_request_headers: bool = False
    echoes: bool = False
    strict_list: bool = False
    stale: bool = False
    chatty: bool = False
    no_manifest: str = "404"
    query: bool = False


@lru_cache(maxsize=4096)
def _digest(arguments: str, result: str) -> str:
    return digest(json.loads(arguments), json.loads(result))


def digest_of(release: Release, closed: bool) -> str:
    return _digest(json.dumps(release.parameters(closed)), json.dumps(release.result()))


class SimulatedPlugin:
    """Serves one release, and older majors through converters. `release` may be replaced at any time: a deployment."""

    def __init__(self, release: Release, level: int, quirks: Quirks) -> None:
        self.release = release
        self.level, self.quirks = level, quirks
        # API major -> its last release, for majors that are served through a converter.
        self.older: dict[int, Release] = {}
        self.executions: list[Execution] = []
        self._cached: dict[str, Reply] = {}
        self._keys: dict[str, Reply] = {}

    @property
    def closed(self) -> bool:
        """Services that follow no protocol ignore members that they do not expect."""
        return self.level > 0

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answers a request; `path` is relative to the base URL."""
        sent = {name.lower(): value for name, value in headers.items()}
        if self.quirks.drops_request_headers:
            sent = {n: v for n, v in sent.items() if not n.startswith("octavo-")}
        path, _, query = path.lstrip("/").partition("?")
        if method == "GET" and path == self.release.operation and self.quirks.query and self.release.fields:
            return self._run(self.release, json.dumps(_arguments(self.release, query)).encode())
        if method == "GET":
            return self._document(path, sent)
        status, answer_headers, answer = self._post(path, sent, body)
        if self.quirks.echoes:
            answer_headers |= {n: v for n, v in sent.items() if n.startswith("octavo-")}
        elif self.level > 0 and not self.quirks.drops_answer_headers:
            version = self._version(sent)
            answer_headers["Octavo-Protocol"] = version or "1.0"
        if self.quirks.chatty:
            answer_headers["Octavo-Colour"] = "blue"
        return status, answer_headers, answer

    # Documents

    def _document(self, path: str, sent: Mapping[str, str]) -> Reply:
        if path not in (".well-known/octavo-plugin.json", "openapi.json"):
            return 404, {"Content-Type": "text/plain"}, b"not here"
        if path.startswith(".well-known") and self.level == 0 and not self.quirks.echoes:
            return self._no_manifest()
        if self.quirks.stale and path in self._cached:
            reply = self._cached[path]
        else:
            value = self._manifest() if path.startswith(".well-known") else self._openapi()
            text = json.dumps(value).encode()
            tag = f'"{hashlib.sha256(text).hexdigest()[:16]}"'
            reply = 200, {"Content-Type": "application/json", "ETag": tag, "Cache-Control": "max-age=300"}, text
            self._cached[path] = reply
        if sent.get("if-none-match") == reply[1]["ETag"]:
            return 304, {"ETag": reply[1]["ETag"]}, b""
        return reply

    def _no_manifest(self) -> Reply:
        page = b"<!doctype html><title>app</title>"
        if self.quirks.no_manifest == "page":
            return 200, {"Content-Type": "text/html"}, page
        return 404, {"Content-Type": "text/html"}, page

    def _served(self) -> list[Release]:
        return [release for release in (*self.older.values(), self.release) if release.fields is not None]

    def _manifest(self) -> dict[str, Any]:
        operations = [self._entry(release, full=False) for release in self._served()]
        if self.level < 2:
            operations = [{k: v for k, v in entry.items() if k != "digest"} for entry in operations]
        value: dict[str, Any] = {
            "octavo_plugin": {"protocol": {str(major): minor for major, minor in self.quirks.protocol.items()}},
            "name": "weather",
            "version": self.release.version,
            "majors": sorted({*self.older, self.release.major}),
            "openapi": {"url": "openapi.json"},
            "operations": operations,
            "limits": {"body_bytes": 1048576, "timeout_s": 10},
        }
        return {**value, "colour": "blue", "capabilities": {"paint": 3}} if self.quirks.chatty else value

    def _entry(self, release: Release, full: bool) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "id": release.operation,
            "major": release.major,
            "digest": digest_of(release, self.closed),
            "since": "1.0",
            "consequential": release.consequential,
            "idempotent": release.idempotent,
            "aliases": release.aliases() if self.level > 1 else {},
            "deprecated": None,
        }
        if full:
            entry |= {"description": release.summary, "arguments": release.parameters(), "result": release.result()}
        return {**entry, "colour": "blue"} if self.quirks.chatty else entry

    def _openapi(self) -> dict[str, Any]:
        paths: dict[str, Any] = {}
        for release in self._served():
            parameters, result = release.parameters(self.closed), release.result()
            if self.level > 0:
                envelope = {"type": "object", "properties": {"arguments": parameters}, "required": ["arguments"]}
                answer = {"type": "object", "properties": {"result": result}, "required": ["result"]}
                path = f"/v{release.major}/invoke/{release.operation}"
            else:
                envelope, answer, path = parameters, result, f"/{release.operation}"
            paths[path] = self._described(release, envelope, answer)
        info = {"title": "weather", "version": self.release.version}
        return {"openapi": "3.1.0", "info": info, "paths": paths}

    def _described(self, release: Release, envelope: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        value: dict[str, Any] = {
            "operationId": release.operation if self.level == 0 else f"{release.operation}_v{release.major}",
            "description": release.summary,
            "responses": {"200": {"description": "ok", "content": {"application/json": {"schema": answer}}}},
        }
        if not self.quirks.query:
            body = {"required": True, "content": {"application/json": {"schema": envelope}}}
            return {"post": {**value, "requestBody": body}}
        value["parameters"] = []
        for f in release.known():
            schema = {k: v for k, v in f.schema().items() if k != "description"}
            text = f.concept.phrases[f.phrase]
            value["parameters"].append(
                {"name": f.name, "in": "query", "required": f.required, "description": text, "schema": schema}
            )
        return {"get": value}

    # Calls

    def _version(self, sent: Mapping[str, str]) -> str | None:
        """The protocol version of the answer; None: there is no common one."""
        listed = {f"{major}.{minor}" for major, minor in self.quirks.protocol.items()}
        named = sent.get("octavo-protocol")
        if named is None:
            oldest = min(self.quirks.protocol)
            return f"{oldest}.{self.quirks.protocol[oldest]}"
        if self.quirks.strict_list:
            return next((item.strip() for item in named.split(",") if item.strip() in listed), None)
        majors = {int(item.split(".")[0]) for item in named.split(",")} & set(self.quirks.protocol)
        return f"{max(majors)}.{self.quirks.protocol[max(majors)]}" if majors else None

    def _post(self, path: str, sent: Mapping[str, str], body: bytes) -> Reply:
        served = {self._path(release): release for release in self._served()}
        release = served.get(path)
        if release is None:
            return self._unknown(path)
        if self.level > 0 and not self.quirks.echoes and self._version(sent) is None:
            listed = [f"{major}.{minor}" for major, minor in self.quirks.protocol.items()]
            return _problem(400, "unsupported-version", "no common protocol version", supported=listed)
        own = digest_of(release, self.closed)
        checks = self.level > 1 and not self.quirks.echoes
        shown = {"Octavo-Digest": own} if checks and not self.quirks.drops_answer_headers else {}
        if checks and sent.get("octavo-digest", own) != own:
            entry = self._entry(release, full=True)
            status, headers, text = _problem(409, "schema-changed", "the schema changed", digest=own, operation=entry)
            return status, headers | shown, text
        key = sent.get("idempotency-key")
        if checks and key in self._keys:
            return self._keys[key]
        status, headers, text = self._run(release, body)
        reply = status, headers | shown, text
        if checks and key is not None and status == 200:
            self._keys[key] = reply
        return reply

    def _path(self, release: Release) -> str:
        return release.operation if self.level == 0 else f"v{release.major}/invoke/{release.operation}"

    def _unknown(self, path: str) -> Reply:
        if self.level == 0:
            return 404, {"Content-Type": "application/json"}, b'{"detail": "Not Found"}'
        nearest = [release.operation for release in self._served()]
        return _problem(404, "unknown-operation", f"nothing serves {path}", nearest=nearest)

    def _run(self, release: Release, body: bytes) -> Reply:
        try:
            value = json.loads(body)
            arguments = value if self.level == 0 else value["arguments"]
            meaning = release.meaning(arguments, self.closed)
            done = release if release is self.release else self._converted(release, meaning)
        except RefusedError as error:
            errors = [{"pointer": error.pointer, "detail": error.detail}]
            if self.level == 0:
                detail = [{"loc": ["body", error.pointer[1:]], "msg": error.detail, "type": "value_error"}]
                return 422, {"Content-Type": "application/json"}, json.dumps({"detail": detail}).encode()
            return _problem(422, "invalid-arguments", str(error), errors=errors)
        self.executions.append(Execution(done, meaning))
        result: Any = release.answer(meaning)
        if self.level > 0:
            result = {"result": result, "warnings": []}
            if self.quirks.chatty:
                result["colour"] = "blue"
        return 200, {"Content-Type": "application/json"}, json.dumps(result).encode()

    def _converted(self, old: Release, meaning: dict[str, Any]) -> Release:
        """What a converter does: it hands each meaning on, or refuses what the new major cannot do."""
        for concept_id, value in meaning.items():
            before, after = old.field_of(concept_id), self.release.field_of(concept_id)
            assert before is not None
            if after is None and value != before.default:
                raise RefusedError(f"/{before.name}", "no longer possible")
            if after is not None and not after.accepts(value):
                raise RefusedError(f"/{before.name}", "no longer accepted")
        # To a client of the old major it is the old release, with the new one's units.
        return replace(old, factor=self.release.factor)


def _problem(status: int, code: str, detail: str, **extensions: Any) -> Reply:
    value = {"type": f"urn:octavo-plugin:{code}", "status": status, "title": code, "detail": detail, **extensions}
    return status, {"Content-Type": PROBLEM}, json.dumps(value).encode()


def _arguments(release: Release, query: str) -> dict[str, Any]:
    """Query parameters as values: by the schema, as web frameworks do; what cannot be read stays a string."""
    found: dict[str, Any] = {}
    given = parse_qs(query, keep_blank_values=True)
    for f in release.known():
        if f.name not in given:
            continue
        kind = f.schema()["type"]
        text = given[f.name][-1]
        found[f.name] = given[f.name] if kind == "array" else text
        if kind in ("integer", "number"):
            with suppress(ValueError):
                found[f.name] = float(text) if kind == "number" else int(text)
        if kind == "boolean":
            found[f.name] = {"true": True, "false": False}.get(text, text)
    return found
