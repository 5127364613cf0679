"""Stored responses: conversations that go on by id, and the bounds of the store."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import openai
import pytest
from in_process import TOOL, Served
from octavo import LLM
from octavo.cli.serve import ServerOptions
from octavo.server import ServerConfig, create_wsgi_app
from octavo.server.config import Limits
from octavo.server.discover import all_routes
from octavo.server.errors import ApiError
from octavo.server.http import Call
from octavo.server.protocols.response_output import Responses
from octavo.server.response_store import ResponseStore, stored_item
from octavo.server.service import Service
from servers import KEY, Process
from werkzeug.test import Client

MODEL = "octavo-embedded"
GREEDY: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 48}
FUNCTION: Any = {"type": "function", **TOOL["function"]}


@pytest.fixture
def served(llm: LLM) -> Served:
    return Served(llm, ServerConfig())


def test_a_conversation_goes_on_by_id(client: openai.OpenAI) -> None:
    first = client.responses.create(input="Who are you?", instructions="Be kind.", **GREEDY)
    second = client.responses.create(input="Tell me more.", previous_response_id=first.id, **GREEDY)
    assert (first.previous_response_id, second.previous_response_id) == (None, first.id)
    whole: Any = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Tell me more."},
    ]
    assert second.output_text == client.responses.create(input=whole, store=False, **GREEDY).output_text
    assert second.usage
    count = client.responses.input_tokens.count(input="Tell me more.", previous_response_id=first.id, model=MODEL)
    assert count.input_tokens == second.usage.input_tokens
    third = client.responses.create(input="Again.", previous_response_id=second.id, **GREEDY)
    assert third.usage
    assert third.usage.input_tokens > second.usage.input_tokens
    again = client.responses.create(input="Tell me more.", previous_response_id=first.id, **GREEDY)
    assert again.output_text == second.output_text, "a conversation can branch"


def test_retrieve_and_delete(client: openai.OpenAI) -> None:
    made = client.responses.create(input="Who are you?", metadata={"a": "b"}, **GREEDY)
    assert client.responses.retrieve(made.id) == made
    with client.responses.stream(input="Who are you?", **GREEDY) as stream:
        streamed = stream.get_final_response()
    found = client.responses.retrieve(streamed.id)
    assert (found.output_text, found.status, found.usage) == (streamed.output_text, streamed.status, streamed.usage)
    more = client.responses.create(input="And?", previous_response_id=streamed.id, **GREEDY)
    client.responses.delete(made.id)
    for gone in (made.id, "resp-none", "resp-" + "x" * 500):
        with pytest.raises(openai.NotFoundError, match="was deleted"):
            client.responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(gone)
        with pytest.raises(openai.NotFoundError):
            client.responses.input_items.list(gone)
        with pytest.raises(openai.NotFoundError) as refused:
            client.responses.create(input="x", previous_response_id=gone, **GREEDY)
        assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")
    client.responses.delete(streamed.id)
    assert client.responses.create(input="x", previous_response_id=more.id, **GREEDY).output_text, "it has the history"


def test_what_is_not_stored(client: openai.OpenAI) -> None:
    made = client.responses.create(input="x", store=False, **GREEDY)
    assert not made.store
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="not streamed"):
        list(client.responses.retrieve(client.responses.create(input="x", **GREEDY).id, stream=True))
    with pytest.raises(openai.BadRequestError, match="in the background"):
        client.responses.cancel(client.responses.create(input="x", **GREEDY).id)


def test_input_items(client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": f"{i}"} for i in range(4)]
    first = client.responses.create(input=items, **GREEDY)
    listed = list(client.responses.input_items.list(first.id, order="asc", limit=3))
    assert [item.content[0].text for item in listed] == ["0", "1", "2", "3"]  # type: ignore[union-attr]
    page = client.responses.input_items.list(first.id, limit=3)
    assert [item.content[0].text for item in page.data] == ["3", "2", "1"]  # type: ignore[union-attr]
    assert page.has_more
    second = client.responses.create(input="more", previous_response_id=first.id, **GREEDY)
    kinds = [item.role for item in client.responses.input_items.list(second.id, order="asc")]  # type: ignore[union-attr]
    assert kinds == ["user"] * 4 + ["assistant", "user"]
    for bad in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_none"}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.input_items.list(first.id, **bad)  # type: ignore[arg-type]
        assert refused.value.param == next(iter(bad))


def test_tools_and_references(served: Served) -> None:
    """The loop of a client that sends new items only, and of one that names old items by their ids."""
    ask: Any = {"model": MODEL, "tools": [FUNCTION], "temperature": 0, "max_output_tokens": 80}
    first = served.client.responses.create(input="W?", tool_choice="required", parallel_tool_calls=False, **ask)
    item: Any = first.output[0]
    output: Any = {"type": "function_call_output", "call_id": item.call_id, "output": "sun"}
    second = served.client.responses.create(input=[output], previous_response_id=first.id, **ask)
    user: Any = {"role": "user", "content": "W?"}
    whole = served.client.responses.create(input=[user, item.model_dump(), output], **ask)
    named: Any = [user, {"type": "item_reference", "id": item.id}, output]
    assert served.client.responses.create(input=named, **ask).output_text == whole.output_text == second.output_text


def test_the_agents_sdk_goes_on_by_id(server: Process) -> None:
    agents = pytest.importorskip("agents", reason="OpenAI's Agents SDK: pip install '.[test-clients]'")
    agents.set_tracing_disabled(True)
    called: list[str] = []

    def weather(city: str) -> str:
        """The weather."""
        called.append(city)
        return "sun"

    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            settings = agents.ModelSettings(
                temperature=0, max_tokens=100, tool_choice="required", parallel_tool_calls=False, store=True
            )
            agent = agents.Agent(
                name="helper",
                model=agents.OpenAIResponsesModel(model=MODEL, openai_client=client),
                model_settings=settings,
                tools=[agents.function_tool(weather)],
            )
            first = await agents.Runner.run(agent, "The weather?", auto_previous_response_id=True)
            second = await agents.Runner.run(agent, "Tomorrow?", previous_response_id=first.last_response_id)
            kept = await client.responses.input_items.list(second.last_response_id, order="asc", limit=100)
            return [item.type for item in kept.data]

    kinds = asyncio.run(run())
    assert len(called) == 2
    assert kinds.count("function_call") == kinds.count("function_call_output") == 2
    assert kinds[0] == "message"


# --- isolation and ends ---------------------------------------------------------------------------------------------


def test_keys_see_their_own_responses_only(llm: LLM) -> None:
    app = Served(llm, ServerConfig(api_keys=("one", "two"))).http
    head = {key: {"authorization": f"Bearer {key}"} for key in ("one", "two")}
    made = app.post("/v1/responses", json={"input": "x", **GREEDY}, headers=head["one"]).json()["id"]
    path = f"/v1/responses/{made}"
    follow = {"input": "x", "previous_response_id": made, **GREEDY}
    item = app.get(path, headers=head["one"]).json()["output"][0]["id"]
    reference = {"input": [{"type": "item_reference", "id": item}], **GREEDY}
    answers = {}
    for key, status in (("two", 404), ("one", 200)):
        found = [
            app.get(path, headers=head[key]),
            app.get(f"{path}/input_items", headers=head[key]),
            app.post("/v1/responses", json=follow, headers=head[key]),
            app.post("/v1/responses/input_tokens", json=follow, headers=head[key]),
        ]
        assert [f.status_code for f in found] == [status] * 4
        assert app.post("/v1/responses", json=reference, headers=head[key]).status_code == (
            400 if key == "two" else 200
        )
        answers[key] = app.get("/v1/responses/resp-none", headers=head[key]).json()["error"]
        if key == "two":
            text = found[0].json()["error"]["message"].replace(made, "resp-none")
            assert text == answers["two"]["message"], "it does not say whether another key has it"
            assert app.delete(path, headers=head[key]).status_code == 404
    assert app.delete(path, headers=head["one"]).json() == {"id": made, "object": "response", "deleted": True}
    for closed in (path, f"{path}/input_items"):
        assert app.get(closed).status_code == 401


def test_a_stream_that_is_left_is_cancelled(llm: LLM) -> None:
    """Step by step, as an application sends it."""
    service = Service(llm, ServerConfig(), all_routes())

    def send(method: str, path: str, **body: Any) -> Any:
        head = {"content-type": "application/json"}
        return service.respond(Call(method, path, head, json.dumps(body).encode(), "request"))

    stream = send("POST", "/v1/responses", input="Tell me a story.", stream=True, **GREEDY)
    assert isinstance(stream, Responses)
    events = stream.feed(next(stream.generation.deltas(lambda: True, 10)))
    response_id = json.loads(events.split(b"data: ")[1].split(b"\n")[0])["response"]["id"]
    path = f"/v1/responses/{response_id}"
    going = json.loads(send("GET", path).body)
    assert (going["status"], going["output"]) == ("in_progress", [])
    with pytest.raises(ApiError, match="in_progress") as refused:
        send("POST", "/v1/responses", input="x", previous_response_id=response_id, **GREEDY)
    assert (refused.value.status, refused.value.param) == (400, "previous_response_id")
    stream.close()
    left = json.loads(send("GET", path).body)
    assert (left["status"], left["output"][0]["status"]) == ("cancelled", "incomplete")
    assert isinstance(send("POST", "/v1/responses", input="x", previous_response_id=response_id, **GREEDY), Responses)


def test_a_failed_stream_is_kept_as_failed(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.server.generation import Generation

    served = Served(llm, ServerConfig())
    poll = Generation._poll
    count = iter(range(100))

    def failing(self: Generation) -> Any:
        found = poll(self)
        if found and next(count) == 1:
            raise RuntimeError("a fault")
        return found

    monkeypatch.setattr(Generation, "_poll", failing)
    events = served.client.responses.create(input="Tell me a story.", stream=True, model=MODEL, max_output_tokens=600)
    *_, last = events
    assert last.type == "response.failed"
    monkeypatch.undo()
    found = served.client.responses.retrieve(last.response.id)
    assert (found.status, found.error and found.error.code) == ("failed", "server_error")
    with pytest.raises(openai.BadRequestError, match="failed"):
        served.client.responses.create(input="x", previous_response_id=found.id, **GREEDY)


def test_wsgi(llm: LLM) -> None:
    app = Client(create_wsgi_app(llm))
    made = app.post("/v1/responses", json={"input": "x", **GREEDY}).get_json()
    assert app.get(f"/v1/responses/{made['id']}").get_json() == made
    assert len(app.get(f"/v1/responses/{made['id']}/input_items?limit=1").get_json()["data"]) == 1
    assert app.delete(f"/v1/responses/{made['id']}").get_json()["deleted"]


# --- bounds ---------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def response(response_id: str, size: int = 10) -> dict[str, Any]:
    return {"id": response_id, "status": "completed", "text": "x" * size}


def test_the_longest_unused_go_first(clock: Clock) -> None:
    store = ResponseStore(Limits(stored_responses=2), clock)
    for name in "abc":
        assert store.put(None, response(name), [])
        store.get(None, "a")
    assert [name for name in "abc" if store.get(None, name)] == ["a", "c"]
    for i in range(100):
        store.put("key", response(str(i)), [])
    assert len(store) == 4, "each key has its own bound"
    assert store.get(None, "a")


def test_bytes_are_bounded(clock: Clock) -> None:
    store = ResponseStore(Limits(stored_responses_bytes=4000), clock)
    item = stored_item({"role": "user", "content": "y" * 500})
    for i in range(20):
        assert store.put(None, response(str(i), 500), [item], [stored_item({"id": f"m{i}", "role": "assistant"})])
        assert store.size <= 4000
    assert len(store) in (3, 2)
    assert store.item(None, "m19")
    assert store.item(None, "m0") is None
    assert not store.put(None, response("huge", 5000), [])
    assert not store.put(None, response("19", 5000), []), "nothing old stays under its id"
    assert store.get(None, "19") is None
    for name in map(str, range(20)):
        store.delete(None, name)
    assert (len(store), store.size) == (0, 0)


def test_responses_expire(clock: Clock) -> None:
    store = ResponseStore(Limits(stored_responses_seconds=10), clock)
    store.put(None, response("a"), [], [stored_item({"id": "m", "role": "assistant"})])
    clock.now = 9
    assert store.get(None, "a"), "its use keeps it"
    clock.now = 18
    assert store.item(None, "m")
    clock.now = 19.5
    assert store.item(None, "m") is None
    assert store.get(None, "a") is None
    store.put(None, response("b"), [])
    clock.now = 40
    store.put(None, response("c"), [])
    assert len(store) == 1


def test_many_threads(clock: Clock) -> None:
    store = ResponseStore(Limits(stored_responses=5), clock)

    def work(owner: str) -> None:
        for i in range(200):
            store.put(owner, response(str(i % 9)), [])
            store.get(owner, str((i * 7) % 9))
            store.delete(owner, str((i * 5) % 9))

    threads = [threading.Thread(target=work, args=(str(i % 2),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) <= 10
    for owner in "01":
        for name in map(str, range(9)):
            store.delete(owner, name)
    assert store.size == 0


@pytest.mark.parametrize("limit", ["stored_responses", "stored_responses_bytes"])
def test_a_server_without_a_store_says_so(limit: str, llm: LLM) -> None:
    served = Served(llm, ServerConfig(limits=Limits(**{limit: 0})))
    made = served.client.responses.create(input="x", store=True, **GREEDY)
    assert not made.store
    with pytest.raises(openai.NotFoundError, match="stores no responses"):
        served.client.responses.retrieve(made.id)


def test_a_response_that_is_too_large_is_warned_of(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    served = Served(llm, ServerConfig(limits=Limits(stored_responses_bytes=2000)))
    with caplog.at_level(logging.WARNING, "octavo.server"):
        made = served.client.responses.create(input="word " * 500, **GREEDY)
    assert "larger than the store" in caplog.text
    with pytest.raises(openai.NotFoundError):
        served.client.responses.retrieve(made.id)


def test_the_option_of_the_command_line() -> None:
    assert ServerOptions().settings().limits.stored_responses == Limits().stored_responses
    assert ServerOptions(stored_responses=0).settings().limits.stored_responses == 0
