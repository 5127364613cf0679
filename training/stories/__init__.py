"""Short stories from a grammar: a cast, a plot of beats, and several ways to tell each beat."""

from .tell import tell
from .weights import segments

__all__ = ["segments", "tell"]
