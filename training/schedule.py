"""The learning rate over steps: warm-up, stable, linear decay (WSD)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """``steps`` in all: the first ``warmup`` rise, the last ``decay`` fall to ``floor`` of the peak."""

    steps: int
    warmup: int
    decay: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.decay < 0 or self.warmup + self.decay > self.steps:
            raise ValueError(
                f"warmup {self.warmup} and decay {self.decay} must fit into {self.steps} steps; give "
                f"more steps or shorten them"
            )

    def factor(self, step: int) -> float:
        """The factor on the peak rate at step 0, 1, ..., steps - 1."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = self.steps - step
        if left >= self.decay or self.decay == 0:
            return 1.0
        return self.floor + (1.0 - self.floor) * left / self.decay

    def is_decaying(self, step: int) -> bool:
        """True in the last phase, where the mix may turn to long contexts."""
        return step >= self.steps - self.decay
