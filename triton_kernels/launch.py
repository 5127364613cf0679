"""What all launchers share: checks of the arguments, facts of the device, and the launch itself.

A launch can be recorded instead of made: the launcher then runs on meta tensors, and the compile check gets exactly the
kernels, constants and options that users get.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import triton

INTERPRETED: bool = triton.knobs.runtime.interpret
"""True if kernels run in Triton's interpreter: TRITON_INTERPRET was set when this package was imported."""

INTERPRETER_PROCESSORS = 4
"""Number of multiprocessors in the interpreter: small, persistent kernels loop in tests."""

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
TRITON_DTYPES = {
    torch.bfloat16: triton.language.bfloat16,
    torch.float16: triton.language.float16,
    torch.float32: triton.language.float32,
}


@dataclass(frozen=True)
class Options:
    """How a kernel is compiled: warps of a program, stages of its software pipeline."""

    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Launch:
    """One launch as recorded: everything that decides what is compiled."""

    kernel: Any
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    options: Options


@dataclass(frozen=True)
class Recorder:
    """Collects launches for a device that need not exist."""

    capability: tuple[int, int]
    processors: int
    launches: list[Launch]


_recorder: ContextVar[Recorder | None] = ContextVar("octavo_triton_recorder", default=None)


@contextmanager
def record(capability: tuple[int, int], processors: int = 132) -> Iterator[list[Launch]]:
    """Inside, launchers take tensors of any device (also meta), run nothing and note what they would launch."""
    recorder = Recorder(capability, processors, [])
    token = _recorder.set(recorder)
    try:
        yield recorder.launches
    finally:
        _recorder.reset(token)


def recording() -> bool:
    """Whether launches are recorded and not made."""
    return _recorder.get() is not None


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], constants: Mapping[str, Any], options: Options
) -> None:
    """Runs `kernel` over `grid` on the device of its tensors. An empty grid is no launch."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.launches.append(Launch(kernel, dict(arguments), dict(constants), options))
        return
    if 0 in grid:
        return
    device = next(a.device for a in arguments.values() if isinstance(a, torch.Tensor))
    # Triton 3.9 warns where fusion is left to its default, which is to change.
    compiler = {"num_warps": options.warps, "num_stages": options.stages, "enable_fp_fusion": True}
    if INTERPRETED or device.index in (None, torch.cuda.current_device()):
        kernel[grid](**arguments, **constants, **compiler)
        return
    with torch.cuda.device(device):
        kernel[grid](**arguments, **constants, **compiler)


def check(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless `condition`."""
    if not condition:
        raise ValueError(message)


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    *,
    dtypes: tuple[torch.dtype, ...] | None = None,
    shape: tuple[int | None, ...] | None = None,
    contiguous: bool = False,
) -> None:
    """Dtype, shape (None: any length) and layout of one argument; the message names it and what was wanted."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}, not a torch.Tensor")
    if dtypes is not None and tensor.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}, wanted {wanted}")
    if shape is not None:
        found = tuple(tensor.shape)
        fits = len(found) == len(shape) and all(w is None or w == f for f, w in zip(found, shape, strict=True))
        wanted = ", ".join("any" if w is None else str(w) for w in shape)
        check(fits, f"{name} has shape {list(found)}, wanted [{wanted}]")
    if contiguous:
        check(tensor.is_contiguous(), f"{name} has strides {tensor.stride()}: pass {name}.contiguous()")
    elif tensor.dim() and tensor.shape[-1] > 1:
        check(tensor.stride(-1) == 1, f"the last dimension of {name} has stride {tensor.stride(-1)}, wanted 1")


def check_device(**tensors: torch.Tensor | None) -> torch.device:
    """The common device of the tensors; it must be able to run kernels."""
    (first, tensor), *others = ((n, t) for n, t in tensors.items() if t is not None)
    device = tensor.device
    for name, other in others:
        check(other.device == device, f"{name} is on {other.device}, {first} on {device}: move them to one device")
    if _recorder.get() is None and device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        raise RuntimeError(
            f"{first} is on {device}: Triton kernels need a CUDA device. Without one, set TRITON_INTERPRET=1 before "
            "octavo.triton_kernels is imported (slow, for tests), or call the op's _ref function."
        )
    if INTERPRETED and device.type == "cuda":
        raise RuntimeError("TRITON_INTERPRET=1 is set: unset it to run on the GPU")
    return device


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; 9.0 in the interpreter: its tests take the paths of current GPUs."""
    recorder = _recorder.get()
    if recorder is not None:
        return recorder.capability
    return _capability(device.index or 0) if device.type == "cuda" else (9, 0)


def processors(device: torch.device) -> int:
    """Number of multiprocessors."""
    recorder = _recorder.get()
    if recorder is not None:
        return recorder.processors
    return _processors(device.index or 0) if device.type == "cuda" else INTERPRETER_PROCESSORS


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@functools.cache
def _processors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n (and 1)."""
    return 1 << max(0, n - 1).bit_length()
