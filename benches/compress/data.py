"""Data of the bench: examples of the embedded model's own generators, and English text for a vocabulary."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from training import corpus
from training.document import TURN_END, TURN_START, Document

# Shares of documents. The skills that come back last, such as sums, get the most tokens.
MIX = corpus.Mix(
    {
        "story": 0.06,
        "question": 0.2,
        "lookup": 0.1,
        "arithmetic": 0.2,
        "extraction": 0.1,
        "conversation": 0.05,
        "copying": 0.09,
        "reading": 0.2,
    },
    short_lookups=True,
)
DOCUMENTS = 53_000
ROOM, LONG_ROOM, LONG_SHARE = 400, 2000, 0.03
WORDS = 60_000
# How often a word stands in the corpus: by its frequency, but no more often than this.
_WORDS_OF_TEXT, _MOST = 5_000_000, 500
# Of a word's occurrences, as parts: after a space, the same with a capital, and with a capital after a new line.
_FORMS = ((" ", False, 1.0), (" ", True, 0.15), ("\n", True, 0.1))
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was",
    "To make a good cup of tea,",
    "The largest planet in the solar system is",
    "A computer is a machine that",
    "In the morning the farmer",
    "Water freezes when",
    "The history of the city begins",
    "My favorite book is about",
    "The best way to learn a language is",
    "When the war ended, the people",
    "She opened the door and saw",
    "The doctor told him that",
    "Music is important because",
    "The company was founded in",
    "During the winter, the lake",
    "The president said that the",
    "He went to the market to buy",
    "The sun rises in the",
    "Children like to play with",
    "The river flows through the",
    "A good friend is someone who",
    "The train arrived at the station",
    "Scientists have discovered that",
    "My grandmother used to say that",
    "The recipe calls for two cups of",
    "On a cold night in December,",
    "Doctors recommend that patients",
    "The king ordered his soldiers",
    "In computer science, an algorithm",
    "Our team won the game because",
    "The museum opened its doors",
    "Before you buy a car,",
    "The teacher asked the class",
    "Plants need sunlight and",
    "The price of oil",
    "A long journey across the desert",
    "The law says that every citizen",
    "She wrote a letter to her brother",
    "The experiment showed that",
    "When I was a child, we lived",
    "The bridge was built in",
    "Dogs are known for",
    "The movie tells the story of",
    "He opened the box and found",
    "Farmers in the region grow",
    "The mountain is famous for its",
    "If you want to lose weight,",
)


def example(document: Document) -> dict[str, Any]:
    """A document as a line of a data file: a chat, or a text."""
    if not document.text.startswith(TURN_START):
        return {"text": document.text}
    messages = []
    for turn in document.text.split(TURN_START)[1:]:
        role, _, content = turn.partition("\n")
        messages.append({"role": role, "content": content.removesuffix(f"{TURN_END}\n")})
    return {"messages": messages}


def write_examples(path: Path, count: int = DOCUMENTS) -> None:
    """Writes `count` examples. The same call writes the same bytes."""
    rng = random.Random("compress")
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            room = ROOM if rng.random() > LONG_SHARE else LONG_ROOM
            file.write(json.dumps(example(corpus.document(rng, room, MIX))) + "\n")


def english() -> Iterator[str]:
    """Words of English as often as wordfreq has them, and descriptions of installed packages."""
    import wordfreq

    for word in wordfreq.top_n_list("en", WORDS):
        count = min(_MOST, wordfreq.word_frequency(word, "en") * _WORDS_OF_TEXT)
        for before, capital, part in _FORMS:
            yield f"{before}{word.capitalize() if capital else word}" * max(1, round(part * count))
    for distribution in sorted(distributions(), key=lambda d: d.metadata["Name"]):
        text = distribution.metadata.get_payload()
        if isinstance(text, str):
            yield text
