"""A micro-benchmark: an op on some shape, the bytes and operations that it needs, and a peer that does the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bench:
    """One row. `needed_bytes`: moved at least; `operations`: multiplications and additions, 0 if none count."""

    op: str
    case: str
    run: Callable[[], object]
    needed_bytes: int
    operations: int = 0
    peer: tuple[str, Callable[[], object]] | None = None


Maker = Callable[[torch.device, bool], Iterator[Bench]]
MAKERS: list[Maker] = []


def entry(maker: Maker) -> Maker:
    """Registers a function (device, small) -> benches. `small`: shapes for the interpreter, to show that they run."""
    MAKERS.append(maker)
    return maker


def nbytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of all tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
