"""A seed's world: two releases, the plugin's quirks, a fault, what users want, and a network with its own clock."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from benches.plugin_drift.caller import Generated, Intent
from benches.plugin_drift.history import first_release, next_release
from benches.plugin_drift.oracle import compatible, convertible, expected, undetectable
from benches.plugin_drift.releases import RefusedError, Release
from benches.plugin_drift.server import Quirks, Reply, SimulatedPlugin, digest_of

BASE = "http://weather.test/weather"
# Fault -> how often it is drawn. Each hits the requests of one call.
FAULTS = {
    "none": 70,
    "slow": 6,
    "burst": 6,
    "lost answer": 4,
    "truncated once": 3,
    "truncated": 2,
    "outage": 3,
    "too slow": 2,
    "page": 2,
    "reset": 2,
}
# Faults that leave in doubt whether the operation ran.
DOUBTFUL = {"lost answer", "truncated once", "reset"}
# Faults after which no call can succeed.
FATAL = {"truncated", "outage", "too slow", "page"}


@dataclass(frozen=True)
class World:
    """All that a seed determines; the oracle and the simulation share it, a client sees none of it."""

    seed: int
    old: Release
    new: Release
    steps: tuple[str, ...]
    level: int
    quirks: Quirks
    fault: str
    window: bool
    # Seconds between the moment when the caller saw the tools and its call.
    pause: float
    # Whether another conversation lists the tools between the two, which refreshes what the host has.
    refreshed: bool

    def plugin(self) -> SimulatedPlugin:
        return SimulatedPlugin(self.old, self.level, self.quirks)

    def deploy(self, plugin: SimulatedPlugin) -> None:
        """The new release goes live; the majors that its converters serve stay."""
        plugin.release = self.new
        if self.converted:
            plugin.older = {self.old.major: self.old}

    @property
    def converted(self) -> bool:
        """Whether the new release serves the old one's major."""
        can = all(
            not f.required or f.default is not None or self.old.field_of(f.concept_id) is not None
            for f in self.new.known()
        )
        return self.level > 0 and self.window and self.new.major > self.old.major and can and bool(self.new.fields)

    def intent(self, rng: random.Random) -> Intent:
        """What a user wants, by the fields of the old release; some users have more to say, if they are asked."""
        wanted = {
            f.concept_id: rng.choice([v for v in f.concept.values if f.accepts(v)])
            for f in self.old.known()
            if (f.required and f.default is None) or rng.random() < 0.5
        }
        more = {f.concept_id: f.concept.draw(rng) for f in self.new.known() if rng.random() < 0.5}
        return Intent(wanted, {k: v for k, v in more.items() if k not in wanted})

    @property
    def undetectable(self) -> bool:
        closed = self.level > 0
        same = digest_of(self.old, closed) == digest_of(self.new, closed) and self.old.major == self.new.major
        return undetectable(self.old, self.new, same, self.quirks.stale and self.level < 2)

    def compatible(self, generated: Generated) -> bool:
        """Whether a call with these arguments can be right without asking the model again."""
        if 1 not in self.quirks.protocol or self.fault in FATAL:
            return False
        known = self.old.idempotent
        trusted = self.level == 2 and not (
            self.quirks.echoes or self.quirks.drops_answer_headers or self.quirks.drops_request_headers
        )
        if self.fault in DOUBTFUL and not (trusted or (known and not self.quirks.echoes)):
            return False
        if self.fault == "burst" and not (trusted or (known and not self.quirks.echoes)):
            return False
        if self.level > 0 and self.new.major != self.old.major:
            return self.converted and convertible(self.old, self.new, generated)
        if self.quirks.drops_request_headers and not self._fits(generated):
            return False
        return compatible(self.old, self.new, generated, self.level)

    def _fits(self, generated: Generated) -> bool:
        try:
            meaning = self.new.meaning(generated.arguments, closed=self.level > 0)
        except RefusedError:
            return False
        return meaning == expected(self.new, generated)


