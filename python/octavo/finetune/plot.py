"""A plot of the loss as SVG, without a library."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["loss_plot"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 320, 56, 36, 16


def loss_plot(log: list[dict[str, Any]]) -> str:
    """An SVG of the training loss (line) and the validation loss (dots) over the steps; the loss is on a log scale."""
    train = [(line["step"], line["loss"]) for line in log if "loss" in line]
    held = [(line["step"], line["eval_loss"]) for line in log if "eval_loss" in line]
    steps = max((step for step, _ in train + held), default=1)
    values = [max(loss, 1e-6) for _, loss in train + held] or [1.0]
    low, high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05

    def point(step: float, loss: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - 16) * step / steps
        height = (math.log10(max(loss, 1e-6)) - low) / (high - low)
        return round(across, 1), round(_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * height, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for i in range(5):
        value = 10 ** (low + (high - low) * i / 4)
        y = point(0, value)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 16}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.3g}</text>')
        step = round(steps * i / 4)
        parts.append(f'<text x="{point(step, 1)[0]}" y="{_HEIGHT - 16}" text-anchor="middle">{step}</text>')
    line = " ".join(f"{x},{y}" for x, y in (point(*p) for p in train))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="1.5"/>')
    parts += [f'<circle cx="{x}" cy="{y}" r="4" fill="#d1242f"/>' for x, y in (point(*p) for p in held)]
    parts.append(f'<text x="{_WIDTH - 16}" y="{_HEIGHT - 2}" text-anchor="end">step; loss, nats a token</text></svg>')
    return "\n".join(parts) + "\n"
