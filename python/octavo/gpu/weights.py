"""From tensors of a checkpoint to the weights of a model on the device, one layer after the other.

Which tensors there are follows from the spec; their names come with it from the family (`rust/model/src/families`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from octavo.gpu.checkpoint import Checkpoint
from octavo.gpu.linear import FloatLinear, Int8Linear, Linear, quantize
from octavo.gpu.ops import Ops
from octavo.gpu.spec import Experts, Heads, Latent, Layer, Mlp, Spec

Names: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class HeadsWeights:
    """`qkv`: q, k and v below each other. Norm weights f32."""

    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: Linear


@dataclass(frozen=True)
class LatentWeights:
    """The absorbed form.

    `to_latent` `[heads, qk_nope_head_dim, kv_lora_rank]`, `to_value` `[heads, v_head_dim, kv_lora_rank]`.
    """

    q_a: Linear | None
    q_a_norm: torch.Tensor | None
    q: Linear
    kv_a: Linear
    kv_a_norm: torch.Tensor
    to_latent: torch.Tensor
    to_value: torch.Tensor
    o: Linear


@dataclass(frozen=True)
class MlpWeights:
    """`gate_up`: gate and up below each other."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class ExpertsWeights:
    """Router `[experts, hidden]` and shared gate `[1, hidden]` in f32: a rounded router sends tokens elsewhere."""

    router: FloatLinear
    e_score_correction_bias: torch.Tensor | None
    experts: tuple[MlpWeights, ...]
    shared: MlpWeights | None
    shared_gate: FloatLinear | None


@dataclass(frozen=True)
class LayerWeights:
    """Which norms there are follows from their placement."""

    attention_norm: torch.Tensor | None
    attention: HeadsWeights | LatentWeights
    attention_post_norm: torch.Tensor | None
    mlp_norm: torch.Tensor | None
    mlp: MlpWeights | ExpertsWeights
    mlp_post_norm: torch.Tensor | None


@dataclass(frozen=True)
class Weights:
    """All weights of a model. `embed` is `head` where they are tied, or where there is no head."""

    embed: Linear
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: Linear


@dataclass(frozen=True)
class Format:
    """How projections are held. `int8`: True quantises, None keeps int8 that the checkpoint brings, False has none."""

    dtype: torch.dtype
    int8: bool | None
    deterministic: bool
    ops: Ops


def load_weights(spec: Spec, names: Names, checkpoint: Checkpoint, format: Format) -> Weights:
    """Reads every tensor once.

    Raises:
        CorruptModelError: a tensor is missing or has another shape than config.json asks for.
    """
    loader = _Loader(spec, names, checkpoint, format)
    norm = loader.vector(names["norm"], spec.hidden)
    embed = loader.linear([(names["embed"], spec.vocab)], spec.hidden)
    shared = spec.tied_embeddings or not spec.has_head
    head = embed if shared else loader.linear([(names["head"], spec.vocab)], spec.hidden)
    layers = tuple(loader.layer(i, layer) for i, layer in enumerate(spec.layers))
    return Weights(embed, layers, norm, head)


