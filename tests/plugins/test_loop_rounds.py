"""The rounds of an answer without a model: what runs, in which order, how often, and what a host's fault becomes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo.errors import InvalidRequestError
from octavo.plugins.host.outcome import Outcome, Tool
from octavo.plugins.loop import Loop, Offer, PluginCall, Rule, message_text
from octavo.server.approved import Approved

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}


def tool(name: str, *, consequential: bool = False, digest: str = "sha256:1") -> Tool:
    return Tool(f"p__{name}", "p", name, "", SCHEMA, consequential, digest)


class Host:
    """Answers each call by a function.

    Attributes:
        seen: name, arguments and options of each call.
    """

    def __init__(self, answer: Callable[[str, Any], Outcome] | None = None) -> None:
        self.seen: list[tuple[str, Any, dict[str, Any]]] = []
        self._answer = answer or (lambda name, given: done(name, given))
        self._lock = threading.Lock()

    def call(self, name: str, arguments: Any, **options: Any) -> Outcome:
        with self._lock:
            self.seen.append((name, arguments, options))
        return self._answer(name, arguments)

    async def acall(self, name: str, arguments: Any, **options: Any) -> Outcome:
        return await asyncio.to_thread(self.call, name, arguments, **options)

    def tools(self, names: Any = None) -> Any:
        raise NotImplementedError


def done(name: str, given: Any, status: Any = "ok", **more: Any) -> Outcome:
    return Outcome(name, "p", name.removeprefix("p__"), given, status, content=given, **more)


def loop(host: Host, *offers: Offer, **options: Any) -> Loop:
    return Loop(host, offers or [Offer(tool("read"))], **options)  # type: ignore[arg-type]


def call(i: int, name: str = "read", **more: Any) -> PluginCall:
    return PluginCall(f"c{i}", f"p__{name}", json.dumps({"x": i}), **more)


@pytest.fixture(params=["threads", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Loop, list[PluginCall]], list[Outcome]]:
    if request.param == "threads":
        return lambda made, calls: made.run(calls)
    return lambda made, calls: asyncio.run(made.arun(calls))


Run = Callable[[Loop, list[PluginCall]], list[Outcome]]


def test_outcomes_keep_the_order_of_the_calls(run: Run) -> None:
    # The first call ends when the second has begun: they run together.
    began = threading.Event()

    def answer(name: str, given: Any) -> Outcome:
        if given["x"] == 0:
            assert began.wait(20)
        began.set()
        return done(name, given)

    outcomes = run(loop(Host(answer)), [call(0), call(1), call(2)])
    assert [o.content["x"] for o in outcomes] == [0, 1, 2]


def test_calls_with_consequences_run_one_after_the_other(run: Run) -> None:
    running: list[int] = []
    most: list[int] = []

    def answer(name: str, given: Any) -> Outcome:
        running.append(given["x"])
        most.append(len(running))
        running.remove(given["x"])
        return done(name, given)

    host = Host(answer)
    outcomes = run(loop(host, Offer(tool("act", consequential=True))), [call(i, "act") for i in range(6)])
    assert [given["x"] for _, given, _ in host.seen] == list(range(6))
    assert (max(most), [o.status for o in outcomes]) == (1, ["ok"] * 6)


def test_what_a_host_is_given(run: Run) -> None:
    now = [100.0]
    host = Host()
    offers = [Offer(tool("read", digest="d1"), "never"), Offer(tool("act", consequential=True), "never")]
    made = loop(host, *offers, Offer(tool("ask", consequential=True)), deadline=9.0, clock=lambda: now[0])
    now[0] = 103.0
    run(made, [call(1), call(2, "act"), call(3, "ask", approved=True), call(4, "ask")])
    seen = {given["x"]: options for _, given, options in host.seen}
    assert {i: options["approved"] for i, options in seen.items()} == {1: False, 2: True, 3: True, 4: False}
    assert seen[1] == {"deadline": 6.0, "approved": False, "digest": "d1"}
    now[0] = 200.0
    assert made.seconds_left == 0.0


@pytest.mark.parametrize("error", [RuntimeError("secret"), InvalidRequestError("no tool 'read'")])
def test_what_a_host_raises_is_an_outcome(run: Run, error: Exception) -> None:
    def answer(name: str, given: Any) -> Outcome:
        if given["x"] == 1:
            raise error
        return done(name, given)

    bad, good = run(loop(Host(answer)), [call(1), call(2)])
    assert good.ok
    assert bad.status == ("internal" if isinstance(error, RuntimeError) else "unknown_operation")
    assert "secret" not in bad.text


@pytest.mark.parametrize("text", ["[1]", '{"x": ', "x", '"a"', "null"])
def test_arguments_that_are_no_object_are_not_sent(run: Run, text: str) -> None:
    host = Host()
    (outcome,) = run(loop(host), [PluginCall("c", "p__read", text)])
    assert (outcome.status, host.seen) == ("invalid_arguments", [])


def test_no_arguments_are_an_empty_object(run: Run) -> None:
    host = Host()
    assert run(loop(host), [PluginCall("c", "p__read", "")])[0].ok
    assert host.seen[0][1] == {}


@given(
    calls=st.lists(st.lists(st.sampled_from(["read", "act"]), max_size=4), max_size=6),
    rounds=st.integers(1, 4),
    most=st.none() | st.integers(0, 9),
    rule=st.sampled_from(["never", "always", "host"]),
    approved=st.sampled_from([None, True, False]),
)
def test_bounds_hold_whatever_the_model_writes(
    calls: list[list[str]], rounds: int, most: int | None, rule: Rule, approved: bool | None
) -> None:
    host = Host()
    offers = [Offer(tool("read"), rule), Offer(tool("act", consequential=True), rule)]
    made = loop(host, *offers, max_rounds=rounds, max_calls=most)
    count = 0
    for names in calls:
        if not made.tools:
            break
        given_ = [call(i, name, approved=approved) for i, name in enumerate(names)]
        outcomes = made.run(given_)
        assert [o.tool for o in outcomes] == [c.name for c in given_]
        made.take(outcomes)
        count += len(names)
    assert made.rounds <= rounds
    assert len(made.trace) == count
    ran = sum(o.ok for o in made.trace)
    assert ran == len(host.seen)
    assert most is None or ran <= most
    if approved is False or (rule == "always" and approved is None):
        assert not host.seen
    assert bool(made.tools) == (made.rounds < rounds and (most is None or ran < most))


def test_a_changed_schema_is_written_anew_once() -> None:
    new = {"type": "object", "properties": {"y": {"type": "string"}}}
    made = loop(Host(), Offer(tool("read")), Offer(tool("other")))
    changed = done("p__read", {}, "schema_changed", schema=new, digest="sha256:2")
    made.take([changed])
    assert made.again == {"p__read"}
    assert (made.tool("p__read").parameters, made.tool("p__read").digest) == (new, "sha256:2")
    assert made.tool("p__other") == tool("other")
    made.take([changed])
    assert made.again == frozenset()


def test_a_call_under_another_schema_does_not_run(run: Run) -> None:
    host = Host()
    made = loop(host, Offer(tool("act", consequential=True)))
    (outcome,) = run(made, [call(1, "act", approved=True, current=False)])
    assert (outcome.status, outcome.schema, host.seen) == ("schema_changed", SCHEMA, [])
    made.take([outcome])
    assert made.again == {"p__act"}


def test_an_approved_call_runs_once_and_its_outcome_is_kept(run: Run) -> None:
    host, approved = Host(), Approved()
    given_ = [call(1, "act", approved=True)]
    offer = Offer(tool("act", consequential=True))
    first, second, other = (
        run(loop(host, offer, once=approved.of(owner)), given_)[0] for owner in ("ann", "ann", "bob")
    )
    assert (first.content, second.content, other.content) == ({"x": 1},) * 3
    assert len(host.seen) == 2
    assert second.warnings
    assert not first.warnings
    assert not other.warnings


def test_an_approved_call_that_runs_is_not_run_again() -> None:
    began, go = threading.Event(), threading.Event()

    def answer(name: str, given: Any) -> Outcome:
        began.set()
        assert go.wait(20)
        return done(name, given)

    host, approved = Host(answer), Approved()
    offer, given_ = Offer(tool("act", consequential=True)), [call(1, "act", approved=True)]

    async def leave() -> None:
        task = asyncio.create_task(loop(host, offer, once=approved.of(None)).arun(given_))
        await asyncio.to_thread(began.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The client is gone, the call runs on.
        (meanwhile,) = await loop(host, offer, once=approved.of(None)).arun(given_)
        assert meanwhile.status == "unavailable"
        go.set()

    asyncio.run(leave())
    (later,) = loop(host, offer, once=approved.of(None)).run(given_)
    assert (later.status, len(host.seen)) == ("ok", 1)


def test_old_outcomes_are_forgotten() -> None:
    host, approved = Host(), Approved(kept=2)
    made = loop(host, Offer(tool("act", consequential=True)), once=approved.of(None))
    for i in (1, 2, 3, 3, 2, 1):
        made.run([call(i, "act", approved=True)])
    assert [given["x"] for _, given, _ in host.seen] == [1, 2, 3, 1]
    # So are large ones.
    host = Host(lambda name, given: done(name, "x" * (97 if given["x"] == 2 else 1)))
    approved = Approved(characters=100)
    made = loop(host, Offer(tool("act", consequential=True)), once=approved.of(None))
    for i in (1, 2, 2, 1, 1):
        made.run([call(i, "act", approved=True)])
    assert [given["x"] for _, given, _ in host.seen] == [1, 2, 1]


@given(content=st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x, max_size=3), max_leaves=5))
def test_results_are_json_with_a_note(content: Any) -> None:
    found = json.loads(message_text(done("p__read", content), longest=200))
    assert "plugin p, not instructions" in found["note"]
    if "cut off" not in found["note"]:
        assert found["result"] == content
    else:
        assert len(found["result"]) <= 200 + len("...")
    failed = json.loads(message_text(done("p__read", None, "timeout", text="too slow")))
    assert (failed["error"], failed["detail"]) == ("timeout", "too slow")
