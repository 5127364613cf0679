"""Sampling rules and the draw, against their definitions with full sorts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from octavo.triton_kernels import sampling
from octavo.triton_kernels.sampling import (
    SamplingBatch,
    logprobs,
    logprobs_ref,
    philox_ref,
    sample,
    sample_ref,
    uniform_ref,
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows take several steps."""
    monkeypatch.setattr(sampling, "BLOCK", 128)


def batch(rows: int, device: torch.device, temperature: float = 1.0) -> SamplingBatch:
    numbers = torch.arange(rows, device=device)
    return SamplingBatch(
        temperature=torch.full((rows,), temperature, device=device),
        seed=numbers * 2654435761 - (1 << 62),
        sample=(numbers % 3).to(torch.int32),
        position=(numbers * 7).to(torch.int32),
    )


def full(rows: int, value: float, device: torch.device) -> torch.Tensor:
    dtype = torch.float32 if isinstance(value, float) else torch.int32
    return torch.full((rows,), value, dtype=dtype, device=device)


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.dtype == torch.int32
    assert found.tolist() == wanted.tolist()


def test_the_generator_gives_the_published_vectors() -> None:
    assert philox_ref([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert philox_ref([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_draws_are_those_of_the_cpu_generator(device: torch.device) -> None:
    """Equal logits: the chosen id is the draw times the size of the vocabulary, so it shows the draw's first bits."""
    rules = batch(8, device)
    ids = sample(torch.zeros(8, 1000, device=device), rules)
    for r in range(8):
        draw = uniform_ref(int(rules.seed[r]) & (1 << 64) - 1, int(rules.sample[r]), int(rules.position[r]))
        assert ids[r] == int(draw * 1000), f"row {r}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_ties_go_to_the_lowest_id(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> None:
    logits = torch.randn(6, 300, generator=generator).to(device, dtype).clamp(max=1.5)
    same(sample(logits, batch(6, device, 0.0)), logits.float().argmax(-1))
    logits[:] = -torch.inf
    assert sample(logits, batch(6, device)).eq(0).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_plain_sampling(temperature: float, device: torch.device, generator: torch.Generator) -> None:
    logits = (torch.randn(12, 333, generator=generator) * 3).to(device)
    logits[0, :300] = -torch.inf
    rules = batch(12, device, temperature)
    same(sample(logits, rules), sample_ref(logits, rules))


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(5, 1.0, 0.0), (0, 0.7, 0.0), (40, 0.9, 0.0), (0, 1.0, 0.1), (3, 0.5, 0.3), (1, 1.0, 0.0), (0, 0.01, 0.0)],
)
def test_restricted_sampling(
    top_k: int, top_p: float, min_p: float, device: torch.device, generator: torch.Generator
) -> None:
    logits = (torch.randn(2, 200, generator=generator) * 2).to(device)
    # Many equal logits: the cut falls among them, and ids decide.
    logits[1] = logits[1].round()
    rules = replace(
        batch(2, device),
        top_k=full(2, top_k, device),
        top_p=full(2, top_p, device),
        min_p=full(2, min_p, device),
    )
    same(sample(logits, rules), sample_ref(logits, rules))


def test_bans_biases_and_penalties(device: torch.device, generator: torch.Generator) -> None:
    rows, vocab = 6, 200
    logits = torch.randn(rows, vocab, generator=generator).to(device)
    ids = torch.stack([torch.randperm(vocab, generator=generator)[:90] for _ in range(rows)]).to(device, torch.int32)
    ids[:, 80:] = -1
    rules = replace(
        batch(rows, device, 0.7),
        banned=ids[:, :20].contiguous(),
        bias_ids=ids[:, 10:40].contiguous(),
        bias=torch.randn(rows, 30, generator=generator).to(device) * 3,
        seen_ids=ids[:, 30:].contiguous(),
        seen_counts=torch.randint(0, 3, (rows, 60), generator=generator).to(device, torch.int32),
        repetition=full(rows, 1.7, device),
        presence=full(rows, 0.5, device),
        frequency=full(rows, 0.25, device),
    )
    before = logits.clone()
    for temperature in (0.0, 0.7):
        rules = replace(rules, temperature=full(rows, temperature, device))
        same(sample(logits, rules), sample_ref(logits, rules))
    assert torch.equal(logits, before), "the caller's logits were changed"


def test_masks_and_where_other_rules_yield(device: torch.device, generator: torch.Generator) -> None:
    rows, vocab = 5, 150
    logits = torch.randn(rows, vocab, generator=generator).to(device)
    allowed = torch.zeros(rows, 5, dtype=torch.int32, device=device)
    allowed[:, 1] = -(1 << 31) + 5
    allowed[:, 4] = 1 << 20
    rules = replace(
        batch(rows, device, 0.0),
        allowed=allowed,
        allowed_rows=torch.tensor([1, 0, 1, 1, 1], dtype=torch.int32, device=device),
        # All allowed tokens of the last two rows: 32, 34, 63, 148.
        banned=torch.tensor([[0] * 4] * 3 + [[32, 34, 63, 148]] * 2, dtype=torch.int32, device=device),
    )
    logits[4, [32, 34, 63, 148]] = -torch.inf
    for temperature in (0.0, 1.0):
        rules = replace(rules, temperature=full(rows, temperature, device))
        found = sample(logits, rules)
        same(found, sample_ref(logits, rules))
        assert all(int(found[r]) in (32, 34, 63, 148) for r in (0, 2, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> None:
    logits = (torch.randn(4, 300, generator=generator) * 4).to(device, dtype)
    logits[1:] = logits[1:].round()
    logits[3, :297] = -torch.inf
    ids = torch.tensor([5, 17, 299, 298], dtype=torch.int32, device=device)
    found, wanted = logprobs(logits, ids, 5), logprobs_ref(logits, ids, 5)
    torch.testing.assert_close(found[0], wanted[0])
    assert found[1].tolist() == wanted[1].tolist()
    assert found[2].tolist() == wanted[2].tolist()
    torch.testing.assert_close(found[3], wanted[3])
    assert logprobs(logits, ids)[2].shape == (4, 0)


def test_faults_are_named(device: torch.device) -> None:
    logits, rules = torch.zeros(2, 40, device=device), batch(2, device)
    with pytest.raises(ValueError, match="allowed, allowed_rows go together: only allowed given"):
        sample(logits, replace(rules, allowed=torch.zeros(2, 2, dtype=torch.int32, device=device)))
    with pytest.raises(TypeError, match="seed has dtype int32, wanted int64"):
        sample(logits, replace(rules, seed=rules.sample))
    with pytest.raises(ValueError, match=r"top_k has shape \[3\], wanted \[2\]"):
        sample(logits, replace(rules, top_k=full(3, 1, device)))
    with pytest.raises(ValueError, match="top is 41, wanted 0 to 40"):
        logprobs(logits, rules.sample, 41)
    with pytest.raises(ValueError, match="logits has no columns"):
        sample(logits[:, :0], rules)
