"""The forward pass: one flat batch of tokens through all layers.

The residual stream, norms, rope, softmax and sums of experts are f32; projections run in the format of their weights,
and what flows between them in the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.gpu.batch import Batch
from octavo.gpu.experts import mixture
from octavo.gpu.kv import KvPool, LatentKV
from octavo.gpu.lora import StepAdapters, adapted
from octavo.gpu.mla import mla
from octavo.gpu.ops import Ops, layer_norm
from octavo.gpu.spec import Experts, Heads, Spec
from octavo.gpu.weights import ExpertsWeights, HeadsWeights, LatentWeights, LayerWeights, MlpWeights, Weights
from octavo.triton_kernels.kv_cache import FloatKV, Int8KV, PagedKV

Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Model:
    """A loaded model. It keeps no state of requests."""

    spec: Spec
    weights: Weights
    dtype: torch.dtype
    ops: Ops
    deterministic: bool
    frequencies: tuple[torch.Tensor, ...]
    """Inverse frequencies of each rope, f32 on the device."""

    def forward(self, batch: Batch, kv: KvPool) -> torch.Tensor:
        """Writes the batch's keys and values, and returns the last layer's output `[T, hidden]`, f32."""
        s = self.spec
        stream = _Stream(self, self.weights.embed.rows(batch.tokens).float() * s.embedding_scale)
        angles = self._angles(batch.positions)
        attend = kv.policy.begin(self.ops, batch, self.deterministic)
        for i, (layer, weights, cache) in enumerate(zip(s.layers, self.weights.layers, kv.layers, strict=True)):
            x = stream.normed(weights.attention_norm)
            a, w = layer.attention, weights.attention
            if isinstance(a, Heads) and isinstance(w, HeadsWeights) and isinstance(cache, FloatKV | Int8KV):
                qkv = self._write(i, x, a, w, cache, angles, batch)
                q = qkv[:, : a.widths[0]].unflatten(1, (a.heads, a.head_dim))
                branch = adapted(w.o, attend(q, a, cache).flatten(1), batch.adapters, i, "o")
            else:
                assert not isinstance(a, Heads)
                assert isinstance(w, LatentWeights)
                assert isinstance(cache, LatentKV)
                branch = mla(i, x, a, w, cache, angles[a.rope], s.ropes[a.rope].interleaved, batch, self.ops)
            stream.add(branch, weights.attention_post_norm)
            if s.norm_placement != "parallel":
                x = stream.normed(weights.mlp_norm)
            stream.add(self._mlp(i, x, layer.mlp, weights, batch.adapters), weights.mlp_post_norm)
        return stream.value()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[R, vocab]`, f32, of rows of `forward`'s result."""
        logits = self.weights.head(self._norm(hidden, self.weights.norm)).float()
        if self.spec.logit_scale != 1.0:
            logits = logits * self.spec.logit_scale
        cap = self.spec.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _write(
        self, i: int, x: torch.Tensor, a: Heads, w: HeadsWeights, cache: PagedKV, angles: list[Angles], batch: Batch
    ) -> torch.Tensor:
        """Queries, keys and values `[T, ...]`, in the cache too."""
        qkv = adapted(w.qkv, x, batch.adapters, i, "qkv")
        q_width, k_width, _ = a.widths
        norm = self.spec.norm
        if a.qk_norm == "whole":
            for part, weight in zip(qkv.split([q_width, k_width, k_width], -1), (w.q_norm, w.k_norm), strict=False):
                self.ops.rms_norm(part, weight, norm.eps, offset=norm.offset, out=part)
        own = a.qk_norm == "heads"
        cos, sin = (None, None) if a.rope is None else angles[a.rope]
        self.ops.rope_and_cache(
            qkv,
            cos,
            sin,
            batch.slots,
            cache,
            heads=a.heads,
            interleaved=a.rope is not None and self.spec.ropes[a.rope].interleaved,
            q_norm=w.q_norm if own else None,
            k_norm=w.k_norm if own else None,
            eps=norm.eps,
            norm_offset=norm.offset,
        )
        if isinstance(cache, Int8KV) and len(batch.sealed):
            # Before attention: later tokens of this step read these blocks in int8.
            self.ops.quantize_blocks(cache, batch.sealed)
        return qkv

    def _mlp(
        self, i: int, x: torch.Tensor, m: object, weights: LayerWeights, adapters: StepAdapters | None
    ) -> torch.Tensor:
        if isinstance(m, Experts):
            w: ExpertsWeights = weights.mlp  # type: ignore[assignment]
            out = mixture(x, m, w, self._gated)
            if w.shared is not None:
                shared = self._gated(x, w.shared, m.activation, adapters, i, "shared_").float()
                if w.shared_gate is not None:
                    shared *= adapted(w.shared_gate, x.float(), adapters, i, "shared_gate").sigmoid()
                out += shared
            return out
        return self._gated(x, weights.mlp, m.activation, adapters, i)  # type: ignore[arg-type, attr-defined]

    def _gated(
        self,
        x: torch.Tensor,
        w: MlpWeights,
        activation: str,
        adapters: StepAdapters | None = None,
        i: int = 0,
        prefix: str = "",
    ) -> torch.Tensor:
        gate_up = adapted(w.gate_up, x, adapters, i, f"{prefix}gate_up")
        inner: torch.Tensor = self.ops.act_and_mul(gate_up, activation)
        return adapted(w.down, inner, adapters, i, f"{prefix}down")

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """In x's dtype."""
        n = self.spec.norm
        if n.kind == "layer":
            return layer_norm(x, weight, n.eps, n.offset)
        y: torch.Tensor = self.ops.rms_norm(x, weight, n.eps, offset=n.offset)
        return y

    def _angles(self, positions: torch.Tensor) -> list[Angles]:
        """Cosines and sines `[T, rotary_dim / 2]` of each rope, f32. The products are rounded to f32, as transformers
        does; their cosines are exact to f32."""
        out = []
        for rope, frequencies in zip(self.spec.ropes, self.frequencies, strict=True):
            angle = (positions.float()[:, None] * frequencies).double()
            out.append(((angle.cos().float() * rope.amplitude), (angle.sin().float() * rope.amplitude)))
        return out


class _Stream:
    """The residual stream, f32. What a block adds is held back until the next norm, which takes both in one pass."""

    def __init__(self, model: Model, x: torch.Tensor) -> None:
        self._model, self._x = model, x
        self._pending: torch.Tensor | None = None

    def normed(self, weight: torch.Tensor | None) -> torch.Tensor:
        """norm(x), or x itself without a weight, in the model's dtype."""
        m, pending = self._model, self._pending
        n = m.spec.norm
        if weight is not None and pending is not None and n.kind == "rms" and pending.dtype == m.dtype:
            self._pending = None
            y: torch.Tensor = m.ops.rms_norm(pending, weight, n.eps, offset=n.offset, residual=self._x)[0]
            return y
        x = self.value()
        return (x if weight is None else m._norm(x, weight)).to(m.dtype)

    def add(self, branch: torch.Tensor, norm: torch.Tensor | None) -> None:
        """x += factor * norm(branch), where there is a norm."""
        m = self._model
        if norm is not None:
            branch = m._norm(branch, norm)
        if m.spec.residual_scale != 1.0:
            branch = branch.float() * m.spec.residual_scale
        self.value()
        self._pending = branch

    def value(self) -> torch.Tensor:
        """The stream with everything added."""
        if self._pending is not None:
            self._x.add_(self._pending)
            self._pending = None
        return self._x
