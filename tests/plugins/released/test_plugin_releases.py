"""Every released host against every released plugin: recorded traffic means today what it meant when it was recorded.

A folder is added at each release of the protocol's code and never changes: see `record.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from octavo.plugins import Plugin, Request
from octavo.plugins.host import HttpAnswer, HttpRequest
from record import BASE, CALLS, Recorder, calls, load

HERE = Path(__file__).parent
VERSIONS = sorted(folder.name for folder in HERE.iterdir() if (folder / "traffic.json").exists())
# The headers of the protocol. Others belong to servers and caches.
OWN = ("octavo-protocol", "octavo-digest", "deprecation", "sunset", "retry-after")


def traffic(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / version / "traffic.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(params=VERSIONS)
def plugin(request: pytest.FixtureRequest) -> Iterator[Plugin]:
    with load(HERE / request.param) as made:
        made.release = request.param  # type: ignore[attr-defined]
        yield made


def _send(plugin: Plugin, exchange: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    headers = {"Content-Type": "application/json", **exchange["headers"]}
    answer = plugin.handle(Request(exchange["method"], exchange["path"], headers, exchange["body"].encode()))
    return answer.status, {k.lower(): v for k, v in answer.headers.items()}, json.loads(answer.body)


def test_folders_never_change() -> None:
    sums = {}
    for line in (HERE / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split()
        sums[name] = digest
    files = [file for version in VERSIONS for file in (HERE / version).iterdir() if file.is_file()]
    assert {str(f.relative_to(HERE)) for f in files} == set(sums)
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sums[str(file.relative_to(HERE))], file


@pytest.mark.parametrize("version", VERSIONS)
def test_a_released_host_calls_every_released_plugin(version: str, plugin: Plugin) -> None:
    """The requests of an old host to each plugin, built with today's SDK."""
    same = plugin.release == version  # type: ignore[attr-defined]
    recorded = traffic(version)
    for exchange in [*recorded["host"], *recorded["raw"]]:
        if exchange["method"] == "GET":
            continue
        status, headers, value = _send(plugin, exchange)
        expected = exchange["answer"]
        assert headers["octavo-protocol"].split(".")[0] == "1"
        # Another release may have other schemas: then the answer says that, and nothing ran.
        if not same and status == 409:
            assert value["type"] == "urn:octavo-plugin:schema-changed"
            continue
        assert status == expected["status"], exchange
        assert {k: headers.get(k) for k in OWN} == {k: expected["headers"].get(k) for k in OWN}, exchange
        before = json.loads(expected["body"])
        assert value.get("result") == before.get("result")
        assert value.get("type") == before.get("type")


class _Replay:
    """Answers as the recorded plugin did."""

    def __init__(self, exchanges: list[dict[str, Any]]) -> None:
        self._left = list(exchanges)

    def send(self, request: HttpRequest) -> HttpAnswer:
        path, body = request.url.removeprefix(BASE), (request.body or b"").decode()
        for exchange in self._left:
            sent = json.loads(exchange["body"] or "null") == json.loads(body or "null")
            if (exchange["method"], exchange["path"]) == (request.method, path) and sent:
                self._left.remove(exchange)
                answer = exchange["answer"]
                return HttpAnswer(answer["status"], answer["headers"], answer["body"].encode())
        raise AssertionError(f"today's host sends what the released one did not: {request.method} {path} {body}")


@pytest.mark.parametrize("version", VERSIONS)
def test_todays_host_reads_every_released_plugin(version: str) -> None:
    """The recorded answers of an old plugin to today's host: the same outcomes, and no request that is new."""
    recorded = traffic(version)
    assert calls(_Replay(recorded["host"])) == recorded["outcomes"]


def test_todays_host_calls_every_released_plugin(plugin: Plugin) -> None:
    outcomes = calls(Recorder(plugin))
    assert [o["status"] for o in outcomes] == ["ok", "ok", "invalid_arguments", "unavailable", "ok"]
    assert len(outcomes) == len(CALLS)


def test_manifests_keep_their_digests(plugin: Plugin) -> None:
    """A digest that today's code computes otherwise would make every old caller write its arguments again."""
    recorded = next(e for e in traffic(plugin.release)["host"] if e["path"].endswith("octavo-plugin.json"))  # type: ignore[attr-defined]
    before = {(e["id"], e["major"]): e["digest"] for e in json.loads(recorded["answer"]["body"])["operations"]}
    now = {(e["id"], e["major"]): e["digest"] for e in plugin.manifest()["operations"]}
    assert now == before
