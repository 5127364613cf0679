"""Multi-head latent attention (MLA, DeepSeek-V2) in its absorbed form: attention reads the cached latents c.

    q . (W_k c) = (W_k^T q) . c          sum of p_i W_v c_i = W_v (sum of p_i c_i)

Plain torch: correct on every device, without a kernel of its own yet.
"""

from __future__ import annotations

import torch

from octavo.gpu.batch import BLOCK_SIZE, Batch
from octavo.gpu.kv import LatentKV
from octavo.gpu.lora import adapted
from octavo.gpu.ops import Ops
from octavo.gpu.spec import Latent
from octavo.gpu.weights import LatentWeights


def mla(
    layer: int,
    x: torch.Tensor,
    a: Latent,
    w: LatentWeights,
    cache: LatentKV,
    angles: tuple[torch.Tensor, torch.Tensor],
    interleaved: bool,
    batch: Batch,
    ops: Ops,
) -> torch.Tensor:
    """o(attention(x)) of normed rows `x` `[T, hidden]` of a layer; writes their latents."""
    more = batch.adapters
    latent_q = x if w.q_a is None else ops.rms_norm(adapted(w.q_a, x, more, layer, "q_a"), w.q_a_norm, a.norm_eps)
    q = adapted(w.q, latent_q, more, layer, "q")
    widths = [a.qk_nope_head_dim, a.qk_rope_head_dim]
    nope, turned = q.view(-1, a.heads, sum(widths)).split(widths, -1)
    latent, key = adapted(w.kv_a, x, more, layer, "kv_a").split([a.kv_lora_rank, a.qk_rope_head_dim], -1)
    latent = ops.rms_norm(latent, w.kv_a_norm, a.norm_eps)
    new = torch.cat((latent, rotate(key[:, None], angles, interleaved)[:, 0]), -1)
    index = batch.slots.long()
    cache.data[index // BLOCK_SIZE, index % BLOCK_SIZE] = new.to(cache.data.dtype)
    inside = torch.einsum("thn,hnr->thr", nope, w.to_latent)
    queries = torch.cat((inside, rotate(turned, angles, interleaved)), -1).float()
    out = torch.empty(x.shape[0], a.heads, a.kv_lora_rank, dtype=x.dtype, device=x.device)
    starts, lens = batch.query_start.tolist(), batch.context_lens.tolist()
    for s, context in enumerate(lens):
        first, last = starts[s], starts[s + 1]
        blocks = batch.block_tables[s, : -(-context // BLOCK_SIZE)].long()
        seen = cache.data[blocks].flatten(0, 1)[:context].float()
        scores = torch.einsum("qhc,kc->hqk", queries[first:last], seen) * a.scale
        keys = torch.arange(context, device=x.device)
        mine = torch.arange(context - (last - first), context, device=x.device)[:, None]
        weights = scores.masked_fill(keys > mine, -torch.inf).softmax(-1)
        out[first:last] = torch.einsum("hqk,kr->qhr", weights, seen[:, : a.kv_lora_rank]).to(x.dtype)
    return adapted(w.o, torch.einsum("thr,hvr->thv", out, w.to_value).flatten(1), more, layer, "o")


def rotate(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], interleaved: bool) -> torch.Tensor:
    """Rope over all channels of `x` `[T, heads, D]`, in x's dtype; f32 inside."""
    cos, sin = (t[:, None] for t in angles)
    wide = x.float()
    if interleaved:
        a, b = wide[..., 0::2], wide[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).to(x.dtype)
    a, b = wide.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)
