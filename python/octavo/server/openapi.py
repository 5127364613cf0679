"""The OpenAPI document, made from the models that validate requests."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from octavo import __version__
from octavo.server.auth import KEY_HEADERS
from octavo.server.routes import Route, openai_error
from octavo.server.service import Service

_REF = "#/components/schemas/{model}"


def document(service: Service) -> dict[str, Any]:
    """OpenAPI 3.1."""
    models = [(r.request, "validation") for r in service.routes if r.request is not None]
    _, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for route in service.routes:
        if not route.documented:
            continue
        operation: dict[str, Any] = {
            "summary": route.summary,
            "operationId": route.handler.__name__ + ("_by_name" if "{" in route.path else ""),
            "responses": _responses(route),
        }
        if route.request is not None:
            body = {"schema": {"$ref": _REF.format(model=route.request.__name__)}}
            operation["requestBody"] = {"required": True, "content": {"application/json": body}}
        if route.admin:
            operation["security"] = [{"admin": []}]
        if "{" in route.path:
            name = route.path.partition("{")[2].partition("}")[0]
            operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    schema: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "octavo", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**definitions.get("$defs", {}), "Error": _ERROR}},
    }
    schemes: dict[str, Any] = {}
    if service.config.takes_adapters:
        schemes["admin"] = {"type": "http", "scheme": "bearer"}
    if service.config.api_keys:
        schemes["key"] = {"type": "http", "scheme": "bearer"}
        schemes |= {name: {"type": "apiKey", "in": "header", "name": name} for name in KEY_HEADERS}
        schema["security"] = [{"key": []}, *({name: []} for name in KEY_HEADERS)]
    if schemes:
        schema["components"]["securitySchemes"] = schemes
    return schema


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


# Errors of routes with a form of their own.
_OTHER_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object"}}}


def _responses(route: Route) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model="Error")} if route.error is openai_error else _OTHER_ERROR
    fault = {"content": {"application/json": {"schema": schema}}}
    answers: dict[str, Any] = {"200": {"description": "The answer"}}
    codes = {"401": "No valid API key", "404": "Not here", "503": "The engine is not available"}
    if route.request is not None:
        codes |= {
            "400": "A parameter that cannot be right, named in `param`",
            "413": "The body is too long",
            "415": "Not JSON",
            "429": "The queue is full: try again after Retry-After",
            "500": "A step failed",
            "504": "The request's own timeout passed",
        }
    for code, text in sorted(codes.items()):
        answers[code] = {"description": text, **fault}
    return answers
