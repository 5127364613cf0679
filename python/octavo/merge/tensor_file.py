"""safetensors files with numpy alone: a checked header, tensors as views of the mapped file, and values as float32."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from octavo.errors import CorruptModelError, UnsupportedModelError

__all__ = ["Floats", "Tensor", "TensorFile", "from_float32", "header_bytes", "read_json"]

Floats = npt.NDArray[np.float32]
_MAX_HEADER = 100_000_000
_MAX_DIMENSIONS = 8
# Bytes of a value, of every type that the format names.
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
# bfloat16 is the upper half of a float32; numpy has no type of its own for it.
_ARRAYS: dict[str, npt.DTypeLike] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BLOCK = 1 << 24
"""Values of a block of rows."""


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The object of a JSON file of at most `limit` bytes.

    Raises:
        CorruptModelError: too long, no JSON, a key twice, or no object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CorruptModelError(f"{path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise CorruptModelError(f"{path} has more than {limit} bytes, which no file of this kind needs")
    return _parsed(data, str(path))


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CorruptModelError(f"{where}: {twice!r} is given twice")
        return found

    try:
        parsed = json.loads(data.decode("utf-8-sig"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise CorruptModelError(f"{where} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CorruptModelError(f"{where} is not a JSON object")
    return parsed


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
        file: the file that holds it.
        name: its name there.
        dtype: as the format names it, such as "BF16".
        shape: its dimensions.
        offset: of its bytes in the file.
    """

    file: TensorFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        """All dimensions but the last, as one; of a vector its length."""
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else math.prod(self.shape)

    @property
    def columns(self) -> int:
        """The last dimension; of a vector 1."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * _SIZES[self.dtype]

    @property
    def has_floats(self) -> bool:
        """Whether its values can be read and written."""
        return self.dtype in _ARRAYS

    def raw(self) -> npt.NDArray[Any]:
        """A view of `[rows, columns]` as it is stored: bfloat16 as uint16."""
        if self.dtype not in _ARRAYS:
            raise UnsupportedModelError(
                f"{self.file.path}: {self.name} has the type {self.dtype}; F32, F16 or BF16 is expected"
            )
        flat = self.file.data[self.offset : self.offset + self.nbytes]
        return flat.view(_ARRAYS[self.dtype]).reshape(self.rows, self.columns)

    def floats(self, part: npt.NDArray[Any] | None = None) -> Floats:
        """All values, or those of `part` of `raw()`, as a new float32 array."""
        stored = self.raw() if part is None else part
        if self.dtype == "BF16":
            return (np.ascontiguousarray(stored).astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Rows in blocks of bounded size: the first row's number, and float32 values."""
        raw = self.raw()
        for first, last in block_ranges(self.rows, self.columns):
            yield first, self.floats(raw[first:last])


def block_ranges(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold about `_BLOCK` values each."""
    step = max(1, _BLOCK // max(1, columns))
    for first in range(0, rows, step):
        yield first, min(rows, first + step)


def from_float32(values: Floats, dtype: str) -> npt.NDArray[Any]:
    """Rounds finite values to `dtype`, to the nearest and ties to even; an overflow becomes infinite."""
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype("<f2")
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


class TensorFile:
    """A safetensors file. After the check of its header every tensor lies inside the file.

    Raises:
        CorruptModelError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > min(size - 8, _MAX_HEADER):
                    raise CorruptModelError(f"{path} is no safetensors file, or it is cut off ({size} bytes)")
                header = _parsed(file.read(length), f"{path} (header)")
        except OSError as error:
            raise CorruptModelError(f"{path}: {error.strerror or error}") from error
        self.metadata = header.pop("__metadata__", None)
        self._size = size
        found = [self._tensor(name, entry, 8 + length) for name, entry in header.items()]
        self.tensors = {t.name: t for t in sorted(found, key=lambda t: t.offset)}
        end = 8 + length
        for tensor in self.tensors.values():
            if tensor.offset < end:
                raise CorruptModelError(f"{path}: the bytes of {tensor.name} overlap those of another tensor")
            end = tensor.offset + tensor.nbytes

    def _tensor(self, name: str, entry: object, base: int) -> Tensor:
        where = f"{self.path}: {name}"
        if not isinstance(entry, dict):
            raise CorruptModelError(f"{where} has no description")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if dtype not in _SIZES:
            raise CorruptModelError(f"{where} has the type {dtype!r}, which the format does not have")
        if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
            raise CorruptModelError(f"{where} has the shape {shape!r}")
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise CorruptModelError(f"{where} has the offsets {offsets!r}")
        first, last = offsets
        if base + last > self._size:
            raise CorruptModelError(f"{where} ends behind the end of the file: it is cut off or damaged")
        tensor = Tensor(self, name, dtype, tuple(shape), base + first)
        if last - first != tensor.nbytes:
            raise CorruptModelError(
                f"{where} has {last - first} bytes, and its shape and type need {tensor.nbytes} bytes"
            )
        return tensor

    @cached_property
    def data(self) -> npt.NDArray[np.uint8]:
        """All bytes, mapped."""
        return np.memmap(self.path, np.uint8, "r").view(np.ndarray)


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)


def header_bytes(tensors: list[tuple[str, str, tuple[int, ...]]], metadata: object) -> tuple[bytes, int]:
    """The head of a file of `tensors` (name, type, shape) in this order, and the size of all their bytes."""
    header: dict[str, Any] = {"__metadata__": metadata if isinstance(metadata, dict) else {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        end = at + math.prod(shape) * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, at
