"""One seed with one client: a call before the drift, the call that meets it, and one after."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benches.plugin_drift.caller import Generated, Intent, generate
from benches.plugin_drift.clients import Answer, MakeClient, Shown
from benches.plugin_drift.oracle import Verdict, judge
from benches.plugin_drift.world import Network, World


@dataclass(frozen=True)
class Episode:
    """What a client made of a seed.

    Attributes:
        before, met, after: the verdicts on the three calls; None where the caller could not make one.
        compatible: whether the call that met the drift could be right without asking the model again.
        undetectable: whether no host can see the drift.
        code: the answer's code of the call that met the drift, at its end.
        asked_again: whether the model wrote the arguments again.
        ran_otherwise: a typed failure, though the plugin ran the arguments with another meaning.
        requests: HTTP requests of each call; documents included.
    """

    seed: int
    level: int
    steps: tuple[str, ...]
    fault: str
    before: Verdict | None
    met: Verdict | None
    after: Verdict | None
    compatible: bool
    undetectable: bool
    code: str
    asked_again: bool
    ran_otherwise: bool
    repairs: tuple[str, ...]
    requests: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class _Call:
    verdict: Verdict | None
    answer: Answer
    generated: Generated | None
    requests: int
    asked_again: bool = False
    ran_otherwise: bool = False
    note: str = ""


def run(world: World, make: MakeClient) -> Episode:
    """Plays a seed. The same seed gives every client the same world and the same users."""
    rng = random.Random(f"episode {world.seed}")
    plugin = world.plugin()
    network = Network(plugin, random.Random(f"network {world.seed}"))
    first, second, third = (world.intent(rng) for _ in range(3))
    try:
        client = make(network)
    except Exception as error:  # a client that raises is what is measured
        return _broken(world, f"{type(error).__name__}: {error}")
    try:
        tool = client.tool()
        if tool is None:
            return _unusable(world)
        before = _call(client.call, network, tool, first, world.old.idempotent, 1)
        shown = client.tool()
        assert shown is not None
        world.deploy(plugin)
        network.now += world.pause
        if world.refreshed:
            client.tool()
        network.begin(world.fault)
        met = _call(client.call, network, shown, second, world.old.idempotent, 1)
        network.begin("none")
        network.now += 60.0
        latest = client.tool()
        after = (
            None
            if latest is None
            else _call(client.call, network, latest, third, world.old.idempotent, world.new.factor)
        )
    except Exception as error:
        return _broken(world, f"{type(error).__name__}: {error}")
    finally:
        client.close()
    return _episode(world, before, met, after)


def _episode(world: World, before: _Call, met: _Call, after: _Call | None) -> Episode:
    calls = [call for call in (before, met, after) if call is not None and call.verdict is not None]
    return Episode(
        seed=world.seed,
        level=world.level,
        steps=world.steps,
        fault=world.fault,
        before=before.verdict,
        met=met.verdict,
        after=None if after is None else after.verdict,
        compatible=met.generated is not None and world.compatible(met.generated),
        undetectable=world.undetectable,
        code=met.answer.code,
        asked_again=met.asked_again,
        ran_otherwise=met.ran_otherwise,
        repairs=met.answer.repairs,
        requests=tuple(call.requests for call in calls),
        note=met.note,
    )


def _call(
    call: Callable[[Shown, dict[str, Any], str], Answer],
    network: Network,
    tool: Shown,
    intent: Intent,
    idempotent: bool,
    factor: int,
) -> _Call:
    """One call of the model: where the answer offers a new schema, it writes the arguments once more."""
    start, done = network.requests, len(network.plugin.executions)
    first = generate(tool.parameters, intent)
    if first is None:
        return _Call(None, Answer("not expressible"), None, 0)
    answer = call(tool, first.arguments, tool.digest)
    last, again = first, False
    if answer.code != "ok" and answer.schema is not None:
        second = generate(answer.schema, intent)
        if second is not None:
            last, again = second, True
            answer = call(tool, second.arguments, answer.digest)
    ran = network.plugin.executions[done:]
    verdict = judge(last, answer.code == "ok", answer.content, ran, idempotent, factor)
    if verdict is Verdict.TYPED and not answer.said:
        verdict = Verdict.UNTYPED
    meant = [
        judge(last, True, execution.release.answer(execution.meaning), [execution], True, factor) for execution in ran
    ]
    otherwise = verdict is Verdict.TYPED and Verdict.WRONG in meant
    note = f"{answer.code} {last.arguments} {[e.meaning for e in ran]}"
    return _Call(verdict, answer, first, network.requests - start, again, otherwise, note)


def _broken(world: World, note: str) -> Episode:
    return Episode(
        world.seed, world.level, world.steps, world.fault, None, Verdict.UNTYPED, None, False, world.undetectable,
        "raised", False, False, (), (), note,
    )  # fmt: skip


def _unusable(world: World) -> Episode:
    """The client offers no tool, thus the model calls none: a typed end if the plugin speaks no common version."""
    verdict = Verdict.TYPED if 1 not in world.quirks.protocol else Verdict.UNTYPED
    return Episode(
        world.seed, world.level, world.steps, world.fault, None, verdict, None, False, world.undetectable,
        "no tool", False, False, (), (), "",
    )  # fmt: skip
