"""Servers of the official MCP SDK are called through the host, over HTTP and over standard streams."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mcp")

import uvicorn
from mcp_tools import build
from octavo.plugins.host import PluginHost, PluginSource, Secret

STDIO = str(Path(__file__).with_name("mcp_tools.py"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        app = build().streamable_http_app(host="127.0.0.1")
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}/mcp"
        server.should_exit = True
        thread.join(60)


@pytest.fixture(params=["http", "stdio"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginHost]:
    if request.param == "http":
        source = PluginSource.mcp(request.getfixturevalue("url"), timeout=60.0)
    else:
        monkeypatch.setenv("MAIL_KEY", "k3y-of-mail")
        env = {"MAIL_PASSWORD": Secret.env("MAIL_KEY")}
        source = PluginSource.mcp_stdio(sys.executable, [STDIO], env, timeout=60.0)
    with PluginHost({"tools": source}) as made:
        yield made


def test_an_mcp_server_is_a_plugin(host: PluginHost) -> None:
    listed = host.tools()
    assert listed.missing == {}
    tools = {tool.operation: tool for tool in listed}
    assert set(tools) == {"add", "send_mail", "fail", "picture", "environment", "die", "deep"}
    assert tools["add"].description == "Adds two numbers."
    assert tools["add"].parameters["required"] == ["a"]
    assert not tools["add"].consequential
    done = host.call("tools__add", {"a": 2, "b": 40}, digest=tools["add"].digest)
    assert (done.status, done.content) == ("ok", {"result": 42})
    # The default is the server's own.
    assert host.call("tools__add", {"a": 2}).content == {"result": 3}
    # Wrong arguments are not sent.
    wrong = host.call("tools__add", {"a": "two"})
    assert wrong.status == "invalid_arguments"
    assert "/a" in wrong.text
    # A tool that says nothing of its effects waits for an approval; its id is a valid name.
    assert host.call("tools__send_mail", {"to": "ada"}).status == "approval_required"
    assert host.call("tools__send_mail", {"to": "ada"}, approved=True).content == {"result": "sent to ada"}
    failed = host.call("tools__fail", {"why": "no reason"})
    assert (failed.status, failed.sent) == ("internal", True)
    assert "no reason" in failed.text
    picture = host.call("tools__picture", {})
    assert picture.content == "a picture"
    assert any("image" in warning for warning in picture.warnings)


def test_a_deep_result_is_refused(host: PluginHost) -> None:
    assert host.call("tools__deep", {"levels": 20}).ok
    done = host.call("tools__deep", {"levels": 120})
    assert (done.status, "deeper" in done.text) == ("bad_response", True)


def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from octavo.plugins.host import egress

    found = [(2, 1, 6, "", (address, 0)) for address in ("127.0.0.3", "127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(egress.socket, "getaddrinfo", lambda *_, **__: found)
    with PluginHost({"tools": PluginSource.mcp(url.replace("127.0.0.1", "localhost"), timeout=60.0)}) as host:
        assert host.call("tools__add", {"a": 1}).content == {"result": 2}


def test_a_bridge_that_is_closed_is_not_opened_again(url: str) -> None:
    host = PluginHost({"tools": PluginSource.mcp(url, timeout=60.0)})
    assert host.call("tools__add", {"a": 1}).ok
    bridge = host._states["tools"].bridge
    assert bridge is not None
    bridge.close()
    done = host.call("tools__add", {"a": 1})
    assert (done.status, "was closed" in done.text, bridge._serving) == ("unavailable", True, None)
    host.close()


def test_a_process_that_dies_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_KEY", "k3y-of-mail")
    env = {"MAIL_PASSWORD": Secret.env("MAIL_KEY")}
    with PluginHost({"tools": PluginSource.mcp_stdio(sys.executable, [STDIO], env, timeout=60.0)}) as host:
        host.tools()
        # The server got the secret; the model does not.
        done = host.call("tools__environment", {"name": "MAIL_PASSWORD"})
        assert done.content == {"result": "[secret MAIL_KEY]"}
        died = host.call("tools__die", {})
        assert not died.ok
        assert died.sent
        assert host.call("tools__add", {"a": 1}).content == {"result": 2}


def test_a_server_that_is_not_there() -> None:
    with PluginHost(
        {"none": PluginSource.mcp_stdio("/no/such/program"), "web": PluginSource.mcp("http://127.0.0.1:1/mcp")}
    ) as host:
        tools = host.tools()
    assert list(tools) == []
    assert {name: problem.code for name, problem in tools.missing.items()} == {
        "none": "unavailable",
        "web": "unavailable",
    }
    assert "/no/such/program" in tools.missing["none"].detail


def test_a_private_address_of_a_public_name_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from octavo.plugins.host import egress

    monkeypatch.setattr(egress.socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("127.0.0.1", 0))])
    named = url.replace("127.0.0.1", "tools.example.com")
    with PluginHost({"tools": PluginSource.mcp(named)}) as host:
        problem = host.tools().missing["tools"]
    assert problem.code == "refused"
    assert "tools.example.com" in problem.detail
