"""The MCP endpoint of a plugin. The client and the types of the official SDK are the reference."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import weather_plugin
from octavo.plugins import Plugin, Request, Response
from served import serve_asgi

mcp = pytest.importorskip("mcp")
mcp_types = pytest.importorskip("mcp_types")

VERSION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    with weather_plugin.build() as found:
        yield found


def ask(plugin: Plugin, method: str, params: dict[str, Any] | None = None, **changed: Any) -> Response:
    """A request of the stateless revision. `changed` replaces headers, or `body` altogether."""
    params = {"_meta": META, **(params or {})}
    headers = {"MCP-Protocol-Version": VERSION, "Mcp-Method": method, "Mcp-Name": params.get("name", "")}
    headers |= {k.replace("_", "-"): v for k, v in changed.items() if k != "body"}
    body = changed.get("body", {"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return plugin.handle(Request("POST", "mcp", {k: v for k, v in headers.items() if v is not None}, text))


@pytest.mark.parametrize("mode", [VERSION, "auto", "legacy"])
def test_the_official_client_lists_and_calls(mode: str) -> None:
    async def run(url: str) -> dict[str, Any]:
        async with mcp.Client(url + "mcp", mode=mode) as client:
            listed = await client.list_tools()
            right = await client.call_tool("get_forecast", {"city": "Corrin", "days": 1})
            number = await client.call_tool("send", {"to": "a", "text": "b"})
            wrong = await client.call_tool("get_forecast", {"city": "Corrin", "days": 9})
            failed = await client.call_tool("fail", {"how": "busy"})
            return {"tools": listed.tools, "right": right, "number": number, "wrong": wrong, "failed": failed}

    with weather_plugin.build() as plugin, serve_asgi(plugin.asgi_app) as url:
        found = asyncio.run(run(url))
    tools = {tool.name: tool for tool in found["tools"]}
    assert list(tools) == ["fail", "get_forecast", "send", "stall", "where"]
    assert tools["get_forecast"].input_schema["required"] == ["city"]
    assert tools["get_forecast"].annotations.read_only_hint is True
    assert tools["send"].annotations.destructive_hint is True
    right = found["right"]
    assert right.structured_content == {"city": "Corrin", "days": [{"high": 20.0, "low": 10.0}]}
    assert json.loads(right.content[0].text) == right.structured_content
    assert found["number"].structured_content == ({"result": 1} if mode == "legacy" else 1)
    assert found["wrong"].is_error
    assert "/days" in found["wrong"].content[0].text
    assert found["failed"].is_error
    assert "the station is off" in found["failed"].content[0].text


def test_results_have_what_the_revision_demands(plugin: Plugin) -> None:
    found = ask(plugin, "server/discover").json()["result"]
    mcp_types.DiscoverResult.model_validate(found)
    assert VERSION in found["supportedVersions"]
    assert found["resultType"] == "complete"
    assert {"ttlMs", "cacheScope"} <= found.keys()
    listed = ask(plugin, "tools/list").json()["result"]
    mcp_types.ListToolsResult.model_validate(listed)
    assert listed["resultType"] == "complete"
    assert {"ttlMs", "cacheScope"} <= listed.keys()
    called = ask(plugin, "tools/call", {"name": "where", "arguments": {"place": {"name": "x"}}}).json()
    assert called["id"] == 7
    mcp_types.CallToolResult.model_validate(called["result"])
    assert called["result"]["structuredContent"] == "x"


@pytest.mark.parametrize(
    ("method", "params", "changed", "status", "code"),
    [
        ("tools/list", {}, {"MCP_Protocol_Version": None}, 400, -32020),
        ("tools/list", {}, {"Mcp_Method": "tools/call"}, 400, -32020),
        ("tools/call", {"name": "fail"}, {"Mcp_Name": "send"}, 400, -32020),
        ("tools/list", {"_meta": {}}, {}, 400, -32602),
        ("tools/call", {"name": "gone"}, {}, 400, -32602),
        ("tools/call", {"name": ["fail"]}, {"Mcp_Name": None}, 400, -32020),
        ("tools/call", {}, {}, 400, -32602),
        ("tools/call", {"name": "fail", "arguments": [1]}, {}, 400, -32602),
        ("tools/list", {"cursor": "x"}, {}, 400, -32602),
        ("prompts/list", {}, {}, 404, -32601),
        ("initialise", {}, {}, 404, -32601),
        ("tools/list", {}, {"body": b"{"}, 400, -32700),
        ("tools/list", {}, {"body": []}, 400, -32600),
        ("tools/list", {}, {"body": {"jsonrpc": "2.0", "id": 1}}, 400, -32600),
        ("tools/list", {}, {"body": {"jsonrpc": "2.0", "id": None, "method": "ping"}}, 400, -32600),
        ("tools/list", {}, {"body": {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}}, 400, -32602),
    ],
)
def test_a_broken_rule_has_its_code(
    plugin: Plugin, method: str, params: dict[str, Any], changed: dict[str, Any], status: int, code: int
) -> None:
    response = ask(plugin, method, params, **changed)
    assert (response.status, response.json()["error"]["code"]) == (status, code)
    mcp_types.JSONRPCError.model_validate(response.json())


def test_another_version_gets_the_supported_ones(plugin: Plugin) -> None:
    meta = {**META, "io.modelcontextprotocol/protocolVersion": "2099-01-01"}
    response = ask(plugin, "tools/list", {"_meta": meta}, MCP_Protocol_Version="2099-01-01")
    assert response.status == 400
    error = response.json()["error"]
    assert (error["code"], error["data"]) == (-32022, {"supported": [VERSION], "requested": "2099-01-01"})


def test_a_former_name_is_accepted_as_in_rest(plugin: Plugin) -> None:
    def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = ask(plugin, "tools/call", {"name": name, "arguments": arguments}).json()["result"]
        return found

    old = call("get_forecast", {"town": "x", "days": 1})
    assert old["structuredContent"]["city"] == "x"
    assert old["_meta"]["octavo/warnings"] == ["argument town is now called city"]
    both = call("get_forecast", {"town": "x", "city": "y"})
    assert both["isError"]
    assert both["_meta"]["octavo/problem"]["errors"][0]["pointer"] == "/town"
    # Arguments of a call with consequences are exactly what the caller sent.
    assert call("send", {"to": "a", "body": "b"})["isError"]
    assert plugin.sent == []  # type: ignore[attr-defined]
    deprecated = call("where", {"place": {"name": "x"}})
    assert "deprecated since 2026-12-01" in deprecated["_meta"]["octavo/warnings"][0]


def test_notifications_are_accepted_without_an_answer(plugin: Plugin) -> None:
    response = ask(plugin, "x", body={"jsonrpc": "2.0", "method": "notifications/cancelled"})
    assert (response.status, response.body) == (202, b"")


def test_an_encoded_name_is_decoded(plugin: Plugin) -> None:
    params = {"name": "fail", "arguments": {"how": "busy"}}
    assert ask(plugin, "tools/call", params, Mcp_Name="=?base64?ZmFpbA==?=").json()["result"]["isError"]
    assert ask(plugin, "tools/call", params, Mcp_Name="=?base64?ZmFp?=").json()["error"]["code"] == -32020
    assert ask(plugin, "tools/call", params, Mcp_Name="=?base64?*?=").json()["error"]["code"] == -32020


def test_foreign_pages_may_not_call(plugin: Plugin) -> None:
    for origin in ("http://evil.example", "null", "http://localhost.evil.example"):
        assert ask(plugin, "tools/list", origin=origin).status == 403
    assert ask(plugin, "tools/list", origin="http://localhost:3000").status == 200
    with weather_plugin.build(allowed_origins=["https://a.example"]) as other:
        assert ask(other, "tools/list", origin="https://a.example").status == 200
        assert ask(other, "tools/list", origin="https://b.example").status == 403
