"""What is kept of a model, as indices, and the slices of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.compress.importance import Importance
from octavo.compress.sizes import Layout, Sizes
from octavo.compress.tensor_axes import Axis

if TYPE_CHECKING:
    import torch

__all__ = ["Kept", "most_important", "slice_state"]


@dataclass(frozen=True)
class Kept:
    """Sorted indices into the original sizes.

    Attributes:
        layers: the layers that stay.
        hidden: channels of the residual stream; None: all.
        mlp: inner channels by original layer; a missing layer keeps all.
        groups: KV heads by original layer; a missing layer keeps all.
        experts: experts by original layer; a missing layer keeps all.
    """

    layers: list[int]
    hidden: torch.Tensor | None
    mlp: dict[int, torch.Tensor]
    groups: dict[int, torch.Tensor]
    experts: dict[int, torch.Tensor]


def most_important(importance: Importance, sizes: Sizes) -> Kept:
    """The most important channels, groups and layers, as many as `sizes` has."""

    def top(scores: torch.Tensor, count: int) -> torch.Tensor:
        return scores.topk(count).indices.sort().values

    layers = top(importance.layers, sizes.layers).tolist()
    return Kept(
        layers=layers,
        hidden=top(importance.hidden, sizes.hidden),
        mlp={n: top(importance.mlp[n], sizes.mlp) for n in layers if n in importance.mlp},
        groups={n: top(importance.groups[n], sizes.kv_heads) for n in layers},
        experts={},
    )


def slice_state(state: Mapping[str, torch.Tensor], layout: Layout, kept: Kept) -> dict[str, torch.Tensor]:
    """The tensors of the smaller model, under its own names."""
    number_of = {old: new for new, old in enumerate(kept.layers)}
    sliced = {}
    for name, axes in layout.tensors.items():
        if axes.layer is not None and axes.layer not in number_of:
            continue
        tensor = state[name]
        for dimension, parts in enumerate(axes.dimensions):
            index = _index(parts, tensor.shape[dimension], axes.layer, layout, kept)
            if index is not None:
                tensor = tensor.index_select(dimension, index.to(tensor.device))
        layer = axes.layer
        sliced[name if layer is None else f"model.layers.{number_of[layer]}.{axes.name}"] = tensor.clone()
    return sliced


def _index(parts: tuple[Axis, ...], length: int, layer: int | None, layout: Layout, kept: Kept) -> torch.Tensor | None:
    """Indices along one dimension of `length`, its parts one after the other; None keeps it whole."""
    import torch

    found, begin = [], 0
    for axis in parts:
        size, index = _axis_index(axis, layer, layout, kept)
        if index is None:
            if len(parts) == 1:
                return None
            index = torch.arange(size)
        found.append(index + begin)
        begin += size
    if begin != length:
        raise ValueError(f"a dimension of {length} has parts of {begin} in all")
    return torch.cat(found)


def _axis_index(axis: Axis, layer: int | None, layout: Layout, kept: Kept) -> tuple[int, torch.Tensor | None]:
    """Original length of an axis, and what is kept of it."""
    import torch

    sizes = layout.sizes
    if axis is Axis.WHOLE:
        return 0, None
    if axis is Axis.HIDDEN:
        return sizes.hidden, kept.hidden
    assert layer is not None
    if axis is Axis.MLP:
        return sizes.mlp, kept.mlp.get(layer)
    if axis is Axis.EXPERTS:
        return sizes.experts, kept.experts.get(layer)
    width, groups = layout.widths[axis], kept.groups.get(layer)
    if groups is None:
        return sizes.kv_heads * width, None
    return sizes.kv_heads * width, (groups[:, None] * width + torch.arange(width)).flatten()
