"""Distillation: a student learns the next-token distribution of its teacher, by the loop of transformers' Trainer.

The loss is the forward Kullback-Leibler divergence KL(teacher || student) in nats at temperature 1, a weighted mean
over tokens, without a loss on labels (Minitron, arXiv 2407.14679).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.compress.needs import need
from octavo.compress.optimizer import muon_and_adamw, rate_for
from octavo.compress.rows import Batch
from octavo.errors import DeviceMemoryError, ExecutionError

if TYPE_CHECKING:
    import torch

__all__ = ["Distilled", "distil", "kl_loss"]

# Logits of a micro-batch, for each of the two models: 1 GiB in float32.
_MICRO_LOGITS = 1 << 28
_WARMUP, _DECAY = 0.02, 0.3
_CHECKPOINTS = 20


@dataclass(frozen=True)
class Distilled:
    """What a run did.

    Attributes:
        steps: optimizer steps in all.
        tokens: tokens of these steps.
        rate: peak of the learning rate.
        losses: (step, KL in nats a token), means since the entry before.
    """

    steps: int
    tokens: int
    rate: float
    losses: list[tuple[int, float]]


def kl_loss(teacher: torch.Tensor, student: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of KL(teacher || student), nats. Logits [rows, length, vocab], weights [rows, length]."""
    from torch.nn import functional

    right = teacher.float().log_softmax(-1)
    divergence = functional.kl_div(student.float().log_softmax(-1), right, reduction="none", log_target=True).sum(-1)
    return (divergence * weights).sum() / weights.sum().clamp_min(1e-9)


def distil(
    teacher: Any, student: Any, batches: Sequence[Batch], folder: Path, seed: int = 0, least_parts: int = 1
) -> Distilled:
    """Trains `student`, in place, on all `batches` in their order.

    Args:
        teacher, student: live causal transformers models with one vocabulary.
        batches: one optimizer step each.
        folder: where checkpoints are kept. If it has one, the run continues from the newest complete one, and ends
            as an unbroken run does: on a CPU with equally many threads bit for bit.
        least_parts: a batch is computed in at least so many parts, a power of two. More parts need less memory.

    Raises:
        DeviceMemoryError: the memory does not hold a part.
    """
    need("torch", "transformers", "accelerate")
    import torch

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    rows, length = batches[0].ids.shape
    parts = least_parts
    while rows * length // parts * int(teacher.config.vocab_size) > _MICRO_LOGITS and parts < rows * length:
        parts *= 2
    rate = rate_for(student.config.hidden_size)
    trainer = _trainer(teacher, student, _micro_batches(batches, parts), folder, parts, rate, seed)
    try:
        trainer.train(resume_from_checkpoint=newest_checkpoint(folder))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "enough memory" in str(error):
            raise DeviceMemoryError(
                f"the memory does not hold teacher, student and {rows * length // parts} tokens at once: "
                "give a smaller ratio, or a machine with more memory"
            ) from error
        raise
    student.eval()
    losses = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    if not all(torch.isfinite(p).all() for p in student.parameters()):
        raise ExecutionError("the student's weights are not finite: the data may have broken texts")
    return Distilled(trainer.state.global_step, len(batches) * rows * length, rate, losses)


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint of the Trainer that was written to its end."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        # The Trainer writes this file last.
        try:
            found[json.loads((path / "trainer_state.json").read_text())["global_step"]] = path
        except (OSError, ValueError, KeyError):
            continue
    return str(found[max(found)]) if found else None


def _micro_batches(batches: Sequence[Batch], parts: int) -> list[dict[str, Any]]:
    """Each batch as `parts` pieces of equally many rows, or of one shortened row where rows do not suffice."""
    made = []
    for batch in batches:
        ids, weights = batch.ids, batch.weights
        if parts > ids.shape[0]:
            ids, weights = ids.reshape(parts, -1), weights.reshape(parts, -1)
        shares = [float(piece[:, 1:].sum()) for piece in np.split(weights, parts)]
        total = max(sum(shares), 1e-9)
        for piece, weight, share in zip(np.split(ids, parts), np.split(weights, parts), shares, strict=True):
            # The mean over parts is the mean over the batch: a part counts as much as its weights.
            made.append({"input_ids": piece, "weights": weight, "factor": parts * share / total})
    return made


def _trainer(
    teacher: Any, student: Any, pieces: list[dict[str, Any]], folder: Path, parts: int, rate: float, seed: int
) -> Any:
    import torch
    from transformers import Trainer, TrainingArguments

    steps = len(pieces) // parts
    decay, warmup = round(_DECAY * steps), max(1, round(_WARMUP * steps))
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=parts,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "linear"},
        warmup_steps=warmup,
        max_grad_norm=1.0,
        bf16=_has_bfloat16(),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=10,
        save_steps=max(10, steps // _CHECKPOINTS),
        save_total_limit=2,
        seed=seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=not os.isatty(2),
    )

    class Distiller(Trainer):
        def create_optimizer(self, *_: Any) -> Any:
            if self.optimizer is None:
                self.optimizer = muon_and_adamw(self.model, rate)
            return self.optimizer

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(pieces)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            with torch.no_grad():
                wanted = teacher(input_ids=inputs["input_ids"], use_cache=False).logits
            # The prediction of a token is made one place before it.
            weights = torch.nn.functional.pad(inputs["weights"][:, 1:], (0, 1))
            output = model(input_ids=inputs["input_ids"], use_cache=False)
            loss = kl_loss(wanted, output.logits, weights) * inputs["factor"]
            return (loss, output) if return_outputs else loss

    trainer = Distiller(model=student, args=arguments, train_dataset=pieces, data_collator=_collate)
    # Otherwise the loss is taken for a sum over all pieces of a step.
    trainer.model_accepts_loss_kwargs = False
    teacher.to(arguments.device)
    return trainer


def _collate(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    (piece,) = pieces
    ids, weights = torch.from_numpy(piece["input_ids"]).long(), torch.from_numpy(piece["weights"])
    return {"input_ids": ids, "weights": weights, "factor": torch.tensor(piece["factor"], dtype=torch.float32)}


def _has_bfloat16() -> bool:
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and _cpu_flag("avx512_bf16")


def _cpu_flag(name: str) -> bool:
    try:
        return f" {name} " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
