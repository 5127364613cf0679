"""JSON extraction: a sentence about an order, a visitor or a journey becomes a JSON object."""

from __future__ import annotations

import json
import random

from . import lexicon
from .document import Document, Turn, chat
from .grammar import fill

_ASK = (
    "Extract the {fields} as JSON: {sentence}",
    "Read this and answer in JSON with the keys {fields}. {sentence}",
    "{sentence} Give me the {fields} as JSON.",
)

_ORDER = (
    "{name} [bought|ordered] {count} {item} [in|from the market of] {town} on {day}.",
    "On {day}, {name} [bought|picked up] {count} {item} in {town}.",
    "{count} {item} were sold to {name} in {town} on {day}.",
)
_VISITOR = (
    "{name} is {age} years old, lives in {town} and works as a {job}.",
    "{name}, a {job} from {town}, is {age} years old.",
    "The {job} {name} comes from {town} and is {age}.",
)
_JOURNEY = (
    "The train from {start} to {end} [leaves|departs] at {hour} o'clock and costs {price} coins.",
    "For {price} coins you can take the {hour} o'clock train from {start} to {end}.",
    "{name} [travels|goes] from {start} to {end} at {hour} o'clock for {price} coins.",
)


def problem(rng: random.Random) -> Turn:
    """A sentence with a request for all or some of its fields, and the object with these fields in order."""
    name = rng.choice(lexicon.GIRLS + lexicon.BOYS)
    start, end = rng.sample(lexicon.CITIES, 2)
    kind = rng.randrange(3)
    record: dict[str, str | int]
    if kind == 0:
        template = rng.choice(_ORDER)
        record = {
            "name": name, "item": rng.choice(lexicon.RECORD_ITEMS), "count": rng.randint(2, 99),
            "town": start, "day": rng.choice(lexicon.DAYS),
        }  # fmt: skip
    elif kind == 1:
        template = rng.choice(_VISITOR)
        record = {"name": name, "age": rng.randint(18, 80), "job": rng.choice(lexicon.TRADES), "town": start}
    else:
        template = rng.choice(_JOURNEY)
        record = {"start": start, "end": end, "hour": rng.randint(1, 12), "price": rng.randint(2, 60)}
        if "{name}" in template:
            record["name"] = name
    sentence = fill(template, {key: str(value) for key, value in record.items()}, rng)
    fields = list(record)
    if rng.random() < 0.5:
        fields = [field for field in fields if rng.random() < 0.6] or fields
    question = fill(rng.choice(_ASK), {"fields": ", ".join(fields), "sentence": sentence}, rng)
    return Turn(question, json.dumps({field: record[field] for field in fields}))


def document(rng: random.Random) -> Document:
    """A chat of one to three extractions."""
    return chat("extraction", [problem(rng) for _ in range(rng.randint(1, 3))])
