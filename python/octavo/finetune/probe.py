"""The micro-batch by measuring: python -m octavo.finetune.probe RUN, in a process of its own.

Each size runs the same steps, forward and backward. Larger ones are tried while a step gets at least 5 % faster and
the memory at its peak fits. A process of its own can be ended by the kernel without harm.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from octavo.finetune.plan import Plan
from octavo.finetune.run_folder import RunFolder

__all__ = ["best_of", "micro_rows", "sizes_of"]

_GAIN = 0.05
_MEMORY_SHARE = 0.85
_REPEATS = 3


def micro_rows(plan: Plan, run: RunFolder, memory_bytes: int) -> tuple[int, str, int | None]:
    """Rows of a forward pass, why, and the memory at its peak in bytes. The run needs its plan and rows on disk."""
    from octavo.finetune.launch import quiet_environment

    command = [sys.executable, "-m", "octavo.finetune.probe", str(run.path), str(int(memory_bytes * _MEMORY_SHARE))]
    done = subprocess.run(
        command, env=quiet_environment(plan.threads), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    measured = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]
    if not measured:
        return 1, "the probe of one row did not end well: one row at a time", None
    best = best_of(measured)
    shown = ", ".join(f"{m['micro_rows']}: {m['seconds']:.3g} s" for m in measured)
    peak = next(m["peak_bytes"] for m in measured if m["micro_rows"] == best)
    return best, f"measured on this machine, time of a step by micro-batch: {shown}", peak


def sizes_of(rows: int) -> list[int]:
    """The micro-batches that divide `rows`, from 1 on, each twice the one before."""
    sizes, size = [], 1
    while size <= rows:
        if rows % size == 0:
            sizes.append(size)
        size *= 2
    return sizes


def best_of(measured: Sequence[dict[str, Any]]) -> int:
    """The fastest size; of sizes within 1 % the smallest, which needs the least memory."""
    fastest = min(m["seconds"] for m in measured)
    return int(next(m["micro_rows"] for m in measured if m["seconds"] <= fastest * 1.01))


def measure(
    sizes: Sequence[int], seconds: Callable[[int], float], peak: Callable[[], int], room: int
) -> list[dict[str, Any]]:
    """Times sizes in turn. Stops where two in a row are not 5 % faster than the best before, or memory ends.

    Args:
        peak: most bytes that the process has held so far.
        room: bytes that it may hold. Twice the rows need at most twice the memory.
    """
    found: list[dict[str, Any]] = []
    worse = 0
    for size in sizes:
        try:
            taken = seconds(size)
        except (MemoryError, RuntimeError) as error:
            if found and ("memory" in str(error) or isinstance(error, MemoryError)):
                break
            raise
        best = min((m["seconds"] for m in found), default=float("inf"))
        found.append({"micro_rows": size, "seconds": taken, "peak_bytes": peak()})
        print(json.dumps(found[-1]), flush=True)
        worse = worse + 1 if taken > best * (1 - _GAIN) else 0
        if worse == 2 or 2 * found[-1]["peak_bytes"] >= room:
            break
    return found


def main() -> None:
    """Measures the sizes of a run, a JSON object a line on stdout."""
    import torch

    from octavo.finetune.loop import Collator, load_model, target_loss
    from octavo.finetune.worker import rows_of_steps

    run = RunFolder(Path(sys.argv[1]))
    room = int(sys.argv[2])
    plan = run.plan()
    assert plan is not None
    torch.set_num_threads(plan.threads)
    rows = rows_of_steps(plan, run)[: plan.batch_rows * _REPEATS]
    model = load_model(plan).to(plan.device)
    model.train()
    collate = Collator()

    def pass_(part: Sequence[Any]) -> None:
        inputs = {name: tensor.to(plan.device) for name, tensor in collate(part).items()}
        with torch.autocast(plan.device, torch.bfloat16, enabled=plan.dtype == "bfloat16"):
            loss = target_loss(model, inputs, 1)
        torch.autograd.backward(loss)

    def seconds(size: int) -> float:
        """Of the fastest of some steps, in processor time on a CPU: other programs then count less."""
        clock = time.process_time if plan.device == "cpu" else time.perf_counter
        pass_(rows[:size])
        taken = []
        for start in range(0, len(rows), plan.batch_rows):
            if plan.device == "cuda":
                torch.cuda.synchronize()
            began = clock()
            for i in range(start, start + plan.batch_rows, size):
                pass_(rows[i : i + size])
            if plan.device == "cuda":
                torch.cuda.synchronize()
            taken.append(clock() - began)
            model.zero_grad(set_to_none=True)
        return sum(taken) / len(taken)

    peak = torch.cuda.max_memory_allocated if plan.device == "cuda" else _peak_bytes
    measure(sizes_of(plan.batch_rows // plan.processes), seconds, peak, room)


def _peak_bytes() -> int:
    # Not on every system that octavo's other commands run on.
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
