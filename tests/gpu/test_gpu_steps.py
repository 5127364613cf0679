"""The seam between the engine and its executor in Python: plans in place, faults that stay where they happen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from octavo import LLM, SamplingParams, _core
from octavo.errors import EngineDeadError, ExecutionError
from octavo.gpu import engine, errors
from octavo.gpu.batch import lay_out
from octavo.gpu.plan import DRAW, SEQUENCE, Plan
from octavo.gpu.runner import Runner, wanted_rows
from places import torch_llm

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[_core.Plan, Plan, list[bytes]]]:
    """Every plan that a runner gets: the object, views of it, and what they held then."""
    seen: list[tuple[_core.Plan, Plan, list[bytes]]] = []

    class Recording(Runner):
        def step(self, plan: _core.Plan) -> Any:
            views = Plan.of(plan)
            seen.append((plan, views, [getattr(views, name).tobytes() for name in ARRAYS]))
            return super().step(plan)

    monkeypatch.setattr(engine, "Runner", Recording)
    return seen


ARRAYS = ("tokens", "positions", "slots", "seqs", "block_tables", "copies", "draws")


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
    assert (first["query_len"], first["context_len"], first["forks"], first["logits"]) == (3, 3, 1, 1)
    assert (then["query_len"], then["context_len"], then["request"]) == (1, 4, first["request"])
    draw = decode.draws[0]
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
        seqs[i]["logits"] = (2, 1, 0, 1)[i]
    seqs["block_table_start"] = [0, 2, 3, 4]
    rows = np.arange(7, dtype=np.int32)
    draws = np.zeros(1, DRAW)
    draws["seq"] = 3
    plan = Plan(1, rows, rows + 100, rows + 200, seqs, tables, np.zeros((0, 2), np.int32), draws)
    layout = lay_out(plan)
    assert layout.tokens.tolist() == [3, 6, 0, 1, 2, 4, 5]
    assert (layout.positions - layout.tokens == 100).all()
    assert (layout.slots - layout.tokens == 200).all()
    assert layout.num_decodes == 2
    assert layout.query_start.tolist() == [0, 1, 2, 5, 7]
    assert layout.context_lens.tolist() == [5, 33, 35, 2]
    assert layout.block_tables.tolist() == [[12, 0], [14, 15], [10, 11], [13, 0]]
    drawn, rest = wanted_rows(plan, layout)
    assert layout.tokens[drawn].tolist() == [6]
    assert layout.tokens[rest].tolist() == [0, 1, 2, 3], (
        "in the plan's order: all rows of the first, the last of the second"
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Arms a fault: the steps that hold token 99 raise it."""
    armed: list[Exception] = []

    class Failing(Runner):
        def _step(self, plan: Plan) -> Any:
            if armed and 99 in plan.tokens:
                raise armed[0]
            return super()._step(plan)

    monkeypatch.setattr(engine, "Runner", Failing)
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
        (np.zeros(3, np.uint32), None),
        (np.zeros(1, np.float64), None),
        (np.zeros(1, np.uint32), [np.zeros((1, 2), np.uint32)] * 2),
        None,
    ],
    ids=["length", "type", "parts", "none"],
)
def test_an_answer_of_the_wrong_shape_is_an_error(answer: Any, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr(Runner, "step", lambda self, plan: answer)
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
        stream = llm._engine.submit([1, 2, 3], {"max_tokens": 400, "ignore_eos": True})
        raw, llm._engine = llm._engine, None  # type: ignore[assignment]
        del raw, stream
        llm.__dict__.clear()
        llm = None
