"""Answers that cannot go on after calls, and operations that no model can be offered: they harm nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.errors import ContextLengthError
from octavo.plugins import Plugin
from octavo.plugins.host import PluginHost
from octavo.plugins.host.outcome import Tool, ToolList
from octavo.server import ServerConfig, create_app
from plugin_cases import Local, Scripted, both, written
from starlette.testclient import TestClient

ASK: list[Any] = [{"role": "user", "content": "Do I need a coat in Oslo, and what is its price?"}]
BOTH = (
    "I look. " + written("weather__temperature", city="Oslo"),
    written("shop__price", item="coat"),
    "It has -3 degrees: a coat costs 40.",
)


@pytest.fixture(scope="module")
def model() -> Iterator[Scripted]:
    with Scripted() as llm:
        yield llm


# --- answers that cannot go on after calls have run -----------------------------------------------------------------


class Long:
    """A shop, and an operation whose results fill the context, or take longer than there is time."""

    def __init__(self) -> None:
        self.sold: list[int] = []
        self.left = threading.Event()
        plugin = Plugin("long", version="1.0.0")

        @plugin.operation(consequential=True)
        def buy(n: int) -> str:
            """Buys."""
            self.sold.append(n)
            return "bought it"

        @plugin.operation
        def wait() -> str:
            """Waits until the time is over."""
            self.left.wait(60)
            return "late"

        self.local = Local(long=plugin)


@pytest.fixture
def long() -> Long:
    return Long()


@pytest.fixture(scope="module")
def small() -> Iterator[Scripted]:
    """A model whose context has room for one round of calls, and not for two."""
    with Scripted(max_model_len=704) as llm:
        yield llm


def fills(llm: Scripted, long: Long, host: PluginHost) -> list[Any]:
    """A conversation after which there is room for one call, and none for its result."""
    ask: list[Any] = [{"role": "user", "content": ""}]
    llm.script[:] = [written("long__buy", n=1)]
    llm.prompts.clear()
    first = next(iter(llm.stream_chat(ask, plugins=host)))
    used = len(first.prompt_token_ids) + len(llm.tokenize(written("long__buy", n=1), add_special_tokens=False))
    left = llm.info()["limits"]["max_model_len"] - used - 12
    ask[0]["content"] = llm.detokenize(llm.tokenize("a" + " word" * left, add_special_tokens=False)[:left])
    return ask


def test_a_full_context_does_not_lose_what_ran(small: Scripted, long: Long) -> None:
    with long.local.host(long={"approval": "never"}) as host:
        ask = fills(small, long, host)
        long.sold.clear()
        small.script[:] = [written("long__buy", n=1), "Done."]
        (output,) = small.chat(ask, plugins=host)
        assert (long.sold, [o.content for o in output.tool_trace]) == ([1], ["bought it"])
        assert isinstance(output.error, ContextLengthError)
        assert (output.finished, output.outputs[0].finish_reason) == (True, "length")

        http = TestClient(create_app(small, ServerConfig(plugins=host)))
        small.script[:] = [written("long__buy", n=1), "Done."]
        chat = {"messages": ask, "plugins": [{"name": "long", "require_approval": "never"}]}
        (choice,) = http.post("/v1/chat/completions", json=chat).json()["choices"]
        assert [c["output"] for c in choice["message"]["plugin_calls"]] == ["bought it"]
        assert (choice["finish_reason"], choice["error"]["code"]) == ("length", "context_length_exceeded")

        small.script[:] = [written("long__buy", n=1), "Done."]
        tools = [{"type": "mcp", "server_label": "long", "require_approval": "never"}]
        body = {"input": ask[0]["content"], "tools": tools}
        done = http.post("/v1/responses", json=body).json()
        assert [i.get("output") for i in done["output"] if i["type"] == "mcp_call"] == ["bought it"]
        assert (done["status"], done["error"]["code"]) == ("failed", "context_length_exceeded")
        http.close()
    assert long.sold == [1, 1, 1]


def test_a_timeout_does_not_lose_what_ran(model: Scripted, long: Long) -> None:
    both_calls = written("long__buy", n=1), written("long__wait")
    with long.local.host(long={"approval": "never"}) as host:
        model.script[:] = [*both_calls, "Late."]
        (output,) = model.chat(ASK, SamplingParams(timeout=3.0), plugins=host)
        assert output.tool_trace[0].content == "bought it"
        assert output.error is not None
        assert output.outputs[0].finish_reason == "error"
        model.script.clear()
        http = TestClient(create_app(model, ServerConfig(plugins=host)))
        model.script[:] = [*both_calls, "Late."]
        found = http.post("/v1/chat/completions", json={"messages": ASK, "plugins": ["long"], "timeout": 3.0})
        (choice,) = found.json()["choices"]
        assert choice["message"]["plugin_calls"][0]["output"] == "bought it"
        assert choice["finish_reason"] == "error"
        assert "timeout" in choice["error"]["message"]
        http.close()
    long.left.set()
    model.script.clear()
    assert long.sold == [1, 1]


# --- operations that the model cannot be offered --------------------------------------------------------------------


def price_of(host: PluginHost) -> Tool:
    return next(tool for tool in host.tools() if tool.name == "shop__price")


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


ODD: dict[str, dict[str, Any]] = {
    "nests deeper": nested(30),
    "have": {"type": "object", "properties": {"a": {"enum": [f"value {i}" for i in range(9000)]}}},
    "characters": {"type": "object", "properties": {"a": {"type": "string", "description": "word " * 9000}}},
}


@pytest.mark.parametrize("words", ODD)
def test_an_operation_that_cannot_be_offered_harms_no_other(
    model: Scripted, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with both()[0].host() as host:
        tools = host.tools
        odd = replace(price_of(host), name="shop__odd", operation="odd", parameters=ODD[words])
        host.tools = lambda *given, **named: ToolList([*tools(*given, **named), odd])  # type: ignore[method-assign]
        model.script[:] = BOTH
        http = TestClient(create_app(model, ServerConfig(plugins=host)))
        found = http.post("/v1/chat/completions", json={"messages": ASK, "plugins": ["weather", "shop"]}).json()
        assert [c["output"] for c in found["choices"][0]["message"]["plugin_calls"]] == [-3, 40]
        http.close()
        model.script[:] = BOTH
        (output,) = model.chat(ASK, plugins=host)
        assert [o.content for o in output.tool_trace] == [-3, 40]
    assert "shop__odd is not offered: its schema" in caplog.text
    assert words in caplog.text


def test_a_schema_just_within_the_limit_is_a_grammar(llm: LLM) -> None:
    with both()[0].host() as host:
        odd = replace(price_of(host), name="shop__odd", operation="odd", parameters=nested(23))
        host.tools = lambda *given, **named: ToolList([odd])  # type: ignore[method-assign]
        http = TestClient(create_app(llm, ServerConfig(plugins=host)))
        forced = {"tool_choice": {"type": "function", "function": {"name": "shop__odd"}}, "max_tokens": 40}
        found = http.post("/v1/chat/completions", json={"messages": ASK, "plugins": ["shop"], **forced})
        assert found.status_code == 200, found.text
        http.close()
