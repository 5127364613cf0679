"""Draws tokens on the device, by the rules and with the numbers of the CPU's sampler (`rust/engine/src/sampling`).

Only requests whose logits need no other processing come here: bias, penalties, bad words and structured output draw on
the host, from rows of logits. The draw itself, a number in [0, 1) that depends on seed, sample and position only, comes
with the plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.gpu.plan import SAMPLE_SPEC, Records

WORDS = SAMPLE_SPEC.itemsize // 4
_COLUMN = {name: SAMPLE_SPEC.fields[name][1] // 4 for name in SAMPLE_SPEC.names}  # type: ignore[index, union-attr]


@dataclass(frozen=True)
class Rules:
    """What the rows of a step ask for, on the device `[D]`, and on the host what decides which work is done at all."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    uniform: torch.Tensor
    seed: torch.Tensor
    sample: torch.Tensor
    position: torch.Tensor
    all_greedy: bool
    any_ordered: bool
    """Some row has top-k or top-p: candidates must be sorted."""
    any_min_p: bool

    @classmethod
    def of(cls, samples: Records, words: torch.Tensor) -> Rules:
        """`words` int32 `[D, WORDS]` are the same records on the device."""

        def float32(name: str) -> torch.Tensor:
            return words[:, _COLUMN[name]].clone().view(torch.float32)

        def of_64_bits(name: str, dtype: torch.dtype) -> torch.Tensor:
            at = _COLUMN[name]
            return words[:, at : at + 2].clone(memory_format=torch.contiguous_format).view(dtype)[:, 0]

        return cls(
            temperature=float32("temperature"),
            top_k=words[:, _COLUMN["top_k"]].contiguous(),
            top_p=float32("top_p"),
            min_p=float32("min_p"),
            uniform=of_64_bits("uniform", torch.float64),
            seed=of_64_bits("seed", torch.int64).contiguous(),
            sample=words[:, _COLUMN["sample"]].contiguous(),
            position=words[:, _COLUMN["position"]].contiguous(),
            all_greedy=is_greedy(samples),
            any_ordered=bool(((samples["top_k"] > 0) | (samples["top_p"] < 1.0)).any()),
            any_min_p=bool((samples["min_p"] > 0.0).any()),
        )


def is_greedy(samples: Records) -> bool:
    """Whether every row takes its best token."""
    return bool((samples["temperature"] == 0.0).all())


def best(logits: torch.Tensor) -> torch.Tensor:
    """The best token of each row of `[R, vocab]`, the first of equals; -1 where the row holds NaN or +inf. int32."""
    numbers = (logits < torch.inf).all(-1)
    return torch.where(numbers, logits.argmax(-1), -1).to(torch.int32)


def sample(logits: torch.Tensor, rules: Rules, kernels: bool = False) -> torch.Tensor:
    """A token for each row of `logits` `[D, vocab]` f32, -1 where the row holds NaN or +inf. int32."""
    greedy = best(logits)
    if rules.all_greedy:
        return greedy
    if kernels:
        return torch.where(greedy >= 0, _sample_by_kernel(logits, rules), greedy)
    return _sample_by_torch(logits, rules, greedy)


def _sample_by_kernel(logits: torch.Tensor, rules: Rules) -> torch.Tensor:
    """The kernel makes the draw itself, with the generator that made `uniform`."""
    from octavo.triton_kernels.sampling import SamplingBatch, sample

    batch = SamplingBatch(
        temperature=rules.temperature,
        seed=rules.seed,
        sample=rules.sample,
        position=rules.position,
        top_k=rules.top_k if rules.any_ordered else None,
        top_p=rules.top_p if rules.any_ordered else None,
        min_p=rules.min_p if rules.any_min_p else None,
    )
    tokens: torch.Tensor = sample(logits, batch)
    return tokens


def _sample_by_torch(logits: torch.Tensor, rules: Rules, greedy: torch.Tensor) -> torch.Tensor:
    top = logits.amax(-1, keepdim=True)
    heat = torch.where(rules.temperature > 0, rules.temperature, 1.0)[:, None]
    limit = torch.where(rules.min_p > 0, top[:, 0] + heat[:, 0] * rules.min_p.log(), torch.finfo(torch.float32).min)
    # Rows that are no numbers are replaced at the end; here they must only not disturb.
    rows = torch.where((greedy >= 0)[:, None], logits, 0.0)
    weights = torch.where(rows >= limit[:, None], ((rows - top) / heat).exp(), 0.0).double()
    if rules.any_ordered:
        # Of equals the lowest id first, as on the CPU.
        order = rows.sort(dim=-1, descending=True, stable=True).indices
        drawn = order.gather(1, _pick(_nucleus(weights.gather(1, order), rules), rules.uniform))[:, 0]
        plain = ((rules.top_k == 0) | (rules.top_k >= logits.shape[1])) & (rules.top_p >= 1.0)
        drawn = torch.where(plain, _pick(weights, rules.uniform)[:, 0], drawn)
    else:
        drawn = _pick(weights, rules.uniform)[:, 0]
    sampled = (rules.temperature > 0) & (greedy >= 0)
    return torch.where(sampled, drawn.to(torch.int32), greedy)


def _nucleus(weights: torch.Tensor, rules: Rules) -> torch.Tensor:
    """Weights in order, those outside top-k and then top-p set to 0. The mass of top-p is that of the top-k set."""
    places = torch.arange(weights.shape[1], device=weights.device)
    top_k = torch.where(rules.top_k > 0, rules.top_k, weights.shape[1])
    weights = torch.where(places < top_k[:, None], weights, 0.0)
    mass = weights.cumsum(-1)
    goal = mass[:, -1:] * rules.top_p.double()[:, None]
    # The first candidate that reaches the goal is the last one inside.
    inside = (mass - weights < goal) | (rules.top_p >= 1.0)[:, None]
    return torch.where(inside, weights, 0.0)


def _pick(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """`[R, 1]`: where the running sum passes its share; the last place with weight if rounding runs past it."""
    mass = weights.cumsum(-1)
    passed = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)
    places = torch.arange(weights.shape[1], device=weights.device)
    last = torch.where(weights > 0, places, 0).amax(-1, keepdim=True)
    return torch.minimum(passed, last)


def logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, top: int, kernels: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, log-probabilities, ranks) `[D, 1 + top]`: the token's own, then the best ones in order. Ties rank by id."""
    tokens, top = tokens.clamp(min=0), min(top, logits.shape[1])
    if kernels:
        from octavo.triton_kernels import sampling

        value, own, best_ids, best_values = sampling.logprobs(logits, tokens.to(torch.int32), top)
        places = torch.arange(1, top + 1, dtype=torch.int32, device=logits.device).expand(len(own), -1)
        return (
            torch.cat((tokens[:, None].to(torch.int32), best_ids), 1),
            torch.cat((value[:, None], best_values), 1),
            torch.cat((own[:, None], places), 1),
        )
    index = tokens.long()[:, None]
    mine = logits.gather(1, index)
    places = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > mine) | ((logits == mine) & (places < index))
    rank = before.sum(-1, keepdim=True) + 1
    ids, ranks = index, rank
    if top > 0:
        order = logits.sort(dim=-1, descending=True, stable=True).indices[:, :top]
        ids = torch.cat((ids, order), 1)
        ranks = torch.cat((ranks, torch.arange(1, top + 1, device=logits.device).expand(len(order), -1)), 1)
    total = logits.double().logsumexp(-1, keepdim=True)
    values = (logits.gather(1, ids).double() - total).float()
    return ids.to(torch.int32), values, ranks.to(torch.int32)
