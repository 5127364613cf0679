"""Starts the worker processes of a run, and goes on with a smaller micro-batch where memory ends."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from octavo.errors import DeviceMemoryError, ExecutionError
from octavo.finetune.plan import Plan
from octavo.finetune.run_folder import RunFolder

__all__ = ["quiet_environment", "run_workers"]

# Exit codes after memory ended: octavo.finetune.worker's own, and that of a process that the kernel ended.
_OUT_OF_MEMORY = (75, -signal.SIGKILL, 128 + signal.SIGKILL)


def quiet_environment(threads: int) -> dict[str, str]:
    """The environment of a worker: no hub, no telemetry, as many threads as planned."""
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        # A thread that spins at a barrier takes the core that the other thread waits for.
        "OMP_WAIT_POLICY": "passive",
    }


def run_workers(plan: Plan, run: RunFolder, out: Path, lock: IO[str], warn: Callable[[str], None]) -> Plan:
    """Trains to the last step of the plan. Returns the plan, whose micro-batch may have become smaller.

    Raises:
        DeviceMemoryError: not even one row fits.
        ExecutionError: a worker failed otherwise; its message is on stderr.
    """
    while True:
        command = [sys.executable, "-m", "octavo.finetune.worker", str(run.path), str(out)]
        if plan.processes > 1:
            launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={plan.processes}"]
            command = [sys.executable, "-m", *launcher, *command[1:]]
        # The lock is inherited: a worker without its parent holds it until it ends.
        done = subprocess.run(command, env=quiet_environment(plan.threads), pass_fds=[lock.fileno()], check=False)
        if done.returncode == 0:
            return plan
        if done.returncode not in _OUT_OF_MEMORY:
            raise ExecutionError(
                f"the training process ended with code {done.returncode}; its message is above. "
                f"Checkpoints in {run.checkpoints} are kept: the same command goes on from there"
            )
        if plan.micro_rows == 1:
            raise DeviceMemoryError("out of memory with one row at a time: take a smaller model or shorter rows")
        warn(f"out of memory with {plan.micro_rows} rows at a time: goes on with {plan.micro_rows // 2}")
        plan = dataclasses.replace(plan, micro_rows=plan.micro_rows // 2)
        plan.save(run.plan_file)
