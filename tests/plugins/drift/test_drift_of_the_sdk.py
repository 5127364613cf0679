"""Drift between `PluginHost` and plugins of octavo's own SDK: the simulated releases, as typed functions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from keyword import iskeyword
from typing import Annotated, Any, Literal

from octavo.plugins import Plugin, Request
from pydantic import Field as Described

from benches.plugin_drift.episode import run
from benches.plugin_drift.oracle import Execution, Verdict
from benches.plugin_drift.ours import HostClient
from benches.plugin_drift.releases import Field, Release
from benches.plugin_drift.server import Quirks, Reply, SimulatedPlugin
from benches.plugin_drift.world import World, make_world

WORLDS = 80
_TYPES: Mapping[str, Any] = {"text": str, "choice": str, "count": int, "share": float, "flag": bool}


def _parameter(field: Field) -> inspect.Parameter:
    kind = _TYPES[field.concept.kind]
    if field.choices is not None:
        kind = Literal[field.choices]  # type: ignore[valid-type]
    if field.wide or field.shape == "text":
        kind = float if field.wide else str
    bounds = {} if field.shape == "text" else {"ge": field.low, "le": field.high}
    if field.shape == "list":
        kind, bounds = list[kind], {"min_length": 1, "max_length": 1}
    about = Described(
        description=field.concept.phrases[field.phrase], **{k: v for k, v in bounds.items() if v is not None}
    )
    schema = field.schema()
    default = schema.get("default", inspect.Parameter.empty)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, about]
    )


def _built(release: Release, executions: list[Execution]) -> Plugin:
    def operation(**arguments: Any) -> dict[str, str]:
        """Answers the question."""
        meaning = release.meaning(arguments)
        executions.append(Execution(release, meaning))
        answer: dict[str, str] = release.answer(meaning)
        return answer

    parameters = [_parameter(field) for field in release.known()]
    operation.__name__ = release.operation
    operation.__signature__ = inspect.Signature(parameters, return_annotation=dict[str, str])  # type: ignore[attr-defined]
    operation.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": dict[str, str]}
    plugin = Plugin("weather", version=release.version)
    options = {"since": "1.0", "consequential": release.consequential, "idempotent": release.idempotent}
    plugin.operation(aliases=release.aliases(), **options)(operation)
    return plugin


class SdkPlugin(SimulatedPlugin):
    """Answers with the SDK; what is deployed follows `release`."""

    def __init__(self, release: Release) -> None:
        super().__init__(release, 2, Quirks())
        self._built: dict[str, Plugin] = {}

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if self.release.version not in self._built:
            self._built[self.release.version] = _built(self.release, self.executions)
        answer = self._built[self.release.version].handle(Request(method, path, headers, body))
        return answer.status, dict(answer.headers), answer.body

    def close(self) -> None:
        for plugin in self._built.values():
            plugin.close()


OPEN: list[SdkPlugin] = []


class SdkWorld(World):
    """A world whose plugin is the SDK's."""

    def plugin(self) -> SimulatedPlugin:
        made = SdkPlugin(self.old)
        OPEN.append(made)
        return made


def _typed(release: Release) -> bool:
    """Whether a function's signature can say it: a required argument has no default, an optional one has one."""
    fields = release.known()
    return bool(fields) and all(f.required == (f.default is None) and not iskeyword(f.name) for f in fields)


def test_calls_survive_between_the_host_and_the_sdk() -> None:
    verdicts: list[tuple[bool, Verdict | None]] = []
    for seed in range(4000):
        found = make_world(seed)
        if found.undetectable or found.new.major != found.old.major or not (_typed(found.old) and _typed(found.new)):
            continue
        members = {name: getattr(found, name) for name in found.__dataclass_fields__}
        world = SdkWorld(**members | {"level": 2, "quirks": Quirks(), "fault": "none"})
        if world.undetectable:
            continue
        episode = run(world, HostClient)
        OPEN.pop().close()
        assert episode.before in (Verdict.RIGHT, None), episode
        assert episode.met is not Verdict.WRONG, episode
        assert episode.met is not Verdict.UNTYPED, episode
        verdicts.append((episode.compatible, episode.met))
        if len(verdicts) == WORLDS:
            break
    compatible = [verdict for fits, verdict in verdicts if fits]
    assert len(compatible) > WORLDS / 3
    assert set(compatible) == {Verdict.RIGHT}
