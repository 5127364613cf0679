"""The seam between the engine and its executor in Python: plans in place, faults that stay where they happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backends import torch_llm
from octavo import LLM, SamplingParams, _core
from octavo.errors import EngineDeadError, ExecutionError
from octavo.gpu import errors, load, runner
from octavo.gpu.batch import build_batch
from octavo.gpu.plan import SAMPLE_SPEC, SEQUENCE, Plan
from octavo.gpu.runner import Runner, output_rows, placeholder_rows

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[_core.Plan, Plan, list[bytes]]]:
    """Every plan that a runner gets: the object, views of it, and what they held then."""
    seen: list[tuple[_core.Plan, Plan, list[bytes]]] = []

    class Recording(Runner):
        def submit(self, plan: _core.Plan) -> None:
            views = Plan.of(plan)
            seen.append((plan, views, [getattr(views, name).tobytes() for name in ARRAYS]))
            super().submit(plan)

    monkeypatch.setattr(load, "Runner", Recording)
    return seen


ARRAYS = (
    *("tokens", "placeholders", "positions", "slots", "seqs", "block_tables", "copies"),
    *("open_blocks", "sealed", "open_copies", "samples"),
)


def test_views_are_of_the_plans_own_memory(plans: list[tuple[_core.Plan, Plan, list[bytes]]], tiny: Path) -> None:
    with torch_llm(tiny) as llm:
        llm.generate([[1, 2, 3], [4] * 40], GREEDY, use_tqdm=False)
    assert len(plans) >= 8
    for plan, views, _ in plans:
        for name in ARRAYS:
            view = getattr(views, name)
            if view.size:
                assert not view.flags.writeable
                assert address(np.frombuffer(getattr(plan, name), np.uint8)) == address(view), f"{name} is a copy"


def test_views_outlive_their_step_and_the_engine(plans: list[tuple[_core.Plan, Plan, list[bytes]]], tiny: Path) -> None:
    with torch_llm(tiny) as llm:
        llm.generate([[1, 2, 3], [4] * 40], GREEDY, use_tqdm=False)
    for _, views, then in plans:
        assert [getattr(views, name).tobytes() for name in ARRAYS] == then


def test_records_say_what_the_scheduler_meant(plans: list[tuple[_core.Plan, Plan, list[bytes]]], tiny: Path) -> None:
    params = SamplingParams(temperature=0.5, top_k=3, top_p=0.25, min_p=0.125, seed=2**63 + 5, max_tokens=3, logprobs=2)
    with torch_llm(tiny) as llm:
        llm.generate([7, 8, 9], params)
    prefill, decode = plans[0][1], plans[1][1]
    assert (prefill.step, decode.step) == (1, 2)
    assert prefill.tokens.tolist() == [7, 8, 9]
    assert prefill.positions.tolist() == [0, 1, 2]
    block = int(prefill.block_tables[0])
    assert prefill.slots.tolist() == [32 * block + i for i in range(3)]
    first, then = prefill.seqs[0], decode.seqs[0]
    assert (first["query_len"], first["context_len"], first["num_samples"]) == (3, 3, 1)
    assert first["sample_rows"].tolist() == [2, 3]
    assert (then["query_len"], then["context_len"], then["request"]) == (1, 4, first["request"])
    draw = decode.samples[0]
    assert (draw["seed"], draw["position"], draw["sample"], draw["top_k"]) == (2**63 + 5, 1, 0, 3)
    assert (draw["temperature"], draw["top_p"], draw["min_p"], draw["logprobs"]) == (0.5, 0.25, 0.125, 2)
    assert 0.0 <= draw["uniform"] < 1.0


def test_sequences_are_ordered_decodes_first() -> None:
    """Whatever order the scheduler chose, every row finds its sequence."""
    seqs = np.zeros(4, SEQUENCE)
    lens, contexts = [3, 1, 2, 1], [35, 5, 2, 33]
    starts = np.cumsum([0, *lens])
    tables = np.arange(10, 16, dtype=np.int32)
    for i in range(4):
        seqs[i]["query_start"], seqs[i]["query_len"], seqs[i]["context_len"] = starts[i], lens[i], contexts[i]
        seqs[i]["sample_rows"] = ([0, 3], [0, 1], [0, 0], [0, 1])[i]
    seqs["block_table_start"] = [0, 2, 3, 4]
    rows = np.arange(7, dtype=np.int32)
    draws = np.zeros(1, SAMPLE_SPEC)
    draws["seq"] = 3
    pairs = np.zeros((0, 2), np.int32)
    plan = Plan(1, rows, pairs, rows + 100, rows + 200, seqs, tables, pairs, rows, pairs, pairs, draws)
    host_batch = build_batch(plan)
    assert host_batch.tokens.tolist() == [3, 6, 0, 1, 2, 4, 5]
    assert (host_batch.positions - host_batch.tokens == 100).all()
    assert (host_batch.slots - host_batch.tokens == 200).all()
    assert host_batch.num_decodes == 2
    assert host_batch.query_start.tolist() == [0, 1, 2, 5, 7]
    assert host_batch.context_lens.tolist() == [5, 33, 35, 2]
    assert host_batch.block_tables.tolist() == [[12, 0], [14, 15], [10, 11], [13, 0]]
    drawn, rest = output_rows(plan, host_batch)
    assert host_batch.tokens[drawn].tolist() == [6]
    assert host_batch.tokens[rest].tolist() == [0, 1, 2, 3], (
        "in the plan's order: all rows of the first, the last of the second"
    )


def test_placeholder_rows_follow_their_sequences() -> None:
    """Of sequences of 3, 1, 2 and 1 rows the second and the last await what sequences 5 and 2 of the last step draw."""
    seqs = np.zeros(4, SEQUENCE)
    seqs["query_len"], seqs["query_start"] = [3, 1, 2, 1], [0, 3, 4, 6]
    seqs["context_len"] = [3, 9, 2, 4]
    rows = np.arange(7, dtype=np.int32)
    placeholders = np.array([[3, 5], [6, 2]], np.int32)
    tables = np.zeros(4, np.int32)
    pairs = np.zeros((0, 2), np.int32)
    plan = Plan(2, rows, placeholders, rows, rows, seqs, tables, pairs, rows, pairs, pairs, np.zeros(0, SAMPLE_SPEC))
    moved, places = placeholder_rows(plan, build_batch(plan), np.array([1, 2, 5]))
    assert moved.tolist() == [0, 1], "decodes are first"
    assert places.tolist() == [2, 1]


REQUESTS = [
    ([1, 2, 3], GREEDY),
    ([4] * 40, SamplingParams(temperature=0.8, seed=1, max_tokens=40, logprobs=2)),
    ([5, 6], SamplingParams(temperature=0.7, top_k=5, top_p=0.9, seed=2, max_tokens=30, ignore_eos=True)),
    (list(range(1, 60)), SamplingParams(temperature=0, max_tokens=20, min_tokens=4)),
    ([7, 8], SamplingParams(temperature=0, n=2, seed=3, max_tokens=12, ignore_eos=True)),
]


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_overlapped_steps_give_the_same_tokens(
    kv_cache_dtype: str, monkeypatch: pytest.MonkeyPatch, tiny: Path, backend: load.Backend
) -> None:
    placeholders: list[int] = []

    class Counting(Runner):
        def _run(self, plan: Plan) -> Any:
            placeholders.append(len(plan.placeholders))
            return super()._run(plan)

    class Waiting(Counting):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.max_in_flight = 1

    prompts, params = [prompt for prompt, _ in REQUESTS], [p for _, p in REQUESTS]
    # A token that is drawn on the way, as a stop: the request ends while its next token is being drawn.
    found: dict[type[Runner], list[Any]] = {}
    for kind in (Waiting, Counting):
        placeholders.clear()
        monkeypatch.setattr(load, "Runner", kind)
        with torch_llm(tiny, backend, kv_cache_dtype=kv_cache_dtype, max_num_batched_tokens=32) as llm:
            whole = llm.generate(prompts, params, use_tqdm=False)
            stop = whole[2].outputs[0].token_ids[7]
            stopping = replace(params[2], stop_token_ids=[stop])
            ended = llm.generate([prompts[2], prompts[0]], [stopping, GREEDY], use_tqdm=False)
            ruled = llm.generate(
                [prompts[0], prompts[2]], [replace(GREEDY, repetition_penalty=1.2), params[2]], use_tqdm=False
            )
            assert llm.stats()["blocks"]["live"] == 0
        outputs = [out for request in (*whole, *ended, *ruled) for out in request.outputs]
        found[kind] = [(out.token_ids, out.logprobs, out.finish_reason) for out in outputs]
        assert ended[0].outputs[0].finish_reason == "stop"
        assert (sum(placeholders) > 60) == (kind is Counting), placeholders
    assert found[Counting] == found[Waiting]


@pytest.fixture(params=["submit", "wait"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Arms a fault: the steps that hold token 99 raise it, in `submit` or in `wait`."""
    armed: list[Exception] = []
    half = request.param

    class Arriving(runner.DeviceToHost):
        fault: Exception | None = None

        def wait(self) -> Any:
            if self.fault is not None:
                raise self.fault
            return super().wait()

    class Failing(Runner):
        def _run(self, plan: Plan) -> Any:
            Arriving.fault = armed[0] if armed and 99 in plan.tokens else None
            if Arriving.fault is not None and half == "submit":
                raise Arriving.fault
            return super()._run(plan)

        def submit(self, plan: _core.Plan) -> None:
            super().submit(plan)
            self._submitted[-1].samples.fault = Arriving.fault  # type: ignore[attr-defined]
            Arriving.fault = None

    monkeypatch.setattr(runner, "DeviceToHost", Arriving)
    monkeypatch.setattr(load, "Runner", Failing)
    return armed.append


