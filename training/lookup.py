"""Look-ups: lines with fresh random keys and values, then questions. Nothing can be known by heart."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .document import READ_WEIGHT, Document, Segment, Turn, chat
from .lexicon import KEY_WORDS

# Tokens of "The key of falcon is 482.\n" with the tokenizer of this folder.
TOKENS_PER_LINE = 11


@dataclass(frozen=True)
class Entry:
    """A key word and its value of three digits."""

    key: str
    value: str

    @property
    def line(self) -> str:
        """The sentence that states it, and that answers a question for it."""
        return f"The key of {self.key} is {self.value}."

    @property
    def question(self) -> str:
        """The question for it."""
        return f"What is the key of {self.key}?"


def draw(rng: random.Random, count: int) -> list[Entry]:
    """``count`` entries with distinct keys. Raises ValueError for more than there are key words."""
    if count > len(KEY_WORDS):
        raise ValueError(f"there are {len(KEY_WORDS)} key words, so no more entries; got {count}")
    return [Entry(key, str(rng.randint(100, 999))) for key in rng.sample(KEY_WORDS, count)]


def document(rng: random.Random, tokens: int) -> Document:
    """A look-up document of at most about ``tokens`` tokens, as a chat or as a plain list."""
    return _ledger(rng, tokens) if rng.random() < 0.5 else _chat(rng, tokens)


def _ledger(rng: random.Random, tokens: int) -> Document:
    """Plain lines in which known keys come back, near or far: dense practice in looking back."""
    total = max(6, tokens // TOKENS_PER_LINE - 2)
    entries = draw(rng, min(len(KEY_WORDS), rng.randint(max(3, total // 4), max(4, total // 2))))
    fresh = list(entries)
    known: list[Entry] = []
    segments = []
    for index in range(total):
        # New keys come at an even rate over the first two thirds, so that the questions reach far back.
        due = len(entries) * 3 * (index + 1) / (2 * total)
        if fresh and (len(known) < due or not known):
            entry = fresh.pop()
            known.append(entry)
            segments.append(Segment(entry.line + "\n", READ_WEIGHT))
        else:
            entry = rng.choice(known)
            head, _, value = entry.line.rpartition(" ")
            segments += [Segment(head, READ_WEIGHT), Segment(f" {value}"), Segment("\n", READ_WEIGHT)]
    return Document("lookup", tuple(segments))


def _chat(rng: random.Random, tokens: int) -> Document:
    """A list in the first message, questions in the turns."""
    questions = rng.randint(2, max(2, min(12, tokens // 100)))
    count = max(2, min(len(KEY_WORDS) - 2, (tokens - 35 * questions) // TOKENS_PER_LINE - 1))
    entries = draw(rng, count)
    asked = [rng.choice(entries) for _ in range(questions)]
    return conversation(entries, asked)


def conversation(entries: list[Entry], asked: list[Entry]) -> Document:
    """The lines of ``entries`` and the first question in one message; further questions follow as turns."""
    context = "\n".join(entry.line for entry in entries)
    turns = [Turn(entry.question, entry.line) for entry in asked]
    turns[0] = Turn(f"{context}\n{turns[0].question}", turns[0].answer)
    return chat("lookup", turns)
