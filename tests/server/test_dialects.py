"""Fields of other servers are translated or refused by name, and unknown fields are logged with their path."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from octavo import LLM
from octavo.server import create_app
from octavo.server.fields.foreign import REFUSED, REFUSED_BY_EMBEDDINGS, REFUSED_INSIDE
from starlette.testclient import TestClient

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
CHAT = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 40}
COMPLETION = {"prompt": "Once", "temperature": 0, "max_tokens": 40}
JSON = r'\{\s*"ok"\s*:\s*(true|false)\s*\}'


@pytest.fixture(scope="module")
def http(llm: LLM) -> Iterator[TestClient]:
    with TestClient(create_app(llm)) as client:
        yield client


def post(http: TestClient, path: str, **body: Any) -> Any:
    start = {"chat/completions": CHAT, "completions": COMPLETION}.get(path, {})
    return http.post(f"/v1/{path}", json={**start, **body})


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


CONSTRAINTS: list[tuple[dict[str, Any], str]] = [
    ({"guided_json": SCHEMA}, JSON),
    ({"guided_json": json.dumps(SCHEMA)}, JSON),
    ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"guided_grammar": 'start: "a" | "b"'}, "a|b"),
    ({"guided_json_object": True}, r"\{.*"),
    ({"json_schema": SCHEMA}, JSON),
    ({"regex": "[ab]{3}"}, "[ab]{3}"),
    ({"format": SCHEMA}, JSON),
    ({"format": "json"}, r"\{.*"),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JSON),
    ({"response_format": {"type": "json_object", "value": SCHEMA}}, JSON),
    ({"response_format": {"type": "json_object", "response_schema": SCHEMA}}, JSON),
    ({"response_format": {"type": "json", "value": SCHEMA}}, JSON),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, JSON),
    ({"response_format": {"type": "json_schema", "value": {"name": "a", "schema": SCHEMA}}}, JSON),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}, JSON),
    ({"response_format": {"type": "regex", "value": "[ab]{3}"}}, "[ab]{3}"),
    ({"response_format": {"type": "grammar", "value": 'start: "a"'}}, "a"),
]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(("more", "pattern"), CONSTRAINTS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_constraints_are_held(http: TestClient, path: str, more: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, text(post(http, path, **more)), flags=re.DOTALL)


def test_with_the_official_client(client: openai.OpenAI) -> None:
    ask: Any = {"model": "octavo-embedded", "messages": CHAT["messages"]}
    answer = client.chat.completions.create(**ask, extra_body={"guided_choice": ["yes", "no"]})
    assert answer.choices[0].message.content in ("yes", "no")
    with pytest.raises(openai.BadRequestError, match="Lark") as caught:
        client.chat.completions.create(**ask, extra_body={"grammar": 'root ::= "a"'})
    assert caught.value.param == "grammar"


@pytest.mark.parametrize(
    ("more", "same"),
    [
        ({"max_new_tokens": 3}, {"max_tokens": 3}),
        ({"min_new_tokens": 9, "max_tokens": 9}, {"min_tokens": 9, "max_tokens": 9}),
        ({"stop_sequences": ["a"]}, {"stop": ["a"]}),
        ({"n_cmpl": 2, "seed": 1}, {"n": 2, "seed": 1}),
    ],
)  # fmt: skip
def test_other_names(http: TestClient, more: dict[str, Any], same: dict[str, Any]) -> None:
    body = {k: v for k, v in COMPLETION.items() if k != "max_tokens"}
    given, expected = (
        http.post("/v1/completions", json={**body, **fields}).json()["choices"] for fields in (more, same)
    )
    assert given == expected


@pytest.mark.parametrize(
    ("more", "param", "remedy"),
    [
        ({"guided_json": SCHEMA, "structured_outputs": {"regex": "a"}}, "guided_json", "structured_outputs"),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex", "guided_json"),
        ({"max_new_tokens": 3, "max_tokens": 4}, "max_new_tokens", "max_tokens"),
        ({"guided_json": 3}, "guided_json", "object"),
        ({"guided_choice": [3]}, "guided_choice[0]", "string"),
        ({"guided_regex": "("}, "guided_regex", "regex"),
        ({"guided_json": {"type": 3}}, "guided_json", ""),
        ({"guided_json": {"name": "a", "schema": SCHEMA}}, "guided_json", "schema itself"),
        ({"structured_outputs": {"json": {"name": "a", "schema": SCHEMA}}}, "structured_outputs.json", "schema itself"),
        ({"guided_grammar": 'root ::= "a"'}, "guided_grammar", "Lark"),
        ({"response_format": {"type": "grammar", "grammar": 'root ::= "a"'}}, "response_format.grammar", "Lark"),
        ({"response_format": {"type": "structural_tag", "structures": []}}, "response_format.type", "tools"),
        ({"response_format": {"type": "json_object", "schema": 3}}, "response_format.schema", "JSON schema"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": SCHEMA}}},
         "response_format.json_schema", "type 'json_schema'"),
        ({"response_format": {"type": "text", "pattern": "a"}}, "response_format.pattern", "type 'regex'"),
        ({"response_format": {"type": "json_object", "strict_mode": True}}, "response_format.strict_mode", "not known"),
        ({"response_format": {"type": "regex", "value": "a", "schema": {}}}, "response_format.schema", "value"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_contradictions(http: TestClient, path: str, more: dict[str, Any], param: str, remedy: str) -> None:
    answer = post(http, path, **more)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert remedy in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_every_foreign_field_is_refused_with_its_remedy(http: TestClient, path: str) -> None:
    start = {"input": "Hi"} if path == "responses" else {}
    for name, refusal in REFUSED.items():
        answer = post(http, path, **start, **{name: "asked for"})
        assert answer.status_code == 400, name
        assert answer.json()["error"]["param"] == name
        assert refusal.remedy in answer.json()["error"]["message"]
        for value in (None, *refusal.neutral, *({0} - set(refusal.asks))):
            assert not refusal.applies(value), (name, value)


def test_embeddings_refuse_what_changes_the_vector(http: TestClient) -> None:
    for name, refusal in REFUSED_BY_EMBEDDINGS.items():
        answer = http.post("/v1/embeddings", json={"input": "Hi", name: "asked for"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
        assert refusal.remedy in answer.json()["error"]["message"]
    assert http.post("/v1/embeddings", json={"input": "Hi", "embed_dtype": "float32", "n": 3}).status_code == 200


@pytest.mark.parametrize(
    ("path", "name", "value", "remedy"),
    [
        ("completions", "max_completion_tokens", 3, "max_tokens"),
        ("completions", "tools", [{"type": "function", "function": {"name": "f"}}], "another endpoint"),
        ("completions", "top_logprobs", 2, "logprobs"),
        ("chat/completions", "prompt", "x", "messages"),
        ("chat/completions", "input", "x", "messages"),
        ("chat/completions", "best_of", 2, "another endpoint"),
        ("responses", "max_tokens", 3, "max_output_tokens"),
        ("responses", "response_format", {"type": "json_object"}, "text.format"),
        ("responses", "stop", ["a"], "another endpoint"),
        ("responses", "guided_json", SCHEMA, "text.format"),
    ],
)
def test_fields_of_other_endpoints(http: TestClient, path: str, name: str, value: Any, remedy: str) -> None:
    start = {"input": "Hi"} if path == "responses" else {}
    answer = post(http, path, **start, **{name: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == name
    assert remedy in answer.json()["error"]["message"]


@pytest.mark.parametrize("place", list(REFUSED_INSIDE))
def test_refused_inside_objects(http: TestClient, place: str) -> None:
    head, _, key = place.rpartition(".")
    if head == "messages[]":
        body: Any = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x", key: "a"}]}
        expected = f"messages[1].{key}"
    else:
        body, expected = {head: {"regex": "a", key: True}}, place
    answer = post(http, "chat/completions", **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == expected


def test_unknown_fields_inside_objects_are_logged_with_their_path(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    http = TestClient(create_app(llm))
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}", "odd_call": 1}}
    tool = {"type": "function", "odd_tool": 1, "function": {"name": "f", "odd_function": 1}}
    body = {
        "messages": [
            {"role": "user", "content": [part], "weight": 1, "none": None},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "x"},
        ],
        "tools": [tool],
        "stream_options": {"odd_option": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "odd_schema": 1}},
        "odd_top": 1,
    }
    with caplog.at_level(logging.WARNING, logger="octavo.server"):
        http.post("/v1/chat/completions", json={**CHAT, **body})
        http.post("/v1/chat/completions", json={**CHAT, **body})
    logged = sorted(re.findall(r"ignored: '([^']*)'", caplog.text))
    assert logged == sorted([
        "messages[].content[].cache_control", "messages[].tool_calls[].function.odd_call", "messages[].weight",
        "odd_top", "response_format.json_schema.odd_schema", "stream_options.odd_option",
        "tools[].function.odd_function", "tools[].odd_tool",
    ])  # fmt: skip
