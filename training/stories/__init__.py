"""Short stories from a grammar: a cast, a plot of beats, and several ways to tell each beat."""

from .weights import segments
from .tell import tell

__all__ = ["segments", "tell"]
