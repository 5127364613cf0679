"""Expert pruning by REAP: the experts that add least to what tokens get are removed, without training.

The score of an expert is the mean, over the tokens that the router sends to it, of its router weight times the length
of its output (REAP, arXiv 2510.13999).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from octavo.compress.kept import Kept
from octavo.compress.sizes import Layout
from octavo.errors import InvalidRequestError, UnsupportedModelError

if TYPE_CHECKING:
    import torch

__all__ = ["experts_per_layer", "most_used_experts", "score_experts"]


def experts_per_layer(config: Any, layout: Layout, part: float) -> int:
    """How many experts stay when `part` of them is wanted: a multiple of the groups, enough for the router's choice.

    Raises:
        UnsupportedModelError: the model has no routed experts.
        InvalidRequestError: the part is out of range, or no expert can go.
    """
    now = layout.sizes.experts
    if not now:
        raise UnsupportedModelError("the model has no routed experts: leave --experts out, or use --ratio")
    if not 0 < part < 1:
        raise InvalidRequestError(f"experts is {part}: a number between 0 and 1 is expected, such as 0.5")
    groups, chosen = _groups(config)
    # Each of the chosen groups offers its experts, and the router takes so many. V3 scores a group by its best two.
    least = max(2 if groups > 1 else 1, -(-int(config.num_experts_per_tok) // chosen))
    count = groups * max(least, round(part * now / groups))
    if count >= now:
        raise InvalidRequestError(
            f"experts is {part:g}: of {now} experts in {groups} groups at least {groups * least} must stay, "
            f"since a token goes to {config.num_experts_per_tok}"
        )
    return count


def score_experts(model: Any, rows: Iterable[torch.Tensor]) -> dict[int, torch.Tensor]:
    """REAP scores [experts] of each layer with experts, over rows of token ids [rows, length].

    An expert that no token goes to has the score 0.
    """
    import torch

    sums: dict[int, torch.Tensor] = {}
    counts: dict[int, torch.Tensor] = {}

    def hook(number: int) -> Any:
        def add(experts: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            values = [*inputs, *named.values()]
            lengths, routed = _lengths(experts, *values[:3])
            sums[number] = sums.get(number, 0) + lengths
            counts[number] = counts.get(number, 0) + routed

        return add

    with torch.no_grad(), _hooked(model, hook):
        for ids in rows:
            model(input_ids=ids, use_cache=False)
    return {number: sums[number] / counts[number].clamp_min(1) for number in sums}


def most_used_experts(scores: dict[int, torch.Tensor], layout: Layout, config: Any, count: int) -> Kept:
    """The experts with the highest scores, equally many of each group of the router."""
    groups, _ = _groups(config)
    kept = {}
    for number, of_layer in scores.items():
        by_group = of_layer.view(groups, -1)
        best = by_group.topk(count // groups, dim=1).indices.sort(dim=1).values
        first = best.new_tensor(range(groups))[:, None] * by_group.shape[1]
        kept[number] = (best + first).flatten()
    return Kept(layers=list(range(layout.sizes.layers)), hidden=None, mlp={}, groups={}, experts=kept)


def _groups(config: Any) -> tuple[int, int]:
    """Groups of experts, and how many of them a token's experts may be in."""
    groups = int(getattr(config, "n_group", None) or 1)
    if groups == 1 or getattr(config, "topk_method", "group_limited_greedy") == "greedy":
        return 1, 1
    return groups, int(config.topk_group)


def _lengths(experts: Any, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> tuple[Any, Any]:
    """Sum of router weight times length of output, and number of tokens, of each expert.

    x [tokens, hidden], chosen and weights [tokens, experts of a token].
    """
    import torch
    from torch.nn.functional import linear

    count = experts.down_proj.shape[0]
    sums, tokens = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for expert in range(count):
        token, place = torch.where(chosen == expert)
        gate, up = linear(x[token], experts.gate_up_proj[expert]).chunk(2, dim=-1)
        output = linear(experts.act_fn(gate) * up, experts.down_proj[expert])
        lengths = torch.linalg.vector_norm(output.double(), dim=-1) * weights[token, place].double()
        sums[expert], tokens[expert] = lengths.sum().cpu(), len(token)
    return sums, tokens


@contextlib.contextmanager
def _hooked(model: Any, hook: Any) -> Iterator[None]:
    handles = [
        layer.mlp.experts.register_forward_pre_hook(hook(number), with_kwargs=True)
        for number, layer in enumerate(model.model.layers)
        if hasattr(layer.mlp, "experts")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
