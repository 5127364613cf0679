"""The optimizer of distillation: Muon for the matrices of layers, AdamW for everything else, under one rate.

Muon's updates are scaled to the root mean square of AdamW's (`match_rms_adamw`, arXiv 2502.16982). One rate suits
both then. Both are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["muon_and_adamw", "rate_for"]

_WEIGHT_DECAY = 0.05


def rate_for(hidden: int) -> float:
    """The peak of the rate for this hidden size: a matrix of n columns takes steps in proportion to 1 / n."""
    return min(1e-2, 1.0 / hidden)


def muon_and_adamw(model: Any, rate: float) -> torch.optim.Optimizer:
    """The optimizer for the parameters of `model`; AdamW alone where torch is older than 2.9 and has no Muon."""
    import torch

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name and hasattr(torch.optim, "Muon")]
    chosen = set(map(id, matrices))
    others = [p for _, p in named if id(p) not in chosen]
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)]
    if matrices:
        parts.append(torch.optim.Muon(matrices, lr=rate, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"))
    return _several(parts)


def _several(parts: list[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    import torch

    class Several(torch.optim.Optimizer):
        """Optimizers that step together. Their parameter groups are shared with this one."""

        def __init__(self) -> None:
            super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
            self.param_groups = [group for part in parts for group in part.param_groups]

        def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
            if closure is not None:
                raise ValueError("the loss is not evaluated again: pass no closure")
            for part in parts:
                part.step()

        def zero_grad(self, set_to_none: bool = True) -> None:
            for part in parts:
                part.zero_grad(set_to_none)

        def state_dict(self) -> dict[str, Any]:
            return {str(number): part.state_dict() for number, part in enumerate(parts)}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            for number, part in enumerate(parts):
                part.load_state_dict(state_dict[str(number)])
            self.param_groups = [group for part in parts for group in part.param_groups]

    return Several()
