"""Writes a checkpoint as GGUF: matrices in Q8_0, the rest in float32, no tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open

from ..shapes import SHAPES, Shape

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """model.layers.3.self_attn.q_proj.weight is blk.3.attn_q.weight."""
    if name in ("model.embed_tokens.weight", "model.norm.weight"):
        return "token_embd.weight" if "embed" in name else "output_norm.weight"
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_NAMES[part]}.{kind}"


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix in the order of GGUF's Llama: the two halves of a head taken in turn."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(shape: Shape, checkpoint: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, shape.model_type)
    writer.add_context_length(32768)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        for name in sorted(tensors.keys()):
            values = tensors.get_tensor(name).to(torch.float32).numpy()
            if shape.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
                heads = shape.num_attention_heads if ".q_proj." in name else shape.num_key_value_heads
                values = interleaved(values, heads)
            if values.ndim == 2:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(gguf_name(name), gguf.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_gguf(SHAPES[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3]))
