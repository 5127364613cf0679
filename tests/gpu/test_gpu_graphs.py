"""Decode steps of a fixed size: padding changes no request."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from backends import torch_llm
from octavo import SamplingParams
from octavo.gpu import graphs, load
from octavo.gpu.batch import Batch
from octavo.gpu.runner import Runner

PARAMS = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


def test_sizes_double() -> None:
    assert graphs.sizes(1) == [1]
    assert graphs.sizes(6) == [1, 2, 4, 8]
    assert graphs.sizes(8) == [1, 2, 4, 8]
    assert graphs.sizes(5000)[-1] == graphs.LARGEST


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(size of the graph, sequences) of every step that ran in one."""
    seen: list[tuple[int, int]] = []
    run = graphs.DecodeGraph.run

    def recording(self: graphs.DecodeGraph, new: Batch) -> None:
        seen.append((self.size, len(new.tokens)))
        run(self, new)

    monkeypatch.setattr(graphs.DecodeGraph, "run", recording)
    return seen


def test_padded_steps_give_the_same_tokens(backend: load.Backend, tiny: Path, used: list[tuple[int, int]]) -> None:
    draw = random.Random(3)
    asked = [[draw.randrange(199) for _ in range(n)] for n in (3, 40, 31, 64, 5)]
    with torch_llm(tiny, load.Backend(backend.device, backend.ops, graphs=False)) as llm:
        want = [llm.generate(p, PARAMS)[0].outputs[0].token_ids for p in asked]
    assert not used
    with torch_llm(tiny, backend) as llm:
        for count in range(1, 6):
            outputs = llm.generate(asked[:count], PARAMS, use_tqdm=False)
            assert [o.outputs[0].token_ids for o in outputs] == want[:count]
    assert {(1, 1), (2, 2), (4, 3), (4, 4), (8, 5)} <= set(used)


def test_a_smaller_step_after_a_larger_one_sees_nothing_of_it(
    backend: load.Backend, tiny: Path, used: list[tuple[int, int]]
) -> None:
    """What padding rows held before is neither read nor written again."""
    lens = (30, 2, 45)
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (30, 4, 12)]
    asked = [[7] * n for n in lens]
    with torch_llm(tiny, backend, enable_prefix_caching=False) as llm:
        want = [llm.generate(p, q)[0].outputs[0].token_ids for p, q in zip(asked, params, strict=True)]
        got = [o.outputs[0].token_ids for o in llm.generate(asked, params, use_tqdm=False)]
    assert got == want
    assert (4, 3) in used
    assert (2, 2) in used


def test_mixtures_and_latents_run_without_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from random_models import CASES, write_model

    made: list[Runner] = []
    monkeypatch.setattr(load, "Runner", lambda *a: made.append(Runner(*a)) or made[-1])
    for name in ("mixtral", "deepseek-v3"):
        folder = tmp_path / name
        write_model(next(c for c in CASES if c.name == name), folder)
        torch_llm(folder).close()
    assert [r.graphs for r in made] == [None, None]
