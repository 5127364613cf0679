"""Callbacks of the loop: checkpoints by time, the log, early stop, and the end of a worker without its parent."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from octavo.finetune.plan import Plan
from octavo.finetune.run_folder import RunFolder

__all__ = ["Checkpoints", "Log", "Orphan"]

# Checkpoints take at most 5 % of the time, and one is written each 10 s at the most.
_SAVE_SHARE = 0.05
_SAVE_SECONDS = 10.0
# Evaluations without a lower loss, after which the run ends.
_PATIENCE = 2


class Checkpoints(TrainerCallback):
    """Asks for a checkpoint when enough time has passed, and publishes it once it is written.

    A disk that is full loses no finished checkpoint: what is half written stays in work/.
    """

    def __init__(self, run: RunFolder, seconds: float = _SAVE_SECONDS) -> None:
        self._run, self._seconds = run, seconds
        self._due = time.monotonic() + seconds
        self._began = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        wanted = time.monotonic() >= self._due
        if torch.distributed.is_initialized():
            # All processes must save together: the first one decides.
            flag = torch.tensor([int(wanted)], device=args.device)
            torch.distributed.broadcast(flag, 0)
            wanted = bool(flag.item())
        if wanted:
            self._began = time.monotonic()
            control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            self._run.publish(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)
        now = time.monotonic()
        self._due = now + max(self._seconds, (now - self._began) / _SAVE_SHARE)


class Log(TrainerCallback):
    """A line for each step and each evaluation, and a progress bar with loss, tokens a second and time left.

    Ends the run after two evaluations without a lower loss, and where the loss is no number.
    """

    def __init__(self, plan: Plan, run: RunFolder, step_tokens: list[int], before: list[dict[str, Any]]) -> None:
        self._plan, self._run, self._tokens = plan, run, step_tokens
        self._evals = [line["eval_loss"] for line in before if "eval_loss" in line]
        self._file: Any = None
        self._bar: Any = None
        self._cpu = time.process_time()
        self._wall = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._file = self._run.log_file.open("a", encoding="utf-8", buffering=1)
            self._bar = tqdm(
                total=self._plan.steps, initial=state.global_step, unit="step", file=sys.stderr, mininterval=1.0
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> Any:
        logs = logs or {}
        loss = logs.get("loss", logs.get("eval_loss"))
        if loss is None:
            return control
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {state.global_step} is {loss}: give a lower --rate")
        if "eval_loss" in logs:
            self._evals.append(loss)
            best = self._evals.index(min(self._evals))
            if len(self._evals) - 1 - best >= _PATIENCE:
                control.should_training_stop = True
        if self._file is not None:
            self._write(state.global_step, logs)
        return control

    def _write(self, step: int, logs: dict[str, Any]) -> None:
        now, cpu = time.monotonic(), time.process_time()
        line: dict[str, Any] = {"step": step, "seconds": round(now - self._wall, 4), "cpu": round(cpu - self._cpu, 4)}
        self._wall, self._cpu = now, cpu
        if "eval_loss" in logs:
            line["eval_loss"] = logs["eval_loss"]
        else:
            line |= {"loss": logs["loss"], "rate": logs["learning_rate"], "tokens": self._tokens[step - 1]}
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(
                f"loss {logs['loss']:.3f}, {line['tokens'] / max(line['seconds'], 1e-9):,.0f} tokens/s", refresh=False
            )
        self._file.write(json.dumps(line) + "\n")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._file is not None:
            self._file.close()
            self._bar.close()


class Orphan(TrainerCallback):
    """Ends a worker whose parent is gone: the same command may train in the folder again."""

    def __init__(self) -> None:
        self._parent = os.getppid()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if os.getppid() != self._parent:
            os._exit(1)