def test_an_exception_fails_the_requests_of_its_step_alone(failing: Callable[[Exception], None], tiny: Path) -> None:
    failing(ValueError("planted"))
    with torch_llm(tiny) as llm:
        before = llm.generate([5, 6], GREEDY)[0].outputs[0].token_ids
        with pytest.raises(ExecutionError, match="ValueError: planted"):
            llm.generate([99, 5], GREEDY)
        assert llm.generate([5, 6], GREEDY)[0].outputs[0].token_ids == before
        stats = llm.stats()
        assert stats["failed_steps"] == 1
        assert stats["blocks"]["live"] == 0


def test_out_of_memory_fails_the_step_with_a_remedy(failing: Callable[[Exception], None], tiny: Path) -> None:
    failing(torch.OutOfMemoryError("tried to allocate 3 GiB"))
    with torch_llm(tiny) as llm:
        with pytest.raises(ExecutionError, match=r"lower max_num_batched_tokens.*3 GiB"):
            llm.generate([99, 5], GREEDY)
        assert llm.generate([5, 6], GREEDY)[0].outputs[0].token_ids


def test_a_fault_of_the_device_ends_the_engine(failing: Callable[[Exception], None], tiny: Path) -> None:
    failing(RuntimeError("CUDA error: an illegal memory access was encountered\nlong advice"))
    with torch_llm(tiny) as llm:
        with pytest.raises(EngineDeadError, match="illegal memory access"):
            llm.generate([99, 5], GREEDY)
        with pytest.raises(EngineDeadError):
            llm.generate([5, 6], GREEDY)


