"""GPU kernels of octavo in Triton, one op a file: formula, kernel, checking launcher, plain torch reference.

Imported as `octavo.triton_kernels`. Needs the extra `octavo[gpu]` (torch and triton), and nothing else of octavo.
docs/gpu-kernels.md describes each op.
"""

from .activation import act_and_mul, act_and_mul_quantize, act_and_mul_quantize_ref, act_and_mul_ref
from .quantize import dequantize_ref, quantize_rows, quantize_rows_ref, quantize_weight
from .rms_norm import rms_norm, rms_norm_quantize, rms_norm_quantize_ref, rms_norm_ref

__all__ = [
    "act_and_mul",
    "act_and_mul_quantize",
    "act_and_mul_quantize_ref",
    "act_and_mul_ref",
    "dequantize_ref",
    "quantize_rows",
    "quantize_rows_ref",
    "quantize_weight",
    "rms_norm",
    "rms_norm_quantize",
    "rms_norm_quantize_ref",
    "rms_norm_ref",
]
