"""The projections that an adapter may change, and how its modules are named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.gpu.linear import Linear
from octavo.gpu.spec import Experts, Heads, Spec
from octavo.gpu.weights import ExpertsWeights, HeadsWeights, LatentWeights, MlpWeights, Weights

Site = tuple[int, str]
"""Layer and projection: qkv, o, q_a, q, kv_a, gate_up, down, shared_gate_up, shared_down or shared_gate."""


@dataclass(frozen=True)
class Projection:
    """One projection of the model with the modules that it holds below each other.

    Attributes:
        modules: names as in the checkpoint, without `.weight`.
        widths: rows of each module.
    """

    site: Site
    linear: Linear
    modules: tuple[str, ...]
    widths: tuple[int, ...]


def projections(spec: Spec, names: Mapping[str, Any], weights: Weights) -> Iterator[Projection]:
    """All of them, layer by layer. Not among them: kv_b of latent attention, routers, and experts behind a router."""
    for i, (layer, w) in enumerate(zip(spec.layers, weights.layers, strict=True)):
        a = layer.attention
        if isinstance(a, Heads) and isinstance(w.attention, HeadsWeights):
            yield _of(i, "qkv", w.attention.qkv, names["qkv"], a.widths)
        elif isinstance(w.attention, LatentWeights):
            latent, at = names["mla"], w.attention
            if at.q_a is not None:
                yield _of(i, "q_a", at.q_a, [latent["q_a"]])
            yield _of(i, "q", at.q, [latent["q" if at.q_a is None else "q_b"]])
            yield _of(i, "kv_a", at.kv_a, [latent["kv_a"]])
        yield _of(i, "o", w.attention.o, [names["o"]])
        m = layer.mlp
        if isinstance(w.mlp, MlpWeights):
            yield from _gated(i, "", w.mlp, names["gate_up"], names["down"])
        elif isinstance(m, Experts) and isinstance(w.mlp, ExpertsWeights) and w.mlp.shared is not None:
            n = names["experts"]
            yield from _gated(i, "shared_", w.mlp.shared, n["shared_gate_up"], n["shared_down"])
            if w.mlp.shared_gate is not None:
                yield _of(i, "shared_gate", w.mlp.shared_gate, [n["shared_gate"]])


def _gated(i: int, prefix: str, w: MlpWeights, gate_up: list[str], down: str) -> Iterator[Projection]:
    half = w.gate_up.shape[0] // 2
    yield _of(i, f"{prefix}gate_up", w.gate_up, gate_up, (half, half))
    yield _of(i, f"{prefix}down", w.down, [down])


def _of(i: int, name: str, linear: Linear, modules: list[str], widths: tuple[int, ...] = ()) -> Projection:
    """A single module holds all rows."""
    own = widths if len(modules) > 1 else (linear.shape[0],)
    return Projection((i, name), linear, tuple(m.replace("{i}", str(i)) for m in modules), own)
