"""Each schema that programs really write: accepted for a tool and for an answer, and held where it can be."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from octavo import LLM, Grammar, JsonSchema, SamplingParams
from octavo.server import ServerConfig, create_app
from octavo.server.calls.formats import FORMATS
from octavo.server.calls.grammar import grammar
from octavo.server.context import Context
from octavo.server.schemas import fit, tool_functions
from schema_corpus import corpus
from starlette.testclient import TestClient

CORPUS = corpus()
TURN = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def clients(llm: LLM) -> dict[str, TestClient]:
    styles = ("hermes", "qwen3_coder", "pythonic")
    return {name: TestClient(create_app(llm, ServerConfig(tool_parser=name))) for name in styles}


def test_every_schema_is_accepted_under_auto(clients: dict[str, TestClient]) -> None:
    """Eight in a request, in each style of calls."""
    for style, client in clients.items():
        # In a form without one object, schemas of other types than objects are all the same.
        schemas = [s for name, s in CORPUS.items() if style == "hermes" or not name.startswith("pydantic")]
        for start in range(0, len(schemas), 8):
            part = schemas[start : start + 8]
            tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": p}} for i, p in enumerate(part)]
            body = {"messages": TURN, "tools": tools, "max_tokens": 1}
            found = client.post("/v1/chat/completions", json=body)
            assert found.status_code == 200, (style, found.text)


def test_every_schema_is_accepted_for_an_answer(clients: dict[str, TestClient]) -> None:
    for name, schema in CORPUS.items():
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        found = clients["hermes"].post(
            "/v1/chat/completions", json={"messages": TURN, "response_format": form, "max_tokens": 1}
        )
        assert found.status_code == 200, (name, found.text)


def standard(schema: Any) -> bool:
    """Whether the schema is one that jsonschema can judge."""
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError:
        return False
    return "example.com/pet" not in json.dumps(schema)


def test_documents_are_valid_where_the_schema_is_held(llm: LLM) -> None:
    held = {name: fit(schema, closed=True) for name, schema in CORPUS.items()}
    exact = [name for name, fitted in held.items() if not fitted.losses and standard(CORPUS[name])]
    # Most of what these libraries write is held as it is.
    assert len(exact) > 0.75 * len(CORPUS), set(CORPUS) - set(exact)
    params = [
        SamplingParams(
            structured=JsonSchema(held[name].schema, disable_additional_properties=False),
            temperature=1.5, n=2, seed=3, max_tokens=120,
        )
        for name in exact
    ]  # fmt: skip
    whole = 0
    for name, output in zip(exact, llm.generate(["x"] * len(exact), params, use_tqdm=False), strict=True):
        for sample in output.outputs:
            if sample.finish_reason == "stop":
                whole += 1
                jsonschema.validate(json.loads(sample.text), CORPUS[name])
    assert whole > len(exact)


@pytest.mark.parametrize("style", ["hermes", "qwen3_coder", "pythonic"])
def test_calls_are_valid_where_the_schema_is_held(llm: LLM, style: str) -> None:
    form = FORMATS[style]
    names = [name for name in CORPUS if name.startswith(("field", "mcp", "zod"))]
    context = Context(llm, ServerConfig())
    jobs, schemas = [], []
    for name in names:
        tool = {"function": {"name": "f", "parameters": CORPUS[name]}}
        functions = tool_functions(context, [tool], form.style)
        text = grammar(llm, form, functions, forced=True, parallel=False)
        jobs.append(SamplingParams(structured=Grammar(text), temperature=1.5, seed=4, max_tokens=100))
        fitted = fit({**CORPUS[name], "type": "object"}, closed=True)
        schemas.append((functions, CORPUS[name] if not fitted.losses and standard(CORPUS[name]) else None))
    whole = 0
    outputs = llm.generate(["x"] * len(jobs), jobs, use_tqdm=False)
    for (functions, schema), output in zip(schemas, outputs, strict=True):
        reader = form.reader(functions, forced=True)
        pieces = [*reader.feed(output.text), *reader.finish()]
        if output.outputs[0].finish_reason != "stop":
            continue
        whole += 1
        arguments = json.loads("".join(getattr(piece, "text", "") for piece in pieces))
        if schema is not None:
            jsonschema.validate(arguments, schema)
    # The others are cut off.
    assert whole
