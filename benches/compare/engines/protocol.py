"""The worker's side of the comparison: one engine in its own process and environment, driven by JSON lines.

A request is one line on standard input, its answer one line on the worker's own standard output (what libraries print
goes to standard error):

    {"op": "load", "model": "/path", "threads": 2, "settings": {...}, "vocabulary": 151936, "kv_tokens": 8192, ...}
    {"op": "generate", "prompt": 128, "batch": 1, "new": 33, "seed": 7}
    {"op": "memory"}
    {"op": "quit"}

Only the standard library is used here, since every engine's environment differs. A runner calls `serve` with its
`Engine` class, whose imports of the engine belong into `load`: what a process start costs includes them.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass
class Setup:
    """What an engine is told before it loads."""

    model: str
    threads: int
    settings: dict[str, str]
    vocabulary: int
    #: Tokens that the KV cache must hold in all, and of one sequence.
    kv_tokens: int
    max_tokens: int
    #: Most sequences that run at once.
    sequences: int
    #: Values (keys and values of all layers) that a token has in the KV cache.
    kv_values_per_token: int


@dataclass
class Timing:
    """One call: greedy, end-of-sequence ignored.

    Attributes:
        first_seconds: from the call until every sequence has its first token.
        decode_seconds: of the steps after that, in which all sequences run.
        decode_tokens: tokens of all sequences made in `decode_seconds`.
        ids: the first sequence's tokens, to see that engines agree.
    """

    first_seconds: float
    decode_seconds: float
    decode_tokens: int
    ids: list[int] = field(default_factory=list)


class Engine(Protocol):
    """One engine. `warms_by_shape`: the first call of a shape costs more than the next (compiled or first touched)."""

    warms_by_shape: bool

    def load(self, setup: Setup) -> None:
        """Loads the model, ready to generate."""

    def generate(self, prompts: list[list[int]], new: int) -> Timing:
        """Completes all prompts (of equal length) at once by `new` tokens each."""


def random_lengths(draw: random.Random) -> tuple[int, int]:
    """Tokens of a request of the load test: a prompt of 16 to 256, an exponential output (mean 128, 8 to 512)."""
    prompt = draw.randint(16, 256)
    return prompt, int(min(max(draw.expovariate(1 / 128), 8), 512))


def random_prompts(batch: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """`batch` prompts of `length` token ids that no other seed gives."""
    generator = random.Random(seed)
    return [[generator.randrange(2, vocabulary) for _ in range(length)] for _ in range(batch)]


def memory() -> dict[str, int]:
    """Peak and present resident bytes of this process, and the present anonymous part (without mapped files)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    names = {"peak_rss_bytes": "VmHWM", "rss_bytes": "VmRSS", "anonymous_bytes": "RssAnon"}
    return {name: int(fields[key].split()[0]) * 1024 for name, key in names.items()}


def serve(engine: Engine) -> None:
    """Answers requests until "quit" or the end of input."""
    # Libraries print to descriptor 1: keep the real one for answers, and send theirs to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    vocabulary = 0
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        operation = request.pop("op")
        answer: dict[str, Any] = {}
        try:
            if operation == "quit":
                break
            if operation == "load":
                setup = Setup(**request)
                vocabulary = setup.vocabulary
                begin = time.perf_counter()
                engine.load(setup)
                answer["load_seconds"] = time.perf_counter() - begin
                engine.generate(random_prompts(1, 16, vocabulary, 0), 1)
                answer["start_seconds"] = time.monotonic() - float(os.environ["COMPARE_SPAWNED"])
                answer["warms_by_shape"] = engine.warms_by_shape
            elif operation == "generate":
                prompts = random_prompts(request["batch"], request["prompt"], vocabulary, request["seed"])
                answer = asdict(engine.generate(prompts, request["new"]))
            elif operation == "memory":
                answer = memory()
            else:
                raise ValueError(f"unknown operation {operation!r}")
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # Some engines' destructors take seconds or fail at interpreter shutdown; nothing is left to save.
    answers.close()
    os._exit(0)
