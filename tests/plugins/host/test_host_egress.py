"""The host connects to registered origins alone, and checks each address after resolution."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo.errors import InvalidRequestError
from octavo.plugins.host import HttpRequest, HttpTransport, PluginHost, PluginSource, TransportError
from octavo.plugins.host.egress import EgressError, check_url, is_public, permitted
from raw_server import RawServer, http

PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2001:db8::1",
    "::127.0.0.1",
    "::10.0.0.1",
    "::ffff:0:127.0.0.1",
    "::ffff:0:169.254.169.254",
    "64:ff9b:1::8.8.8.8",
    "5f00::1",
    "3fff::1",
    "fec0::1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_public_name_may_not_have_a_private_address(address: str) -> None:
    with pytest.raises(EgressError, match=r"api\.example\.com"):
        permitted("api.example.com", [address], False)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert permitted("api.example.com", [address], False) == [address]


def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    with pytest.raises(EgressError, match=r"10\.0\.0\.1"):
        permitted("api.example.com", ["8.8.8.8", "10.0.0.1"], False)


def test_what_is_registered_explicitly() -> None:
    assert permitted("10.0.0.1", ["10.0.0.1"], False) == ["10.0.0.1"]
    assert permitted("localhost", ["127.0.0.1", "::1"], False) == ["127.0.0.1", "::1"]
    assert permitted("intern.example.com", ["10.0.0.1"], True) == ["10.0.0.1"]
    # `localhost` may be the own machine alone, and nothing permits a group of machines.
    with pytest.raises(EgressError):
        permitted("localhost", ["10.0.0.1"], False)
    with pytest.raises(EgressError):
        permitted("intern.example.com", ["224.0.0.1"], True)
    with pytest.raises(EgressError, match="no address"):
        permitted("intern.example.com", [], True)


@given(st.ip_addresses(v=4))
def test_an_address_is_judged_alike_in_all_its_spellings(address: ipaddress.IPv4Address) -> None:
    mapped = ipaddress.IPv6Address(f"::ffff:{address}")
    assert is_public(address) == is_public(mapped)
    for network in ("64:ff9b::", "::", "::ffff:0:0:0"):
        carrier = ipaddress.IPv6Address(int(ipaddress.IPv6Address(network)) | int(address))
        assert is_public(address) == is_public(carrier)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://example.com\\evil", "backslash"),
        ("ftp://example.com", "http"),
        ("example.com", "http"),
        ("file:///etc/passwd", "http"),
        ("http://", "http"),
        ("http://ada:s3cr3t-pw@example.com/", "credentials"),
        ("http://example.com/?key=s3cr3t-pw", "query"),
        ("http://example.com/#s3cr3t-pw", "fragment"),
        ("http://exam ple.com", "space"),
        ("http://example.com:0", "port 0"),
        ("http://example.com:99999", "cannot be read"),
        ("http://[::1", "cannot be read"),
        ("http://example.com\\@evil.example", "credentials"),
        ("http://münchen.example/", "xn--mnchen-3ya.example"),
        ("http://\ud800.example/", "xn--..."),
        (7, "int"),
    ],
)
def test_wrong_urls(url: Any, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text) as error:
        check_url(url)
    assert "s3cr3t" not in str(error.value)


def test_a_base_url_ends_with_a_slash() -> None:
    assert check_url("http://example.com") == "http://example.com/"
    assert check_url("https://example.com:8443/weather") == "https://example.com:8443/weather/"
    assert check_url("https://example.com/wétter%20x") == "https://example.com/w%C3%A9tter%20x/"


def _send(transport: HttpTransport, url: str) -> Any:
    import time

    return transport.send(HttpRequest("GET", url, {}, deadline=time.monotonic() + 30))


def test_the_connection_goes_to_the_checked_address(server: RawServer) -> None:
    asked: list[str] = []

    def resolver(host: str, port: int) -> list[str]:
        # The second answer would lead elsewhere: names are resolved once a connection.
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.255.255.1"]

    transport = HttpTransport(allow_private=True, resolver=resolver)
    port = server.url.rpartition(":")[2]
    answer = _send(transport, f"http://rebinding.example.com:{port}/openapi.json")
    transport.close()
    assert (answer.status, asked) == (200, ["rebinding.example.com"])


def test_a_rebinding_name_is_refused_before_any_connection(server: RawServer) -> None:
    transport = HttpTransport(resolver=lambda host, port: ["127.0.0.1"])
    port = server.url.rpartition(":")[2]
    with pytest.raises(TransportError, match="allow_private") as error:
        _send(transport, f"http://rebinding.example.com:{port}/openapi.json")
    transport.close()
    assert (error.value.kind, error.value.sent, server.gets) == ("refused", False, [])


def test_a_resolver_that_hangs_or_fails() -> None:
    import threading
    import time

    stop = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        stop.wait(60)
        return []

    def fail(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    slow = HttpTransport(resolver=hang)
    with pytest.raises(TransportError) as late:
        slow.send(HttpRequest("GET", "http://slow.example.com/", {}, deadline=time.monotonic() + 0.1))
    stop.set()
    wrong = HttpTransport(resolver=fail)
    with pytest.raises(TransportError, match="no such name") as unknown:
        _send(wrong, "http://wrong.example.com/")
    assert (late.value.kind, unknown.value.kind) == ("timeout", "connect")
    assert not late.value.sent
    assert not unknown.value.sent
    slow.close()
    wrong.close()


@pytest.mark.parametrize("spelling", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1"])
def test_odd_spellings_of_addresses_are_names(spelling: str) -> None:
    with PluginHost({"odd": f"http://{spelling}:9/"}) as host:
        assert host.tools().missing["odd"].code in ("refused", "unavailable")
        assert host.tools() == []


def test_a_manifest_may_not_widen_its_origin(server: RawServer, host: PluginHost) -> None:
    assert server.manifest is not None
    server.manifest["openapi"] = {"url": "http://127.0.0.1:1/openapi.json"}
    server.manifest["mcp"] = "//127.0.0.1:1/mcp"
    # The named URL is not used: the document comes from the plugin's own address.
    assert [tool.name for tool in host.tools()] == ["w__get"]
    assert host.health()["w"]["notes"] != []
    assert server.gets == ["/.well-known/octavo-plugin.json", "/openapi.json"]


def test_a_documents_server_may_not_widen_its_origin(server: RawServer, host: PluginHost) -> None:
    server.manifest = None
    server.document["servers"] = [{"url": "http://169.254.169.254/"}]
    server.document["paths"] = {"/things": {"get": {"operationId": "things", "responses": {}}}}
    done = host.call("w__things", {})
    assert done.plugin == "w"
    assert server.gets[-1] == "/things"
    assert any("169.254.169.254" in note for note in host.health()["w"]["notes"])


def test_a_redirect_within_the_origin_is_followed(server: RawServer, host: PluginHost) -> None:
    server.answers = [http(307, b"", "Location: /moved/v1/invoke/get\r\n"), server.answers[0]]
    assert host.call("w__get", {"city": "Corrin"}).ok
    assert [path for path, _, _ in server.posts] == ["/v1/invoke/get", "/moved/v1/invoke/get"]


def test_proxies_of_the_environment_are_not_used(
    server: RawServer, host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert host.call("w__get", {"city": "Corrin"}).ok


def test_serving_under_a_prefix(serve: Callable[[Any], str]) -> None:
    from fastapi import FastAPI

    inner, outer = FastAPI(version="1.2.3"), FastAPI()

    @inner.get("/now", operation_id="now")
    def now() -> str:
        return "noon"

    outer.mount("/clock", inner)
    with PluginHost({"clock": PluginSource(serve(outer) + "/clock")}) as host:
        assert host.call("clock__now", {}).content == "noon"