class _Loader:
    def __init__(self, spec: Spec, names: Names, checkpoint: Checkpoint, format: Format) -> None:
        self.spec, self.names, self.checkpoint, self.format = spec, names, checkpoint, format

    def layer(self, i: int, layer: Layer) -> LayerWeights:
        placement, n = self.spec.norm_placement, self.names

        def norm(name: str, *where: str) -> torch.Tensor | None:
            return self.vector(_at(n[name], i), self.spec.hidden) if placement in where else None

        a, m = layer.attention, layer.mlp
        return LayerWeights(
            attention_norm=norm("attention_norm", "pre", "sandwich", "parallel"),
            attention=self.heads(i, a) if isinstance(a, Heads) else self.latent(i, a),
            attention_post_norm=norm("attention_post_norm", "post", "sandwich"),
            mlp_norm=norm("mlp_norm", "pre", "sandwich"),
            mlp=self.mlp(i, m) if isinstance(m, Mlp) else self.experts(i, m),
            mlp_post_norm=norm("mlp_post_norm", "post", "sandwich"),
        )

    def heads(self, i: int, a: Heads) -> HeadsWeights:
        n, widths = self.names, a.widths
        norms: list[torch.Tensor | None] = [None, None]
        if a.qk_norm != "off":
            lens = (a.head_dim, a.head_dim) if a.qk_norm == "heads" else widths[:2]
            norms = [self.vector(_at(n[name], i), k) for name, k in zip(("q_norm", "k_norm"), lens, strict=True)]
        return HeadsWeights(
            qkv=self.projection(_stacked(n["qkv"], widths, i), self.spec.hidden, a.qkv_bias),
            q_norm=norms[0],
            k_norm=norms[1],
            o=self.projection([(_at(n["o"], i), self.spec.hidden)], widths[0], a.out_bias),
        )

    def latent(self, i: int, a: Latent) -> LatentWeights:
        n, hidden = self.names["mla"], self.spec.hidden
        q_rows = a.heads * (a.qk_nope_head_dim + a.qk_rope_head_dim)
        q_a = q_a_norm = None
        if a.q_lora_rank is None:
            q = self.projection([(_at(n["q"], i), q_rows)], hidden, False)
        else:
            q_a = self.projection([(_at(n["q_a"], i), a.q_lora_rank)], hidden, a.bias)
            q_a_norm = self.vector(_at(n["q_a_norm"], i), a.q_lora_rank)
            q = self.projection([(_at(n["q_b"], i), q_rows)], a.q_lora_rank, False)
        both = self.matrix(f"{_at(n['kv_b'], i)}.weight", a.heads * (a.qk_nope_head_dim + a.v_head_dim), a.kv_lora_rank)
        parts = both.to(self.format.dtype).view(a.heads, a.qk_nope_head_dim + a.v_head_dim, a.kv_lora_rank)
        to_latent, to_value = (p.contiguous() for p in parts.split([a.qk_nope_head_dim, a.v_head_dim], 1))
        return LatentWeights(
            q_a=q_a,
            q_a_norm=q_a_norm,
            q=q,
            kv_a=self.projection([(_at(n["kv_a"], i), a.kv_lora_rank + a.qk_rope_head_dim)], hidden, a.bias),
            kv_a_norm=self.vector(_at(n["kv_a_norm"], i), a.kv_lora_rank),
            to_latent=to_latent,
            to_value=to_value,
            o=self.projection([(_at(self.names["o"], i), hidden)], a.heads * a.v_head_dim, a.bias),
        )

    def mlp(self, i: int, m: Mlp) -> MlpWeights:
        gate_up = _stacked(self.names["gate_up"], (m.intermediate, m.intermediate), i)
        return self.gated(gate_up, _at(self.names["down"], i), m.intermediate, m.bias)

    def gated(self, gate_up: list[tuple[str, int]], down: str, inner: int, bias: bool) -> MlpWeights:
        hidden = self.spec.hidden
        return MlpWeights(self.projection(gate_up, hidden, bias), self.projection([(down, hidden)], inner, bias))

    def experts(self, i: int, m: Experts) -> ExpertsWeights:
        n = self.names["experts"]

        def expert(e: int) -> MlpWeights:
            gate_up = [
                (name.replace("{e}", str(e)), rows)
                for name, rows in _stacked(n["gate_up"], (m.intermediate, m.intermediate), i)
            ]
            return self.gated(gate_up, _at(n["down"], i).replace("{e}", str(e)), m.intermediate, False)

        shared = gate = None
        if m.shared is not None:
            inner = m.shared.intermediate
            shared = self.gated(
                _stacked(n["shared_gate_up"], (inner, inner), i), _at(n["shared_down"], i), inner, False
            )
            if m.shared.gated:
                gate = self.exact(f"{_at(n['shared_gate'], i)}.weight", 1)
        return ExpertsWeights(
            router=self.exact(f"{_at(n['router'], i)}.weight", m.experts),
            e_score_correction_bias=self.vector(_at(n["e_score_correction_bias"], i), m.experts)
            if m.e_score_correction_bias
            else None,
            experts=tuple(expert(e) for e in range(m.experts)),
            shared=shared,
            shared_gate=gate,
        )

    def vector(self, name: str, length: int) -> torch.Tensor:
        """f32: norms and biases of routers."""
        return self.checkpoint.tensor(name, [length]).float()

    def exact(self, name: str, rows: int) -> FloatLinear:
        """A matrix over the hidden width, in f32 for every format."""
        return FloatLinear(self.matrix(name, rows, self.spec.hidden), None, self.format.deterministic)

    def matrix(self, name: str, rows: int, columns: int) -> torch.Tensor:
        """f32, whether stored as floats or as int8 with scales."""
        stored = self.checkpoint.tensor(name, [rows, columns])
        if stored.dtype == torch.int8:
            return stored.float() * self.row_scales(name, rows)[:, None]
        return stored.float()

    def row_scales(self, name: str, rows: int) -> torch.Tensor:
        """The scales `NAME_scale` of an int8 tensor, f32 `[rows]`: stored as `[rows, 1]`, `[rows]`, or one for all."""
        shape = self.checkpoint.shape(f"{name}_scale")
        shape = [1] if shape == [1] else [rows] if shape == [rows] else [rows, 1]
        return self.checkpoint.tensor(f"{name}_scale", shape).float().reshape(-1).expand(rows)

    def projection(self, parts: Sequence[tuple[str, int]], columns: int, bias: bool) -> Linear:
        """Projections `(name, rows)` of the same input, below each other."""
        biases = [self.checkpoint.tensor(f"{name}.bias", [rows]) for name, rows in parts] if bias else []
        together = torch.cat([b.to(self.format.dtype) for b in biases]) if biases else None
        return self.linear([(f"{name}.weight", rows) for name, rows in parts], columns, together)

    def linear(
        self,
        parts: Sequence[tuple[str, int]],
        columns: int,
        bias: torch.Tensor | None = None,
    ) -> Linear:
        """Tensors `(name, rows)` below each other in the model's format."""
        f = self.format
        stored = [self.checkpoint.tensor(name, [rows, columns]) for name, rows in parts]
        comes_in_int8 = all(s.dtype == torch.int8 for s in stored)
        if not (f.int8 or (comes_in_int8 and f.int8 is None)):
            floats = [
                s.float() * self.row_scales(name, rows)[:, None] if s.dtype == torch.int8 else s
                for s, (name, rows) in zip(stored, parts, strict=True)
            ]
            weight = torch.cat([x.to(f.dtype) for x in floats])
            return FloatLinear(weight, bias, f.deterministic)
        # As on the CPU: beside a part with codes of its own, none is rotated.
        rotated = not any(s.dtype == torch.int8 for s in stored)
        pairs = [
            self.keep(s, name) if s.dtype == torch.int8 else quantize(s, rotated=rotated)
            for s, (name, _) in zip(stored, parts, strict=True)
        ]
        codes, scales = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        return Int8Linear(codes, scales, bias, f.dtype, columns, rotated, f.ops, f.deterministic)

    def keep(self, codes: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes that come in int8, with their row's scale for every group. -128 becomes -127, as on the CPU."""
        rows, columns = codes.shape
        scales = self.row_scales(name, rows).to(torch.bfloat16)[:, None]
        return codes.clamp(min=-127), scales.expand(rows, -(-columns // 128)).contiguous()


def _at(name: str, i: int) -> str:
    return name.replace("{i}", str(i))


def _stacked(names: Sequence[str], rows: Sequence[int], i: int) -> list[tuple[str, int]]:
    """Names with their rows; a single name holds all of them."""
    if len(names) == 1:
        return [(_at(names[0], i), sum(rows))]
    return [(_at(name, i), count) for name, count in zip(names, rows, strict=True)]
