"""Which device computes: what `device="auto"` takes, and why a GPU cannot be used, with the remedy.

This module imports torch only where a GPU's driver answers: on a machine without one `import octavo` and `LLM()` stay
fast.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import Any

from octavo.errors import InvalidRequestError, MissingDependencyError, OctavoError, UnsupportedDeviceError

OLDEST = {"torch": (2, 6), "triton": (3, 6)}
"""The versions that the extra `gpu` asks for."""
CAPABILITY = (8, 0)
"""The oldest GPUs that the kernels are made for: Ampere."""


def choose(device: str, *, embedded: bool) -> str:
    """`device` of `LLM` as "cpu" or "cuda".

    "auto" takes a GPU that can be used. The embedded model stays on the CPU, which is faster for its few weights.

    Raises:
        InvalidRequestError: there is no such device.
        MissingDependencyError, UnsupportedDeviceError: "cuda" was asked for and cannot be used.
    """
    if device == "cpu" or (device == "auto" and embedded):
        return "cpu"
    if device not in ("auto", "cuda"):
        raise InvalidRequestError(f"device is {device!r}: 'auto', 'cpu' or 'cuda' is expected")
    problem = find_problem()
    if problem is None:
        return "cuda"
    if device == "auto":
        return "cpu"
    raise problem


def find_problem() -> OctavoError | None:
    """Why device "cuda" cannot be used; None if it can. Cheap checks come first."""
    return _missing() or _no_driver() or _unusable()


def state() -> dict[str, Any]:
    """The GPU as `octavo info` and `octavo doctor` show it: `usable`, and `name` and more, or the `problem`."""
    problem = find_problem()
    if problem is not None:
        return {"usable": False, "problem": str(problem)}
    from importlib.metadata import version

    import torch

    facts = torch.cuda.get_device_properties(0)
    return {
        "usable": True,
        "name": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "memory_bytes": facts.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
    }


def _missing() -> OctavoError | None:
    from importlib.metadata import PackageNotFoundError, version

    extra = "pip install 'octavo[gpu]'"
    missing = [name for name in OLDEST if importlib.util.find_spec(name) is None]
    if missing:
        return MissingDependencyError(f"device 'cuda' needs {' and '.join(missing)}: {extra}, or use device='cpu'")
    for name, oldest in OLDEST.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue  # Built from source: its own parts will say what they lack.
        if _version(found) < oldest:
            wanted = ".".join(map(str, oldest))
            return MissingDependencyError(
                f"device 'cuda' needs {name} {wanted} or newer, {found} is installed: {extra}"
            )
    return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])


def _no_driver() -> OctavoError | None:
    """Asks the driver itself, which takes no time where there is none."""
    import ctypes

    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
        code = int(driver.cuInit(0))
        count = ctypes.c_int(0)
        code = code or int(driver.cuDeviceGetCount(ctypes.byref(count)))
    except (OSError, AttributeError):
        return UnsupportedDeviceError(
            f"device 'cuda': this machine has no NVIDIA driver ({library} cannot be loaded). Install it, or use "
            "device='cpu'"
        )
    if code:
        return UnsupportedDeviceError(
            f"device 'cuda': the NVIDIA driver reports error {code}, or has no device. Look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or use device='cpu'"
        )
    if count.value == 0:
        return UnsupportedDeviceError(
            "device 'cuda': the NVIDIA driver shows no GPU. Look at CUDA_VISIBLE_DEVICES, or use device='cpu'"
        )
    return None


def _unusable() -> OctavoError | None:
    import torch

    if torch.version.cuda is None:
        return MissingDependencyError(
            f"device 'cuda': torch {torch.__version__} is built without CUDA. Install a build with it: "
            "https://pytorch.org/get-started, or use device='cpu'"
        )
    if not torch.cuda.is_available():
        return UnsupportedDeviceError(
            f"device 'cuda': torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the GPU: the driver is "
            "often too old for it. Update the driver, install a torch built for an older CUDA, or use device='cpu'"
        )
    capability = torch.cuda.get_device_capability(0)
    if capability < CAPABILITY:
        name, wanted = torch.cuda.get_device_name(0), ".".join(map(str, CAPABILITY))
        return UnsupportedDeviceError(
            f"device 'cuda': {name} has compute capability {capability[0]}.{capability[1]}, {wanted} or newer is "
            "needed. Use device='cpu'"
        )
    return None
