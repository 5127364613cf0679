"""`octavo chat --plugin` and the options of plugins of `octavo serve`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from octavo.cli.plugin_options import ask, binding, describe, plugin_host
from octavo.errors import InvalidRequestError
from octavo.plugins import Deprecation, Plugin
from octavo.plugins.host import Outcome
from plugin_cases import Scripted, Shop, weather, written
from servers import uvicorn_in_thread

URL = "http://127.0.0.1:1"
SECRET = "s3cret-of-a-shop"


def octavo(*arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "octavo", *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_chat_names_a_plugin_that_does_not_answer_and_goes_on() -> None:
    with uvicorn_in_thread(weather().asgi_app) as url:
        plugins = ["--plugin", f"weather={url}", "--plugin", f"gone={URL}"]
        done = octavo("chat", *plugins, "--temperature", "0", "--max-tokens", "8", given="Hi\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "[gone: " in done.stderr
    assert "weather" not in done.stderr


def test_doctor_checks_plugins() -> None:
    plugin = Plugin("shop", version="2.3.0")
    ending = Deprecation.on("2026-01-01", sunset="2027-02-03", use="cost")
    endless = Deprecation(0)

    @plugin.operation(deprecated=ending)
    def price(item: str) -> int:
        return 1

    @plugin.operation(deprecated=endless)
    def cost(item: str) -> int:
        return 1

    with uvicorn_in_thread(plugin.asgi_app) as url:
        done = octavo("doctor", "--json", "--plugin", f"shop={url}", "--plugin", f"gone={URL}")
    assert done.returncode == 1
    checks = [c for c in json.loads(done.stdout) if c["name"].startswith("plugin ")]
    assert [(c["name"], c["state"]) for c in checks] == [
        ("plugin shop", "ok"),
        ("plugin shop", "note"),
        ("plugin shop", "note"),
        ("plugin gone", "broken"),
    ]
    assert checks[0]["found"] == "level 2, version 2.3.0, 2 operations"
    assert checks[1]["found"] == "cost is deprecated"
    assert (checks[2]["found"], checks[2]["remedy"]) == ("price is deprecated, and ends on 2027-02-03", "use cost")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plugin", "weather"], "NAME=URL"),
        (["--plugin", "weather=ftp://a"], "ftp"),
        (["--plugin", f"a b={URL}"], "'a b'"),
        (["--plugin", f"w={URL}", "--plugin", f"w={URL}"], "twice"),
        (["--plugin-secret-env", "w=KEY"], "--plugin names no plugin"),
        (["--plugin", f"w={URL}", "--plugin-secret-env", "v=KEY"], "'v'"),
        (["--plugin", f"w={URL}", "--plugin-secret-env", f"w={SECRET}"], "name of a variable"),
        (["--plugin", f"w={URL}", "--plugin-secret-env", SECRET], "NAME=VARIABLE"),
        (["--plugin", f"w={URL}", "--plugin-secret-env", "w=NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (["--plugin", f"w={URL}", "--plugin-approval", "w=often"], "always, consequential or never"),
        (["--plugin", f"w={URL}", "--plugin-approval", "v=always"], "'v'"),
        (["--url", URL, "--plugin", f"w={URL}"], "--plugin is for a model in this process"),
    ],
)
def test_bad_options_are_named(arguments: list[str], words: str) -> None:
    done = octavo("chat", *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert f"={SECRET}" not in done.stderr


def test_secrets_go_into_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", SECRET)
    secrets = ["a=SHOP_KEY", "b=X-Api-Key:SHOP_KEY", "c=SHOP_KEY"]
    with plugin_host([f"a={URL}", f"b={URL}", f"c=mcp+{URL}/mcp"], secrets) as host:
        assert host is not None
        sources = {name: state.source for name, state in host._states.items()}
        assert sources["a"].header_values() == {"Authorization": f"Bearer {SECRET}"}
        assert sources["b"].header_values() == {"X-Api-Key": SECRET}
        assert (sources["c"].kind, sources["c"].url.rstrip("/")) == ("mcp", f"{URL}/mcp")
        assert SECRET not in repr(sources) + repr(host)


def test_rules_for_approvals() -> None:
    rules = ["a=always", "b=never", "c=consequential"]
    with plugin_host([f"{name}={URL}" for name in "abcd"], None, rules) as host:
        assert host is not None
        assert [host.approval(name) for name in "abcd"] == ["always", "never", "consequential", "consequential"]
    assert binding(rules) == {"a": "always", "c": "consequential"}


def test_a_host_is_only_made_for_plugins() -> None:
    with plugin_host(None, None) as host:
        assert host is None
    with pytest.raises(InvalidRequestError), plugin_host([f"a={URL}"], ["a=1"]):
        pass


class Terminal:
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "runs"), [("y", True), ("YES ", True), ("", False), ("no", False)])
def test_a_person_approves_in_a_terminal(
    typed: str, runs: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Outcome("shop__buy", "shop", "buy", {"item": "hat\x1b[2J"}, "approval_required")
    asked: list[Any] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return typed

    monkeypatch.setattr("builtins.input", answer)
    assert ask(outcome) is False
    assert not asked, "standard input is no terminal here"
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert ask(outcome) is runs
    shown = capsys.readouterr().err
    assert "shop buy" in shown
    assert "\x1b" not in shown


def test_outcomes_as_lines() -> None:
    done = Outcome("w__t", "w", "t", {"city": "Oslo"}, "ok", content=[-3], text="[-3]")
    assert describe(done) == '[w t {"city": "Oslo"}: [-3]]'
    failed = Outcome("w__t", "w", "t", {}, "timeout", text="too\nslow\x07")
    assert describe(failed) == "[w t {}: timeout: too slow ]"
    assert len(describe(Outcome("w__t", "w", "t", {}, "ok", content="x" * 9999))) < 400


def test_an_mcp_server_is_called_in_rounds() -> None:
    shop = Shop()
    with (
        Scripted(written("weather__temperature", city="Oslo"), "Cold.", written("shop__buy", item="hat")) as llm,
        uvicorn_in_thread(weather().asgi_app) as one,
        uvicorn_in_thread(shop.plugin.asgi_app) as two,
        plugin_host([f"weather=mcp+{one}/mcp", f"shop=mcp+{two}/mcp"], None) as host,
    ):
        (first,) = llm.chat([{"role": "user", "content": "How cold is it?"}], plugins=host)
        (second,) = llm.chat([{"role": "user", "content": "Buy a hat."}], plugins=host)
    assert (first.text, [(o.status, o.content) for o in first.tool_trace]) == ("Cold.", [("ok", -3)])
    assert ([o.status for o in second.tool_trace], shop.sold) == (["approval_required"], [])
