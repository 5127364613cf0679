"""What is asked of a model under load: prompts and output lengths, drawn at random or read from a file."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from octavo.errors import InvalidRequestError

Conversation: TypeAlias = list[dict[str, Any]]
Tokenize: TypeAlias = Callable[[str], list[int]]

# More than that is no bench any more, and would be held in memory.
MOST_PROMPTS = 1_000_000
MOST_TOKENS = 1_000_000
_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "thing",
    "world",
    "life",
    "hand",
    "part",
    "child",
    "eye",
    "place",
    "work",
    "week",
    "case",
    "point",
    "house",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "far",
    "black",
    "long",
    "great",
    "small",
    "old",
    "large",
    "big",
    "high",
    "young",
    "early",
    "public",
    "bad",
    "same",
    "able",
    "river",
    "stone",
    "light",
    "winter",
    "garden",
    "letter",
    "music",
    "summer",
    "bread",
    "window",
]
# Without a tokenizer: so many words of the above make about so many tokens.
_TOKENS_PER_WORD = 1.1


@dataclass(frozen=True)
class Job:
    """One request.

    Attributes:
        prompt: a text, token ids, or messages.
        output_tokens: how many tokens are asked for; None: as many as the model likes.
    """

    prompt: str | list[int] | Conversation
    output_tokens: int | None


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens.

    Attributes:
        mean: its centre.
        spread: "uniform": lengths lie within mean * (1 - spread) and mean * (1 + spread). "lognormal": the standard
            deviation of the logarithm, around the mean as median.
    """

    mean: int
    spread: float = 0.0
    kind: Literal["uniform", "lognormal"] = "uniform"

    def __post_init__(self) -> None:
        if not 1 <= self.mean <= MOST_TOKENS:
            raise InvalidRequestError(f"a length is {self.mean} tokens: 1 to {MOST_TOKENS} is expected")
        if self.kind not in ("uniform", "lognormal"):
            raise InvalidRequestError(f"the distribution is {self.kind!r}: uniform or lognormal is expected")
        most = 1.0 if self.kind == "uniform" else 3.0
        if not (math.isfinite(self.spread) and 0 <= self.spread <= most):
            raise InvalidRequestError(f"the spread of lengths is {self.spread}: 0 to {most} is expected")

    def draw(self, rng: random.Random) -> int:
        if self.kind == "lognormal":
            drawn = self.mean * math.exp(rng.gauss(0.0, self.spread))
            return max(1, min(MOST_TOKENS, round(drawn)))
        low, high = math.floor(self.mean * (1 - self.spread)), math.ceil(self.mean * (1 + self.spread))
        return max(1, rng.randint(low, high))


def random_jobs(
    count: int,
    inputs: Lengths,
    outputs: Lengths,
    *,
    prefix_tokens: int = 0,
    seed: int = 0,
    tokenize: Tokenize | None = None,
) -> list[Job]:
    """Prompts of random words, all different after a common prefix of `prefix_tokens`.

    Args:
        tokenize: then prompts are token ids of exactly the length drawn; without it they are texts of about it.
    """
    check_count(count)
    if not 0 <= prefix_tokens <= MOST_TOKENS:
        raise InvalidRequestError(f"the prefix has {prefix_tokens} tokens: 0 to {MOST_TOKENS} is expected")
    rng = random.Random(seed)
    prefix = _exactly(rng, prefix_tokens, tokenize)
    jobs = []
    for _ in range(count):
        own = _exactly(rng, inputs.draw(rng), tokenize)
        both = prefix + own if isinstance(prefix, list) and isinstance(own, list) else f"{prefix} {own}".strip()
        jobs.append(Job(both, outputs.draw(rng)))
    return jobs


def _exactly(rng: random.Random, tokens: int, tokenize: Tokenize | None) -> str | list[int]:
    if tokenize is None:
        return " ".join(rng.choices(_WORDS, k=round(tokens / _TOKENS_PER_WORD) or bool(tokens)))
    # A word is at least one token: so many words are enough.
    return tokenize(" ".join(rng.choices(_WORDS, k=tokens)))[:tokens] if tokens else []


def read_jobs(path: Path, count: int, output_tokens: int | None, *, seed: int = 0, shuffle: bool = True) -> list[Job]:
    """Jobs from JSON lines: `{"prompt": ...}` or `{"messages": [...]}`, each with an optional `"output_tokens"`.

    A file of fewer lines than `count` begins again. `output_tokens` is for lines that say nothing.
    """
    check_count(count)
    try:
        with path.open(encoding="utf-8") as lines:
            found = list(_read(path, lines))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--dataset-path {path}: {error}") from error
    if not found:
        raise InvalidRequestError(f"--dataset-path {path}: no line holds a prompt")
    if shuffle:
        random.Random(seed).shuffle(found)
    chosen = (found[i % len(found)] for i in range(count))
    return [Job(j.prompt, output_tokens if j.output_tokens is None else j.output_tokens) for j in chosen]


def _read(path: Path, lines: Any) -> Iterator[Job]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"--dataset-path {path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidRequestError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            row = {"prompt": row}
        prompt = row.get("prompt", row.get("messages"))
        is_turns = isinstance(prompt, list) and all(isinstance(turn, dict) for turn in prompt)
        if not prompt or not (isinstance(prompt, str) or is_turns):
            raise InvalidRequestError(f'{where}: {{"prompt": "text"}} or {{"messages": [...]}} is expected')
        length = row.get("output_tokens")
        if length is not None and (type(length) is not int or not 1 <= length <= MOST_TOKENS):
            raise InvalidRequestError(f"{where}: output_tokens is {length!r}: 1 to {MOST_TOKENS} is expected")
        yield Job(prompt, length)


def check_count(count: int) -> None:
    if not 1 <= count <= MOST_PROMPTS:
        raise InvalidRequestError(f"--num-prompts is {count}: 1 to {MOST_PROMPTS} is expected")
