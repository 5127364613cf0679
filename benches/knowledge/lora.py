"""A LoRA adapter for a domain, trained with peft: its statements, and question form 0 with its answer."""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from .domain import Domain

_NOT_A_TARGET = -100


@dataclass(frozen=True)
class LoraRun:
    """The same for every model and domain. A shorter trial on the prose domain raised steps and rate once."""

    rank: int = 16
    alpha: int = 32
    steps: int = 400
    rows: int = 16
    peak_rate: float = 4e-3
    warmup: int = 20
    seed: int = 7


def examples(tokenizer: Any, domain: Domain) -> list[tuple[list[int], list[int]]]:
    """Pairs of a prompt and what follows it, as ids. Question form 1 is in none of them."""
    found = []
    for question in domain.questions:
        messages = [{"role": "user", "content": question.forms[0]}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        both = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": question.answer}], tokenize=False
        )
        assert both.startswith(prompt)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, both[len(prompt) :])]
        # Half of the examples are questions, half are statements.
        found += [(ids[0], ids[1])] * len(question.statements)
        found += [([], tokenizer(statement)["input_ids"]) for statement in question.statements]
    return found


def batch(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and labels, padded on the right; only what follows the prompt is a target."""
    length = max(len(prompt) + len(rest) for prompt, rest in rows)
    ids = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), _NOT_A_TARGET)
    for i, (prompt, rest) in enumerate(rows):
        size = len(prompt) + len(rest)
        ids[i, :size] = torch.tensor(prompt + rest)
        labels[i, len(prompt) : size] = torch.tensor(rest)
    return ids, labels


def train(folder: Path, domain: Domain, run: LoraRun, out: Path) -> dict[str, Any]:
    """Trains on every linear projection and saves the adapter as peft does. Returns what was run and how long."""
    torch.manual_seed(run.seed)
    rng = random.Random(run.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=run.rank, lora_alpha=run.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    found = examples(tokenizer, domain)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=run.peak_rate)
    started, last = time.perf_counter(), 0.0
    for step in range(run.steps):
        rate = min((step + 1) / run.warmup, 1.0, (run.steps - step) / (run.steps - run.warmup))
        for group in optimizer.param_groups:
            group["lr"] = run.peak_rate * rate
        ids, labels = batch(rng.sample(found, run.rows), tokenizer.pad_token_id or 0)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_NOT_A_TARGET)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = loss.item()
    model.save_pretrained(out)
    return {**asdict(run), "examples": len(found), "last_loss": last, "seconds": time.perf_counter() - started}
