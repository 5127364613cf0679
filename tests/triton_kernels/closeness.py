"""Comparison with a reference: relative RMS and largest error, both printed."""

from __future__ import annotations

import torch

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Relative RMS error: a few units in the last place of the dtype."""


def assert_close(name: str, found: torch.Tensor, wanted: torch.Tensor, ratio: float | None = None) -> None:
    """Relative RMS error at most `ratio` (of the dtype if None); NaN and infinities in the same places."""
    assert found.shape == wanted.shape, f"{name}: shape {list(found.shape)}, wanted {list(wanted.shape)}"
    assert found.dtype == wanted.dtype, f"{name}: {found.dtype}, wanted {wanted.dtype}"
    ratio = TOLERANCE[found.dtype] if ratio is None else ratio
    f, w = found.double().cpu(), wanted.double().cpu()
    odd = ~(f.isfinite() & w.isfinite())
    assert torch.equal(f[odd].nan_to_num(nan=7.0), w[odd].nan_to_num(nan=7.0)), f"{name}: other NaN or infinities"
    f, w = f[~odd], w[~odd]
    if not f.numel():
        return
    scale = w.pow(2).mean().sqrt().item()
    rms, worst = (f - w).pow(2).mean().sqrt().item(), (f - w).abs().max().item()
    message = f"{name}: RMS error {rms:.3g}, largest {worst:.3g}, RMS of the reference {scale:.3g}"
    assert rms <= ratio * scale + 1e-30, message
    assert worst <= 20 * ratio * max(scale, w.abs().max().item()) + 1e-30, message
