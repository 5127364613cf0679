"""Sizes of a pruned model: what can be chosen, how many parameters a choice has, and the choice for a ratio."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.compress.tensor_axes import Axis, TensorAxes, axes_of
from octavo.errors import InvalidRequestError

__all__ = ["Layout", "Sizes", "choose_sizes"]

# octavo's int8 weights have a scale for each group of so many columns.
GROUP = 128
# No size falls below this part of what it was, and depth not below its own.
LEAST_PART = 0.25
LEAST_DEPTH = 0.75
# Depth stays whole while the hidden size keeps this part of itself: width costs less than depth at equal size
# (Minitron, arXiv 2408.11796).
WIDTH_ALONE = 0.5
# Weights of the squared logarithms of what is kept. Heads carry look-ups, and are few.
_HEADS_WEIGHT = 2.0
_DEPTH_WEIGHT = 4.0


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model that pruning changes.

    Attributes:
        hidden: the residual stream.
        mlp: inner size of a dense feed-forward layer; 0 where there is none.
        kv_heads: KV heads; in latent attention all heads. Query heads follow in whole groups.
        layers: decoder layers.
        experts: routed experts of a layer; 0 where there are none.
    """

    hidden: int
    mlp: int
    kv_heads: int
    layers: int
    experts: int = 0


