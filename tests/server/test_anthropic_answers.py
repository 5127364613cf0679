"""Answers of Anthropic's API: blocks, events, errors, and both applications."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from octavo import LLM
from octavo.errors import QueueFullError
from octavo.server import ServerConfig, create_app, create_wsgi_app
from octavo.server.context import Context
from octavo.server.errors import ApiError, from_octavo
from octavo.server.fields.requests import read
from octavo.server.generation import Generation
from octavo.server.parsing import Arguments, Call, Content, Plain, Reasoning
from octavo.server.protocols.anthropic import anthropic_error
from octavo.server.protocols.anthropic.answer import Messages
from octavo.server.protocols.anthropic.requests import MessagesRequest
from octavo.server.protocols.openai_chat import Begun
from octavo.server.reasoning import Reader
from octavo.server.targets import Target
from starlette.testclient import TestClient

SCHEMA: Any = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}


@pytest.fixture
def context(llm: LLM) -> Context:
    found: Context = create_app(llm).state.octavo.context
    return found


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


THINKS = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking %}<think>
{% endif %}{% endif %}"""


@pytest.fixture(scope="module")
def thinker() -> Iterator[TestClient]:
    with LLM(chat_template=THINKS, max_num_seqs=4) as llm:
        yield TestClient(create_app(llm, ServerConfig(reasoning_parser="think")))


