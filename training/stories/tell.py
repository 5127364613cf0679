"""Tells one story: draws a cast and a plot, and says each beat in one of its ways."""

from __future__ import annotations

import random

from ..grammar import fill
from .beat import Beat, Variants
from .cast import cast
from .plots import PLOTS


def tell(rng: random.Random, topic: str | None = None) -> str:
    """A story of about 60 to 200 words. ``topic``: a creature or thing of the lexicon that must take part."""
    slots = cast(rng, topic)
    while True:
        story = _attempt(rng, slots)
        if topic is None or topic in story:
            return story


def _attempt(rng: random.Random, slots: dict[str, str]) -> str:
    sentences = []
    for beat in rng.choice(PLOTS):
        variants = _variants(beat, rng)
        if variants is not None:
            sentences.append(fill(rng.choice(variants), slots, rng))
    # A paragraph break now and then, as a story has.
    breaks = {index for index in range(2, len(sentences) - 1) if rng.random() < 0.2}
    text = sentences[0]
    for index, sentence in enumerate(sentences[1:], start=1):
        text += ("\n\n" if index in breaks else " ") + sentence
    return text


def _variants(beat: Beat, rng: random.Random) -> Variants | None:
    """The ways to say a beat, or None where it is left out this time."""
    probability, variants = beat[0], beat[1]
    if isinstance(probability, float) and isinstance(variants, tuple):
        return None if rng.random() > probability else variants
    return tuple(text for text in beat if isinstance(text, str))
