"""A plugin written from the specification passes the conformance test, and each wrong one fails its rule."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from octavo.cli import app
from octavo.errors import InvalidRequestError
from octavo.plugins import Plugin
from octavo.plugins.conformance import PluginTarget, Reply, UrlTarget, check
from octavo.plugins.conformance.sample import sample
from plain_plugin import serve
from typer.testing import CliRunner


@pytest.mark.parametrize("kind", ["", "references", "early-413"])
def test_a_right_plugin_passes(kind: str) -> None:
    with serve(kind, limit=1 << 20) as (url, _):
        report = check(UrlTarget(url))
    assert report.level == 2
    assert report.ok, report.text()


def test_a_right_plugin_passes_with_given_arguments() -> None:
    """Two operations with other bodies share no key."""
    with serve() as (url, _):
        report = check(UrlTarget(url), arguments={"count": {"text": "a b"}, "echo": {"text": "c"}})
    assert report.ok, report.text()


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("no-keys", "P-IDEMPOTENCY-2"),
        ("no-headers", "P-VERSION-5"),
        ("no-headers", "P-DIGEST-4"),
        ("untyped-405", "P-PROBLEM-1"),
        ("no-types", "P-INVOKE-3"),
        ("no-ranges", "P-INVOKE-3"),
        ("pointers", "P-INVOKE-3"),
        ("second-wrong", "P-INVOKE-1"),
        ("majors", "P-MANIFEST-1"),
        ("no-operations", "P-MANIFEST-1"),
    ],
)
def test_a_wrong_plugin_fails_its_rule(fault: str, rule: str) -> None:
    with serve(fault) as (url, _):
        report = check(UrlTarget(url))
    assert rule in {name for result in report.failed for name in result.ids}, report.text()


def test_refused_arguments_that_were_given_are_a_failure() -> None:
    with serve("always-422") as (url, _):
        report = check(UrlTarget(url), arguments={"count": {"text": "a b"}})
        assert "P-INVOKE-1" in {name for result in report.failed for name in result.ids}, report.text()
        with pytest.raises(InvalidRequestError, match=r"'nope'.*count, echo"):
            check(UrlTarget(url), arguments={"nope": {}})


def test_ids_that_look_like_the_unknown_one_never_run() -> None:
    ran = []
    with Plugin("tools", version="1.0.0") as plugin:

        @plugin.operation()
        def fa(n: int) -> int:
            return n

        @plugin.operation(consequential=True)
        def fax() -> int:
            ran.append("fax")
            return 1

        report = check(PluginTarget(plugin), call=False)
    assert ran == []
    assert report.ok, report.text()


def test_what_has_consequences_is_left_alone_where_unknown_arguments_run() -> None:
    with serve("ignores-unknown", ids=("del_all", "count")) as (url, plugin):
        report = check(UrlTarget(url))
    assert "P-INVOKE-4" in {name for result in report.failed for name in result.ids}
    assert "del_all" not in plugin.ran
    assert "count" in plugin.ran


class _Changed:
    """A right plugin whose manifest or document is another."""

    name = "changed"

    def __init__(self, path: str, change: Callable[[Any], Any]) -> None:
        self._path, self._change = path, change
        self.plugin = Plugin("w", version="1.0.0")

        @self.plugin.operation(aliases={"n": ["m"]})
        def get(n: int) -> int:
            return n

        self._inner = PluginTarget(self.plugin)

    def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        reply = self._inner.send(method, path, headers, body)
        if not path.endswith(self._path) or reply.status != 200:
            return reply
        value = reply.json()
        self._change(value)
        return Reply(reply.status, reply.headers, json.dumps(value).encode())


def _schema(document: Any) -> Any:
    post = document["paths"]["/v1/invoke/get"]["post"]
    return post["requestBody"]["content"]["application/json"]["schema"]["properties"]


def _argument(**schema: Any) -> Callable[[Any], Any]:
    return lambda document: _schema(document)["arguments"]["properties"].update(n=schema)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("plugin.json", lambda v: v.update(openapi={"url": "http://[::1"})),
        ("plugin.json", lambda v: v.update(openapi={"url": "a b\u00fc"})),
        ("plugin.json", lambda v: v.update(majors=[])),
        ("openapi.json", lambda v: v.update(paths=None)),
        ("openapi.json", lambda v: v.update(paths=[1])),
        ("openapi.json", lambda v: _schema(v).update(arguments=True)),
        ("openapi.json", lambda v: _schema(v)["arguments"].update(required=5)),
        ("openapi.json", lambda v: _schema(v)["arguments"].update(required=[["a"]])),
        ("openapi.json", _argument(type="string", format=["a"])),
        ("openapi.json", _argument(type="string", minLength="a")),
        ("openapi.json", _argument(type={"a": 1})),
        ("openapi.json", _argument(type="number", minimum=math.nan)),
        ("openapi.json", _argument(type="string", minLength=10**12)),
        ("openapi.json", _argument(type="array", items={"type": "integer"}, minItems=10**9)),
    ],
)
def test_a_malformed_document_is_a_report(path: str, change: Callable[[Any], Any]) -> None:
    target = _Changed(path, change)
    report = check(target)
    target.plugin.close()
    assert not report.ok


def test_a_large_sample_is_none() -> None:
    inner = {"type": "array", "items": {"type": "array", "items": {}, "minItems": 999}, "minItems": 999}
    assert sample(inner) is None


def test_secrets_are_in_no_report() -> None:
    class Echo:
        name = "echo"

        def __init__(self) -> None:
            self.secrets = PluginTarget(
                Plugin("a", version="1.0.0"), {"Authorization": "Bearer s3cret-of-mine"}
            ).secrets

        def send(self, method: str, path: str, headers: Any = None, body: bytes = b"") -> Reply:
            # The cut of a long body goes through the secret.
            return Reply(500, {"etag": "s3cret-of-mine"}, b"." * 190 + b"s3cret-of-mine", self.secrets)

    reply = Echo().send("GET", "")
    assert "s3cret" not in reply.shown
    assert "s3cret" not in check(Echo()).text()


@pytest.mark.parametrize("value", ["Bearer s3cret-of-mine\n", "Bearer \u043f\u0430\u0440\u043e\u043b\u044c"])
def test_a_header_that_cannot_be_sent_is_refused(value: str) -> None:
    command = ["plugin", "check", "http://127.0.0.1:9", "--header-env", "Authorization=TOKEN"]
    found = CliRunner().invoke(app, command, env={"TOKEN": value})
    assert found.exit_code == 2
    assert "'Authorization'" in found.stderr
    assert "s3cret" not in found.output + found.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/?a=1", "http://127.0.0.1:9/#a"])
def test_a_query_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="query or a fragment"):
        UrlTarget(url)


def test_missing_credentials_are_named() -> None:
    with Plugin("w", version="1.0.0", authorize=lambda request: False) as plugin:

        @plugin.operation()
        def get(n: int) -> int:
            return n

        report = check(PluginTarget(plugin))
    assert "401" in report.text()
    assert "--header-env" in report.failed[0].detail
