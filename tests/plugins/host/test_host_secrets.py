"""A secret is sent to its plugin, and appears nowhere else: no repr, log, error, outcome or text for the model."""

from __future__ import annotations

import base64
import copy
import json
import logging
import pickle
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from octavo.errors import InvalidRequestError
from octavo.plugins.host import PluginHost, PluginSource, Secret
from raw_server import OWN, RawServer, http, manifest, ok, problem

VALUE = "hunter2/hunter+2"
FORMS = [VALUE, f"Bearer {VALUE}", quote(VALUE, safe=""), base64.b64encode(VALUE.encode()).decode()]


@pytest.fixture
def source(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> PluginSource:
    monkeypatch.setenv("WEATHER_TOKEN", VALUE)
    return PluginSource(server.url, headers={"Authorization": Secret.env("WEATHER_TOKEN", prefix="Bearer ")})


@pytest.fixture
def host(source: PluginSource) -> Iterator[PluginHost]:
    with PluginHost({"w": source}, sleep=lambda _: None) as made:
        yield made


def shown(text: str) -> bool:
    return "hunter2" in text or base64.b64encode(VALUE.encode()).decode().rstrip("=") in text


def test_it_is_sent_with_each_request(host: PluginHost, server: RawServer) -> None:
    assert host.call("w__get", {"city": "x"}).ok
    assert server.posts[0][1]["authorization"] == f"Bearer {VALUE}"


def test_it_is_read_anew(host: PluginHost, server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    host.call("w__get", {"city": "x"})
    monkeypatch.setenv("WEATHER_TOKEN", "another-value")
    host.call("w__get", {"city": "x"})
    assert server.posts[1][1]["authorization"] == "Bearer another-value"


@pytest.mark.parametrize("form", FORMS)
def test_an_echo_is_cleaned(host: PluginHost, server: RawServer, form: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"X-Echo: {form}\r\nSunset: {form}\r\n{OWN}"
    answers = [
        http(200, json.dumps({"result": {form: [form, {"a": f"<{form}>"}]}, "warnings": [form]}).encode(), echo),
        problem(422, "invalid-arguments", echo, errors=[{"pointer": form, "detail": form}], detail=form),
        http(500, json.dumps({"detail": form}).encode(), echo),
        http(200, b"x", echo, kind=form),
        http(302, b"", f"Location: http://{quote(form, safe='%')}.example.com/\r\n{echo}"),
        problem(400, "unsupported-version", echo, supported=[form]),
    ]
    for answer in answers:
        server.answers = [answer]
        done = host.call("w__get", {"city": "x"})
        assert not shown(repr(done) + done.text + json.dumps(done.content)), done
        assert not shown(repr(done.error.to_json() if done.error else ""))
    assert not shown(repr(host.health()))
    assert not shown(caplog.text)


def test_a_manifest_that_echoes_is_cleaned(host: PluginHost, server: RawServer) -> None:
    server.manifest = {**manifest(), "openapi": {"url": f"http://{VALUE}/"}, "version": VALUE}
    server.document["info"]["version"] = VALUE
    body = server.document["paths"]["/v1/invoke/get"]["post"]
    body["description"] = f"Send {VALUE}"
    server.answers = [ok(1)]
    tools = host.tools()
    assert not shown(repr(tools))
    assert not shown(repr(host.health()))
    assert not shown(repr(host.call("w__get", {"city": "x"})))


def test_reprs_and_copies(source: PluginSource) -> None:
    secret = source.headers["Authorization"]
    plain = PluginSource("http://127.0.0.1:1", headers={"Authorization": f"Bearer {VALUE}"})
    for text in (repr(secret), str(secret), f"{secret!r:>9}", repr(source), repr(plain), repr([secret])):
        assert not shown(text)
    assert not shown(repr(copy.deepcopy(source)))
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(secret)
    assert not shown(repr(Secret(VALUE)))


@pytest.mark.parametrize(
    "value", ["a\r\nX-Evil: 1 hunter2", "hunter2\x00hunter2", "hünter2hünter2", "h2", "hunter2hunter2 "]
)
def test_a_value_that_cannot_be_sent_is_named_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "\x00" not in value:
        monkeypatch.setenv("WEATHER_TOKEN", value)
        with pytest.raises(InvalidRequestError, match="WEATHER_TOKEN") as error:
            Secret.env("WEATHER_TOKEN")
        assert value not in str(error.value)
    with pytest.raises(InvalidRequestError) as error:
        Secret(value)
    assert "hunter2" not in str(error.value)
    with pytest.raises(InvalidRequestError, match="Authorization") as error:
        PluginSource("http://127.0.0.1:1", headers={"Authorization": f"\x01{value}"})
    assert "hunter2" not in str(error.value)


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch, host: PluginHost) -> None:
    with pytest.raises(InvalidRequestError, match="NO_SUCH_TOKEN"):
        Secret.env("NO_SUCH_TOKEN")
    monkeypatch.delenv("WEATHER_TOKEN")
    done = host.call("w__get", {"city": "x"})
    assert done.status == "internal"
    assert "WEATHER_TOKEN" in done.text


def test_headers_of_the_host_are_its_own() -> None:
    with pytest.raises(InvalidRequestError, match="Octavo-Digest"):
        PluginSource("http://127.0.0.1:1", headers={"Octavo-Digest": "x"})
    with pytest.raises(InvalidRequestError, match="header name"):
        PluginSource("http://127.0.0.1:1", headers={"X Y": "x"})
