"""The weights of the lowest evaluation, which are the result of a run with held-out rows."""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from octavo.finetune.run_folder import RunFolder

__all__ = ["Best", "restore_best"]


class Best(TrainerCallback):
    """Keeps the trained weights of the evaluation with the lowest loss.

    A resumed run repeats the evaluations behind its checkpoint, and so it keeps the same weights.
    """

    def __init__(self, run: RunFolder, before: list[dict[str, Any]]) -> None:
        self._run = run
        self._lowest = min((line["eval_loss"] for line in before if "eval_loss" in line), default=float("inf"))

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        loss = given["metrics"]["eval_loss"]
        if loss >= self._lowest:
            return
        self._lowest = loss
        if not state.is_world_process_zero:
            return
        partial = self._run.best_file.with_suffix(".partial")
        save_file({name: value.detach().contiguous() for name, value in _trained(given["model"]).items()}, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self._run.best_file)


def restore_best(run: RunFolder, model: Any) -> None:
    """Gives the model the weights of the lowest evaluation; without evaluations it keeps its own."""
    if not run.best_file.exists():
        return
    kept = load_file(run.best_file)
    with torch.no_grad():
        for name, value in _trained(model).items():
            value.copy_(kept[name])


def _trained(model: Any) -> dict[str, torch.Tensor]:
    """The trained weights by name; the model may be wrapped for several processes."""
    inner = getattr(model, "module", model)
    return {name: value for name, value in inner.named_parameters() if value.requires_grad}
