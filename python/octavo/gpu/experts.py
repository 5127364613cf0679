"""A mixture of experts: each row goes to the experts that its router scores highest.

Rows are grouped by expert: a step reads the weights of an expert once. The host needs the number of rows of each
expert. Each such layer waits for it, and no graph captures the step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.gpu.spec import Experts
from octavo.gpu.weights import ExpertsWeights, MlpWeights

Gated = Callable[[torch.Tensor, MlpWeights, str], torch.Tensor]


def mixture(x: torch.Tensor, spec: Experts, weights: ExpertsWeights, gated: Gated) -> torch.Tensor:
    """The sum of the rows' experts of `x` `[T, hidden]`, f32, without the shared one.

    `gated(x, weights, activation)` is one expert.
    """
    scores = weights.router(x.float())
    scores = scores.softmax(-1) if spec.scoring == "softmax" else scores.sigmoid()
    experts, shares = choose(scores, spec, weights.e_score_correction_bias)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    order = experts.flatten().argsort(stable=True)
    counts = torch.bincount(experts.flatten(), minlength=spec.experts).tolist()
    rows, weight = order // spec.num_experts_per_tok, shares.flatten()[order]
    start = 0
    # In order of their index: the sum of a row does not depend on the experts of other rows.
    for expert, count in enumerate(counts):
        if count:
            mine = slice(start, start + count)
            y = gated(x[rows[mine]], weights.experts[expert], spec.activation)
            out.index_add_(0, rows[mine], y.float() * weight[mine, None])
            start += count
    return out


def choose(scores: torch.Tensor, spec: Experts, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts int64 and weights f32, `[T, num_experts_per_tok]`, from scores `[T, experts]`. Ties: the lowest index."""
    choice = scores if bias is None else scores + bias
    if spec.groups is not None:
        g = spec.groups
        grouped = choice.view(-1, g.count, spec.experts // g.count)
        group_scores = _best(grouped, g.best)[0].sum(-1)
        kept = torch.zeros_like(group_scores, dtype=torch.bool)
        kept.scatter_(1, _best(group_scores, g.chosen)[1], True)
        choice = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(1)
    experts = _best(choice, spec.num_experts_per_tok)[1]
    shares = scores.gather(1, experts)
    if spec.normalize:
        total = shares.sum(-1, keepdim=True)
        # Sigmoid scores may all be 0.
        shares = shares / (total + 1e-20 if spec.scoring == "sigmoid" else total)
    return experts, shares * spec.scale


def _best(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest `count` along the last dimension, in order; of equals the first."""
    ordered, index = values.sort(dim=-1, descending=True, stable=True)
    return ordered[..., :count], index[..., :count]
