"""Plugins in the Responses API: OpenAI's mcp items and events, approvals, what is refused; a real server process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from octavo import LLM
from octavo.plugins import bearer
from octavo.server import ServerConfig, create_app
from plugin_cases import MODEL, Local, Scripted, Shop, both, weather, written
from servers import served, uvicorn_in_thread
from starlette.testclient import TestClient

ASK = "Do I need a coat in Oslo, and what is its price?"
WEATHER: Any = {"type": "mcp", "server_label": "weather"}
SHOP: Any = {"type": "mcp", "server_label": "shop"}
SECRET = "s3cret-of-the-shop"


@pytest.fixture(scope="module")
def model() -> Iterator[Scripted]:
    with Scripted() as llm:
        yield llm


class World:
    """A scripted model, both plugins, and a client."""

    def __init__(self, llm: Scripted, local: Local, shop: Shop, host: Any) -> None:
        self.llm, self.local, self.shop, self.host = llm, local, shop, host
        self.http = TestClient(create_app(llm, ServerConfig(plugins=host)))
        self.client = openai.OpenAI(base_url="http://testserver/v1", api_key="x", max_retries=0, http_client=self.http)

    def script(self, *texts: str) -> None:
        self.llm.script[:] = texts
        self.llm.prompts.clear()

    def ask(self, given: Any = ASK, **body: Any) -> Any:
        return self.client.responses.create(model=MODEL, input=given, **{"tools": [WEATHER, SHOP], **body})

    def refused(self, **body: Any) -> tuple[str, str]:
        found = self.http.post("/v1/responses", json={"input": ASK, "tools": [SHOP], **body})
        assert found.status_code == 400, found.text
        error = found.json()["error"]
        return error["param"], error["message"]


@pytest.fixture
def world(model: Scripted) -> Iterator[World]:
    local, shop = both()
    with local.host() as host:
        made = World(model, local, shop, host)
        yield made
        assert not model.script, "a round did not come"
        made.client.close()
        made.http.close()


TWO = (
    "I look. " + written("weather__temperature", city="Oslo"),
    written("shop__price", item="coat"),
    "It has -3 degrees: a coat costs 40.",
)


def test_the_items_are_those_of_openais_mcp_servers(world: World) -> None:
    world.script(*TWO)
    done = world.ask()
    kinds = [item.type for item in done.output]
    assert kinds == ["mcp_list_tools", "mcp_list_tools", "message", "mcp_call", "mcp_call", "message"]
    assert done.output_text == "I look. It has -3 degrees: a coat costs 40."
    listed = done.output[1]
    assert listed.server_label == "shop"
    assert {tool.name for tool in listed.tools} == {"price", "buy", "wait"}
    buy = next(tool for tool in listed.tools if tool.name == "buy")
    assert buy.annotations == {"readOnlyHint": False}
    assert buy.input_schema["properties"]["item"]["enum"] == ["coat", "hat"]
    first, second = done.output[3:5]
    assert (first.server_label, first.name, json.loads(first.arguments)) == ("weather", "temperature", {"city": "Oslo"})
    assert (first.output, first.error, first.status) == ("-3", None, "completed")
    assert (second.server_label, second.name, second.output) == ("shop", "price", "40")
    assert done.status == "completed"
    counts = [len(world.llm.tokenize(p, add_special_tokens=False)) for p in world.llm.prompts]
    assert done.usage.input_tokens == sum(counts)
    # The conversation goes on: the model reads calls and results, and the operations are not listed again.
    world.script("Yes.")
    more = world.ask("Sure?", previous_response_id=done.id)
    assert [item.type for item in more.output] == ["message"]
    (prompt,) = world.llm.prompts
    for text in ('{"city": "Oslo"}', '"result": -3', '"result": 40', "It has -3 degrees"):
        assert text in prompt
    items = [item.type for item in world.client.responses.input_items.list(more.id, order="asc").data]
    assert items == ["message", *kinds, "message"]


def test_the_events_of_a_stream(world: World) -> None:
    world.script(*TWO)
    events = list(world.ask(stream=True, tools=[WEATHER, SHOP]))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    collapsed = [kind for i, kind in enumerate(kinds) if kinds[i - 1 : i] != [kind]]
    listed = ["output_item.added", "mcp_list_tools.in_progress", "mcp_list_tools.completed", "output_item.done"]
    text = [
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
    ]  # fmt: skip
    call = [
        "output_item.added", "mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.done",
        "mcp_call.completed", "output_item.done",
    ]  # fmt: skip
    assert collapsed == ["created", "in_progress", *listed, *listed, *text, *call, *call, *text, "completed"]
    whole = events[-1].response
    # Each finished item is the one of the response, and the deltas make its arguments.
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in done] == [item.id for item in whole.output]
    for item in whole.output:
        if item.type == "mcp_call":
            deltas = [e.delta for e in events if e.type.endswith("arguments.delta") and e.item_id == item.id]
            assert "".join(deltas) == item.arguments
    assert world.client.responses.retrieve(whole.id).output == whole.output


def test_fields_choose_operations(world: World) -> None:
    world.script("No.")
    done = world.ask(tools=[{**SHOP, "allowed_tools": ["price"]}])
    assert [tool.name for tool in done.output[0].tools] == ["price"]
    assert "shop__buy" not in world.llm.prompts[0]
    world.script("No.")
    done = world.ask(tools=[{**SHOP, "allowed_tools": {"read_only": True}, "server_description": "All for winter."}])
    assert {tool.name for tool in done.output[0].tools} == {"price", "wait"}
    assert "shop: All for winter." in world.llm.prompts[0]
    world.script(written("shop__price", item="hat"), "Nine.")
    world.ask(tool_choice={"type": "mcp", "server_label": "shop", "name": "price"})
    assert "weather" not in repr(world.llm.asked[-2].structured)
    limited = {"type": "allowed_tools", "mode": "required", "tools": [WEATHER]}
    world.script(written("weather__temperature", city="Rome"), "Warm.")
    world.ask(tool_choice=limited)
    assert "shop__price" not in repr(world.llm.asked[-2].structured)
    counted = world.client.responses.input_tokens.count(model=MODEL, input=ASK, tools=[WEATHER, SHOP])
    assert counted.input_tokens == len(world.llm.tokenize(world.llm.prompts[0], add_special_tokens=False))


def test_calls_are_limited(world: World) -> None:
    two = written("shop__price", item="hat") + "\n" + written("shop__price", item="coat")
    world.script(two, "Nine.")
    done = world.ask(max_tool_calls=1)
    calls = [item for item in done.output if item.type == "mcp_call"]
    assert [(call.output, call.status) for call in calls] == [("9", "completed"), (None, "failed")]
    assert calls[1].error.model_extra["code"] == "limit"
    assert "shop__price" not in world.llm.prompts[1].partition("<|im_start|>user")[0]


def test_functions_of_the_client_stand_beside_plugins(world: World) -> None:
    own = {"type": "function", "name": "own", "parameters": {"type": "object", "properties": {}}}
    world.script(written("shop__price", item="hat") + "\n" + written("own"))
    done = world.ask(tools=[SHOP, own])
    assert [item.type for item in done.output] == ["mcp_list_tools", "mcp_call", "function_call"]
    assert done.output[1].output == "9"
    world.script("Nine.")
    result = {"type": "function_call_output", "call_id": done.output[2].call_id, "output": "x"}
    assert world.ask([result], previous_response_id=done.id, tools=[SHOP, own]).output_text == "Nine."
    assert '"result": 9' in world.llm.prompts[0]


# --- approvals ------------------------------------------------------------------------------------------------------


def asks_to_buy(world: World, **body: Any) -> Any:
    world.script("Sure. " + written("shop__buy", item="hat", count=2))
    done = world.ask(tools=[SHOP], **body)
    assert [item.type for item in done.output] == ["mcp_list_tools", "message", "mcp_approval_request"]
    assert (done.status, world.shop.sold) == ("completed", [])
    return done


def decision(request: Any, approve: bool = True) -> dict[str, Any]:
    return {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": approve}


@pytest.mark.parametrize("stored", [True, False])
def test_an_approved_call_runs(world: World, stored: bool) -> None:
    done = asks_to_buy(world, store=stored)
    request = done.output[-1]
    assert (request.server_label, request.name) == ("shop", "buy")
    assert json.loads(request.arguments) == {"item": "hat", "count": 2}
    # The first text is of a trial, before the call runs.
    world.script("-", "Done.")
    if stored:
        more = world.ask([decision(request)], previous_response_id=done.id, tools=[SHOP])
    else:
        items = [item.model_dump(exclude_none=True) for item in done.output]
        more = world.ask([{"role": "user", "content": ASK}, *items, decision(request)], tools=[SHOP], store=False)
    assert [item.type for item in more.output] == ["mcp_call", "message"]
    call = more.output[0]
    assert (call.output, call.approval_request_id, call.status) == ("bought 2 hat", request.id, "completed")
    assert world.shop.sold == [("hat", 2)]
    assert '"result": "bought 2 hat"' in world.llm.prompts[1]
    if stored:
        # It has run: going on does not run it again.
        world.script("Bye.")
        world.ask("Thanks.", previous_response_id=more.id, tools=[SHOP])
        assert world.shop.sold == [("hat", 2)]


@pytest.mark.parametrize("ran", [True, False])
def test_an_approval_is_for_the_arguments_that_were_shown(world: World, ran: bool) -> None:
    done = asks_to_buy(world, store=False)
    items = [item.model_dump(exclude_none=True) for item in done.output]
    more = [{"role": "user", "content": ASK}, *items, decision(done.output[-1])]
    if ran:
        world.script("-", "Done.")
        world.ask(more, tools=[SHOP], store=False)
    before = list(world.shop.sold)
    assert len(before) == ran
    items[-1]["arguments"] = json.dumps({"item": "coat", "count": 2})
    world.script("-", written("shop__buy", item="coat", count=2))
    again = world.ask(more, tools=[SHOP], store=False)
    assert world.shop.sold == before
    assert [item.type for item in again.output] == ["mcp_call", "mcp_approval_request"]
    assert (again.output[0].status, again.output[0].output) == ("failed", None)


def test_a_refused_call_does_not_run(world: World) -> None:
    done = asks_to_buy(world)
    world.script("-", "Then not.")
    more = world.ask([decision(done.output[-1], False)], previous_response_id=done.id, tools=[SHOP], stream=True)
    events = list(more)
    assert "response.mcp_call.failed" in [event.type for event in events]
    call = events[-1].response.output[0]
    assert (call.status, call.error.model_extra["code"]) == ("failed", "denied")
    assert world.shop.sold == []
    assert '"error": "denied"' in world.llm.prompts[1]


def test_a_request_that_was_not_decided_is_not_run(world: World) -> None:
    done = asks_to_buy(world)
    world.script("As you like.")
    assert world.ask("Later.", previous_response_id=done.id, tools=[SHOP]).output_text == "As you like."
    assert world.shop.sold == []


@pytest.mark.parametrize(
    ("rule", "waits"),
    [("never", False), ("always", True), ({"never": {"tool_names": ["buy"]}}, False), ({"never": {}}, False)],
)
def test_clients_choose_what_waits(world: World, rule: Any, waits: bool) -> None:
    shop = {**SHOP, "require_approval": rule}
    if waits:
        world.script(written("shop__price", item="hat"))
        done = world.ask(tools=[shop])
        assert done.output[-1].type == "mcp_approval_request"
        assert world.local.calls == []
        return
    world.script(written("shop__buy", item="hat"), "Done.")
    done = world.ask(tools=[shop])
    assert [item.type for item in done.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert world.shop.sold == [("hat", 1)]


def test_the_operators_rule_binds_the_client(model: Scripted) -> None:
    local, shop = both()
    with local.host(shop={"approval": "always"}) as host:
        world = World(model, local, shop, host)
        world.script(written("shop__price", item="hat"))
        done = world.ask(tools=[SHOP])
        assert done.output[-1].type == "mcp_approval_request"
        world.script("-", "Nine.")
        more = world.ask([decision(done.output[-1])], previous_response_id=done.id, tools=[SHOP])
        assert (more.output[0].output, more.output_text) == ("9", "Nine.")
        called = len(local.calls)
        world.script(written("shop__price", item="hat"))
        done = world.ask(tools=[{**SHOP, "require_approval": "never"}])
        assert [item.type for item in done.output] == ["mcp_list_tools", "mcp_approval_request"]
        assert len(local.calls) == called
        world.client.close()
        world.http.close()


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"tools": [{**SHOP, "server_url": "http://169.254.169.254/"}]}, "tools[0].server_url", "no URL"),
        ({"tools": [{"type": "mcp", "server_url": "http://a"}]}, "tools[0].server_url", "name a plugin"),
        ({"tools": [{**SHOP, "headers": {"a": "b"}}]}, "tools[0].headers", "--plugin-secret-env"),
        ({"tools": [{**SHOP, "authorization": "x"}]}, "tools[0].authorization", "--plugin-secret-env"),
        ({"tools": [{**SHOP, "connector_id": "connector_gmail"}]}, "tools[0].connector_id", "plugin"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].server_label", "missing"),
        ({"tools": [{"type": "mcp", "server_label": "shopp"}]}, "tools[0].server_label", "shop"),
        ({"tools": [SHOP, SHOP]}, "tools[1].server_label", "once"),
        ({"tools": [{**SHOP, "allowed_tools": ["by"]}]}, "tools[0].allowed_tools", "no operation 'by'"),
        ({"tools": [{**SHOP, "allowed_tools": 3}]}, "tools[0].allowed_tools", "list of names"),
        ({"tools": [{**SHOP, "require_approval": "maybe"}]}, "tools[0].require_approval", "always"),
        ({"tool_choice": {"type": "mcp", "server_label": "weather"}}, "tool_choice", "weather"),
        (
            {"input": [{"type": "mcp_approval_response", "approval_request_id": "x", "approve": True}]},
            "input[0].approval_request_id",
            "no mcp_approval_request",
        ),
        (
            {"input": [{"type": "mcp_approval_response", "approval_request_id": ["x"], "approve": True}]},
            "input[0].approval_request_id",
            "no mcp_approval_request",
        ),
        ({"plugins": ["shop"]}, "plugins", ""),
    ],
)
def test_bad_input_is_named(world: World, body: dict[str, Any], param: str, words: str) -> None:
    world.script()
    found = world.refused(**body)
    assert found[0] == param, found
    assert words in found[1], found
    assert world.local.calls == []


def test_an_approval_of_a_plugin_that_the_request_lacks(world: World) -> None:
    done = asks_to_buy(world)
    param, message = world.refused(
        input=[decision(done.output[-1])],
        previous_response_id=done.id,
        tools=[{"type": "mcp", "server_label": "weather"}],
    )
    assert (param, "shop buy" in message) == ("tools", True)
    assert world.shop.sold == []


def test_a_server_without_plugins_names_the_remedy(llm: LLM) -> None:
    with TestClient(create_app(llm, ServerConfig())) as http:
        for tool, param in (
            (SHOP, "tools[0].server_label"),
            ({**SHOP, "server_url": "http://a"}, "tools[0].server_url"),
        ):
            found = http.post("/v1/responses", json={"input": "a", "tools": [tool]})
            assert (found.status_code, found.json()["error"]["param"]) == (400, param)


def test_a_plugin_that_does_not_answer_is_named(world: World) -> None:
    world.local.plugins["weather"] = None
    world.script(written("shop__price", item="hat"), "Nine.")
    done = world.ask()
    assert [(item.server_label, bool(item.error), bool(item.tools)) for item in done.output[:2]] == [
        ("weather", True, False),
        ("shop", False, True),
    ]
    assert done.output_text == "Nine."
    world.script("Nine.")
    kinds = [event.type for event in world.ask(stream=True)]
    assert kinds.count("response.mcp_list_tools.failed") == 1


# --- other clients and a real process -------------------------------------------------------------------------------


def test_openais_agents_run_hosted_tools(model: Scripted) -> None:
    agents = pytest.importorskip("agents", reason="OpenAI's Agents SDK: pip install '.[test-clients]'")
    local, shop = both()
    asked: list[str] = []

    def approve(request: Any) -> Any:
        asked.append(request.data.name)
        return {"approve": True}

    async def run(url: str) -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            tools = [
                agents.HostedMCPTool(tool_config=WEATHER),
                agents.HostedMCPTool(tool_config=SHOP, on_approval_request=approve),
            ]
            agent = agents.Agent(
                name="a",
                instructions="Help.",
                tools=tools,
                model=agents.OpenAIResponsesModel(MODEL, client),  # type: ignore[arg-type]
            )
            return await agents.Runner.run(agent, ASK, run_config=agents.RunConfig(tracing_disabled=True))

    model.script[:] = [TWO[0], written("shop__buy", item="coat"), "-", "Bought."]
    with local.host() as host, uvicorn_in_thread(create_app(model, ServerConfig(plugins=host))) as url:
        assert asyncio.run(run(url)).final_output == "Bought."
    assert asked == ["buy"]
    assert shop.sold == [("coat", 1)]


@contextmanager
def real_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, openai.OpenAI, Shop]]:
    """`octavo serve` with both plugins, each a server of its own; the shop wants a key."""
    monkeypatch.setenv("SHOP_KEY", SECRET)
    shop = Shop(authorize=bearer(SECRET))
    with uvicorn_in_thread(weather().asgi_app) as one, uvicorn_in_thread(shop.plugin.asgi_app) as two:
        options = ["--plugin", f"weather={one}", f"shop={two}", "--plugin-secret-env", "shop=SHOP_KEY"]
        with (
            served(*options) as process,
            openai.OpenAI(base_url=f"{process.url}/v1", api_key="x", max_retries=0, timeout=60) as client,
        ):
            assert httpx.post(f"{two}/v1/invoke/price", json={"arguments": {"item": "hat"}}).status_code == 401
            yield process, client, shop
        assert process.process.returncode == 0


def test_a_real_server_calls_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    with real_server(monkeypatch) as (process, client, shop):
        ask: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 200, "tools": [WEATHER, SHOP]}
        named: Any = {"type": "mcp", "server_label": "shop", "name": "price"}
        events = list(client.responses.create(input=ASK, tool_choice=named, stream=True, **ask))
        whole = events[-1].response
        kinds = [item.type for item in whole.output]
        assert kinds[:3] == ["mcp_list_tools", "mcp_list_tools", "mcp_call"]
        call = whole.output[2]
        assert (call.status, call.error) == ("completed", None)
        assert int(call.output) == {"coat": 40, "hat": 9}[json.loads(call.arguments)["item"]]
        assert "response.mcp_call.completed" in [event.type for event in events]
        buy: Any = {"type": "mcp", "server_label": "shop", "name": "buy"}
        done = client.responses.create(input=ASK, tool_choice=buy, **ask)
        request = done.output[-1]
        assert request.type == "mcp_approval_request"
        assert shop.sold == []
        more = client.responses.create(input=[decision(request)], previous_response_id=done.id, **ask)  # type: ignore[list-item]
        assert more.output[0].type == "mcp_call"
        wanted = json.loads(request.arguments)
        assert shop.sold == [(wanted["item"], wanted.get("count", 1))]
        chat = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": ASK}], temperature=0, max_tokens=200,
            tool_choice={"type": "function", "function": {"name": "weather__temperature"}},
            extra_body={"plugins": ["weather"]},
        )  # fmt: skip
        (entry, *_) = chat.choices[0].message.plugin_calls  # type: ignore[attr-defined]
        assert entry["output"] == {"Oslo": -3, "Rome": 18}[json.loads(entry["arguments"])["city"]]
        shown = json.dumps(process.log) + whole.to_json() + done.to_json() + more.to_json()
        assert SECRET not in shown
        assert any("the plugin shop has" in row["message"] for row in process.log)
        assert not [row for row in process.log if row["level"] == "error"]
