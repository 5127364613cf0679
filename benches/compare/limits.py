"""What the machine allows: its measured rates, and the fastest that a shape could run on it.

The limit of a figure assumes weights of one byte that are read once a step, a KV cache of one byte a value, matrix
products at the int8 peak, attention at the bfloat16 peak, and reading that overlaps with computing perfectly. So the
time of a step is the larger of bytes / bandwidth and matrix operations / int8 peak + attention operations / bfloat16
peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import Shape


@dataclass(frozen=True)
class Machine:
    """Rates of the machine with the threads of the comparison.

    Attributes:
        read: bytes a second read from memory.
        int8: integer operations a second (a multiply and an add are two).
        bf16: floating-point operations a second of bfloat16 dot products.
    """

    read: float
    int8: float
    bf16: float

    def _seconds(self, read_bytes: float, int8_operations: float, bf16_operations: float) -> float:
        return max(read_bytes / self.read, int8_operations / self.int8 + bf16_operations / self.bf16)

    def decode(self, shape: Shape, context: float, batch: int) -> float:
        """Tokens a second of `batch` sequences together, each with `context` tokens before it."""
        weights = shape.layer_weights + shape.output_weights
        seconds = self._seconds(
            weights + batch * context * shape.kv_values_per_token,
            2 * batch * weights,
            batch * context * shape.attention_operations,
        )
        return batch / seconds

    def prefill(self, shape: Shape, tokens: int) -> float:
        """Prompt tokens a second of one prompt: causal attention, logits of its last token alone."""
        seconds = self._seconds(
            shape.layer_weights + shape.output_weights,
            2 * (tokens * shape.layer_weights + shape.output_weights),
            tokens * (tokens + 1) / 2 * shape.attention_operations,
        )
        return tokens / seconds
