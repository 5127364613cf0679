"""The table of fields in docs/server.md is what the server does."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM
from octavo.server import create_app
from octavo.server.fields.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from octavo.server.protocols.anthropic.requests import MessagesRequest
from octavo.server.protocols.responses import ResponsesRequest
from starlette.testclient import TestClient

DOCUMENT = Path(__file__).parents[2] / "docs" / "server.md"
OPENAI = Path(os.environ.get("OCTAVO_OPENAI_SCHEMA", ""))
GREEDY = {"temperature": 0, "max_tokens": 4}
# Path, model of the request, and a request that is answered.
ENDPOINTS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", ChatRequest, {"messages": [{"role": "user", "content": "Hi"}], **GREEDY}),
    "completions": ("/v1/completions", CompletionRequest, {"prompt": "Once", **GREEDY}),
    "responses": ("/v1/responses", ResponsesRequest, {"input": "Hi", "temperature": 0, "max_output_tokens": 4}),
    "messages": ("/v1/messages", MessagesRequest, {"messages": [{"role": "user", "content": "Hi"}], **GREEDY}),
    "embeddings": ("/v1/embeddings", EmbeddingRequest, {"input": "Hi"}),
}
# Values for fields that want one of a kind; others take a text.
VALUES: dict[str, Any] = {
    "metadata": {"a": "b"}, "store": True, "stream_options": {"include_obfuscation": False}, "top_logprobs": 3,
    "functions": [{"name": "f"}], "function_call": "auto", "audio": {"voice": "a"}, "modalities": ["audio"],
    "web_search_options": {"a": 1}, "background": True, "echo": True, "add_special_tokens": True,
}  # fmt: skip


def table() -> dict[str, dict[str, str]]:
    """Per endpoint: field to "yes", "refused" or "ignored"."""
    text = DOCUMENT.read_text(encoding="utf-8")
    head, *rows = re.findall(r"^\| (?:field|`).*\|$", text[text.index("## Fields") :], flags=re.MULTILINE)
    endpoints = [cell.strip() for cell in head.strip("|").split("|")][1:]
    found: dict[str, dict[str, str]] = {name: {} for name in endpoints}
    for row in rows:
        names, *cells = row.strip("|").split("|")
        if len(cells) != len(endpoints):
            break
        for endpoint, cell in zip(endpoints, cells, strict=True):
            for name in re.findall(r"`(\w+)`", names):
                if cell.strip():
                    found[endpoint][name] = cell.strip()
    return found


TABLE = table()


def test_all_endpoints_and_kinds_are_there() -> None:
    assert list(TABLE) == list(ENDPOINTS)
    assert {status for fields in TABLE.values() for status in fields.values()} == {"yes", "refused", "ignored"}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_field_that_is_read_is_named(endpoint: str) -> None:
    _, model, _ = ENDPOINTS[endpoint]
    read = {field.alias or name for name, field in model.model_fields.items()}
    assert not read - set(TABLE[endpoint]), "fields without a row"
    assert not {n for n, status in TABLE[endpoint].items() if status == "yes"} - read, "rows without a field"


REFUSED = [(e, f) for e, fields in TABLE.items() for f, status in fields.items() if status == "refused"]


@pytest.mark.parametrize(("endpoint", "field"), REFUSED)
def test_refused(llm: LLM, endpoint: str, field: str) -> None:
    path, _, body = ENDPOINTS[endpoint]
    found = TestClient(create_app(llm)).post(path, json={**body, field: VALUES.get(field, "x")})
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    # Anthropic's form has no field for the name.
    assert error["param"] == field if "param" in error else error["message"].startswith(f"{field} ")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_ignored(llm: LLM, endpoint: str) -> None:
    path, _, body = ENDPOINTS[endpoint]
    client = TestClient(create_app(llm))
    fields = [f for f, status in TABLE[endpoint].items() if status == "ignored"]
    given = {f: VALUES.get(f, "x") for f in fields}
    assert content(client.post(path, json={**body, **given}).json()) == content(client.post(path, json=body).json())


def content(answer: dict[str, Any]) -> Any:
    parts = answer.get("choices") or answer.get("output") or answer.get("content") or answer["data"]
    return [{k: v for k, v in part.items() if k != "id"} for part in parts]


def test_every_field_of_anthropic_is_named() -> None:
    """As its client's types name them."""
    anthropic = pytest.importorskip("anthropic", reason="Anthropic's client: pip install '.[test-clients]'")
    names: set[str] = set()
    for types in (anthropic.types.message_create_params, anthropic.types.beta.message_create_params):
        names |= set(types.MessageCreateParamsBase.__annotations__)
    # The client sends these in headers.
    assert not names - set(TABLE["messages"]) - {"betas"}


@pytest.mark.skipif(not OPENAI.is_file(), reason="OCTAVO_OPENAI_SCHEMA names no file with OpenAI's OpenAPI description")
@pytest.mark.parametrize("endpoint", [name for name in ENDPOINTS if name != "messages"])
def test_every_field_of_openai_is_named(endpoint: str) -> None:
    document = json.loads(OPENAI.read_text())

    def properties(schema: dict[str, Any]) -> set[str]:
        if "$ref" in schema:
            return properties(document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]])
        parts = [s for key in ("allOf", "anyOf", "oneOf") for s in schema.get(key, [])]
        return set(schema.get("properties", {})).union(*map(properties, parts))

    path = ENDPOINTS[endpoint][0].removeprefix("/v1")
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert not properties(schema) - set(TABLE[endpoint])
