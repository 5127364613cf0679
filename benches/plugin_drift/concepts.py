"""What fields stand for. The oracle judges by concepts; a name on the wire is only a label that drifts.

Several concepts share names on purpose: `limit` may be a count of results or a price. A client that pairs fields by
name or by type alone gives a value to another concept, and the oracle sees it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

Value = str | int | float | bool


@dataclass(frozen=True)
class Concept:
    """One meaning.

    Attributes:
        kind: `text`, `count` (an integer), `share` (a number), `choice` or `flag`.
        names: names that authors give a field for it.
        phrases: sentences that describe it; each belongs to this concept alone.
        values: what users want.
    """

    id: str
    kind: str
    names: tuple[str, ...]
    phrases: tuple[str, ...]
    values: tuple[Value, ...]

    def draw(self, rng: random.Random) -> Value:
        return rng.choice(self.values)


def _text(id_: str, names: str, phrases: tuple[str, ...], values: str) -> Concept:
    return Concept(id_, "text", tuple(names.split()), phrases, tuple(values.split()))


def _count(id_: str, names: str, phrases: tuple[str, ...], low: int, high: int) -> Concept:
    return Concept(id_, "count", tuple(names.split()), phrases, tuple(range(low, high + 1)))


def _choice(id_: str, names: str, phrases: tuple[str, ...], values: str) -> Concept:
    return Concept(id_, "choice", tuple(names.split()), phrases, tuple(values.split()))


CONCEPTS: tuple[Concept, ...] = (
    _text("place", "city town place location", ("Where to search.", "The place of interest."), "Corrin Vale Osten Ny"),
    _text("country", "country nation region", ("The state that the place is in.", "Which country."), "FR NO JP 42"),
    _text("contact", "contact email name", ("The person to inform.", "Who gets the answer."), "ada bob 7 cy"),
    _text("origin", "from origin start", ("Where the trip begins.", "Point of departure."), "Lund Riga Bonn 12"),
    _text("target", "to target destination", ("Where the trip ends.", "Point of arrival."), "Oslo Graz Kiel 31"),
    _text("query", "query text name", ("Words to search for.", "The text that results contain."), "tea ink map 5"),
    _text("day", "date day start", ("The first day, as text.", "Day on which it begins."), "2026-12-01 2027-01-05"),
    _count("days", "days length duration", ("How many days.", "Number of days to cover."), 1, 14),
    _count("results", "limit count size", ("How many results at most.", "Largest number of hits."), 1, 50),
    _count("price", "limit price max_price", ("Highest price in euro.", "What it may cost."), 5, 90),
    _count("people", "count people seats", ("How many persons.", "Number of seats."), 1, 12),
    _count("radius", "radius distance size", ("Distance from the place in kilometres.", "How far around."), 1, 80),
    Concept("rating", "share", ("rating", "score"), ("Lowest rating from 0 to 1.", "Least score."),
            (0.0, 0.25, 0.5, 0.75, 1.0)),
    Concept("discount", "share", ("discount", "rate"), ("Discount as a share.", "Part taken off the price."),
            (0.0, 0.125, 0.5, 1.0)),
    _choice("units", "units unit system", ("Units of the answer.", "Measures to answer in."), "metric imperial si"),
    _choice("order", "sort order mode", ("Order of the results.", "What comes first."), "cheap near best new"),
    _choice("language", "language lang locale", ("Language of the answer.", "Tongue to write in."), "en fr de no"),
    _choice("mode", "mode kind system", ("Means of transport.", "How to travel."), "rail road air sea"),
    Concept("details", "flag", ("details", "verbose"), ("Whether to give details.", "Longer answers."), (True, False)),
    Concept("archived", "flag", ("archived", "all"), ("Whether to include old entries.", "Old entries too."),
            (True, False)),
)  # fmt: skip
BY_ID = {concept.id: concept for concept in CONCEPTS}
BY_PHRASE = {phrase: concept for concept in CONCEPTS for phrase in concept.phrases}
assert len(BY_PHRASE) == sum(len(concept.phrases) for concept in CONCEPTS)

Meaning = dict[str, Value]


def encode(value: Value, shape: str) -> Any:
    """A value on the wire. `plain`: its own JSON type. `text`: a number as a string. `list`: one item of an array."""
    if shape == "list":
        return [value]
    return (str(value) if not isinstance(value, float) else repr(value)) if shape == "text" else value


def decode(value: Any, concept: Concept, shape: str) -> Value:
    """The inverse of `encode`.

    Raises:
        ValueError: a value of another type.
    """
    if shape == "list":
        if not isinstance(value, list) or len(value) != 1:
            raise ValueError("not an array of one item")
        return decode(value[0], concept, "plain")
    if shape == "text":
        if not isinstance(value, str):
            raise ValueError("not a string")
        return int(value) if concept.kind == "count" else float(value)
    return _plain(value, concept.kind)


def _plain(value: Any, kind: str) -> Value:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind in ("text", "choice") and isinstance(value, str):
        return value
    if kind == "flag" and isinstance(value, bool):
        return value
    if kind == "count" and number and value == int(value):
        return int(value)
    if kind == "share" and number:
        return float(value)
    raise ValueError(f"not a {kind}")
