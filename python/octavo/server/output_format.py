"""Structured output: from a request's fields to the `structured` parameter of SamplingParams."""

from __future__ import annotations

import json
from typing import Any

from octavo.server.errors import ApiError, bad_request
from octavo.server.requests import ResponseFormat, Sampling, StructuredOutputs
from octavo.server.tools import Toolbox
from octavo.structured import Grammar, JsonSchema, Regex, Structured

_OBJECT = {"type": "object"}


def structured(request: Sampling, toolbox: Toolbox | None = None) -> dict[str, Any]:
    """{"structured": ...}, or {} for free output.

    Raises:
        ApiError: 400 if two of response_format, structured_outputs and tools constrain the output.
    """
    found: list[tuple[str, Structured]] = []
    if request.response_format is not None:
        form = response_format(request.response_format)
        if form is not None:
            found.append(("response_format", form))
    if request.structured_outputs is not None:
        found.append(("structured_outputs", _outputs(request.structured_outputs)))
    grammar = None if toolbox is None else toolbox.structure()
    # A response format applies to answers only: a forced call takes precedence.
    if toolbox is not None and grammar is not None and (toolbox.forced or not found):
        found = [("tools", grammar)]
    if len(found) > 1:
        raise bad_request(f"{found[0][0]} and {found[1][0]} exclude each other", found[1][0])
    return {"structured": found[0][1]} if found else {}


def field_of(request: Sampling) -> str:
    """The request's field that errors about the output format name."""
    if request.response_format is not None:
        return "response_format"
    if request.structured_outputs is not None:
        return "structured_outputs"
    return "tools"


def response_format(form: ResponseFormat) -> Structured | None:
    """OpenAI's `response_format`, extended by `regex` and `grammar`."""
    if form.type == "text":
        return None
    if form.type == "json_object":
        return JsonSchema(_OBJECT)
    if form.type == "json_schema":
        if form.json_schema is None:
            raise bad_request("response_format.json_schema is missing", "response_format.json_schema")
        return JsonSchema(_OBJECT if form.json_schema.schema_ is None else form.json_schema.schema_)
    if form.type == "regex":
        return Regex(_needed(form.pattern, "response_format.pattern"))
    return Grammar(_needed(form.grammar, "response_format.grammar"))


def _needed(value: str | None, name: str) -> str:
    if value is None:
        raise bad_request(f"{name} is missing", name)
    return value


def _outputs(given: StructuredOutputs) -> Structured:
    wanted = [n for n in ("json_", "regex", "choice", "grammar", "json_object") if getattr(given, n) is not None]
    if len(wanted) != 1:
        raise _one_of()
    if given.json_ is not None:
        return JsonSchema(given.json_)
    if given.regex is not None:
        return Regex(given.regex)
    if given.grammar is not None:
        return Grammar(given.grammar)
    if given.json_object:
        return JsonSchema(_OBJECT)
    if not given.choice or not all(given.choice):
        raise bad_request("structured_outputs.choice: texts are expected", "structured_outputs.choice")
    return Grammar("start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in given.choice))


def _one_of() -> ApiError:
    message = "structured_outputs: exactly one of json, regex, choice, grammar and json_object is expected"
    return bad_request(message, "structured_outputs")
