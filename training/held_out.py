"""Writes the cases that `octavo eval` asks: ``python -m training.held_out --model FOLDER --out FILE``.

From seeds that training does not see. The facts and the products are those of training, since there are no others;
their wording is drawn anew. The model folder gives the tokenizer that measures the distances of look-ups.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from . import arithmetic, conversation, copying, extraction, lookup, questions, reading
from .document import Turn, prompt
from .lexicon import KEY_WORDS, NAMES
from .stories import tell

SEED = "held out"
# Tokens between the question's end and the line that it asks for, with the number of cases.
DISTANCES = {64: 100, 256: 100, 1024: 100, 2000: 60}
# Tokens of the text, about, with the number of cases.
READINGS = {100: 100, 400: 100, 1000: 60}
# Places in a story where only one name can follow.
_CLOZE = re.compile(r'(?:From that day on,|After that,|thanked|"Thank you,) (' + "|".join(NAMES) + r")\b")

Case = dict[str, Any]


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


def name_case(rng: random.Random) -> Case:
    """A story up to a place where it can only go on with the name of its hero or friend."""
    while True:
        story = tell(rng)
        found = [match for match in _CLOZE.finditer(story) if match[1] in story[: match.start()]]
        if found:
            chosen = rng.choice(found)
            # The space belongs to the name, as in the tokens.
            prompt_end = chosen.start(1) - 1
            return {
                "skill": "names in a story", "prompt": story[:prompt_end], "answer": f" {chosen[1]}", "match": "start",
            }  # fmt: skip


def asked(skill: str, turn: Turn, match: str = "exact", system: str | None = None) -> Case:
    """A question in the chat format."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": turn.question})
    return {"skill": skill, "messages": messages, "answer": turn.answer, "match": match}


def readings(rng: random.Random) -> Iterator[Case]:
    """Texts of fresh facts, each with one question: as the system message, or before the question."""
    for tokens, count in READINGS.items():
        for index in range(count):
            facts, text = reading.text_within(rng, tokens)
            turn = reading.ask(rng.choice(facts), rng)
            skill = f"reading, {tokens} tokens"
            if index % 2:
                yield asked(skill, turn, system=text)
            else:
                yield asked(skill, Turn(f"{text}\n{turn.question}", turn.answer))


def sums(rng: random.Random, count: int) -> Iterator[Case]:
    """Problems by kind and size, ``count`` of each."""

    def pair(top: int) -> list[int]:
        return sorted((rng.randint(0, top), rng.randint(0, top)), reverse=True)

    for _ in range(count):
        yield asked("addition, 1 or 2 digits", arithmetic.addition(rng, *pair(99)))
    for _ in range(count):
        yield asked("addition, 3 digits", arithmetic.addition(rng, rng.randint(100, 999), rng.randint(0, 999)))
    for _ in range(count):
        yield asked("subtraction, 1 or 2 digits", arithmetic.subtraction(rng, *pair(99)))
    for _ in range(count):
        yield asked("subtraction, 3 digits", arithmetic.subtraction(rng, rng.randint(500, 999), rng.randint(0, 499)))
    for _ in range(count):
        yield asked("product, up to 12 x 12", arithmetic.product(rng, rng.randint(0, 12), rng.randint(0, 12)))


def cases(tokenizer: Tokenizer) -> Iterator[Case]:
    """All cases, skill by skill."""
    rng = random.Random(SEED)
    for _ in range(60):
        yield {"skill": "story", "text": tell(rng)}
    for _ in range(100):
        yield name_case(rng)
    for fact in questions.FACTS:
        yield asked("question", questions.ask(fact, rng))
    for _ in range(60):
        yield asked("unknown, says so", conversation.unknown(rng))
    for distance, count in DISTANCES.items():
        for _ in range(count):
            yield asked(f"look-up, {distance} tokens back", lookup_case(tokenizer, rng, distance)[0])
    # Drawn apart: the cases of the other skills stay what they were.
    yield from readings(random.Random(f"{SEED}/reading"))
    yield from sums(rng, 100)
    for _ in range(120):
        yield asked("JSON", extraction.problem(rng), "json")
    for _ in range(60):
        line = copying.words(rng, rng.randint(4, 16))
        yield asked("copying", Turn(f"Repeat this:\n{line}", line))


def main() -> None:
    """Reads the command line and writes the file."""
    parser = argparse.ArgumentParser(prog="python -m training.held_out", description="Write the held-out cases.")
    parser.add_argument("--model", type=Path, required=True, help="an exported folder, for its tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl.gz file")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    text = "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases(tokenizer))
    args.out.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{text.count(chr(10))} cases, {len(text.encode()):,} bytes, {args.out.stat().st_size:,} packed")


if __name__ == "__main__":
    main()
