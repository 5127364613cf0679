"""Muon: momentum whose update is made orthogonal, for matrices. Everything else is AdamW's.

The gradient of a matrix has a few large singular values; its orthogonal factor moves all directions equally,
so that rare directions are learnt as fast as common ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# The quintic a*x + b*x^3 + c*x^5 drives singular values in (0, 1] towards 1. These coefficients give up
# exactness (the values end between about 0.7 and 1.2) for speed near 0.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """The near-orthogonal factor of each matrix of a stack [count, rows, columns], by Newton-Schulz."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    x: Tensor = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum, decoupled weight decay. Matrices of one shape form a stack."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            if matrix.ndim != 2:
                raise ValueError(f"Muon takes matrices; got a parameter of shape {tuple(matrix.shape)}")
            shapes.setdefault(matrix.shape, []).append(matrix)
        groups: list[dict[str, Any]] = [{"params": group} for group in shapes.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all matrices once."""
        if closure is not None:
            raise ValueError("Muon does not re-evaluate the loss; call backward first and pass no closure")
        for group in self.param_groups:
            updates = []
            for matrix in group["params"]:
                if matrix.grad is None:
                    raise ValueError(f"a matrix of shape {tuple(matrix.shape)} has no gradient")
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                updates.append(matrix.grad.lerp(state["momentum"], group["momentum"]))
            rows, columns = group["params"][0].shape
            # A tall matrix needs a larger step for the same change of its output.
            scale = group["lr"] * max(1.0, rows / columns) ** 0.5
            for matrix, update in zip(group["params"], orthogonalise(torch.stack(updates)), strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.sub_(update, alpha=scale)
