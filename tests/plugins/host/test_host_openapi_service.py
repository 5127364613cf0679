"""Level 0: a FastAPI service that has never heard of octavo is called by its URL alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Header, HTTPException, Query
from octavo.errors import InvalidRequestError
from octavo.plugins.host import PluginHost, PluginSource, Secret
from pydantic import BaseModel, Field


class Order(BaseModel):
    item: str
    count: Annotated[int, Field(ge=1, le=9)] = 1


def shop() -> FastAPI:
    app = FastAPI(title="shop", version="3.4.5")
    app.state.orders = []

    @app.get("/items/{item_id}", operation_id="get_item")
    def get_item(item_id: str, tags: Annotated[list[str], Query()] = [], deep: bool = False) -> dict[str, Any]:  # noqa: B006
        """One item of the shop."""
        if item_id == "none":
            raise HTTPException(404, "no such item")
        return {"id": item_id, "tags": tags, "deep": deep}

    @app.post("/orders", operation_id="place_order")
    def place_order(order: Order, dry: bool = False) -> dict[str, Any]:
        app.state.orders.append(order)
        return {"item": order.item, "count": order.count, "dry": dry}

    @app.get("/who", operation_id="who")
    def who(x_api_key: Annotated[str, Header()]) -> dict[str, str]:
        return {"key": x_api_key, "length": str(len(x_api_key))}

    return app


@pytest.fixture
def app() -> FastAPI:
    return shop()


@pytest.fixture
def host(app: FastAPI, serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginHost]:
    monkeypatch.setenv("SHOP_KEY", "s3cr3t-value")
    with PluginHost({"shop": PluginSource(serve(app), headers={"X-Api-Key": Secret.env("SHOP_KEY")})}) as made:
        yield made


def test_the_tools_are_those_of_the_document(host: PluginHost) -> None:
    tools = {tool.name: tool for tool in host.tools()}
    assert sorted(tools) == ["shop__get_item", "shop__place_order", "shop__who"]
    item = tools["shop__get_item"]
    assert item.description == "One item of the shop."
    assert item.parameters["required"] == ["item_id"]
    assert item.parameters["properties"]["deep"]["default"] is False
    assert not item.consequential
    order = tools["shop__place_order"]
    assert set(order.parameters["properties"]) == {"dry", "item", "count"}
    assert order.consequential
    # The host sends this header: the model does not see it.
    assert tools["shop__who"].parameters["properties"] == {}
    assert order.openai()["function"]["name"] == "shop__place_order"
    assert host.health()["shop"]["level"] == 0
    assert host.health()["shop"]["version"] == "3.4.5"


def test_arguments_go_to_their_places(host: PluginHost) -> None:
    done = host.call("shop__get_item", {"item_id": "a b&ü?", "tags": ["x", "y,z"], "deep": True})
    assert done.content == {"id": "a b&ü?", "tags": ["x", "y,z"], "deep": True}


def test_a_body_and_a_query_in_one_call(host: PluginHost, app: FastAPI) -> None:
    done = host.call("shop__place_order", {"item": "tea", "count": 2, "dry": True}, approved=True)
    assert done.content == {"item": "tea", "count": 2, "dry": True}
    assert [order.count for order in app.state.orders] == [2]
    assert done.version == "3.4.5"


def test_effects_wait_for_an_approval(host: PluginHost, app: FastAPI) -> None:
    done = host.call("shop__place_order", {"item": "tea"})
    assert (done.status, done.sent) == ("approval_required", False)
    assert app.state.orders == []


@pytest.mark.parametrize(
    ("arguments", "pointer"),
    [
        ({"item": "tea", "count": 10}, "/count"),
        ({"item": "tea", "cuont": 1}, ""),
        ({"count": 1}, ""),
        ({"item": 7}, "/item"),
    ],
)
def test_wrong_arguments_are_not_sent(host: PluginHost, app: FastAPI, arguments: dict[str, Any], pointer: str) -> None:
    done = host.call("shop__place_order", arguments, approved=True)
    assert done.status == "invalid_arguments"
    assert done.error is not None
    assert [error["pointer"] for error in done.error.extensions["errors"]] == [pointer]
    assert app.state.orders == []


@pytest.mark.parametrize("item", ["..", "../orders", "a/../../b", ".", "", "..\\x"])
def test_a_path_argument_does_not_climb(host: PluginHost, item: str) -> None:
    done = host.call("shop__get_item", {"item_id": item})
    assert done.status == "invalid_arguments"
    assert "item_id" in done.text


def test_the_services_own_words_reach_the_model(host: PluginHost) -> None:
    done = host.call("shop__get_item", {"item_id": "none"})
    assert not done.ok
    assert "no such item" in done.text
    assert "404" in done.text


def test_a_secret_that_comes_back_is_removed(host: PluginHost) -> None:
    done = host.call("shop__who", {})
    assert done.content == {"key": "[secret SHOP_KEY]", "length": "12"}
    assert "s3cr3t" not in repr(done) + done.text


def test_wrong_names_are_the_callers_fault(host: PluginHost) -> None:
    host.tools()
    with pytest.raises(InvalidRequestError, match="shop__get_item"):
        host.call("shopp__get_item", {})
    with pytest.raises(InvalidRequestError, match="'shop'"):
        host.tools(["shpo"])
    done = host.call("shop__get_itme", {})
    assert done.status == "unknown_operation"
    assert done.error is not None
    assert done.error.extensions["nearest"][0] == "get_item"


async def _acalls(host: PluginHost) -> list[Any]:
    import asyncio

    return await asyncio.gather(*(host.acall("shop__get_item", {"item_id": str(n)}) for n in range(5)))


def test_asynchronous_calls(host: PluginHost) -> None:
    import asyncio

    assert [done.content["id"] for done in asyncio.run(_acalls(host))] == ["0", "1", "2", "3", "4"]
