"""Measures an exported model on held-out data: ``python -m training.evaluate --model FOLDER --json OUT``.

Perplexity by skill, accuracy by skill and by look-up distance, and two stories to read. Where one answer is
right, the greedy answer equals it exactly when each of its tokens is the most likely one after the true ones
before it; that takes one forward pass and no generation.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from . import arithmetic, conversation, corpus, extraction, lookup, questions
from .document import SPECIAL_TOKENS, TURN_END, Document, Turn, prompt
from .export import load_exported
from .lexicon import KEY_WORDS
from .tokenizer import token_id
from .train import weighted_loss

HELD_OUT_SEED = "held out"
DISTANCES = (64, 256, 1000, 2000)
STORY_REQUESTS = ("Tell me a story about a fox.", "Tell me a story about a lantern.")
STORY_TOKENS = 250


@torch.inference_mode()
def is_greedy_answer(model: Callable[[Tensor], Tensor], tokenizer: Tokenizer, question: str, answer: str) -> bool:
    """Whether greedy decoding after the prompt text ``question`` gives ``answer`` exactly."""
    given = tokenizer.encode(question).ids
    wanted = tokenizer.encode(answer).ids
    logits = model(torch.tensor([given + wanted]))[0, len(given) - 1 : -1]
    return bool((logits.argmax(-1) == torch.tensor(wanted)).all())


@torch.inference_mode()
def generate(
    model: Callable[[Tensor], Tensor],
    tokenizer: Tokenizer,
    question: str,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """Continues a prompt text, greedily at temperature 0. The whole context is read again for each token."""
    generator = torch.Generator().manual_seed(seed)
    stops = {token_id(tokenizer, token) for token in SPECIAL_TOKENS}
    ids = tokenizer.encode(question).ids
    start = len(ids)
    for _ in range(max_tokens):
        logits = model(torch.tensor([ids]))[0, -1]
        if temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
        if token in stops:
            break
        ids.append(token)
    return str(tokenizer.decode(ids[start:]))


@torch.inference_mode()
def perplexity(model: Callable[[Tensor], Tensor], encoder: corpus.Encoder, documents: Sequence[Document]) -> float:
    """Of the tokens with full weight, each document on its own."""
    nats, count = 0.0, 0.0
    for document in documents:
        ids, weights = encoder.encode(document)
        tokens = torch.tensor([ids])
        full = (torch.tensor([weights])[:, 1:] == 1.0).float()
        if full.sum() == 0:
            continue
        nats += weighted_loss(model(tokens[:, :-1]), tokens[:, 1:], full).item() * full.sum().item()
        count += full.sum().item()
    return math.exp(nats / count)


def lookup_case(tokenizer: Tokenizer, rng: random.Random, distance: int) -> tuple[Turn, int]:
    """A look-up whose line lies ``distance`` tokens or a little less before its answer; and that distance."""
    count = max(3, (distance - 14) // lookup.TOKENS_PER_LINE)
    entries = lookup.draw(rng, min(count, len(KEY_WORDS)))
    while True:
        context = "\n".join(entry.line for entry in entries)
        turn = Turn(f"{context}\n{entries[0].question}", entries[0].line)
        far = len(tokenizer.encode(prompt(turn.question)).ids)
        if far <= distance or len(entries) <= 3:
            return turn, far
        entries.pop()


def accuracy(model: Callable[[Tensor], Tensor], tokenizer: Tokenizer, turns: Sequence[Turn]) -> float:
    """Share of turns whose greedy answer, with its end mark, is exactly right."""
    right = [is_greedy_answer(model, tokenizer, prompt(turn.question), turn.answer + TURN_END) for turn in turns]
    return round(sum(right) / len(right), 3)


def arithmetic_cases(rng: random.Random, count: int) -> dict[str, list[Turn]]:
    """Problems by kind, for a table."""
    return {
        "addition, 1 or 2 digits": [
            arithmetic.addition(rng, rng.randint(0, 99), rng.randint(0, 99)) for _ in range(count)
        ],
        "addition, 3 digits": [
            arithmetic.addition(rng, rng.randint(100, 999), rng.randint(0, 999)) for _ in range(count)
        ],
        "subtraction, 1 or 2 digits": [
            arithmetic.subtraction(rng, *sorted((rng.randint(0, 99), rng.randint(0, 99)), reverse=True))
            for _ in range(count)
        ],
        "subtraction, 3 digits": [
            arithmetic.subtraction(rng, rng.randint(500, 999), rng.randint(0, 499)) for _ in range(count)
        ],
        "product, up to 12 x 12": [
            arithmetic.product(rng, rng.randint(0, 12), rng.randint(0, 12)) for _ in range(count)
        ],
    }


def extraction_scores(
    model: Callable[[Tensor], Tensor], tokenizer: Tokenizer, turns: Sequence[Turn]
) -> dict[str, float]:
    """Share of generated objects that are valid JSON, and that equal the expected object."""
    valid = right = 0
    for turn in turns:
        if is_greedy_answer(model, tokenizer, prompt(turn.question), turn.answer + TURN_END):
            text = turn.answer
        else:
            text = generate(model, tokenizer, prompt(turn.question), 96, 0.0, 0)
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            continue
        valid += 1
        right += found == json.loads(turn.answer)
    return {"valid": round(valid / len(turns), 3), "right": round(right / len(turns), 3)}


def perplexities(model: Callable[[Tensor], Tensor], encoder: corpus.Encoder, count: int) -> dict[str, float]:
    """Perplexity of ``count`` fresh documents of each skill."""
    found = {}
    for skill in corpus.MIX.shares:
        rng = random.Random(f"{HELD_OUT_SEED}/{skill}")
        if skill == "lookup":
            documents = [lookup.document(rng, 500) for _ in range(max(1, count // 4))]
        else:
            documents = [corpus.generators()[skill](rng) for _ in range(count)]
        found[skill] = round(perplexity(model, encoder, documents), 3)
    return found


def evaluate(folder: Path, count: int) -> dict[str, Any]:
    """All measurements of an exported folder, ``count`` cases for each accuracy."""
    model, tokenizer = load_exported(folder)
    rng = random.Random(HELD_OUT_SEED)
    distances = {}
    for distance in DISTANCES:
        cases = [lookup_case(tokenizer, rng, distance)[0] for _ in range(count // 2)]
        distances[str(distance)] = accuracy(model, tokenizer, cases)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "cases": count,
        "facts": len(questions.FACTS),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "perplexity": perplexities(model, corpus.Encoder(tokenizer), count),
        "accuracy": {
            "questions about the world": accuracy(
                model, tokenizer, [questions.ask(fact, rng) for fact in questions.FACTS]
            ),
            "unknown, says so": accuracy(model, tokenizer, [conversation.unknown(rng) for _ in range(count // 2)]),
            "look-up by distance in tokens": distances,
            "arithmetic": {
                name: accuracy(model, tokenizer, turns) for name, turns in arithmetic_cases(rng, count // 2).items()
            },
            "json": extraction_scores(model, tokenizer, [extraction.problem(rng) for _ in range(count // 2)]),
        },
        "stories": [
            {"request": text, "story": generate(model, tokenizer, prompt(text), STORY_TOKENS, 0.7, seed)}
            for seed, text in enumerate(STORY_REQUESTS)
        ],
    }


def main() -> None:
    """Reads the command line, prints the report and writes it."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Evaluate an exported model.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=None, help="where to write the report")
    parser.add_argument("--count", type=int, default=200, help="cases for each accuracy")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = json.dumps(evaluate(args.model, args.count), indent=2)
    print(report)
    if args.json is not None:
        args.json.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
