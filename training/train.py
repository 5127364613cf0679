"""Trains the embedded model: ``python -m training.train --out runs/embedded``. Resumes from its checkpoint.

``--from FOLDER`` continues from the weights of an exported folder: the model learns to read, beside what it can.

A batch depends on the seed and the step alone, and the rate is constant until the decay: a run that was
stopped, resumed or given fewer steps before its decay ends where an uninterrupted run of that length would.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from . import corpus
from .export import load_exported
from .model import Decoder, ModelConfig, initialise
from .muon import Muon
from .schedule import Schedule
from .tokenizer import train_tokenizer


@dataclass(frozen=True)
class TrainConfig:
    """What defines a run. Rates are the peaks of the schedule."""

    steps: int = 2500
    warmup: int = 100
    decay: int = 400
    rows: int = 8
    length: int = 512
    long_length: int = 2048
    # One step in so many is a batch of long look-ups, of as many tokens as the others; more in the decay.
    long_every: int = 6
    long_every_in_decay: int = 5
    # The step at which the first mix gives way to the full one; the last mix comes with the decay.
    copying_from: int = 300
    # Long look-ups are noise before short ones are learnt.
    long_from: int = 600
    matrix_lr: float = 0.02
    other_lr: float = 0.004
    weight_decay: float = 0.05
    seed: int = 20
    tokenizer_documents: int = 20_000
    # Matrix products in bfloat16, everything else in float32.
    bfloat16: bool = True
    # A continued run, which teaches a finished model to read: the mix has readings from the first step, and long
    # rows are readings with this chance from a step on. 0: a run from random weights.
    readings: float = 0.0
    readings_from: int = 150


# What a continued run does otherwise: half the rates, a short warm-up, readings, more long rows. Its long look-ups
# are no noise, since the model can do them.
CONTINUED = TrainConfig(
    steps=680, warmup=40, decay=270, long_every=6, long_every_in_decay=6, long_from=0, matrix_lr=0.01, other_lr=0.002,
    seed=21, readings=0.65,
)  # fmt: skip


def is_long(config: TrainConfig, schedule: Schedule, step: int) -> bool:
    """Whether a step reads long look-ups."""
    every = config.long_every_in_decay if schedule.is_decaying(step) else config.long_every
    return step >= config.long_from and step % every == 0


def mix(config: TrainConfig, schedule: Schedule, step: int) -> corpus.Mix:
    """The mix of the documents of a step that does not read long look-ups."""
    if config.readings > 0:
        return corpus.LAST_READING_MIX if schedule.is_decaying(step) else corpus.READING_MIX
    if schedule.is_decaying(step):
        return corpus.LAST_MIX
    return corpus.FIRST_MIX if step < config.copying_from else corpus.MIX


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy, nats a token. logits [rows, length, vocab], the others [rows, length]."""
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def loss_of(model: Callable[[Tensor], Tensor], tokens: Tensor, weights: Tensor, bfloat16: bool) -> Tensor:
    """The loss of a batch as ``corpus.batch`` makes it; compiled as one graph, so that the loss is fused too."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(tokens[:, :-1])
    return weighted_loss(logits.float(), tokens[:, 1:], weights[:, 1:])


def optimizers(model: Decoder, config: TrainConfig) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay)
    return muon, torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.95), weight_decay=0.0)


def load_tokenizer(out: Path, config: TrainConfig, vocab_size: int) -> Tokenizer:
    """The run's tokenizer; made on the first call."""
    path = out / "tokenizer.json"
    if not path.exists():
        train_tokenizer(corpus.texts(config.seed, config.tokenizer_documents), vocab_size).save(str(path))
    return Tokenizer.from_file(str(path))


def begin(out: Path, origin: Path | None, config: TrainConfig, model_config: ModelConfig) -> tuple[Decoder, Tokenizer]:
    """The model before its first step, and the tokenizer: fresh ones, or those of the folder ``origin``."""
    if origin is None:
        model = Decoder(model_config)
        initialise(model, config.seed)
        return model, load_tokenizer(out, config, model_config.vocab_size)
    model, tokenizer = load_exported(origin)
    tokenizer.save(str(out / "tokenizer.json"))
    return model.train(), tokenizer


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint so that a reader never sees half of it."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(
    config: TrainConfig,
    model_config: ModelConfig,
    out: Path,
    checkpoint_every_s: float,
    fused: bool,
    origin: Path | None = None,
) -> None:
    """Trains to the last step. Leaves config.json, tokenizer.json, log.jsonl and checkpoint.pt in ``out``.

    ``origin``: an exported folder whose weights, sizes and tokenizer the run begins with, instead of ``model_config``.
    """
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = begin(out, origin, config, model_config)
    (out / "config.json").write_text(
        json.dumps({"train": asdict(config), "model": asdict(model.config)}, indent=2) + "\n"
    )
    encoder = corpus.Encoder(tokenizer)
    schedule = Schedule(config.steps, config.warmup, config.decay)
    both = optimizers(model, config)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in both]
    step = 0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(both, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
    loss_function = torch.compile(loss_of, dynamic=False) if fused else loss_of
    started = saved_at = time.monotonic()
    tokens_done = 0
    with (out / "log.jsonl").open("a") as log:
        while step < config.steps:
            long = is_long(config, schedule, step)
            length = config.long_length if long else config.length
            rows = config.rows * config.length // length
            ids, weights = corpus.batch(
                encoder, config.seed, step, rows, length, None if long else mix(config, schedule, step),
                config.readings if step >= config.readings_from else 0.0,
            )  # fmt: skip
            loss = loss_function(model, torch.from_numpy(ids), torch.from_numpy(weights), config.bfloat16)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            factor = schedule.factor(step)
            for optimizer, peaks in zip(both, rates, strict=True):
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            tokens_done += rows * length
            now = time.monotonic()
            if step % 10 == 0 or long or step == config.steps:
                row = {
                    "step": step, "loss": round(loss.item(), 4), "long": long, "factor": round(factor, 4),
                    "seconds": round(now - started, 1), "tokens_per_s": round(tokens_done / (now - started)),
                }  # fmt: skip
                log.write(json.dumps(row) + "\n")
                log.flush()
            if now - saved_at > checkpoint_every_s or step == config.steps:
                states = [optimizer.state_dict() for optimizer in both]
                save(checkpoint, {"model": model.state_dict(), "optimizers": states, "step": step})
                saved_at = now


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train the embedded model.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an existing run is resumed")
    parser.add_argument("--from", dest="origin", type=Path, help="an exported folder: it learns to read")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--warmup", type=int)
    parser.add_argument("--decay", type=int, help="the last steps, in which the rate falls")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint-every", type=float, default=180.0, help="seconds")
    parser.add_argument("--float32", action="store_true", help="for a processor without bfloat16 products")
    parser.add_argument("--no-compile", action="store_true", help="do not fuse with torch.compile (no C++ compiler)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given = {name: getattr(args, name) for name in ("steps", "warmup", "decay", "seed")}
    config = replace(
        CONTINUED if args.origin else TrainConfig(),
        bfloat16=not args.float32,
        **{name: value for name, value in given.items() if value is not None},
    )
    train(config, ModelConfig(), args.out, args.checkpoint_every, not args.no_compile, args.origin)


if __name__ == "__main__":
    main()
