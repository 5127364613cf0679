"""A step plan as numpy arrays: views of the memory that the engine's scheduler wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octavo import _core

SEQUENCE = np.dtype(
    [
        ("request", "<u8"),
        ("sample", "<u4"),
        ("num_samples", "<u4"),
        ("query_start", "<u4"),
        ("query_len", "<u4"),
        ("context_len", "<u4"),
        ("block_table_start", "<u4"),
        ("open_block_start", "<u4"),
        ("adapter", "<u4"),
        ("attention", "<f4"),
        ("output", "<u4"),
        ("sample_rows", "<u4", (2,)),
    ]
)
"""One sequence of a step: `PlanSeq` of `rust/scheduler/src/plan.rs`, byte for byte."""

SAMPLE_SPEC = np.dtype(
    [
        ("seq", "<u4"),
        ("sample", "<u4"),
        ("position", "<u4"),
        ("top_k", "<u4"),
        ("seed", "<u8"),
        ("uniform", "<f8"),
        ("temperature", "<f4"),
        ("top_p", "<f4"),
        ("min_p", "<f4"),
        ("logprobs", "<i4"),
    ]
)
"""Sampling rules of one token: `SampleSpec` of `rust/engine/src/sampling/spec.rs`, byte for byte."""

Ints = np.ndarray[Any, np.dtype[np.int32]]
Records = np.ndarray[Any, np.dtype[np.void]]


@dataclass(frozen=True)
class Plan:
    """Views of the plan's arrays, read-only, int32. `StepPlan` of `rust/scheduler/src/plan.rs` describes the fields.

    `tokens`, `positions`, `slots` `[T]`. Pairs `[n, 2]`: `placeholders` (row, sequence of the step before), `copies`
    and `open_copies` (source, destination), `sealed` (block, open block). `open_*` and `sealed`: int8 caches only.
    `adapters`: what `pack_adapter` returned for each adapter id of the step.
    """

    step: int
    tokens: Ints
    placeholders: Ints
    positions: Ints
    slots: Ints
    seqs: Records
    block_tables: Ints
    copies: Ints
    open_blocks: Ints
    sealed: Ints
    open_copies: Ints
    samples: Records
    adapters: Mapping[int, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: _core.Plan) -> Plan:
        """Views of the engine's arrays. Ids and slots are below 2^31: int32 reads their u32."""
        return cls(
            plan.step,
            _view(plan.tokens, np.int32),
            _view(plan.placeholders, np.int32).reshape(-1, 2),
            _view(plan.positions, np.int32),
            _view(plan.slots, np.int32),
            _view(plan.seqs, SEQUENCE),
            _view(plan.block_tables, np.int32),
            _view(plan.copies, np.int32).reshape(-1, 2),
            _view(plan.open_blocks, np.int32),
            _view(plan.sealed, np.int32).reshape(-1, 2),
            _view(plan.open_copies, np.int32).reshape(-1, 2),
            _view(plan.samples, SAMPLE_SPEC),
            dict(plan.adapters),
        )


def _view(buffer: memoryview, dtype: Any) -> Any:
    return np.frombuffer(buffer, dtype) if len(buffer) else np.empty(0, dtype)