def make_world(seed: int) -> World:
    rng = random.Random(f"plugin drift {seed}")
    level = rng.choices((0, 1, 2), (22, 13, 65))[0]
    old = first_release(rng)
    query = level == 0 and rng.random() < 0.6
    if level == 0:
        # HTTP's own terms: a GET is safe, a POST may do anything.
        old = replace(old, consequential=not query, idempotent=query)
    new, steps = next_release(rng, old)
    if "major" in steps and rng.random() < 0.2:
        new = replace(new, major=old.major + 3)
        steps.append("beyond the window")
    return World(
        seed=seed,
        old=old,
        new=new,
        steps=tuple(steps),
        level=level,
        quirks=replace(_quirks(rng, level), query=query),
        fault=rng.choices(list(FAULTS), list(FAULTS.values()))[0],
        window="beyond the window" not in steps and rng.random() < 0.85,
        pause=rng.choice((1.0, 40.0, 400.0, 4000.0)),
        refreshed=rng.random() < 0.2,
    )


def _quirks(rng: random.Random, level: int) -> Quirks:
    if level == 0:
        return Quirks(no_manifest=rng.choice(("404", "404", "page")), stale=rng.random() < 0.01)
    protocol = rng.choices(({1: 0}, {1: rng.randint(1, 9)}, {1: 3, 2: 0}, {2: 1}), (70, 20, 8, 2))[0]
    kind = rng.choices(
        ("plain", "answer", "request", "echo", "strict", "stale"),
        (78, 4, 4, 4, 3, 7) if level == 2 else (90, 0, 0, 5, 5, 0),
    )[0]
    return Quirks(
        protocol=protocol,
        drops_answer_headers=kind == "answer",
        drops_request_headers=kind == "request",
        echoes=kind == "echo",
        strict_list=kind == "strict",
        stale=kind == "stale",
        chatty=rng.random() < 0.3,
    )


class ResetError(Exception):
    """The connection broke, and it is in doubt whether the operation ran."""


class LateError(Exception):
    """The deadline passed."""


class Network:
    """Requests to a simulated plugin, on a simulated clock. A fault hits invocations only while `fault` is set."""

    def __init__(self, plugin: SimulatedPlugin, rng: random.Random) -> None:
        self.plugin = plugin
        self.now = 1_800_000_000.0
        self.fault = "none"
        self.requests = 0
        self._left = 0
        self._rng = rng

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(0.0, seconds)

    def begin(self, fault: str) -> None:
        """The next requests have this fault."""
        self.fault, self._left = fault, self._rng.randint(1, 2)

    def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes, seconds: float) -> Reply:
        """One request.

        Raises:
            LateError: no answer within `seconds`.
            ResetError: the connection broke.
        """
        self.requests += 1
        assert url.startswith(BASE), url
        path = url.removeprefix(BASE)
        self.now += 0.02
        if path.partition("?")[0].endswith(".json") or self.fault == "none":
            return self.plugin.handle(method, path, headers, body)
        return self._faulty(method, path, headers, body, seconds)

    def _faulty(self, method: str, path: str, headers: Mapping[str, str], body: bytes, seconds: float) -> Reply:
        again = self.fault in ("truncated", "outage", "too slow", "page")
        self._left -= 1
        if self._left < 0 and not again and self.fault != "slow":
            return self.plugin.handle(method, path, headers, body)
        if self.fault in ("burst", "outage"):
            return self._unavailable()
        if self.fault == "page":
            return 200, {"Content-Type": "text/html"}, b"<html>Sign in to the network</html>"
        self.now += 2.0 if self.fault == "slow" else 0.0
        if self.fault == "too slow" or (self.fault == "slow" and seconds < 2.0):
            self.plugin.handle(method, path, headers, body)
            self.now += max(seconds, 0.0)
            raise LateError
        status, answer_headers, answer = self.plugin.handle(method, path, headers, body)
        if self.fault == "slow":
            return status, answer_headers, answer
        if self.fault == "reset":
            raise ResetError
        if self.fault == "lost answer":
            return 502, {"Content-Type": "text/html"}, b"<html>Bad gateway</html>"
        return status, answer_headers, answer[: len(answer) // 2]

    def _unavailable(self) -> Reply:
        headers = {"Content-Type": "text/plain", "Retry-After": "1"}
        if self.plugin.level == 0:
            return 503, headers, b"overloaded"
        problem = b'{"type": "urn:octavo-plugin:unavailable", "status": 503, "detail": "restarting"}'
        return 503, headers | {"Content-Type": "application/problem+json"}, problem
