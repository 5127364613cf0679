"""The rotation of groups of 128 columns before int8, with the bits of octavo's CPU kernels.

    rotate(x) = H S x      S: a fixed sign for each column
                           H: the Hadamard matrix, entry (i, j) is -1 where i and j have an odd number of common bits

Weights become H S w / 128 and activations H S x: products keep their values. Sums and differences are taken at the
distances 16, 32, 64, 1, 2, 4, 8, in this order.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

GROUP = 128
DISTANCES = (16, 32, 64, 1, 2, 4, 8)


@cache
def signs(device: torch.device) -> torch.Tensor:
    """S, f32 `[128]`: the high bits of a linear congruential generator (Knuth's MMIX constants)."""
    state, found = 0x0C7A0128, []
    for _ in range(GROUP):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        found.append(-1.0 if state >> 63 else 1.0)
    return torch.tensor(found, device=device)


@triton.jit
def hadamard_stage(x, BLOCK: tl.constexpr, DISTANCE: tl.constexpr):
    """Sums and differences of values `DISTANCE` apart, f32 `[BLOCK, 128]`."""
    pairs = tl.permute(tl.reshape(x, (BLOCK, 64 // DISTANCE, 2, DISTANCE)), (0, 1, 3, 2))
    first, second = tl.split(pairs)
    pairs = tl.join(first + second, first - second)
    return tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), (BLOCK, 128))


@triton.jit
def hadamard(x, BLOCK: tl.constexpr):
    """H x, f32 `[BLOCK, 128]`."""
    x = hadamard_stage(x, BLOCK, 16)
    x = hadamard_stage(x, BLOCK, 32)
    x = hadamard_stage(x, BLOCK, 64)
    x = hadamard_stage(x, BLOCK, 1)
    x = hadamard_stage(x, BLOCK, 2)
    x = hadamard_stage(x, BLOCK, 4)
    return hadamard_stage(x, BLOCK, 8)


def rotate_ref(x: torch.Tensor) -> torch.Tensor:
    """H S x in f32 of the groups of `x` `[T, K]`: `[T, 128 ceil(K / 128)]`. Missing columns are zeros."""
    return (_hadamard(_groups(x) * signs(x.device))).flatten(1)


def rotate_back_ref(x: torch.Tensor, columns: int) -> torch.Tensor:
    """S H x: takes back the rotation of weights, H S w / 128. `[T, 128 G]` to `[T, columns]`."""
    return (_hadamard(_groups(x)) * signs(x.device)).flatten(1)[:, :columns]


def _groups(x: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % GROUP))
    return padded.view(x.shape[0], padded.shape[1] // GROUP, GROUP)


def _hadamard(x: torch.Tensor) -> torch.Tensor:
    for distance in DISTANCES:
        first, second = x.view(*x.shape[:2], 64 // distance, 2, distance).unbind(3)
        x = torch.stack((first + second, first - second), 3).view(x.shape)
    return x