def test_an_ordinary_runtime_error_does_not(failing: Callable[[Exception], None], tiny: Path) -> None:
    failing(RuntimeError("shapes do not match"))
    with torch_llm(tiny) as llm, pytest.raises(ExecutionError, match="shapes do not match"):
        llm.generate([99, 5], GREEDY)


@pytest.mark.parametrize(
    "answer",
    [
        (np.zeros(3, np.uint32), None, None),
        (np.zeros(1, np.float64), None, None),
        (np.zeros(1, np.uint32), [np.zeros((1, 2), np.uint32)] * 2, None),
        (np.zeros(1, np.uint32), None, {"calls": np.zeros(2)}),
        None,
    ],
    ids=["length", "type", "parts", "report", "none"],
)
def test_an_answer_of_the_wrong_shape_is_an_error(answer: Any, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr(Runner, "wait", lambda self: answer)
    with torch_llm(tiny) as llm, pytest.raises(ExecutionError):
        llm.generate([1, 2], GREEDY)


def test_faults_are_told_apart() -> None:
    with pytest.raises(errors.DeviceLostError), errors.faults("a test"):
        raise RuntimeError("CUDA error: device-side assert triggered")
    with pytest.raises(errors.StepFailedError), errors.faults("a test"):
        raise torch.OutOfMemoryError("x")
    with pytest.raises(KeyError), errors.faults("a test"):
        raise KeyError("x")


def test_an_engine_dropped_without_close_ends(tiny: Path) -> None:
    """The engine thread may hold the GIL for its last step: dropping must not wait for it with the GIL held."""
    for _ in range(3):
        llm: LLM | None = torch_llm(tiny)
        assert llm is not None
        params = _core.SamplingParams({"max_tokens": 400, "ignore_eos": True})
        stream = llm._engine.submit([1, 2, 3], params)
        raw, llm._engine = llm._engine, None  # type: ignore[assignment]
        del raw, stream
        llm.__dict__.clear()
        llm = None
