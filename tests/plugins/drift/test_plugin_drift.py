"""Calls under drift: the gates hold, and each fault that is planted in the host makes one fail.

The oracle and the simulated plugin are written from the specification; they share no code with the host but the digest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import octavo.plugins.host.invoke as invoke
import octavo.plugins.host.registry as registry
import octavo.plugins.host.repair as repair
import pytest
from octavo.plugins import validation
from octavo.plugins.host import PluginHost
from octavo.plugins.host.outcome import Repair

from benches.plugin_drift import ours
from benches.plugin_drift.caller import Intent, generate
from benches.plugin_drift.clients import Answer, ExactClient, FrozenClient
from benches.plugin_drift.concepts import CONCEPTS
from benches.plugin_drift.episode import Episode, run
from benches.plugin_drift.history import STEPS
from benches.plugin_drift.oracle import Verdict
from benches.plugin_drift.ours import HostClient
from benches.plugin_drift.releases import Field, Release
from benches.plugin_drift.report import failed_gates, figures
from benches.plugin_drift.world import LateError, Network, World, make_world

SEEDS = 2000
_BAD = {Verdict.WRONG, Verdict.UNTYPED}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation's schemas are valid: see `test_schemas_are_valid`. Their check takes most of the time."""
    monkeypatch.setattr(validation, "_check", lambda text: None)


@pytest.fixture(scope="module")
def played() -> tuple[list[Episode], list[Episode], list[Episode]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "_check", lambda text: None)
        worlds = [make_world(seed) for seed in range(SEEDS)]
        a, b, c = ([run(world, client) for world in worlds] for client in (HostClient, FrozenClient, ExactClient))
        return a, b, c


def test_gates(played: tuple[list[Episode], list[Episode], list[Episode]]) -> None:
    found = figures(*played)
    assert failed_gates(found) == []
    assert found["compatible"]["calls"] > SEEDS / 3
    assert found["breaking"]["calls"] > SEEDS / 5


def test_the_oracle_condemns_the_frozen_client(played: tuple[list[Episode], list[Episode], list[Episode]]) -> None:
    """A run in which no client is ever wrong would measure nothing."""
    found = figures(*played)
    assert found["silent_wrong_on_the_mix"]["frozen"] > SEEDS / 50
    assert failed_gates(figures(played[1], played[1], played[2]))


def test_every_step_and_repair_occurs(played: tuple[list[Episode], list[Episode], list[Episode]]) -> None:
    steps = {step for episode in played[0] for step in episode.steps}
    assert {step.__name__ for step in STEPS} <= steps
    assert {"rename", "drop", "default", "coerce", "wrap"} <= {kind for e in played[0] for kind in e.repairs}


def test_the_same_seed_is_the_same_world() -> None:
    assert make_world(7) == make_world(7)
    assert run(make_world(7), HostClient) == run(make_world(7), HostClient)


def test_before_the_drift_all_calls_are_right(played: tuple[list[Episode], list[Episode], list[Episode]]) -> None:
    for episodes in played:
        assert {e.before for e in episodes} <= {Verdict.RIGHT, None}


def test_nothing_is_coerced_at_level_0(played: tuple[list[Episode], list[Episode], list[Episode]]) -> None:
    changed = [e for e in played[0] if "change_type" in e.steps]
    assert {"coerce", "wrap"} <= {kind for e in changed for kind in e.repairs}
    plain = [e for e in changed if e.level == 0]
    assert len(plain) > 10
    assert not {"coerce", "wrap"} & {kind for e in plain for kind in e.repairs}


# Faults planted in the host


def _any_rename(work: Any, former: str) -> list[str]:
    """Takes any new argument for the former one."""
    return [name for name in work._new if name not in work._old][:1]


def _drop_all(work: Any, result: Any) -> None:
    for name in [name for name in result.arguments if name not in work._new]:
        result.repairs.append(Repair("drop", f"/{name}", "planted", result.arguments.pop(name)))


