"""Which sizes of a model each dimension of each of its tensors has, by name.

The names are those of a live transformers model, which are the same for all families of docs/models.md. A dimension
may be several parts one after the other, as the fused projections of Phi-3 and GLM-4 have them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from octavo.errors import UnsupportedModelError

__all__ = ["Axis", "TensorAxes", "axes_of"]


class Axis(Enum):
    """A size of the model that a dimension runs over."""

    HIDDEN = "hidden"
    """The residual stream."""
    MLP = "mlp"
    """Inner size of a dense feed-forward layer."""
    QUERIES = "queries"
    """Attention heads times the width of a head."""
    KEYS = "keys"
    """KV heads times the width of a head."""
    LATENT_QUERIES = "latent queries"
    """Heads times the width of a query in latent attention."""
    LATENT_KEYS = "latent keys"
    """Heads times the widths of a key without rope and a value in latent attention."""
    LATENT_VALUES = "latent values"
    """Heads times the width of a value in latent attention."""
    EXPERTS = "experts"
    """Routed experts of a layer."""
    WHOLE = "whole"
    """A size that pruning keeps."""


Dimension = tuple[Axis, ...]


@dataclass(frozen=True)
class TensorAxes:
    """A tensor's layer, its name in the layer (the full name outside of layers), and its dimensions."""

    layer: int | None
    name: str
    dimensions: tuple[Dimension, ...]


_HIDDEN, _MLP, _WHOLE = (Axis.HIDDEN,), (Axis.MLP,), (Axis.WHOLE,)
_QUERIES, _KEYS, _EXPERTS = (Axis.QUERIES,), (Axis.KEYS,), (Axis.EXPERTS,)
_FUSED = (Axis.QUERIES, Axis.KEYS, Axis.KEYS)
# Ends of names and dimensions. A bias has the first dimension of its matrix.
_MATRICES: dict[str, tuple[Dimension, Dimension]] = {
    "self_attn.q_proj": (_QUERIES, _HIDDEN),
    "self_attn.k_proj": (_KEYS, _HIDDEN),
    "self_attn.v_proj": (_KEYS, _HIDDEN),
    "self_attn.qkv_proj": (_FUSED, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _QUERIES),
    "self_attn.q_a_proj": (_WHOLE, _HIDDEN),
    "self_attn.q_b_proj": ((Axis.LATENT_QUERIES,), _WHOLE),
    "self_attn.kv_a_proj_with_mqa": (_WHOLE, _HIDDEN),
    "self_attn.kv_b_proj": ((Axis.LATENT_KEYS,), _WHOLE),
    "mlp.gate_proj": (_MLP, _HIDDEN),
    "mlp.up_proj": (_MLP, _HIDDEN),
    "mlp.gate_up_proj": ((Axis.MLP, Axis.MLP), _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _MLP),
    "mlp.gate": (_EXPERTS, _HIDDEN),
    "mlp.shared_expert_gate": (_WHOLE, _HIDDEN),
}
_SHARED = re.compile(r"mlp\.shared_experts?\.(gate_proj|up_proj|down_proj)\.weight")
_STACKED = {
    "mlp.experts.gate_up_proj": (_EXPERTS, _WHOLE, _HIDDEN),
    "mlp.experts.down_proj": (_EXPERTS, _HIDDEN, _WHOLE),
    "mlp.gate.e_score_correction_bias": (_EXPERTS,),
}
_HEAD_NORMS = re.compile(r"self_attn\.([qk])_norm\.weight")
_LATENT_NORMS = re.compile(r"self_attn\.(q_a|kv_a)_layernorm\.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_OUTSIDE = {
    "model.embed_tokens.weight": (_WHOLE, _HIDDEN),
    "model.norm.weight": (_HIDDEN,),
    "lm_head.weight": (_WHOLE, _HIDDEN),
}


def axes_of(name: str, shape: tuple[int, ...], latent: bool, norms_over_heads: bool) -> TensorAxes:
    """The dimensions of the tensor `name`.

    Args:
        name: in a live transformers model, such as `model.layers.0.mlp.up_proj.weight`.
        shape: its shape; the number of dimensions must be that of the table.
        latent: the model has latent attention (MLA), where a head's query and value have widths of their own.
        norms_over_heads: its norms of queries and keys run over all heads at once (OLMo 2 and 3).

    Raises:
        UnsupportedModelError: the table has no such tensor.
    """
    match = _LAYER.fullmatch(name)
    if match is None:
        found: tuple[Dimension, ...] | None = _OUTSIDE.get(name)
        layer, inner = None, name
    else:
        layer, inner = int(match[1]), match[2]
        found = _in_layer(inner, latent, norms_over_heads)
    if found is None or len(found) != len(shape):
        raise UnsupportedModelError(
            f"{name} of shape {list(shape)} is no tensor that pruning knows: only the families of docs/models.md "
            "can be pruned"
        )
    return TensorAxes(layer, inner, found)


def _in_layer(name: str, latent: bool, norms_over_heads: bool) -> tuple[Dimension, ...] | None:
    if name in _STACKED:
        return _STACKED[name]
    if match := _SHARED.fullmatch(name):
        return (_HIDDEN, _WHOLE) if match[1] == "down_proj" else (_WHOLE, _HIDDEN)
    if match := _HEAD_NORMS.fullmatch(name):
        over = _QUERIES if match[1] == "q" else _KEYS
        return (over if norms_over_heads else _WHOLE,)
    if _LATENT_NORMS.fullmatch(name):
        return (_WHOLE,)
    module, _, kind = name.rpartition(".")
    if module.endswith("layernorm") and kind == "weight":
        return (_HIDDEN,)
    if module not in _MATRICES or kind not in ("weight", "bias"):
        return None
    rows, columns = _MATRICES[module]
    if latent:
        # Without a latent of queries q_proj makes them; o_proj reads values.
        rows = (Axis.LATENT_QUERIES,) if module == "self_attn.q_proj" else rows
        columns = (Axis.LATENT_VALUES,) if module == "self_attn.o_proj" else columns
    return (rows, columns) if kind == "weight" else (rows,)
