"""What a plot is made of: beats, each one thing that happens and the ways to say it."""

from __future__ import annotations

Variants = tuple[str, ...]
# A beat that is always told, or one that is told with the given probability.
Beat = Variants | tuple[float, Variants]
Plot = tuple[Beat, ...]
