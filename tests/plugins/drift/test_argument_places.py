"""Arguments of level 0 in their places: none is lost or changed in silence, and faults that are planted are caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import octavo.plugins.host.endpoint as endpoint
import octavo.plugins.host.openapi_import as openapi_import
import octavo.plugins.host.parameters as parameters
import pytest
from octavo.plugins import validation

from benches.plugin_drift.oracle import Verdict
from benches.plugin_drift.places import place, place_figures
from benches.plugin_drift.report import failed_place_gates

SEEDS = 3000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation's schemas are valid, and their check takes most of the time."""
    monkeypatch.setattr(validation, "_check", lambda schema: None)


def test_no_argument_is_lost_or_changed() -> None:
    found = place_figures([place(seed) for seed in range(SEEDS)])
    assert failed_place_gates(found) == []
    assert found["ordinary"]["calls"] > SEEDS / 3
    # What has no form is refused: without such values the run would show nothing.
    assert found["typed"] > SEEDS / 10


def _leave_out(argument: str, where: Any, value: Any) -> Any:
    return [] if value in (None, []) else parameters.query(argument, where, value)


def _join(argument: str, where: Any, value: Any) -> str:
    items = value if isinstance(value, list) else [value]
    return ",".join(parameters._scalar(argument, where, item) for item in items)


def _strip(argument: str, where: Any, value: Any) -> str:
    return parameters._joined(argument, where, value).strip()


def _any_value(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(openapi_import, "fitting", lambda schema, where: (schema, where))


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "null and empty lists are left out": lambda patch: patch.setattr(endpoint, "query_pairs", _leave_out),
    "lists are joined as they are": lambda patch: patch.setattr(parameters, "_joined", _join),
    "headers are stripped": lambda patch: patch.setattr(endpoint, "header", _strip),
    "null is a text": lambda patch: patch.setattr(
        parameters, "_scalar", lambda argument, where, value: value if isinstance(value, str) else str(value).lower()
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _any_value(monkeypatch)
    FAULTS[name](monkeypatch)
    assert any(place(seed).verdict is Verdict.WRONG for seed in range(SEEDS))


def test_the_same_seed_is_the_same_call() -> None:
    assert place(7) == place(7)