def events(client: TestClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    found = client.post("/v1/messages", json={**body, "stream": True}).text
    return [json.loads(line.removeprefix("data: ")) for line in found.splitlines() if line.startswith("data: ")]


def test_thinking_is_a_block_with_a_signature(thinker: TestClient) -> None:
    body: Any = {"max_tokens": 6, "temperature": 0, "messages": [{"role": "user", "content": "Who are you?"}]}
    on, off = {"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}
    assert [b["type"] for b in thinker.post("/v1/messages", json={**body, "thinking": off}).json()["content"]] == [
        "text"
    ]
    (block,) = thinker.post("/v1/messages", json={**body, "thinking": on}).json()["content"]
    assert block["type"] == "thinking"
    assert block["thinking"]
    assert block["signature"]
    stream = events(thinker, {**body, "thinking": on})
    deltas = [e["delta"] for e in stream if e["type"] == "content_block_delta"]
    assert {d["type"] for d in deltas[:-1]} == {"thinking_delta"}
    assert "".join(d["thinking"] for d in deltas[:-1]) == block["thinking"]
    assert deltas[-1] == {"type": "signature_delta", "signature": block["signature"]}
    few = thinker.post("/v1/messages", json={**body, "max_tokens": 40, "thinking": {**on, "budget_tokens": 8}}).json()
    assert 4 <= few["usage"]["output_tokens_details"]["thinking_tokens"] <= 8
    hidden = {**on, "display": "omitted"}
    (block,) = thinker.post("/v1/messages", json={**body, "thinking": hidden}).json()["content"]
    assert (block["type"], block["thinking"]) == ("thinking", "")
    assert {
        d["delta"]["type"] for d in events(thinker, {**body, "thinking": hidden}) if "delta" in d and "index" in d
    } == {"signature_delta"}


def test_a_schema_excludes_a_turn_that_begins_its_value(thinker: TestClient) -> None:
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    body: Any = {"max_tokens": 4, "output_config": form, "messages": [{"role": "user", "content": "a"}]}
    found = thinker.post(
        "/v1/messages", json={**body, "messages": [*body["messages"], {"role": "assistant", "content": "{"}]}
    )
    assert found.status_code == 400
    assert found.json()["error"]["message"].startswith("output_config.format ")


THINKS_THEN = THINKS.replace("{% if enable_thinking %}", "{% if enable_thinking | default(true) %}")


def test_thinking_then_an_answer_under_a_schema() -> None:
    """The reasoning is free, and the answer after it is a block of its own."""
    with LLM(chat_template=THINKS_THEN, max_num_seqs=1) as llm:
        client = TestClient(create_app(llm, ServerConfig(reasoning_parser="think")))
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        schema["additionalProperties"] = False
        body: Any = {
            "max_tokens": 300,
            "temperature": 0,
            "messages": [{"role": "user", "content": "Is it?"}],
            "output_config": {"format": {"type": "json_schema", "schema": schema}},
        }
        blocks = client.post("/v1/messages", json=body).json()
        kinds = [block["type"] for block in blocks["content"]]
        assert kinds[0] == "thinking"
        assert blocks["usage"]["output_tokens_details"]["thinking_tokens"] > 0
        if blocks["stop_reason"] == "end_turn":
            assert kinds == ["thinking", "text"]
            assert isinstance(json.loads(blocks["content"][1]["text"])["ok"], bool)


FAULTS = [
    (ApiError(400, "m"), 400, "invalid_request_error"),
    (ApiError(401, "m"), 401, "authentication_error"),
    (ApiError(403, "m"), 403, "permission_error"),
    (ApiError(404, "m"), 404, "not_found_error"),
    (ApiError(405, "m"), 405, "invalid_request_error"),
    (ApiError(413, "m"), 413, "request_too_large"),
    (ApiError(415, "m"), 415, "invalid_request_error"),
    (ApiError(429, "m"), 429, "rate_limit_error"),
    (from_octavo(QueueFullError("m")), 529, "overloaded_error"),
    (ApiError(500, "m"), 500, "api_error"),
    (ApiError(503, "m"), 503, "api_error"),
    (ApiError(504, "m"), 504, "timeout_error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), FAULTS)
def test_errors(error: ApiError, status: int, kind: str) -> None:
    reply = anthropic_error(error, "req-1")
    assert reply.status == status
    wanted = {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "req-1"}
    assert json.loads(reply.body) == wanted


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_all_errors_of_the_path_have_the_form(llm: LLM, kind: str) -> None:
    """Also those that are found before the handler runs."""
    config = ServerConfig(api_keys=("key",), allowed_hosts=("testserver", "localhost"))
    if kind == "asgi":
        client: Any = TestClient(create_app(llm, config))
    else:
        from werkzeug.test import Client

        client = Client(create_wsgi_app(llm, config))

    def fault(method: str, path: str, **headers: str) -> tuple[int, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("content-type", "application/json")
        found = client.open(path, method=method, headers=named) if kind == "wsgi" else None
        found = found or client.request(method, path, headers=named)
        body = json.loads(found.data if kind == "wsgi" else found.content)
        assert set(body) == {"type", "error", "request_id"}
        assert found.headers["request-id"] == body["request_id"]
        return found.status_code, body["error"]["type"]

    assert fault("POST", "/v1/messages") == (401, "authentication_error")
    assert fault("POST", "/v1/messages", host="a.example") == (403, "permission_error")
    assert fault("GET", "/v1/messages", x_api_key="key") == (405, "invalid_request_error")
    assert fault("GET", "/v1/messages/batches", x_api_key="key") == (404, "not_found_error")
    assert fault("POST", "/v1/v1/messages", x_api_key="key") == (404, "not_found_error")
    assert fault("POST", "/v1/messages/count_tokens", x_api_key="key", content_type="a/b")[0] == 415
    assert fault("POST", "/v1/messages", x_api_key="key", x_none="x" * 40_000)[0] == 431


LONG = "mcp__" + "x" * 123


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_both_applications_answer_and_stream(llm: LLM, kind: str) -> None:
    body: Any = {"max_tokens": 24, "temperature": 0, "messages": [user(text("Who are you?"))]}
    # Names are longer here than in OpenAI's API.
    tools = [{"name": LONG, "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}}]
    forced = {**body, "max_tokens": 300, "tools": tools, "tool_choice": {"type": "tool", "name": LONG}}
    if kind == "asgi":
        client: Any = TestClient(create_app(llm))
    else:
        from werkzeug.test import Client

        client = Client(create_wsgi_app(llm))

    def post(given: Any) -> str:
        found: str = client.post("/v1/messages?beta=true", json=given).text
        return found

    whole = json.loads(post(body))["content"][0]["text"]
    read_events = [json.loads(line[6:]) for line in post({**body, "stream": True}).splitlines() if line[:6] == "data: "]
    assert "".join(e["delta"].get("text", "") for e in read_events if e["type"] == "content_block_delta") == whole
    (block,) = json.loads(post(forced))["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", LONG, {})
    counted = json.loads(client.post("/v1/messages/count_tokens", json=body).text)
    assert counted["input_tokens"] > 0


PIECES: list[tuple[list[Any], list[Any]]] = [
    ([Content("\n"), Call("f"), Arguments("{}")], [("tool_use", {})]),
    (
        [Content("a"), Content("\n"), Call("f"), Arguments('{"a":'), Arguments("1}")],
        [("text", "a\n"), ("tool_use", {"a": 1})],
    ),
    ([Call("f"), Arguments("{}"), Content("\n"), Call("g"), Arguments("{}")], [("tool_use", {}), ("tool_use", {})]),
    ([Call("f"), Content(" "), Content(" b")], [("tool_use", {}), ("text", "  b")]),
    ([Reasoning("r"), Content("\n\n"), Content("b")], [("thinking", "r"), ("text", "\n\nb")]),
    ([Content("\n"), Content(" ")], [("text", "\n ")]),
    ([Call("f"), Arguments('{"b": 1, "a": "cut')], [("tool_use", {"b": 1})]),
    ([Call("f"), Arguments("[1]")], [("tool_use", {})]),
    ([], []),
]


@pytest.mark.parametrize(("pieces", "wanted"), PIECES)
@pytest.mark.parametrize("stream", [False, True])
def test_blocks(pieces: list[Any], wanted: list[Any], stream: bool) -> None:
    """White space alone, which models write around calls, makes no block of text beside others."""
    request = read(MessagesRequest, {"max_tokens": 9, "messages": [user(text("a"))], "stream": stream})
    begun = Begun(Generation([]), lambda: Reader(Plain()), frozenset(), Target("m"))
    response = Messages(request, begun)
    sent = b"".join(response._piece(piece) for piece in pieces)
    if not stream:
        found = [tuple(block.values()) for block in json.loads(response.reply().body)["content"]]
        assert [(f[0], f[-1] if f[0] != "thinking" else f[1]) for f in found] == wanted
        return
    sent += response.end()
    lines = [json.loads(line[6:]) for line in sent.decode().splitlines() if line.startswith("data: ")]
    starts = [e["content_block"]["type"] for e in lines if e["type"] == "content_block_start"]
    assert starts == [kind for kind, _ in wanted]
    for kind, value in wanted:
        if kind == "text":
            parts = [e["delta"]["text"] for e in lines if e.get("delta", {}).get("type") == "text_delta"]
            assert "".join(parts) == value


def test_the_openapi_document(llm: LLM) -> None:
    paths = TestClient(create_app(llm)).get("/openapi.json").json()["paths"]
    body = paths["/v1/messages"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("/MessagesRequest")
    of_other = paths["/v1/completions"]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
    assert of_other["$ref"].endswith("/Error")
    own = paths["/v1/messages"]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
    assert own["required"] == ["error"]
    assert "$ref" not in own


def test_a_stream_that_fails_ends_with_an_error_event(thinker: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Messages) -> bytes:
        raise ApiError(503, "gone")

    monkeypatch.setattr(Messages, "end", fail)
    body: Any = {"max_tokens": 2, "messages": [{"role": "user", "content": "a"}], "stream": True}
    found = thinker.post("/v1/messages", json=body).text
    last = found.strip().split("\n\n")[-1].split("\n")
    assert last[0] == "event: error"
    assert json.loads(last[1].removeprefix("data: "))["error"] == {"type": "api_error", "message": "gone"}


def test_a_sign_of_life_is_a_ping_event(context: Context) -> None:
    response = object.__new__(Messages)
    response.stream = True
    assert response.ping() == b'event: ping\ndata: {"type":"ping"}\n\n'
