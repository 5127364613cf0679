"""A LoRA adapter for a domain, trained with peft: its statements, and question form 0 with its answer.

The loss needs logits at the targets alone. A head of 262,144 tokens over every position would be most of the work.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from .arms import completion_prompt
from .domain import Domain, Question

_NOT_A_TARGET = -100
# Beside the adapter: the settings of its training, its last loss and its time.
_TRAINING = "training.json"
# Steps between two lines of progress.
_SHOWN_EVERY = 20


@dataclass(frozen=True)
class LoraRun:
    """The settings of a training run; the defaults are those of the embedded model, for every domain.

    A shorter trial on the prose domain raised steps and rate once.
    """

    rank: int = 16
    alpha: int = 32
    steps: int = 400
    rows: int = 16
    peak_rate: float = 4e-3
    warmup: int = 20
    seed: int = 7


# A pretrained model of some hundred million parameters: it needs smaller steps than the embedded model.
PRETRAINED = LoraRun(steps=300, rows=8, peak_rate=1e-3)


def examples(tokenizer: Any, domain: Domain) -> list[tuple[list[int], list[int]]]:
    """Pairs of a prompt and what follows it, as ids. Question form 1 is in none of them."""
    found = []
    for question in domain.questions:
        pair = _chat_pair(tokenizer, question) if tokenizer.chat_template else _completion_pair(tokenizer, question)
        # Half of the examples are questions, half are statements.
        found += [pair] * len(question.statements)
        found += [([], tokenizer(statement)["input_ids"]) for statement in question.statements]
    return found


def _chat_pair(tokenizer: Any, question: Question) -> tuple[list[int], list[int]]:
    """The template writes the special tokens itself, also the one that ends the answer."""
    messages = [{"role": "user", "content": question.forms[0]}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    both = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": question.answer}], tokenize=False)
    assert both.startswith(prompt)
    first, rest = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, both[len(prompt) :]))
    return first, rest


def _completion_pair(tokenizer: Any, question: Question) -> tuple[list[int], list[int]]:
    """Without a template the answer follows "Answer:" as in `arms.ask`, and a line break ends it."""
    prompt = tokenizer(completion_prompt(question.forms[0]))["input_ids"]
    return prompt, tokenizer(f" {question.answer}\n", add_special_tokens=False)["input_ids"]


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


def target_loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of the targets: the head sees the positions before a target, and no others.

    ``model``: a causal language model of transformers, with or without peft's layers inside.

    Raises:
        ValueError: the model changes its logits after the head, as Gemma 2 does with its soft cap.
    """
    if getattr(model.config, "final_logit_softcapping", None) is not None:
        raise ValueError(f"{model.config.model_type} caps its logits; the loss here has no cap: train another model")
    targets = labels[:, 1:]
    chosen = targets != _NOT_A_TARGET
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1][chosen]
    return functional.cross_entropy(model.lm_head(hidden), targets[chosen])


def train(folder: Path | str, domain: Domain, run: LoraRun, out: Path) -> None:
    """Trains on every linear projection. Saves the adapter as peft does, with the settings beside it."""
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
        rate = min((step + 1) / run.warmup, 1.0, (run.steps - step) / max(1, run.steps - run.warmup))
        for group in optimizer.param_groups:
            group["lr"] = run.peak_rate * rate
        ids, labels = batch(rng.sample(found, run.rows), tokenizer.pad_token_id or 0)
        loss = target_loss(model.get_base_model(), ids, labels)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = loss.item()
        if (step + 1) % _SHOWN_EVERY == 0:
            print(f"step {step + 1} of {run.steps}: loss {last:.3f}", file=sys.stderr, flush=True)
    model.save_pretrained(out)
    found_out = {"last_loss": last, "seconds": time.perf_counter() - started}
    (out / _TRAINING).write_text(json.dumps(asdict(run) | {"examples": len(found)} | found_out), encoding="utf-8")


def training(adapter: Path) -> dict[str, Any]:
    """What `train` wrote beside the adapter: its settings, its examples, its last loss and its seconds.

    Raises:
        FileNotFoundError: the folder is not from `train`.
    """
    path = adapter / _TRAINING
    if not path.exists():
        raise FileNotFoundError(f"{path}: the adapter is not from this bench; train one with --keep-adapter")
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return settings
