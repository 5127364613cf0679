"""One training process. `octavo finetune` starts it: python -m octavo.finetune.worker RUN OUT, alone or by torchrun."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from octavo.finetune.best import Best, restore_best
from octavo.finetune.encode import Row
from octavo.finetune.loop import load_model, make_trainer
from octavo.finetune.order import row_order
from octavo.finetune.plan import Plan
from octavo.finetune.resume import Checkpoints, Log, Orphan
from octavo.finetune.run_folder import RunFolder

__all__ = ["OUT_OF_MEMORY", "main", "rows_of_steps", "train"]

OUT_OF_MEMORY = 75
"""Exit code after an allocation failed: the parent goes on with a smaller micro-batch."""


def train(run: RunFolder, out: Path) -> None:
    """Trains from the newest checkpoint to the last step of the plan, and writes the result into `out`."""
    plan = run.plan()
    assert plan is not None
    first = int(os.environ.get("RANK", "0")) == 0
    torch.set_num_threads(plan.threads)
    if plan.device == "cpu":
        torch.use_deterministic_algorithms(True)
    ordered = rows_of_steps(plan, run)
    size = plan.batch_rows
    tokens = [sum(len(row.ids) for row in ordered[i : i + size]) for i in range(0, len(ordered), size)]
    newest = run.newest()
    done = newest[0] if newest else 0
    # All processes need the evaluations so far: they stop at the same step.
    before = [line for line in run.log() if line["step"] <= done]
    if first:
        run.start_work()
        run.cut_log(done)
    callbacks = [Orphan(), Log(plan, run, tokens, before), Best(run, before), Checkpoints(run, plan.save_seconds)]
    model = load_model(plan)
    trainer = make_trainer(plan, model, ordered, run.read_rows("validation"), run.work, callbacks)
    trainer.train(resume_from_checkpoint=str(newest[1]) if newest else None)
    if first:
        restore_best(run, trainer.model)
        _save(plan, trainer.model, run, out)


def rows_of_steps(plan: Plan, run: RunFolder) -> list[Row]:
    """The rows of all steps, one after another."""
    rows, replayed = run.read_rows("rows"), run.read_rows("replay")
    lengths, replay_lengths = ([len(row.ids) for row in part] for part in (rows, replayed))
    order = row_order(lengths, replay_lengths, plan.steps, plan.batch_rows, plan.replay_rows, plan.seed)
    both = rows + [dataclasses.replace(row, replayed=plan.method == "lora") for row in replayed]
    return [both[i] for i in order]


def _save(plan: Plan, model: Any, run: RunFolder, out: Path) -> None:
    """Writes the adapter, or the model, and moves its files into `out`; the weights come last."""
    made = run.work / "result"
    if plan.method == "lora":
        model.peft_config["default"].base_model_name_or_path = Path(plan.model).name
        model.save_pretrained(made, save_embedding_layers=False)
    else:
        model.save_pretrained(made)
    (made / "README.md").unlink(missing_ok=True)
    for file in sorted(made.iterdir(), key=lambda f: f.suffix == ".safetensors"):
        shutil.move(file, out / file.name)


def main() -> None:
    """Reads the folder of the run and the one of the result from the command line."""
    run, out = map(Path, sys.argv[1:3])
    try:
        train(RunFolder(run), out)
    except (MemoryError, torch.OutOfMemoryError) as error:
        print(f"octavo: out of memory: {error}", file=sys.stderr)
        sys.exit(OUT_OF_MEMORY)
    except RuntimeError as error:
        # torch's own allocator on the CPU has no class for it.
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        print(f"octavo: out of memory: {error}", file=sys.stderr)
        sys.exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
