"""`octavo plugin check | list | schema | call` against a running plugin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import weather_plugin
from octavo.cli import app
from served import serve_asgi
from typer.testing import CliRunner, Result


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    plugin = weather_plugin.build()
    with serve_asgi(plugin.asgi_app) as found:
        yield found
    plugin.close()


def _run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, ["plugin", *arguments], env=environment)


def test_list(url: str) -> None:
    lines = _run("list", url).stdout.splitlines()
    assert [line.partition("(")[0] for line in lines] == ["fail", "get_forecast", "send", "stall", "where"]
    assert "[consequential]" in lines[2]
    assert "[deprecated]" in lines[4]


def test_list_as_json(url: str) -> None:
    tools = json.loads(_run("list", url, "--json").stdout)
    assert tools[1]["type"] == "function"
    assert tools[1]["function"]["parameters"]["properties"].keys() == {"city", "days"}


def test_schema(url: str) -> None:
    shown = json.loads(_run("schema", url, "get_forecast").stdout)
    assert shown["arguments"]["required"] == ["city"]
    assert shown["digest"].startswith("sha256:")


def test_an_unknown_operation_is_named(url: str) -> None:
    found = _run("schema", url, "get_forcast")
    assert found.exit_code == 2
    assert "get_forcast" in found.stderr
    assert "get_forecast" in found.stderr


def test_call(url: str) -> None:
    found = _run("call", url, "get_forecast", '{"city": "Corrin", "days": 1}')
    assert json.loads(found.stdout) == {"city": "Corrin", "days": [{"high": 20, "low": 10}]}
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("get_forecast", '{"city": 3}'), "invalid_arguments"),
        (("send", '{"to": "a", "text": "b"}'), "approval_required"),
    ],
)
def test_a_failed_call_is_typed(url: str, arguments: tuple[str, str], status: str) -> None:
    found = _run("call", url, *arguments, "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["status"] == status


def test_an_approved_call_runs(url: str) -> None:
    found = _run("call", url, "send", '{"to": "a", "text": "b"}', "--approve")
    assert (found.exit_code, found.stdout.strip()) == (0, "1")


def test_arguments_must_be_json(url: str) -> None:
    found = _run("call", url, "send", "{")
    assert found.exit_code == 2
    assert "JSON" in found.stderr


def test_check_reports_each_rule(url: str) -> None:
    found = _run("check", url, "--no-call", "--json")
    report: dict[str, Any] = json.loads(found.stdout)
    assert found.exit_code == 0
    assert report["level"] == 2
    assert {r["state"] for r in report["results"]} == {"pass", "skip"}


def test_check_fails_for_a_fault(url: str) -> None:
    """The operation `fail` raises for the arguments that are made up for it."""
    found = _run("check", url)
    assert found.exit_code == 1
    assert "P-INVOKE-1" in found.stdout
    assert "secret-value" not in found.stdout


def test_check_with_arguments_that_fit(url: str) -> None:
    assert _run("check", url, "--arguments", 'fail={"how": "busy"}').exit_code == 1
    bad = _run("check", url, "--arguments", "fail=3")
    assert bad.exit_code == 2
    assert "OPERATION=JSON" in bad.stderr


def test_a_header_comes_from_the_environment(url: str) -> None:
    bad = _run("check", url, "--header-env", "Authorization=sk-secret-123")
    assert bad.exit_code == 2
    assert "sk-secret" not in bad.stderr
    assert _run("check", url, "--no-call", "--header-env", "X-Key=THE_KEY", THE_KEY="k").exit_code == 0


def test_nothing_listens() -> None:
    found = _run("check", "http://127.0.0.1:9")
    assert found.exit_code == 1
    assert "Does it run" in found.stderr
