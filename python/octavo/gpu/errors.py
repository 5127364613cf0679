"""Faults of the device while it runs, told apart by what they mean for the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepFailedError(Exception):
    """This step could not be done; the executor goes on."""

    fatal = False


class DeviceLostError(Exception):
    """The device is in a state that only a new process leaves: the engine ends."""

    fatal = True


@contextmanager
def faults(what: str) -> Iterator[None]:
    """Turns torch's faults into one of the two, with the remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise StepFailedError(
            f"the GPU ran out of memory in {what}: lower max_num_batched_tokens, max_num_seqs or kv_cache_memory, or "
            f"stop what else uses this GPU ({_first_line(error)})"
        ) from error
    except RuntimeError as error:
        if _is_device_fault(error):
            raise DeviceLostError(
                f"the GPU failed in {what}, and its context cannot be used any more: {_first_line(error)}"
            ) from error
        raise


def _is_device_fault(error: RuntimeError) -> bool:
    """torch.AcceleratorError exists from torch 2.8 on; older ones say so in the text."""
    kind = getattr(torch, "AcceleratorError", None)
    return (kind is not None and isinstance(error, kind)) or "CUDA error" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
