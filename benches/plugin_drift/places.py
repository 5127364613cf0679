"""Arguments of level 0 in their places: a service reads paths, queries and headers as OpenAPI says, and compares.

No drift is needed to lose a value here. A text has no form for `null`, a list with commas may come back as another one,
and what is left out gets a default of the service that no document states.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from octavo.plugins.host import PluginHost, PluginSource
from octavo.plugins.host.transport import HttpAnswer, HttpRequest

from benches.plugin_drift.oracle import Verdict

BASE = "http://127.0.0.1:9/"
_TEXTS = ("tea", "a b", "a,b", "", " x ", "ü", "a/b", "..", "null", "true", "1", "50%", "a&b=c", "{p1}", "x;y", "[]")
_PLAIN = ("tea", "ink", "map", "Vale")
_PLACES = ("query", "query", "commas", "path", "header", "deep")
_MISSING = object()


@dataclass(frozen=True)
class Part:
    """One parameter of an operation.

    Attributes:
        place: `query`, `commas` (a list in one query parameter), `path`, `header`, `deep` (OpenAPI's deepObject).
        kind: `text`, `count`, `share`, `flag`, `texts`, `counts` or `object`.
        default: what the service uses if it gets none.
        stated: whether the document states the default.
    """

    name: str
    place: str
    kind: str
    nullable: bool
    required: bool
    default: Any
    stated: bool

    def document(self, old: bool) -> dict[str, Any]:
        """The parameter in an OpenAPI document; `old`: of version 3.0."""
        schema = _schema(self.kind)
        if self.nullable:
            schema = {**schema, "nullable": True} if old else {"anyOf": [schema, {"type": "null"}]}
        if self.stated:
            schema["default"] = self.default
        place = {"commas": "query", "deep": "query"}.get(self.place, self.place)
        found: dict[str, Any] = {"name": self.name, "in": place, "required": self.required, "schema": schema}
        if self.place == "commas":
            found["explode"] = False
        if self.place == "deep":
            found |= {"style": "deepObject", "explode": True}
        return found


def _schema(kind: str) -> dict[str, Any]:
    if kind in ("texts", "counts"):
        return {"type": "array", "items": _schema(kind[:-1])}
    if kind == "object":
        return {"type": "object", "additionalProperties": {"type": "string"}}
    return {"type": {"text": "string", "count": "integer", "share": "number", "flag": "boolean"}[kind]}


def draw(rng: random.Random, kind: str, texts: tuple[str, ...] = _TEXTS) -> Any:
    """A value of a kind."""
    if kind in ("texts", "counts"):
        return [draw(rng, kind[:-1], texts) for _ in range(rng.randint(0 if texts is _TEXTS else 1, 3))]
    if kind == "object":
        return {rng.choice(("k", "l", "m[n]") if texts is _TEXTS else ("k", "l")): rng.choice(texts)}
    return {
        "text": lambda: rng.choice(texts),
        "count": lambda: rng.choice((0, 1, -7, 10**18)),
        "share": lambda: rng.choice((0.0, 1.0, 0.1, -2.5, 1e22)),
        "flag": lambda: rng.random() < 0.5,
    }[kind]()


class Service:
    """A service of one operation. It notes what its operation got."""

    def __init__(self, parts: list[Part], old: bool) -> None:
        self.parts, self.old = parts, old
        self.got: list[dict[str, Any]] = []

    def send(self, request: HttpRequest) -> HttpAnswer:
        path, _, query = request.url.removeprefix(BASE).partition("?")
        if path == "openapi.json":
            return _json(200, self.document())
        segments = [unquote(part) for part in path.split("/")]
        if segments[0] != "find" or len(segments) != 1 + sum(p.place == "path" for p in self.parts):
            return _json(404, {"detail": "Not Found"})
        try:
            self.got.append(self._read(segments[1:], parse_qsl(query, keep_blank_values=True), request.headers))
        except ValueError as error:
            return _json(422, {"detail": str(error)})
        return _json(200, "done")

    def document(self) -> dict[str, Any]:
        path = "/".join(["/find", *(f"{{{p.name}}}" for p in self.parts if p.place == "path")])
        operation = {"operationId": "find", "parameters": [p.document(self.old) for p in self.parts]}
        info = {"title": "places", "version": "1"}
        return {"openapi": "3.0.3" if self.old else "3.1.0", "info": info, "paths": {path: {"get": operation}}}

    def _read(self, segments: list[str], query: list[tuple[str, str]], headers: Mapping[str, str]) -> dict[str, Any]:
        sent = {name.lower(): value.strip() for name, value in headers.items()}
        rest = iter(segments)
        found: dict[str, Any] = {}
        for part in self.parts:
            raw: Any = _MISSING
            if part.place == "path":
                raw = next(rest)
            elif part.place == "header":
                raw = sent.get(part.name.lower(), _MISSING)
            elif part.place == "deep":
                prefix = part.name + "["
                members = {k[len(prefix) : -1]: v for k, v in query if k.startswith(prefix) and k.endswith("]")}
                raw = members or _MISSING
            else:
                raw = [value for name, value in query if name == part.name] or _MISSING
            if raw is _MISSING:
                if part.required:
                    raise ValueError(f"{part.name} is missing")
                found[part.name] = part.default
            else:
                found[part.name] = _value(part, raw)
        return found


def _value(part: Part, raw: Any) -> Any:
    """A value from its text, as web frameworks read it.

    Raises:
        ValueError: the text is none of the type.
    """
    if part.kind == "object":
        return raw
    if part.kind not in ("texts", "counts"):
        return _scalar(part.kind, raw[-1] if isinstance(raw, list) else raw)
    if part.place != "query":
        text = raw[-1] if isinstance(raw, list) else raw
        raw = [item.strip() if part.place == "header" else item for item in text.split(",")]
    return [_scalar(part.kind[:-1], item) for item in raw]


def _scalar(kind: str, text: str) -> Any:
    if kind == "flag":
        if text not in ("true", "false"):
            raise ValueError(f"{text!r} is no boolean")
        return text == "true"
    return {"text": str, "count": int, "share": float}[kind](text)


def _json(status: int, value: Any) -> HttpAnswer:
    return HttpAnswer(status, {"content-type": "application/json"}, json.dumps(value).encode())


@dataclass(frozen=True)
class Placed:
    """What came of one call.

    Attributes:
        ordinary: each value has a form in its place.
    """

    seed: int
    verdict: Verdict
    code: str
    ordinary: bool
    arguments: dict[str, Any]
    got: dict[str, Any] | None


def place(seed: int) -> Placed:
    """One operation, one call."""
    rng = random.Random(f"places {seed}")
    texts = _PLAIN if rng.random() < 0.5 else _TEXTS
    parts = [_part(rng, i, texts) for i in range(rng.randint(1, 4))]
    arguments = {}
    for part in parts:
        if part.required or rng.random() < 0.8:
            empty = part.nullable and texts is _TEXTS and rng.random() < 0.4
            arguments[part.name] = None if empty else draw(rng, part.kind, texts)
    service = Service(parts, rng.random() < 0.3)
    with PluginHost({"p": PluginSource(BASE)}, transport=service, clock=lambda: 0.0, sleep=lambda _: None) as host:
        try:
            host.tools()
            outcome = host.call("p__find", arguments)
        except Exception as error:
            return Placed(seed, Verdict.UNTYPED, type(error).__name__, texts is _PLAIN, arguments, None)
    got = service.got[-1] if service.got else None
    verdict = Verdict.TYPED if outcome.error is not None and outcome.status != "internal" else Verdict.UNTYPED
    if got is not None:
        meant = {p.name: arguments.get(p.name, p.default) for p in parts}
        verdict = Verdict.RIGHT if _same(got, meant) else Verdict.WRONG
    return Placed(seed, verdict, outcome.status, texts is _PLAIN, arguments, got)


def _part(rng: random.Random, at: int, texts: tuple[str, ...]) -> Part:
    where = rng.choice(_PLACES)
    kinds = ("text", "text", "count", "share", "flag", "texts", "counts")
    kind = {"deep": "object", "commas": rng.choice(("texts", "counts"))}.get(where) or rng.choice(kinds)
    required = where == "path" or rng.random() < 0.3
    default = None if rng.random() < 0.2 else draw(rng, kind, texts)
    stated = not required and default is not None and rng.random() < 0.5
    name = f"X-P{at}" if where == "header" else f"p{at}"
    return Part(name, where, kind, rng.random() < 0.4, required, default, stated)


def _same(one: Any, other: Any) -> bool:
    return json.dumps(_numbers(one), sort_keys=True) == json.dumps(_numbers(other), sort_keys=True)


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def place_figures(placed: list[Placed]) -> dict[str, Any]:
    """What the calls measured."""
    ordinary = [p for p in placed if p.ordinary]
    return {
        "calls": len(placed),
        "right": sum(p.verdict is Verdict.RIGHT for p in placed),
        "typed": sum(p.verdict is Verdict.TYPED for p in placed),
        "silent_wrong": sum(p.verdict is Verdict.WRONG for p in placed),
        "untyped": sum(p.verdict is Verdict.UNTYPED for p in placed),
        "ordinary": {"calls": len(ordinary), "right": sum(p.verdict is Verdict.RIGHT for p in ordinary)},
    }
