"""All plots that a story may follow."""

from __future__ import annotations

from .adventures import CONTEST, JOURNEY, NIGHT_SOUND, STORM
from .beat import Plot
from .kindness import GIFT, LOST, MISTAKE, NEWCOMER, SEED

PLOTS: tuple[Plot, ...] = (LOST, STORM, GIFT, CONTEST, NIGHT_SOUND, JOURNEY, SEED, NEWCOMER, MISTAKE)
