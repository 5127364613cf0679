"""Nothing is dropped in silence: each field of a request is done, refused by name, or named in the log.

test_fields.py holds the table of docs/server.md complete, and shows what is refused and what is ignored.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from client_cases import TOOL
from octavo import LLM
from octavo.hub import embedded_model
from octavo.server import ServerConfig, create_app
from octavo.server.fields.known_keys import BLOCKS, ITEMS
from plugin_cases import both
from pydantic import BaseModel
from starlette.testclient import TestClient
from test_fields import ENDPOINTS, TABLE
from tokenizers import Tokenizer, processors

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
FLAT = {"type": "function", **TOOL["function"]}
OF_ANTHROPIC = {"name": "weather", "input_schema": TOOL["function"]["parameters"]}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
TURN = {"role": "user", "content": "Bye"}
LONG = {"type": "enabled", "budget_tokens": 1024}
# What each field is given, and the fields that it needs beside it. "endpoint.field" goes before "field".
VALUES: dict[str, Any] = {
    "model": "absent",
    "pack": "absent",
    "stream": True,
    "temperature": 1.5,
    "thinking_token_budget": 5,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.5,
    "seed": 7,
    "n": 2,
    "cache_salt": "s",
    "priority": 3,
    "timeout": 9,
    "bad_words": ["Octavo"],
    "frequency_penalty": 1.5,
    "ignore_eos": True,
    "presence_penalty": 1.5,
    "repetition_penalty": 1.5,
    "include_stop_str_in_output": True,
    "logit_bias": {"30": 100},
    "max_tokens": 2,
    "min_tokens": 2,
    "prompt_logprobs": 1,
    "return_token_ids": True,
    "skip_special_tokens": False,
    "stop": ["a"],
    "stop_token_ids": [30],
    "structured_outputs": {"choice": ["yes"]},
    "attention_error_bound": 0.001,
    "max_completion_tokens": 2,
    "messages": [TURN],
    "prompt": "Two",
    "echo": True,
    "best_of": 3,
    "input": "Two",
    "add_special_tokens": False,
    "instructions": "Be brief.",
    "max_output_tokens": 2,
    "previous_response_id": "resp_none",
    "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    "dimensions": 8,
    "normalize": False,
    "encoding_format": "base64",
    "pooling": "last",
    "system": "Be brief.",
    "stop_sequences": ["a"],
    "store": False,
    "response_format": {"type": "json_object"},
    "chat.logprobs": True,
    "completions.logprobs": 2,
    "top_logprobs": 2,
    "stream_options": {"include_usage": True},
    "tools": [TOOL],
    "responses.tools": [FLAT],
    "messages.tools": [OF_ANTHROPIC],
    "tool_choice": "required",
    "messages.tool_choice": {"type": "any"},
    "parallel_tool_calls": False,
    "add_generation_prompt": False,
    "chat_template_kwargs": {"shout": True},
    "continue_final_message": True,
    "thinking": LONG,
    "output_config": {"format": FORMAT},
    "output_format": FORMAT,
    "continuous_usage_stats": True,
    "truncate_prompt_tokens": 1,
    "allowed_token_ids": [30],
    "return_tokens_as_token_ids": True,
    "plugins": ["shop"],
    "plugin_approvals": {"call-1": True},
    "max_plugin_rounds": 1,
    "max_tool_calls": 1,
}
PRICE = {"type": "function", "function": {"name": "shop__price"}}
NEEDS: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "continue_final_message": {
        "add_generation_prompt": False,
        "messages": [TURN, {"role": "assistant", "content": "I"}],
    },
    "chat.tool_choice": {"tools": [TOOL]},
    "responses.tool_choice": {"tools": [FLAT]},
    "messages.tool_choice": {"tools": [OF_ANTHROPIC]},
    "chat.parallel_tool_calls": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 80},
    "responses.parallel_tool_calls": {"tools": [FLAT], "tool_choice": "required", "max_output_tokens": 80},
    "include_stop_str_in_output": {"stop": ["a"]},
    "thinking": {"max_tokens": 2000},
    "chat.return_tokens_as_token_ids": {"logprobs": True},
    "completions.return_tokens_as_token_ids": {"logprobs": 1},
    "plugin_approvals": {"plugins": ["shop"]},
    "max_plugin_rounds": {"plugins": ["shop"], "tool_choice": PRICE, "max_tokens": 200},
    "max_tool_calls": {
        "tools": [{"type": "mcp", "server_label": "shop"}],
        "tool_choice": {"type": "mcp", "server_label": "shop", "name": "price"},
        "max_output_tokens": 200,
    },
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}TOOLS{% endif %}{% if shout or enable_thinking %}LOUD{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CASES = [(e, f) for e, fields in TABLE.items() for f, status in fields.items() if status == "yes"]


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model whose template shows each of its variables, and whose tokenizer adds a token."""
    folder = tmp_path_factory.mktemp("loud") / "model"
    shutil.copytree(embedded_model(), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    beginning = [("<|endoftext|>", 0)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=beginning)
    tokenizer.save(str(folder / "tokenizer.json"))
    with LLM(folder, chat_template=TEMPLATE, attention="dynamic") as llm:
        yield llm


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the engine."""
    seen: list[Any] = []
    submit, embed = LLM.submit, LLM.submit_embedding

    def note(self: LLM, prompt: Any, params: Any = None, **more: Any) -> Any:
        seen.append((prompt, repr(params), more))
        return submit(self, prompt, params, **more)

    def note_embedding(self: LLM, prompt: Any, **more: Any) -> Any:
        seen.append((prompt, more))
        return embed(self, prompt, **more)

    monkeypatch.setattr(LLM, "submit", note)
    monkeypatch.setattr(LLM, "submit_embedding", note_embedding)
    return seen


def outcome(client: TestClient, path: str, body: dict[str, Any], submitted: list[Any]) -> Any:
    """What the client and the engine see of a request, without ids, times and echoes of the request."""
    submitted.clear()
    response = client.post(path, json=body)
    if response.headers["content-type"].startswith("text/event-stream"):
        rows = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
        return response.status_code, [sorted(json.loads(row)) for row in rows], list(submitted)
    answer = response.json()
    parts = [_plain(answer.get(key)) for key in ("choices", "output", "content", "data", "error")]
    stored = client.get(f"{path}/{answer['id']}").status_code if answer.get("object") == "response" else None
    return response.status_code, parts, stored, list(submitted)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in ("id", "call_id")}
    return [_plain(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("endpoint", "field"), CASES)
def test_a_field_that_is_done_changes_the_outcome(loud: LLM, submitted: list[Any], endpoint: str, field: str) -> None:
    path, _, body = ENDPOINTS[endpoint]
    needs = NEEDS.get(f"{endpoint}.{field}", NEEDS.get(field, {}))
    value = VALUES[f"{endpoint}.{field}"] if f"{endpoint}.{field}" in VALUES else VALUES[field]
    with both()[0].host() as host:
        config = ServerConfig(served_model_names=("octavo-embedded",), reasoning_parser="think", plugins=host)
        client = TestClient(create_app(loud, config))
        without = outcome(client, path, {**body, **needs}, submitted)
        assert without[0] == 200
        assert outcome(client, path, {**body, **needs, field: value}, submitted) != without


# --- unknown fields at every level ------------------------------------------------------------------------------------

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome", "days": 1}'}}
# A request of each endpoint with every object that its model has.
WHOLE: dict[str, dict[str, Any]] = {
    "chat": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        "stream": True,
        "stream_options": {"include_usage": False},
    },
    "completions": {"prompt": "x", "structured_outputs": {"json": SCHEMA}},
    "responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        "tools": [FLAT],
        "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    },
    "messages": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "tools": [OF_ANTHROPIC],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "disabled"},
    },
    "embeddings": {"input": "x"},
}
# Values in these are the caller's own: schemas, arguments.
FREE = ("parameters", "schema", "input_schema", "json")
UNKNOWN = "zzz_unknown"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The objects of a request."""
    if isinstance(value, dict):
        yield path
        for name, inner in value.items():
            if name not in FREE:
                yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*path, i))


