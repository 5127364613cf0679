"""What a run needs of the memory: lines with bytes and a reason each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import DeviceMemoryError

__all__ = ["MemoryLine", "check_memory", "needed"]

# Bytes of a frozen weight, and of a trained one: the weight, its gradient and Adam's two moments, in 32 bits each.
_FROZEN_BYTES = {"float32": 4, "bfloat16": 2}
_PARTS_OF_A_TRAINED_WEIGHT = (
    ("weights", "{count:,} trained weights in 32 bits"),
    ("gradients", "one for each trained weight, in 32 bits"),
    ("optimizer", "two moments of Adam for each trained weight, in 32 bits"),
)
_SHARE = 0.85


@dataclass(frozen=True)
class MemoryLine:
    """A part of the memory of one device, in bytes, and what it is."""

    what: str
    bytes: int
    why: str


def needed(weights: int, adapter: int, dtype: str) -> list[MemoryLine]:
    """The memory before the first row; what rows need is measured by the probe.

    Args:
        weights: number of values of the model.
        adapter: number of values of the adapter; 0: all weights are trained.
    """
    frozen = [
        MemoryLine(
            "frozen weights", _FROZEN_BYTES[dtype] * weights, f"{weights:,} weights of the base model in {dtype}"
        )
    ]
    trained = adapter or weights
    prefix = "adapter" if adapter else "model"
    parts = [
        MemoryLine(f"{prefix}: {what}", 4 * trained * (2 if what == "optimizer" else 1), why.format(count=trained))
        for what, why in _PARTS_OF_A_TRAINED_WEIGHT
    ]
    return [*(frozen if adapter else []), *parts]


def check_memory(lines: Sequence[MemoryLine], memory_bytes: int, smaller: str) -> None:
    """
    Raises:
        DeviceMemoryError: they do not fit into 85 % of `memory_bytes`; the message has each line, and `smaller`.
    """
    total, room = sum(line.bytes for line in lines), int(memory_bytes * _SHARE)
    if total <= room:
        return
    shown = "; ".join(f"{line.what} {line.bytes:,} ({line.why})" for line in lines)
    raise DeviceMemoryError(
        f"the run needs {total:,} bytes before the first row, and 85 % of the memory are {room:,}: {shown}. {smaller}"
    )
