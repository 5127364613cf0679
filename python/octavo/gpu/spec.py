"""The decoder as data, from `octavo._core.read_model`. `rust/model/src/spec.rs` defines the fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

Facts: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Norm:
    """All norms except the norms of latents. `offset` is added to every weight."""

    kind: Literal["rms", "layer"]
    eps: float
    offset: float


@dataclass(frozen=True)
class Heads:
    """Multi-head attention. A query at position p sees keys in (p - window, p]."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    softcap: float | None
    qkv_bias: bool
    out_bias: bool
    qk_norm: Literal["off", "heads", "whole"]
    rope: int | None

    @property
    def widths(self) -> tuple[int, int, int]:
        """Columns of queries, keys and values."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: keys and values of all heads come from one cached latent per token."""

    heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    scale: float
    bias: bool
    norm_eps: float
    rope: int


@dataclass(frozen=True)
class Mlp:
    """down(act(gate(x)) * up(x))."""

    intermediate: int
    activation: Literal["silu", "gelu_tanh"]
    bias: bool


@dataclass(frozen=True)
class Groups:
    """Experts in groups of equal size. A token uses the `chosen` best groups, by the sum of their `best` scores."""

    count: int
    chosen: int
    best: int


@dataclass(frozen=True)
class SharedExpert:
    """An expert that every token uses; `gated`: its output is multiplied by sigmoid(w . x)."""

    intermediate: int
    gated: bool


@dataclass(frozen=True)
class Experts:
    """A mixture: each token goes to the `num_experts_per_tok` experts that its router scores highest."""

    experts: int
    num_experts_per_tok: int
    intermediate: int
    activation: Literal["silu", "gelu_tanh"]
    scoring: Literal["softmax", "sigmoid"]
    e_score_correction_bias: bool
    groups: Groups | None
    normalize: bool
    scale: float
    shared: SharedExpert | None


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    attention: Heads | Latent
    mlp: Mlp | Experts


@dataclass(frozen=True)
class Rope:
    """One rotary embedding: inverse frequencies `[rotary_dim / 2]`, and a factor on cosines and sines."""

    inverse_frequencies: np.ndarray[Any, np.dtype[np.float32]]
    amplitude: float
    interleaved: bool


@dataclass(frozen=True)
class Spec:
    """A decoder-only transformer."""

    architecture: str
    hidden: int
    vocab: int
    max_position: int
    norm: Norm
    norm_placement: Literal["pre", "post", "sandwich", "parallel"]
    tied_embeddings: bool
    has_head: bool
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_softcap: float | None
    layers: tuple[Layer, ...]
    ropes: tuple[Rope, ...]
    checkpoint_dtype: str | None


def read_spec(facts: Facts) -> Spec:
    """The spec of `_core.read_model`'s answer. An unknown field is an error."""
    spec = dict(facts["spec"])
    ropes = tuple(
        Rope(np.array(values["inverse_frequencies"], np.float32), values["amplitude"], rope["interleaved"])
        for rope, values in zip(spec.pop("ropes"), facts["ropes"], strict=True)
    )
    layers = tuple(Layer(_attention(layer["attention"]), _mlp(layer["mlp"])) for layer in spec.pop("layers"))
    return Spec(norm=Norm(**spec.pop("norm")), layers=layers, ropes=ropes, **spec)


def _attention(facts: Facts) -> Heads | Latent:
    values = {k: v for k, v in facts.items() if k != "kind"}
    return Heads(**values) if facts["kind"] == "gqa" else Latent(**values)


def _mlp(facts: Facts) -> Mlp | Experts:
    values = {k: v for k, v in facts.items() if k != "kind"}
    if facts["kind"] == "dense":
        return Mlp(**values)
    groups, shared = values.pop("groups"), values.pop("shared")
    return Experts(
        groups=None if groups is None else Groups(**groups),
        shared=None if shared is None else SharedExpert(**shared),
        **values,
    )