def with_unknown(body: Any, path: tuple[Any, ...]) -> Any:
    if not path:
        return {**body, UNKNOWN: 1}
    made = dict(body) if isinstance(body, dict) else list(body)
    made[path[0]] = with_unknown(body[path[0]], path[1:])
    return made


EVERYWHERE = [(endpoint, path) for endpoint, body in WHOLE.items() for path in places(body)]


@pytest.mark.parametrize(
    ("endpoint", "path"), EVERYWHERE, ids=lambda v: v if isinstance(v, str) else ".".join(map(str, v))
)
def test_an_unknown_field_at_every_level_is_named(
    llm: LLM, caplog: pytest.LogCaptureFixture, endpoint: str, path: tuple[Any, ...]
) -> None:
    url, _, body = ENDPOINTS[endpoint]
    client = TestClient(create_app(llm, ServerConfig()))
    with caplog.at_level(logging.WARNING, "octavo.server"):
        response = client.post(url, json=with_unknown({**body, **WHOLE[endpoint]}, path))
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    named = [text for text in said if UNKNOWN in text]
    assert named or (response.status_code == 400 and UNKNOWN in response.text), response.text
    assert response.status_code in (200, 400), response.text


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_whole_requests_are_served(llm: LLM, endpoint: str) -> None:
    url, _, body = ENDPOINTS[endpoint]
    response = TestClient(create_app(llm)).post(url, json={**body, **WHOLE[endpoint]})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_model_of_a_request_keeps_unknown_fields(endpoint: str) -> None:
    """Else pydantic would drop them before anyone sees them."""
    seen: set[type[BaseModel]] = set()

    def visit(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind in seen:
                return
            seen.add(kind)
            assert kind.model_config.get("extra") in ("allow", "forbid"), kind
            for field in kind.model_fields.values():
                visit(field.annotation)
        for inner in getattr(kind, "__args__", ()):
            visit(inner)

    visit(ENDPOINTS[endpoint][1])
    assert seen


@pytest.mark.parametrize(("endpoint", "table"), [("responses", ITEMS), ("messages", BLOCKS)])
def test_every_key_of_the_clients_types_is_known(endpoint: str, table: Any) -> None:
    """A client that sends what its own types allow causes no warning."""
    if endpoint == "responses":
        from openai.types import responses as types

        wanted = {
            "message": types.EasyInputMessageParam, "reasoning": types.ResponseReasoningItemParam,
            "function_call": types.ResponseFunctionToolCallParam, "function": types.FunctionToolParam,
            "function_call_output": types.response_input_item_param.FunctionCallOutput,
            "custom_tool_call": types.ResponseCustomToolCallParam, "custom": types.CustomToolParam,
            "custom_tool_call_output": types.ResponseCustomToolCallOutputParam,
            "input_text": types.ResponseInputTextParam, "output_text": types.ResponseOutputTextParam,
        }  # fmt: skip
    else:
        types = pytest.importorskip("anthropic.types", reason="Anthropic's client: pip install '.[test-clients]'")
        names = {name: f"{name.title().replace('_', '')}BlockParam" for name in table}
        wanted = {name: getattr(types, kind) for name, kind in names.items()}
    for name, kind in wanted.items():
        assert not set(kind.__annotations__) - table[name], name
