"""Sampling on the device: the rules and the draw of octavo's CPU sampler, without a copy of the logits to the host.

    bans, biases, penalties, mask of allowed tokens; then softmax(x / temperature), cut by min-p, top-k and top-p; then
    the token at which the running sum of weights passes draw * total

The draw is a pure function of (seed, sample, position): Philox 4x32-10, as on the CPU. The order of the running sum is
by id where nothing is cut by rank, else by (logit descending, id ascending). Greedy ties go to the lowest id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from .launch import FLOATS, Options, ceil_div, check, check_device, check_tensor, launch, power_of_two
from .sampling_kernels import logprobs_kernel, process_kernel, rules_kernel, sample_kernel

BLOCK = 4096
MAX_TOP_LOGPROBS = 64


@dataclass(frozen=True)
class SamplingBatch:
    """The rules of R rows, on the device.

        temperature      f32 [R]                 below 1e-5: greedy
        seed             i64 [R]                 the bits of an unsigned seed
        sample           i32 [R]                 index among n samples
        position         i32 [R]                 tokens generated so far
        top_k            i32 [R]                 0: all
        top_p, min_p     f32 [R]                 1, 0: off
        repetition, presence, frequency   f32 [R]
        seen_ids         i32 [R, L]              distinct ids; -1: padding
        seen_counts      i32 [R, L]              their counts in the output; 0: only in the prompt
        banned           i32 [R, B]              distinct ids; -1: padding
        bias_ids, bias   i32, f32 [R, N]         likewise
        allowed          i32 [R, ceil(V / 32)]   a bit per token, for rows whose allowed_rows is not 0
        allowed_rows     i32 [R]

    A rule that no row uses is None.
    """

    temperature: torch.Tensor
    seed: torch.Tensor
    sample: torch.Tensor
    position: torch.Tensor
    top_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None
    min_p: torch.Tensor | None = None
    repetition: torch.Tensor | None = None
    presence: torch.Tensor | None = None
    frequency: torch.Tensor | None = None
    seen_ids: torch.Tensor | None = None
    seen_counts: torch.Tensor | None = None
    banned: torch.Tensor | None = None
    bias_ids: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    allowed: torch.Tensor | None = None
    allowed_rows: torch.Tensor | None = None


FLOAT_FIELDS = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency", "bias")
WIDE_FIELDS = ("seen_ids", "seen_counts", "banned", "bias_ids", "bias", "allowed")
TOGETHER = (
    ("repetition", "presence", "frequency", "seen_ids", "seen_counts"),
    ("bias_ids", "bias"),
    ("allowed", "allowed_rows"),
)


def sample(logits: torch.Tensor, batch: SamplingBatch, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The next token of each row, int32 `[R]`, of `logits` `[R, V]` bf16, f16 or f32, which stay as they are."""
    check_device(logits=logits, out=out, temperature=batch.temperature)
    check_tensor("logits", logits, dtypes=FLOATS, shape=(None, None))
    rows, vocab = logits.shape
    check(vocab > 0, "logits has no columns")
    _check(batch, rows, vocab)
    if out is None:
        out = torch.empty(rows, dtype=torch.int32, device=logits.device)
    check_tensor("out", out, dtypes=(torch.int32,), shape=(rows,), contiguous=True)
    block = min(BLOCK, power_of_two(vocab))
    masked = batch.allowed is not None
    ruled = batch.banned is not None or batch.bias is not None or batch.seen_ids is not None
    processed = logits
    words = ceil_div(vocab, 32)
    if masked or ruled or logits.dtype != torch.float32:
        processed = torch.empty(rows, vocab, dtype=torch.float32, device=logits.device)
        arguments = {
            "logits_ptr": logits,
            "allowed_ptr": batch.allowed,
            "allowed_rows_ptr": batch.allowed_rows,
            "out_ptr": processed,
            "vocab": vocab,
            "words": words,
            "logits_stride": logits.stride(0),
        }
        grid = (rows, ceil_div(vocab, block))
        launch(process_kernel, grid, arguments, {"MASK": masked, "BLOCK": block}, Options(4, 1))
    if ruled:
        _apply_rules(processed, batch)
    arguments = {
        "logits_ptr": processed,
        "raw_ptr": logits,
        "allowed_ptr": batch.allowed,
        "allowed_rows_ptr": batch.allowed_rows,
        "temperature_ptr": batch.temperature,
        "top_k_ptr": batch.top_k,
        "top_p_ptr": batch.top_p,
        "min_p_ptr": batch.min_p,
        "seed_ptr": batch.seed,
        "sample_ptr": batch.sample,
        "position_ptr": batch.position,
        "out_ptr": out,
        "vocab": vocab,
        "words": words,
        "logits_stride": processed.stride(0),
        "raw_stride": logits.stride(0),
    }
    constants = {
        "MASK": masked,
        "TOP_K": batch.top_k is not None,
        "TOP_P": batch.top_p is not None,
        "MIN_P": batch.min_p is not None,
        "BLOCK": block,
    }
    launch(sample_kernel, (rows,), arguments, constants, Options(8, 1))
    return out


