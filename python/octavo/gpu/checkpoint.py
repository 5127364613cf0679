"""Tensors of a checkpoint, streamed to the device one by one. The files are mapped and checked by the Rust core."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from octavo import _core

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
_PART_BYTES = 32 << 20
_MAX_NAMED = 8


class Checkpoint:
    """The tensors of a model folder, as stored, on `device`."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._files = _core.Checkpoint(str(folder))
        self._device = device
        self._damaged: list[tuple[str, torch.Tensor]] = []
        self._stage = _PinnedStage() if device.type == "cuda" else None

    def shape(self, name: str) -> list[int] | None:
        """The sizes of `name`, if there is such a tensor."""
        return self._files.shape(name)

    def tensor(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The tensor `name` in its stored dtype; doubles become singles.

        Raises:
            CorruptModelError: it is missing, has another shape, or an element type that weights cannot have.
        """
        dtype, buffer = self._files.tensor(name, list(shape))
        data = np.frombuffer(buffer, np.uint8)
        stage = self._stage
        raw = torch.from_numpy(data.copy()) if stage is None else stage.send(data, self._device)
        tensor = raw.view(DTYPES[dtype]).view(list(shape))
        tensor = tensor.float() if dtype == "float64" else tensor
        if dtype != "int8":
            self._damaged.append((name, tensor.numel() - tensor.isfinite().sum()))
        return tensor

    def warnings(self) -> list[str]:
        """Sentences about the files, and one for each tensor with values that are not numbers, up to a limit."""
        found = [(name, n) for name, count in self._damaged if (n := int(count))]
        texts = [
            f"tensor {name} has {n} values that are NaN or infinite: outputs may be wrong. Download or convert the "
            "model again"
            for name, n in found[:_MAX_NAMED]
        ]
        more = len(found) - _MAX_NAMED
        texts = [*self._files.warnings(), *texts]
        return [*texts, f"{more} more tensors have such values"] if more > 0 else texts


class _PinnedStage:
    """Two pinned buffers: one is filled while the other is on its way."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(_PART_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._sent = [torch.cuda.Event() for _ in range(2)]
        self._turn = 0

    def send(self, data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], device: torch.device) -> torch.Tensor:
        """The bytes on the device."""
        out = torch.empty(len(data), dtype=torch.uint8, device=device)
        for start in range(0, len(data), _PART_BYTES):
            part = data[start : start + _PART_BYTES]
            buffer, sent = self._buffers[self._turn], self._sent[self._turn]
            sent.synchronize()
            buffer.numpy()[: len(part)] = part
            out[start : start + len(part)].copy_(buffer[: len(part)], non_blocking=True)
            sent.record()
            self._turn ^= 1
        return out
