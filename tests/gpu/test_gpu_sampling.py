"""Tokens drawn on the device are those that the CPU's sampler draws from the same logits."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from backends import torch_llm
from octavo import LLM, Regex, SamplingParams
from octavo.gpu import load, runner, sampler
from octavo.gpu.plan import SAMPLE_SPEC
from octavo.hub import embedded_model

NUMBERS = random.Random(1)
PROMPTS = [[NUMBERS.randrange(199) for _ in range(10 + i)] for i in range(6)]
DRAWN = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 7},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.0, "logprobs": 4},
    {"temperature": 1.0, "logprobs": 0},
    {"temperature": 2.0, "logprobs": 20, "top_k": 3},
]
PROCESSED = [
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 0.0, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"temperature": 1.0, "logit_bias": {5: 4.0}, "min_tokens": 6},
    {"temperature": 1.0, "bad_words": ["t7 t8"], "logprobs": 50},
]


@pytest.mark.parametrize("options", [*DRAWN, *PROCESSED], ids=lambda o: "-".join(o))
def test_same_tokens_as_the_cpu(options: dict[str, object], backend: load.Backend, tiny: Path) -> None:
    params = SamplingParams(max_tokens=16, seed=5, ignore_eos=True, **options)  # type: ignore[arg-type]
    with LLM(tiny, device="cpu", dtype="float32", quantization=None) as llm:
        want = [o.outputs[0] for o in llm.generate(PROMPTS, params, use_tqdm=False)]
    with torch_llm(tiny, backend) as llm:
        got = [o.outputs[0] for o in llm.generate(PROMPTS, params, use_tqdm=False)]
    assert [o.token_ids for o in got] == [o.token_ids for o in want]
    for mine, theirs in zip(got, want, strict=True):
        for row, other in zip(mine.logprobs or [], theirs.logprobs or [], strict=True):
            assert list(row) == list(other)
            assert [c.rank for c in row.values()] == [c.rank for c in other.values()]
            assert [c.logprob for c in row.values()] == pytest.approx([c.logprob for c in other.values()], abs=2e-4)


def test_mixed_rules_share_a_step(backend: load.Backend, tiny: Path) -> None:
    """Rows drawn on the device and rows drawn on the host, in one batch, each by its own rules."""
    every = [SamplingParams(max_tokens=16, seed=7, ignore_eos=True, **o) for o in [*DRAWN[:5], PROCESSED[0]]]  # type: ignore[arg-type]
    with LLM(tiny, device="cpu", dtype="float32", quantization=None) as llm:
        want = [llm.generate(p, q)[0].outputs[0].token_ids for p, q in zip(PROMPTS, every, strict=True)]
    with torch_llm(tiny, backend) as llm:
        assert [o.outputs[0].token_ids for o in llm.generate(PROMPTS, every, use_tqdm=False)] == want


def test_structured_output(backend: load.Backend) -> None:
    """The embedded model: its tokenizer has the bytes that structure needs."""
    params = [SamplingParams(max_tokens=12, seed=i, structured=Regex("[0-9]{3}-[a-c]+")) for i in range(3)]
    with LLM(device="cpu", dtype="float32", quantization=None) as llm:
        want = [o.text for o in llm.generate(["Number: "] * 3, params, use_tqdm=False)]
    with torch_llm(embedded_model(), backend, max_model_len=128) as llm:
        assert [o.text for o in llm.generate(["Number: "] * 3, params, use_tqdm=False)] == want


def test_what_is_drawn_where(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of logits cross to the host only where the rules ask for more than a draw."""
    fetched: list[int] = []
    read_rows = runner.Runner.read_rows

    def counting(self: runner.Runner, first: int, count: int) -> np.ndarray:
        fetched.append(count)
        return read_rows(self, first, count)

    monkeypatch.setattr(runner.Runner, "read_rows", counting)
    with torch_llm(tiny) as llm:
        for options in DRAWN:
            llm.generate(PROMPTS[0], SamplingParams(max_tokens=3, ignore_eos=True, **options))  # type: ignore[arg-type]
        assert not fetched
        llm.generate(PROMPTS[0], SamplingParams(max_tokens=3, ignore_eos=True, repetition_penalty=1.2))
        assert fetched == [1, 1, 1]
        fetched.clear()
        llm.generate([1] * 40, SamplingParams(max_tokens=1, ignore_eos=True, prompt_logprobs=1))
        assert fetched == [32, 8]


def rules(rows: int, **columns: object) -> sampler.Rules:
    draws = np.zeros(rows, SAMPLE_SPEC)
    draws["temperature"], draws["top_p"] = 1.0, 1.0
    for name, value in columns.items():
        draws[name] = value
    words = torch.from_numpy(draws.view(np.int32).reshape(rows, -1).copy())
    return sampler.Rules.of(draws, words)


def test_frequencies_are_the_probabilities() -> None:
    """Evenly spread draws hit each token as often as its share of the nucleus says."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf]).repeat(10_000, 1)
    spread = (np.arange(10_000) + 0.5) / 10_000
    all_of_them = torch.bincount(sampler.sample(logits, rules(10_000, uniform=spread)), minlength=5) / 10_000
    assert torch.allclose(all_of_them, logits[0].softmax(-1), atol=2e-4)
    top_two = torch.bincount(sampler.sample(logits, rules(10_000, uniform=spread, top_k=2)), minlength=5) / 10_000
    assert torch.allclose(top_two[:2], logits[0, :2].softmax(-1), atol=2e-4)
    # The first two hold 0.87 of the mass, the first 0.64.
    nucleus = torch.bincount(sampler.sample(logits, rules(10_000, uniform=spread, top_p=0.7)), minlength=5) / 10_000
    assert torch.allclose(nucleus, top_two, atol=2e-4)


def test_rows_that_are_not_numbers_disturb_no_other() -> None:
    logits = torch.randn(4, 50)
    want = sampler.sample(logits, rules(4, uniform=0.3, top_k=5))
    logits[1, 7], logits[2, 9] = torch.nan, torch.inf
    got = sampler.sample(logits, rules(4, uniform=0.3, top_k=5))
    assert got.tolist() == [int(want[0]), -1, -1, int(want[3])]


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(3, 400)
    assert sampler.best(logits).tolist() == [0, 0, 0]
    assert sampler.sample(logits, rules(3, uniform=0.999, top_k=2)).tolist() == [1, 1, 1]
    ids, _, ranks = sampler.logprobs(logits, torch.tensor([3, 0, 1]), 2)
    assert ids.tolist() == [[3, 0, 1], [0, 0, 1], [1, 0, 1]]
    assert ranks.tolist() == [[4, 1, 2], [1, 1, 2], [2, 1, 2]]


def test_damaged_weights_fail_their_request(tmp_path: Path) -> None:
    from octavo.errors import ExecutionError
    from random_models import CASES, write_model
    from safetensors.torch import load_file, save_file

    write_model(next(c for c in CASES if c.name == "llama"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.embed_tokens.weight"][9] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.warns(RuntimeWarning, match=r"model\.embed_tokens\.weight has 64 values"):
        llm = torch_llm(tmp_path)
    with llm:
        for temperature in (0.0, 1.0):
            params = SamplingParams(max_tokens=4, temperature=temperature, ignore_eos=True)
            with pytest.raises(ExecutionError, match="not numbers"):
                llm.generate([9, 9], params)
            assert len(llm.generate([5, 6], SamplingParams(max_tokens=1, ignore_eos=True))[0].outputs[0].token_ids) == 1