@dataclass(frozen=True)
class Layout:
    """A model's tensors with their dimensions, and the widths that a head has.

    Attributes:
        tensors: dimensions by full name.
        shapes: shapes by full name.
        sizes: what the model has.
        queries_per_kv: query heads of a KV head.
        widths: the width of one head on each axis of heads.
        tied: the output head is the embedding.
        hidden_per_head: transformers refuses another hidden size for each head: any multiple of the number of heads
            if None, exactly so much if above 0 (Phi-3 with LongRoPE), anything if 0.
    """

    tensors: dict[str, TensorAxes]
    shapes: dict[str, tuple[int, ...]]
    sizes: Sizes
    queries_per_kv: int
    widths: dict[Axis, int]
    tied: bool
    hidden_per_head: int | None

    @classmethod
    def of(cls, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """The layout of a live model, by its transformers config and the shapes of its state.

        Raises:
            UnsupportedModelError: it has a tensor that pruning does not know.
        """
        latent = bool(getattr(config, "kv_lora_rank", None))
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        if latent:
            kv_heads = heads
            nope, value = config.qk_nope_head_dim, config.v_head_dim
            widths = {
                Axis.LATENT_QUERIES: nope + config.qk_rope_head_dim,
                Axis.LATENT_KEYS: nope + value,
                Axis.LATENT_VALUES: value,
            }
        else:
            width = getattr(config, "head_dim", None) or config.hidden_size // heads
            widths = {Axis.QUERIES: heads // kv_heads * width, Axis.KEYS: width}
        tied = bool(config.tie_word_embeddings)
        shapes = {name: tuple(shape) for name, shape in shapes.items() if not (tied and name == "lm_head.weight")}
        over_heads = getattr(config, "model_type", "") in ("olmo2", "olmo3")
        tensors = {name: axes_of(name, shape, latent, over_heads) for name, shape in shapes.items()}
        dense = [s[-1] for n, s in shapes.items() if n.endswith(".mlp.down_proj.weight")]
        experts = [s[0] for n, s in shapes.items() if n.endswith(".mlp.experts.down_proj")]
        sizes = Sizes(
            hidden=config.hidden_size,
            mlp=dense[0] if dense else 0,
            kv_heads=kv_heads,
            layers=config.num_hidden_layers,
            experts=experts[0] if experts else 0,
        )
        return cls(tensors, shapes, sizes, heads // kv_heads, widths, tied, _hidden_per_head(config))

    def can_have(self, sizes: Sizes) -> bool:
        """Whether transformers accepts the sizes."""
        heads = sizes.kv_heads * self.queries_per_kv
        if self.hidden_per_head is None:
            return sizes.hidden % heads == 0
        return self.hidden_per_head in (0, sizes.hidden / heads)

    def parameters(self, sizes: Sizes) -> int:
        """Parameters of the model with other sizes. A dropped layer counts as an average one."""
        outside, layers = 0, 0
        for name, axes in self.tensors.items():
            count = math.prod(
                self._length(dimension, length, sizes)
                for dimension, length in zip(axes.dimensions, self.shapes[name], strict=True)
            )
            if axes.layer is None:
                outside += count
            else:
                layers += count
        return outside + round(layers * sizes.layers / self.sizes.layers)

    def _length(self, dimension: tuple[Axis, ...], length: int, sizes: Sizes) -> int:
        if dimension == (Axis.WHOLE,):
            return length
        by_axis = {Axis.HIDDEN: sizes.hidden, Axis.MLP: sizes.mlp, Axis.EXPERTS: sizes.experts}
        return sum(by_axis.get(axis) or sizes.kv_heads * self.widths[axis] for axis in dimension)


def _hidden_per_head(config: Any) -> int | None:
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type == "phi3" and rope.get("rope_type") == "longrope":
        return int(config.hidden_size // config.num_attention_heads)
    return None if hasattr(config, "validate_architecture") else 0


def unit_of(size: int) -> int:
    """What a size is a multiple of after pruning: 128, octavo's group, or less for small models."""
    return min(GROUP, 1 << max(0, (size // 12).bit_length() - 1))


def choose_sizes(layout: Layout, ratio: float, method: str = "auto") -> Sizes:
    """The sizes with at most `ratio` of the parameters that keep the most even part of each.

    Args:
        layout: the model as it is.
        ratio: target, above 0 and below 1.
        method: "width", "depth" or "auto". Auto prunes width alone while half of the hidden size is left, then both.

    Raises:
        InvalidRequestError: the ratio is out of range, or no choice reaches it.
    """
    if not 0 < ratio < 1:
        raise InvalidRequestError(f"ratio is {ratio}: a number between 0 and 1 is expected, such as 0.5")
    if method not in ("auto", "width", "depth"):
        raise InvalidRequestError(f"method is {method!r}: 'auto', 'width' or 'depth' is expected")
    now = layout.sizes
    target = ratio * layout.parameters(now)
    depths = range(max(1, math.ceil(LEAST_DEPTH * now.layers)), now.layers + 1)
    whole = [now.layers]
    hidden = _choices(now.hidden)
    if method == "depth":
        tried = [([now.hidden], [now.mlp], [now.kv_heads], list(depths))]
    else:
        mlp = _choices(now.mlp) if now.mlp else [0]
        heads = [h for h in range(1, now.kv_heads + 1) if h >= LEAST_PART * now.kv_heads]
        wide = [h for h in hidden if h >= WIDTH_ALONE * now.hidden]
        tried = [(wide, mlp, heads, whole), (hidden, mlp, heads, list(depths))]
        if method == "width":
            tried = [(hidden, mlp, heads, whole)]
    for lists in tried:
        fitting = [
            sizes
            for h, m, k, n in itertools.product(*lists)
            if layout.can_have(sizes := Sizes(h, m, k, n, now.experts)) and layout.parameters(sizes) <= target
        ]
        if fitting:
            return min(fitting, key=lambda s: (_loss(s, now), -layout.parameters(s)))
    first = [lists[0] for lists in tried[-1]]
    least = Sizes(first[0], first[1], first[2], first[3], now.experts)
    smallest = layout.parameters(least) / layout.parameters(now)
    raise InvalidRequestError(
        f"ratio is {ratio:g}: pruning by {method} reaches {smallest:.2f} at most"
        + ("; experts of a layer are pruned by --experts" if now.experts else "")
        + (", depth below three quarters is not offered" if method == "depth" else "")
    )


def _choices(size: int) -> list[int]:
    """Multiples of the size's unit from a quarter of it on, and the size itself."""
    unit = unit_of(size)
    first = math.ceil(LEAST_PART * size / unit) * unit
    return sorted({*range(first, size, unit), size})


def _loss(sizes: Sizes, now: Sizes) -> float:
    def part(left: int, full: int) -> float:
        return math.log(left / full) ** 2 if full else 0.0

    return (
        part(sizes.hidden, now.hidden)
        + part(sizes.mlp, now.mlp)
        + _HEADS_WEIGHT * part(sizes.kv_heads, now.kv_heads)
        + _DEPTH_WEIGHT * part(sizes.layers, now.layers)
    )
