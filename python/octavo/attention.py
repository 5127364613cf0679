"""How much attention may leave out, and what it did leave out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from octavo.errors import InvalidRequestError

__all__ = ["AttentionMetrics", "DynamicAttention"]

_MODES = ("certified",)


@dataclass(frozen=True, kw_only=True)
class DynamicAttention:
    """Each query reads all keys, and then only the values that matter. docs/dynamic-attention.md explains the bound.

    Attributes:
        mode: "certified": what a query leaves out never exceeds `error_bound`, by proof.
        error_bound: most softmax mass that a query head leaves out in a layer, above 0 and below 1: the total variation
            distance between the exact attention weights and those used.
        min_context: queries that see fewer tokens read everything.
        sink_blocks: first blocks (of 32 tokens) of a sequence that are always read.
        local_blocks: blocks before the query's own that are always read.

    Raises:
        InvalidRequestError: at construction, naming the field, its value and what is allowed.
    """

    mode: Literal["certified"] = "certified"
    error_bound: float = 1e-2
    min_context: int = 4096
    sink_blocks: int = 1
    local_blocks: int = 2

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise InvalidRequestError(f"DynamicAttention: mode is {self.mode!r}: 'certified' is available")
        bound = self.error_bound
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 < bound < 1 or math.isnan(bound):
            raise InvalidRequestError(
                f"DynamicAttention: error_bound is {bound!r}: a number above 0 and below 1 is expected"
            )
        for name in ("min_context", "sink_blocks", "local_blocks"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
                raise InvalidRequestError(f"DynamicAttention: {name} is {value!r}: an integer from 0 on is expected")

    def as_tuple(self) -> tuple[float, int, int, int]:
        """As the engine takes it."""
        return (float(self.error_bound), self.min_context, self.sink_blocks, self.local_blocks)


@dataclass(frozen=True)
class AttentionMetrics:
    """What one request's queries read and left out. A call is one query of one query head in one layer.

    Bounds are relative to dense attention over the same int8 cache, one call at a time: they neither hold the
    error of the int8 cache itself nor bound the model's logits.

    Attributes:
        calls: calls of all steps, prompt and output.
        dense_head_fraction: share of calls that read everything, and so were exact.
        kv_bytes_read_fraction: bytes of the KV cache that were read, as a share of what dense attention reads.
        max_omitted_mass: largest bound on the softmax mass that a call left out.
        mean_omitted_mass: mean of those bounds.
        max_output_error: largest bound on the norm of an output's difference from the exact one.
        mode: how it was bounded.
    """

    calls: int
    dense_head_fraction: float
    kv_bytes_read_fraction: float
    max_omitted_mass: float
    mean_omitted_mass: float
    max_output_error: float
    mode: str = "certified"


def resolve(attention: object) -> DynamicAttention | None:
    """`LLM(attention=...)`: None for dense."""
    if attention == "dense":
        return None
    if attention == "dynamic":
        return DynamicAttention()
    if isinstance(attention, DynamicAttention):
        return attention
    raise InvalidRequestError(f"attention is {attention!r}: 'dense', 'dynamic' or DynamicAttention(...) is expected")
