"""Which words of a story count more: those it has said before and must keep to, above all the names."""

from __future__ import annotations

import re

from .. import lexicon
from ..document import REPEAT_WEIGHT, Segment

_PRONOUNS = ("he", "she", "him", "her", "his")
_KEPT = frozenset(
    word.lower()
    for words in (
        lexicon.NAMES, lexicon.CREATURES, lexicon.THINGS, lexicon.COLORS, lexicon.FOODS, lexicon.PLACES,
        lexicon.CITIES, _PRONOUNS,
    )
    for phrase in words
    for word in phrase.split()
)  # fmt: skip
# As the tokenizer parts them: a word goes with the space before it.
_WORD = re.compile(r" ?[A-Za-z]+")


def segments(story: str) -> tuple[Segment, ...]:
    """The text of a story in segments; a word of its cast that came before weighs ``REPEAT_WEIGHT``."""
    found: list[Segment] = []
    said: set[str] = set()
    start = 0
    for match in _WORD.finditer(story):
        word = match[0].strip().lower()
        if word not in _KEPT:
            continue
        # After a line break a cut would change the tokens of the break.
        if word in said and not story[: match.start()].endswith("\n"):
            found += [Segment(story[start : match.start()]), Segment(match[0], REPEAT_WEIGHT)]
            start = match.end()
        said.add(word)
    return tuple(segment for segment in (*found, Segment(story[start:])) if segment.text)