def logprobs(
    logits: torch.Tensor, ids: torch.Tensor, top: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of raw `logits` `[R, V]`: the log-probability f32 `[R]` and rank i32 `[R]` (from 1) of `ids` i32 `[R]`, and the
    `top` best tokens i32 `[R, top]` with their log-probabilities f32. Ties rank by id."""
    device = check_device(logits=logits, ids=ids)
    check_tensor("logits", logits, dtypes=FLOATS, shape=(None, None))
    rows, vocab = logits.shape
    check_tensor("ids", ids, dtypes=(torch.int32,), shape=(rows,), contiguous=True)
    max_top = min(vocab, MAX_TOP_LOGPROBS)
    check(0 <= top <= max_top, f"top is {top}, wanted 0 to {max_top}")
    result = (
        torch.empty(rows, dtype=torch.float32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty(rows, top, dtype=torch.int32, device=device),
        torch.empty(rows, top, dtype=torch.float32, device=device),
    )
    arguments = {
        "logits_ptr": logits,
        "ids_ptr": ids,
        "logprob_ptr": result[0],
        "rank_ptr": result[1],
        "top_ids_ptr": result[2],
        "top_logprobs_ptr": result[3],
        "vocab": vocab,
        "top": top,
        "logits_stride": logits.stride(0),
    }
    launch(logprobs_kernel, (rows,), arguments, {"BLOCK": min(BLOCK, power_of_two(vocab))}, Options(8, 1))
    return result


def _apply_rules(logits: torch.Tensor, batch: SamplingBatch) -> None:
    def width(tensor: torch.Tensor | None) -> int:
        return 0 if tensor is None else tensor.shape[1]

    arguments = {
        "logits_ptr": logits,
        "banned_ptr": batch.banned,
        "bias_ids_ptr": batch.bias_ids,
        "bias_ptr": batch.bias,
        "seen_ids_ptr": batch.seen_ids,
        "seen_counts_ptr": batch.seen_counts,
        "repetition_ptr": batch.repetition,
        "presence_ptr": batch.presence,
        "frequency_ptr": batch.frequency,
        "vocab": logits.shape[1],
        "banned_count": width(batch.banned),
        "bias_count": width(batch.bias_ids),
        "seen_count": width(batch.seen_ids),
    }
    constants = {
        "BANNED": batch.banned is not None,
        "BIAS": batch.bias is not None,
        "PENALTIES": batch.seen_ids is not None,
        "BLOCK": 256,
    }
    launch(rules_kernel, (logits.shape[0],), arguments, constants, Options(4, 1))


def uniform_ref(seed: int, sample: int, position: int) -> float:
    """The draw in [0, 1) of a token, as rust/engine/src/sampling/rng.rs makes it."""
    words = philox_ref([position, sample, 0, 0], [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF])
    return float((words[0] << 32 | words[1]) >> 11) / (1 << 53)


def philox_ref(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """One block of Philox 4x32 with ten rounds (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c3 ^ k1, a & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def sample_ref(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Each rule by its definition, with a full sort, on the host."""
    return torch.tensor([_sample_row(logits[r].float().cpu(), batch, r) for r in range(len(logits))], dtype=torch.int32)


def _sample_row(raw: torch.Tensor, batch: SamplingBatch, r: int) -> int:
    x = raw.clone()
    if batch.banned is not None:
        x[[i for i in batch.banned[r].tolist() if i >= 0]] = -torch.inf
    if batch.bias_ids is not None and batch.bias is not None:
        for i, bias in zip(batch.bias_ids[r].tolist(), batch.bias[r].tolist(), strict=True):
            if i >= 0:
                x[i] += bias
    if batch.seen_ids is not None and batch.seen_counts is not None:
        repetition, presence, frequency = (float(getattr(batch, n)[r]) for n in TOGETHER[0][:3])
        for i, count in zip(batch.seen_ids[r].tolist(), batch.seen_counts[r].tolist(), strict=True):
            if i >= 0:
                x[i] = x[i] / repetition if x[i] > 0 else x[i] * repetition
                x[i] -= frequency * count + presence if count else 0.0
    if batch.allowed is not None and batch.allowed_rows is not None and int(batch.allowed_rows[r]):
        words = batch.allowed[r].tolist()
        may = torch.tensor([words[i // 32] >> (i % 32) & 1 == 1 for i in range(len(x))])
        x[~may] = -torch.inf
        if may.any() and x[may].max() == -torch.inf:
            x[may] = raw[may].clamp(min=-1.7014117331926443e38)
    temperature = float(batch.temperature[r])
    if temperature < 1e-5 or x.max() == -torch.inf:
        return int(x.argmax()) if x.max() > -torch.inf else 0
    draw = uniform_ref(int(batch.seed[r]) & (1 << 64) - 1, int(batch.sample[r]), int(batch.position[r]))
    return _draw(x, temperature, draw, batch.top_k, batch.top_p, batch.min_p, r)


def _draw(
    x: torch.Tensor,
    temperature: float,
    draw: float,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    min_p: torch.Tensor | None,
    r: int,
) -> int:
    k = int(top_k[r]) if top_k is not None else 0
    p = float(top_p[r]) if top_p is not None else 1.0
    floor = float(min_p[r]) if min_p is not None else 0.0
    limit = x.max() + temperature * math.log(floor) if floor > 0 else torch.tensor(-torch.finfo(torch.float32).max)
    kept = [i for i in range(len(x)) if x[i] >= limit]
    if 0 < k < len(x) or p < 1:
        kept.sort(key=lambda i: (-float(x[i]), i))
        kept = kept[: k or None]
    weights = ((x[kept] - x.max()) / temperature).exp().double()
    if p < 1:
        sums = weights.cumsum(0)
        inside = int((sums < weights.sum() * p).sum()) + 1
        kept, weights = kept[:inside], weights[:inside]
    passed = (weights.cumsum(0) > draw * weights.sum()).nonzero()
    return kept[int(passed[0])] if len(passed) else kept[int(weights.nonzero()[-1])]


def logprobs_ref(
    logits: torch.Tensor, ids: torch.Tensor, top: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `logprobs`, by a softmax and a stable sort."""
    scores = logits.double().log_softmax(-1).float()
    order = logits.float().sort(dim=-1, descending=True, stable=True).indices
    rank = (order == ids[:, None]).int().argmax(-1).to(torch.int32) + 1
    best = order[:, :top]
    return scores.gather(1, ids.long()[:, None])[:, 0], rank, best.to(torch.int32), scores.gather(1, best)


def _check(batch: SamplingBatch, rows: int, vocab: int) -> None:
    for group in TOGETHER:
        given = [name for name in group if getattr(batch, name) is not None]
        check(len(given) in (0, len(group)), f"{', '.join(group)} go together: only {', '.join(given)} given")
    for field in fields(batch):
        name, tensor = field.name, getattr(batch, field.name)
        if tensor is None:
            continue
        dtype = torch.float32 if name in FLOAT_FIELDS else torch.int64 if name == "seed" else torch.int32
        width = ceil_div(vocab, 32) if name == "allowed" else None
        shape = (rows, width) if name in WIDE_FIELDS else (rows,)
        check_tensor(name, tensor, dtypes=(dtype,), shape=shape, contiguous=True)
    for one, other in (("seen_ids", "seen_counts"), ("bias_ids", "bias")):
        first, second = getattr(batch, one), getattr(batch, other)
        check(first is None or first.shape == second.shape, f"{one} and {other} have different shapes")
