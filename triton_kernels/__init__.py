"""GPU kernels of octavo in Triton, one op a file: formula, kernel, checking launcher, plain torch reference.

Imported as `octavo.triton_kernels`. Needs the extra `octavo[gpu]` (torch and triton), and nothing else of octavo.
docs/gpu-kernels.md describes each op.
"""

from .activation import act_and_mul, act_and_mul_quantize, act_and_mul_quantize_ref, act_and_mul_ref
from .block_ops import copy_blocks, copy_blocks_ref, quantize_blocks, quantize_blocks_ref
from .dynamic_attention import SelectionParams, Workspace, assign_workspace, dynamic_attention, dynamic_attention_ref
from .int8_matmul import int8_matmul, int8_matmul_ref, int8_weight_matmul, int8_weight_matmul_ref
from .kv_cache import BLOCK_SIZE, FloatKV, Int8KV, PagedKV, gather_keys_values
from .lora_expand import lora_expand, lora_expand_ref
from .lora_shrink import lora_shrink, lora_shrink_ref
from .lora_slots import LoraSite, LoraTiles
from .paged_attention import paged_attention, paged_attention_ref
from .quantize import dequantize_ref, quantize_rows, quantize_rows_ref, quantize_weight
from .rms_norm import rms_norm, rms_norm_quantize, rms_norm_quantize_ref, rms_norm_ref
from .rope_cache import rope_and_cache, rope_and_cache_ref
from .sampling import SamplingBatch, logprobs, logprobs_ref, sample, sample_ref

__all__ = [
    "BLOCK_SIZE",
    "FloatKV",
    "Int8KV",
    "LoraSite",
    "LoraTiles",
    "PagedKV",
    "SamplingBatch",
    "SelectionParams",
    "Workspace",
    "act_and_mul",
    "act_and_mul_quantize",
    "act_and_mul_quantize_ref",
    "act_and_mul_ref",
    "assign_workspace",
    "copy_blocks",
    "copy_blocks_ref",
    "dequantize_ref",
    "dynamic_attention",
    "dynamic_attention_ref",
    "gather_keys_values",
    "int8_matmul",
    "int8_matmul_ref",
    "int8_weight_matmul",
    "int8_weight_matmul_ref",
    "logprobs",
    "logprobs_ref",
    "lora_expand",
    "lora_expand_ref",
    "lora_shrink",
    "lora_shrink_ref",
    "paged_attention",
    "paged_attention_ref",
    "quantize_blocks",
    "quantize_blocks_ref",
    "quantize_rows",
    "quantize_rows_ref",
    "quantize_weight",
    "rms_norm",
    "rms_norm_quantize",
    "rms_norm_quantize_ref",
    "rms_norm_ref",
    "rope_and_cache",
    "rope_and_cache_ref",
    "sample",
    "sample_ref",
]
