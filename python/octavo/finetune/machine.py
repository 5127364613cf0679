"""What the machine offers: device, memory and threads. torch is asked only where it is needed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

__all__ = ["machine_facts"]


def machine_facts(device: str | None = None) -> dict[str, Any]:
    """ "device" ("cuda" or "cpu"), "devices", "memory_bytes" of one, "bfloat16" and "threads"."""
    import torch

    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or len(os.sched_getaffinity(0))
    if device != "cpu" and torch.cuda.is_available():
        return {
            "device": "cuda",
            "devices": torch.cuda.device_count(),
            "memory_bytes": torch.cuda.mem_get_info(0)[0],
            "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
            "threads": threads,
        }
    return {
        "device": "cpu",
        "devices": 1,
        "memory_bytes": _free_memory(),
        "bfloat16": False,
        "threads": threads,
    }


def _free_memory() -> int:
    """Bytes that Linux can give, and no more than the limit of the control group."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    free = int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        free = min(free, max(0, int(text) - int(used.read_text(encoding="ascii"))))
    return free