def _plant_rename(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(repair._Work, "_twins", _any_rename)


def _plant_drop(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(repair._Work, "drop", _drop_all)


def _plant_new_defaults(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(repair._Work, "defaults", lambda work, result: None)
    patch.setattr(repair._Work, "replaced", lambda work, result: None)


def _plant_reused_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(repair._Work, "values", lambda work, result: None)


def _plant_retry(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(invoke, "may_retry", lambda *args, **named: True)


def _plant_no_digest(patch: pytest.MonkeyPatch) -> None:
    """A host that sends no digest, and believes each answer."""
    plain = ours.SimulatedTransport.send

    def send(transport: Any, request: Any) -> Any:
        own = request.headers.get("Octavo-Digest")
        headers = {k: v for k, v in request.headers.items() if k != "Octavo-Digest"}
        answer = plain(transport, replace(request, headers=headers))
        shown = {**answer.headers, "octavo-digest": own} if own else answer.headers
        return replace(answer, headers=shown)

    patch.setattr(ours.SimulatedTransport, "send", send)


def _plant_stale_documents(patch: pytest.MonkeyPatch) -> None:
    """A host that trusts the document of a service without digests for as long as it has it."""

    def trusting(self: Any, budget: Any, *args: Any, **named: Any) -> Any:
        return self.get(budget, any_age=True)

    patch.setattr(registry.Registry, "revalidate", trusting)


def _plant_raise(patch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **named: Any) -> Any:
        raise KeyError("planted")

    patch.setattr(PluginHost, "call", fails)


PLANTED: Mapping[str, Callable[[pytest.MonkeyPatch], None]] = {
    "renames without evidence": _plant_rename,
    "drops values that are no defaults": _plant_drop,
    "lets new defaults in": _plant_new_defaults,
    "sends a name that was used again": _plant_reused_names,
    "sends twice what may have run": _plant_retry,
    "ignores digests": _plant_no_digest,
    "trusts old documents": _plant_stale_documents,
    "raises": _plant_raise,
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[fault](monkeypatch)
    for seed in range(SEEDS):
        world = make_world(seed)
        episode = run(world, HostClient)
        if not episode.undetectable and {episode.before, episode.met, episode.after} & _BAD:
            assert failed_gates(figures([episode], [episode], [episode]))
            return
    pytest.fail(f"a host that {fault} passes {SEEDS} seeds")


class _Echoing(HostClient):
    """Trusts any answer that has the header of versions, as a host that does not detect echoes would."""

    def __init__(self, network: Network) -> None:
        send = network.plugin.handle

        def handle(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
            status, answer, text = send(method, path, headers, body)
            if "octavo-protocol" in answer:
                answer = {**answer, "octavo-protocol": "1.0"}
            return status, answer, text

        network.plugin.handle = handle  # type: ignore[method-assign]
        super().__init__(network)


def test_echoes_that_are_trusted_are_caught() -> None:
    """With the echo made to look like the plugin's own version, calls go wrong: the detection is what prevents it."""
    worlds = [world for world in map(make_world, range(6000)) if world.quirks.echoes and not world.undetectable]
    assert len(worlds) > 80
    honest = [run(world, HostClient) for world in worlds]
    assert not any({e.before, e.met, e.after} & _BAD for e in honest)
    fooled = [run(world, _Echoing) for world in worlds]
    assert any(Verdict.WRONG in (e.before, e.met, e.after) for e in fooled)


# The oracle itself


def test_schemas_are_valid() -> None:
    import jsonschema

    for seed in range(100):
        world = make_world(seed)
        for release in (world.old, world.new):
            jsonschema.Draft202012Validator.check_schema(release.parameters())


def test_the_caller_writes_what_jsonschema_accepts(played: Any) -> None:
    """The releases' own check of arguments agrees with an independent validator."""
    import random

    import jsonschema

    for seed in range(150):
        world = make_world(seed)
        made = generate(world.old.parameters(), world.intent(random.Random(seed)))
        assert made is not None
        jsonschema.Draft202012Validator(world.old.parameters()).validate(made.arguments)
        assert world.old.meaning(made.arguments) == made.meaning


def _world(old: Release, new: Release) -> World:
    plain = next(w for w in map(make_world, range(100)) if w.level == 2 and w.quirks.protocol == {1: 0})
    return replace(plain, old=old, new=new, fault="none", refreshed=False, steps=())


def test_a_rebound_name_is_never_sent() -> None:
    """`limit` was a count and becomes a price: the same name, the same type, another meaning."""
    place = Field("place", "city")
    old = Release(1, 0, "find_offers", (place, Field("results", "limit", low=1, high=50)))
    new = replace(old, minor=1, fields=(place, Field("price", "limit", low=1, high=60)))
    world = _world(old, new)
    episode = run(world, HostClient)
    assert episode.met in (Verdict.TYPED, Verdict.RIGHT)
    assert run(world, FrozenClient).met is not Verdict.TYPED or world.undetectable


def test_an_answer_without_a_sentence_is_untyped() -> None:
    class Mute(HostClient):
        def call(self, tool: Any, arguments: dict[str, Any], digest: str) -> Answer:
            return Answer("unavailable", said=False)

    assert run(make_world(0), Mute).met is Verdict.UNTYPED


def test_units_that_change_behind_a_schema_are_counted_apart() -> None:
    """spec: P-MAJOR-2. No host can see it, thus the gates leave it out and the report names it."""
    old = Release(1, 0, "find_offers", (Field("radius", "radius", low=1, high=80),))
    world = _world(old, replace(old, minor=1, factor=1000))
    assert world.undetectable
    assert run(world, HostClient).met is Verdict.WRONG


def test_the_network_ends_at_the_deadline() -> None:
    import random

    world = make_world(0)
    network = Network(world.plugin(), random.Random(0))
    network.begin("too slow")
    begin = network.now
    with pytest.raises(LateError):
        network.send("POST", "http://weather.test/weather/x", {}, b"{}", 5.0)
    assert 5.0 <= network.now - begin < 6.0


def test_phrases_belong_to_one_concept() -> None:
    phrases = [phrase for concept in CONCEPTS for phrase in concept.phrases]
    assert len(phrases) == len(set(phrases))
    schema = Field("place", "limit", 1).schema()
    made = generate({"properties": {"limit": schema}, "required": ["limit"]}, Intent({"place": "Oslo"}))
    assert made is not None
    assert made.arguments == {"limit": "Oslo"}
