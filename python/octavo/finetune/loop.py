"""The loop: transformers' Trainer with peft, which brings devices, optimizer and clipping. The plan fixes the rest.

The rows of every step are in `octavo.finetune.order`, read one after another. A step is the same for each micro-batch
and each number of processes: the loss is the mean over all targets of a step, and not of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from octavo.finetune.encode import NOT_A_TARGET, Row
from octavo.finetune.plan import Plan

__all__ = ["Collator", "FixedOrderTrainer", "load_model", "make_trainer", "target_loss"]


class Collator:
    """Pads rows on the right: ids, mask and labels, each [rows, longest]; which rows are replayed, [rows]."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        longest = max(len(row.ids) for row in rows)
        # The mask hides the padding, and no label stands there: any id is right.
        ids = torch.zeros((len(rows), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, NOT_A_TARGET)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
            labels[i, : len(row.ids)] = torch.tensor(row.labels)
        replayed = torch.tensor([row.replayed for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "replayed": replayed}


def target_loss(model: Any, inputs: dict[str, Tensor], targets_of_step: Tensor | int) -> Tensor:
    """Loss of the targets in `inputs`, summed, over the number of targets of the whole step.

    Rows of the data: cross-entropy. Replayed rows: KL of the base model's distribution, the same model without its
    adapter. The head computes logits from the first target of the batch on: those of a long prompt are not needed.
    """
    labels, replayed = inputs["labels"], inputs["replayed"]
    first = int((labels != NOT_A_TARGET).any(dim=0).nonzero()[0])
    keep = labels.shape[1] - max(first - 1, 0)
    logits = _logits(model, inputs, slice(None), keep)
    wanted = labels[:, -keep:][:, 1:]
    own = wanted.masked_fill(replayed[:, None], NOT_A_TARGET)
    flat = logits.reshape(-1, logits.shape[-1])
    total = functional.cross_entropy(flat, own.reshape(-1), ignore_index=NOT_A_TARGET, reduction="sum")
    if replayed.any():
        base = getattr(model, "module", model)
        with torch.no_grad(), base.disable_adapter():
            before = _logits(base, inputs, replayed, keep)
        kept = wanted[replayed] != NOT_A_TARGET
        now = functional.log_softmax(logits[replayed][kept], dim=-1)
        total = total + functional.kl_div(now, before[kept].log_softmax(dim=-1), reduction="sum", log_target=True)
    return total / targets_of_step


def _logits(model: Any, inputs: dict[str, Tensor], rows: Any, keep: int) -> Tensor:
    """Logits of the next token at the last `keep` positions but the very last, f32 [rows, keep - 1, vocabulary]."""
    ids, mask = inputs["input_ids"][rows], inputs["attention_mask"][rows]
    made = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep)
    logits: Tensor = made.logits[:, :-1].float()
    return logits


class FixedOrderTrainer(Trainer):
    """Reads the rows in the order that they have, and takes the loss over the targets of the step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The Trainer then counts the targets of all micro-batches and processes, and does not average by itself.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset
        return torch.utils.data.SequentialSampler(rows)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        count = num_items_in_batch
        if count is None:
            count = (inputs["labels"] != NOT_A_TARGET).sum()
            return target_loss(model, inputs, count)
        # Gradients of processes are averaged, and `count` is of all of them.
        return target_loss(model, inputs, count) * self.accelerator.num_processes

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            return self.compute_loss(model, inputs).detach(), None, None


def load_model(plan: Plan) -> Any:
    """The model of a plan, ready to train: with new adapter matrices, or all weights trainable."""
    torch.manual_seed(plan.seed)
    dtype = getattr(torch, plan.dtype) if plan.method == "lora" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        plan.model, dtype=dtype, trust_remote_code=False, local_files_only=True
    )
    model.config.use_cache = False
    if plan.method == "full":
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=plan.rank, lora_alpha=plan.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def make_trainer(
    plan: Plan, model: Any, rows: Sequence[Row], validation: Sequence[Row], work: Path, callbacks: list[TrainerCallback]
) -> FixedOrderTrainer:
    """A trainer for the rows of all steps, in order. Checkpoints go to `work` when a callback asks for one."""
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=plan.micro_rows,
        per_device_eval_batch_size=plan.micro_rows,
        gradient_accumulation_steps=plan.batch_rows // (plan.micro_rows * plan.processes),
        max_steps=plan.steps,
        learning_rate=plan.rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=plan.warmup_steps,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="steps" if validation else "no",
        eval_steps=plan.evaluate_every or None,
        prediction_loss_only=True,
        bf16=plan.dtype == "bfloat16",
        use_cpu=plan.device == "cpu",
        ddp_backend="gloo" if plan.device == "cpu" and plan.processes > 1 else None,
        seed=plan.seed,
        full_determinism=False,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = FixedOrderTrainer(
        model=model,
        args=arguments,
        data_collator=Collator(),
        train_dataset=list(rows),
        eval_dataset=list(validation) or None,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
