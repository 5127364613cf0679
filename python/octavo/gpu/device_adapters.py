"""The adapters of an engine on its device: how much memory they may take, and how a checked file gets there."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from octavo import _core
from octavo.errors import DeviceMemoryError
from octavo.gpu.checkpoint import DTYPES
from octavo.gpu.lora import AdapterPool, Module, PoolFullError, Resident, page_bytes
from octavo.gpu.sites import Projection
from octavo.triton_kernels.lora_slots import PAGE

_MAX_PAGES = 1 << 14
"""More than adapters need: small models have small pages."""


class DeviceAdapters:
    """Makes the pool at the first adapter, or at once by `reserve`.

    Args:
        budget: bytes that the pool may take.
        max_rank: the largest rank of an adapter.
    """

    def __init__(self, projections: Sequence[Projection], dtype: torch.dtype, budget: int, max_rank: int) -> None:
        self.projections, self._dtype, self._max_rank = projections, dtype, max_rank
        self._page_bytes = page_bytes(projections, dtype)
        self._num_pages = min(budget // self._page_bytes, _MAX_PAGES)
        self.pool: AdapterPool | None = None

    def bytes_of(self, rank: int) -> int:
        """Memory of an adapter whose largest rank this is: whole pages of ranks, over all projections."""
        return -(-rank // PAGE) * self._page_bytes

    def reserve(self) -> AdapterPool:
        """The pool.

        Raises:
            DeviceMemoryError: the device has no room for it.
        """
        if self.pool is None:
            try:
                self.pool = AdapterPool(self.projections, self._num_pages, self._max_rank, self._dtype)
            except torch.OutOfMemoryError as error:
                size = self._num_pages * self._page_bytes
                raise DeviceMemoryError(
                    f"adapters take {size} bytes of the GPU's memory, which are not free: lower max_lora_memory, or "
                    "give it when the model is loaded: memory for adapters is then set aside before the KV cache's"
                ) from error
        return self.pool

    def pack(self, file: _core.AdapterFile) -> Resident:
        """Copies an adapter to the device.

        Raises:
            DeviceMemoryError: the device has no room for the pool.
        """
        pool = self.reserve()
        modules = [module_of(fields) for fields in file.modules()]
        with _beside_steps(pool.device):
            try:
                return pool.pack(modules)
            except PoolFullError:
                # An exception of a step may hold adapters that have ended.
                gc.collect()
                return pool.pack(modules)


@contextmanager
def _beside_steps(device: torch.device) -> Iterator[None]:
    """Work on a stream of its own: hundreds of small copies would each wait behind the steps that run.

    It begins behind the steps submitted so far, which may still read free pages, and is done at the end.
    """
    if device.type != "cuda":
        yield
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(side):
        yield
    side.synchronize()


def module_of(fields: dict[str, Any]) -> Module:
    """A module of `_core.AdapterFile.modules`, on the host."""
    tensors = {name: _tensor(*fields[name]) for name in ("a", "b", "magnitude", "bias") if fields[name] is not None}
    return Module(fields["name"], fields["scale"], **tensors)


def _tensor(dtype: str, shape: list[int], data: bytes) -> torch.Tensor:
    kind = DTYPES[dtype]
    assert len(data) == math.prod(shape) * kind.itemsize
    return torch.frombuffer(bytearray(data), dtype=kind).view(shape)
