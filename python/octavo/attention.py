"""How much attention may leave out, and what it did leave out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from octavo.calls import names_arguments
from octavo.errors import InvalidRequestError

__all__ = ["AttentionMetrics", "DynamicAttention"]

_MODES = ("certified", "estimated", "budget")


@names_arguments()
@dataclass(frozen=True, kw_only=True)
class DynamicAttention:
    """Each query estimates all keys, and reads only blocks that matter. docs/dynamic-attention.md explains the bound.

    Attributes:
        mode: "certified": what a query leaves out never exceeds `error_bound`, by proof. "estimated": by an estimate
            from the high halves of the keys, which reads a quarter less. The proven bound is reported; it may be
            larger.
            "budget": a query reads at most `max_blocks` blocks for each KV head, those with the most mass; the
            omitted mass is reported, and may be larger than `error_bound`.
        error_bound: most softmax mass that a query head leaves out in a layer, above 0 and below 1: the total variation
            distance between the exact attention weights and those used.
        min_context: queries that see fewer tokens read everything.
        sink_blocks: first blocks (of 32 tokens) of a sequence that are always read.
        local_blocks: blocks before the query's own that are always read.
        max_blocks: with "budget", and there only: most blocks (of 32 tokens) beside those that are always read.
        audit: queries at positions that are multiples of this are also answered by reading everything, and compared; 0:
            none. Costs as much as dense attention for these queries; the answers are the same. A query that was further
            off than it said gets the dense answer, and is counted as a violation.

    Raises:
        InvalidRequestError: at construction, naming the field, its value and what is allowed.
    """

    mode: Literal["certified", "estimated", "budget"] = "certified"
    error_bound: float = 1e-2
    min_context: int = 4096
    sink_blocks: int = 1
    local_blocks: int = 2
    max_blocks: int | None = None
    audit: int = 0

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise InvalidRequestError(f"DynamicAttention: mode is {self.mode!r}: one of {_MODES} is expected")
        bound = self.error_bound
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 < bound < 1 or math.isnan(bound):
            raise InvalidRequestError(
                f"DynamicAttention: error_bound is {bound!r}: a number above 0 and below 1 is expected"
            )
        for name in ("min_context", "sink_blocks", "local_blocks", "audit"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
                raise InvalidRequestError(f"DynamicAttention: {name} is {value!r}: an integer from 0 on is expected")

        most = self.max_blocks
        if self.mode != "budget" and most is not None:
            raise InvalidRequestError(
                f"DynamicAttention: max_blocks is {most!r}: a limit keeps to no bound, so it needs mode='budget'"
            )
        if self.mode == "budget" and (isinstance(most, bool) or not isinstance(most, int) or not 0 < most < 2**31):
            raise InvalidRequestError(
                f"DynamicAttention: max_blocks is {most!r}: mode='budget' needs an integer from 1 on"
            )


@dataclass(frozen=True)
class AttentionMetrics:
    """What one request's queries read and left out. A call is one query of one query head in one layer.

    Bounds are relative to dense attention over the same int8 cache, for one call. They contain no error of the int8
    cache itself, and they do not bound the model's logits.

    Attributes:
        calls: calls of all steps, prompt and output.
        dense_head_fraction: share of calls that read everything, and so were exact.
        kv_bytes_read_fraction: bytes of the KV cache that were read, as a share of what dense attention reads.
        max_omitted_mass: largest bound on the softmax mass that a call left out.
        mean_omitted_mass: mean of those bounds.
        max_output_error: largest bound on the norm of an output's difference from the exact one.
        audited_calls: calls that were compared with reading everything (`audit`).
        violations: audited calls whose error exceeded the reported bound; 0, or a fault of octavo worth a report.
        max_audited_mass: largest mass that an audited call had left out in truth; None if none was audited.
        max_audited_error: largest norm of an audited output's difference from the exact one; None likewise.
        max_estimated_mass: largest estimate of the mass that a call left out, from what it looked at.
        mean_estimated_mass: mean of those estimates.
        mode: what decided: "certified" (the bound), "estimated" (the estimate) or "budget" (the number of blocks).
    """

    calls: int
    dense_head_fraction: float
    kv_bytes_read_fraction: float
    max_omitted_mass: float
    mean_omitted_mass: float
    max_output_error: float
    audited_calls: int = 0
    violations: int = 0
    max_audited_mass: float | None = None
    max_audited_error: float | None = None
    max_estimated_mass: float = 0.0
    mean_estimated_mass: float = 0.0
    mode: str = "certified"

    @classmethod
    def from_report(cls, report: Mapping[str, float]) -> AttentionMetrics:
        """Metrics from the named numbers that an executor reports."""

        def get(name: str) -> float:
            return report.get(name, 0.0)

        def share(part: str, total: str, default: float = 0.0) -> float:
            return get(part) / get(total) if get(total) else default

        audited = int(get("audited_calls"))
        return cls(
            calls=int(get("calls")),
            dense_head_fraction=share("dense_calls", "calls"),
            kv_bytes_read_fraction=share("bytes_read", "bytes_dense", 1.0),
            max_omitted_mass=get("max_omitted_mass"),
            mean_omitted_mass=share("sum_omitted_mass", "calls"),
            max_output_error=get("max_output_error"),
            audited_calls=audited,
            violations=int(get("violations")),
            max_audited_mass=get("max_audited_mass") if audited else None,
            max_audited_error=get("max_audited_error") if audited else None,
            max_estimated_mass=get("max_estimated_mass"),
            mean_estimated_mass=share("sum_estimated_mass", "calls"),
            mode=_MODES[int(get("max_mode"))],
        )


def resolve(attention: object) -> DynamicAttention | None:
    """`LLM(attention=...)`: None for dense."""
    if attention == "dense":
        return None
    if attention == "dynamic":
        return DynamicAttention()
    if isinstance(attention, DynamicAttention):
        return attention
    raise InvalidRequestError(f"attention is {attention!r}: 'dense', 'dynamic' or DynamicAttention(...) is expected")


def from_fields(fields: Mapping[str, Any] | None) -> DynamicAttention | None:
    """The inverse of `asdict`; None stands for dense attention."""
    return None if fields is None else DynamicAttention(**fields)
