"""The int8 block format, copies of blocks, and what is read back."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from octavo.triton_kernels.block_ops import copy_blocks, copy_blocks_ref, quantize_blocks, quantize_blocks_ref
from octavo.triton_kernels.kv_cache import FloatKV, Int8KV, dequantize_blocks_ref, gather_keys_values


def filled(head_dim: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Int8KV:
    """Six blocks of two heads, four with open blocks of random keys with channel offsets."""
    kv = Int8KV.empty(6, 5, 2, head_dim, dtype, device)
    kv.open_block_of[torch.tensor([0, 2, 3, 5])] = torch.tensor([4, 0, 2, 1], dtype=torch.int32, device=device)
    shape = kv.open_k.shape
    offsets = torch.randn(head_dim, generator=generator) * 8
    kv.open_k.copy_(torch.randn(shape, generator=generator) + offsets)
    kv.open_v.copy_(torch.randn(shape, generator=generator))
    return kv


def twin(kv: Int8KV) -> Int8KV:
    return Int8KV(**{f.name: getattr(kv, f.name).clone() for f in fields(kv)})


@pytest.mark.parametrize("head_dim", [16, 80, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantised_blocks_match_the_formula(
    head_dim: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    kv = filled(head_dim, dtype, device, generator)
    wanted = twin(kv)
    blocks = torch.tensor([2, -1, 5, 1], dtype=torch.int32, device=device)
    quantize_blocks(kv, blocks)
    quantize_blocks_ref(wanted, blocks)
    for name in ("k_high", "k_low", "k_lo", "k_step", "v", "v_scale"):
        assert torch.equal(getattr(kv, name), getattr(wanted, name)), name
    for name in ("k_reach", "v_norm"):
        torch.testing.assert_close(getattr(kv, name), getattr(wanted, name))
    assert kv.v[1].eq(0).all(), "a block without an open block was written"


@pytest.mark.parametrize("head_dim", [64, 96])
def test_errors_stay_within_half_a_step(head_dim: int, device: torch.device, generator: torch.Generator) -> None:
    kv = filled(head_dim, torch.float32, device, generator)
    # Hard ranges: constant channels, tiny ones, an outlier, offsets that bfloat16 cannot hold exactly.
    kv.open_k[0, :, :, 0] = 3.14159
    kv.open_k[0, :, :, 1] = 1e-6 * torch.arange(32)
    kv.open_k[0, 0, 7, 2] = 900.0
    kv.open_k[0, :, :, 3] += 1000.3
    kv.open_v[0, 0, 5] = 0.0
    quantize_blocks(kv, torch.tensor([2], dtype=torch.int32, device=device))
    k, v = dequantize_blocks_ref(kv, torch.tensor([2]))
    half_step = kv.k_step[2].float()[:, None] * 0.501 + 1e-6
    assert ((k[0] - kv.open_k[0]).abs() <= half_step).all()
    assert ((v[0] - kv.open_v[0]).abs() <= kv.v_scale[2].float()[..., None] * 0.501).all()
    norms = v[0].norm(dim=-1).amax(-1)
    assert (kv.v_norm[2] >= norms).all()
    assert (kv.v_norm[2] <= norms * 1.00001).all()


def test_what_is_no_number_stays_none(device: torch.device, generator: torch.Generator) -> None:
    kv = filled(16, torch.float32, device, generator)
    kv.open_k[0, 0, 3, 5] = float("nan")
    kv.open_v[0, 1, 4, 2] = float("inf")
    quantize_blocks(kv, torch.tensor([2], dtype=torch.int32, device=device))
    k, v = dequantize_blocks_ref(kv, torch.tensor([2]))
    assert k[0, 0, :, 5].isnan().all()
    assert k[0, 0, :, :5].isfinite().all()
    assert v[0, 1, 4].isnan().all()
    assert v[0, 1, :4].isfinite().all()
    assert kv.v_norm[2].tolist()[1] == float("inf")
    assert kv.k_reach[2].isnan().tolist() == [True, False]
    wanted = twin(kv)
    quantize_blocks_ref(wanted, torch.tensor([2]))
    for name in ("k_high", "k_low", "v"):
        assert torch.equal(getattr(kv, name), getattr(wanted, name)), name


def test_blocks_are_copied_with_their_open_blocks(device: torch.device, generator: torch.Generator) -> None:
    kv = filled(16, torch.bfloat16, device, generator)
    quantize_blocks(kv, torch.tensor([2, 3], dtype=torch.int32, device=device))
    before = twin(kv)
    copies = torch.tensor([[2, 5], [-1, 0], [3, 1], [4, -1]], dtype=torch.int32, device=device)
    open_copies = torch.tensor([[0, 1], [-1, 4], [2, -1]], dtype=torch.int32, device=device)
    copy_blocks(kv, copies, open_copies)
    by_torch = twin(before)
    copy_blocks_ref(by_torch, copies, open_copies)
    for field in fields(kv):
        assert torch.equal(getattr(kv, field.name), getattr(by_torch, field.name)), field.name
    for name in ("k_high", "k_low", "k_lo", "k_step", "k_reach", "v", "v_scale", "v_norm"):
        found, old = getattr(kv, name), getattr(before, name)
        assert torch.equal(found[5], old[2]), name
        assert torch.equal(found[1], old[3]), name
        assert torch.equal(found[[0, 2, 3, 4]], old[[0, 2, 3, 4]]), name
    assert torch.equal(kv.open_k[1], before.open_k[0]), "block 5's open block is a copy of block 2's"
    assert torch.equal(kv.open_v[[0, 2, 3, 4]], before.open_v[[0, 2, 3, 4]])

    plain = FloatKV.empty(4, 2, 16, torch.bfloat16, device)
    plain.k.copy_(torch.randn(plain.k.shape, generator=generator))
    copy_blocks(plain, torch.tensor([[1, 3]], dtype=torch.int32, device=device))
    assert torch.equal(plain.k[3], plain.k[1])
    assert not torch.equal(plain.k[2], plain.k[1])


def test_gather_reads_int8_then_open_blocks(device: torch.device, generator: torch.Generator) -> None:
    kv = filled(16, torch.float32, device, generator)
    quantize_blocks(kv, torch.tensor([2, 3], dtype=torch.int32, device=device))
    table = torch.tensor([3, 2, 0], dtype=torch.int32, device=device)
    k, _ = gather_keys_values(kv, table, 70, open_from=32)
    exact, _ = dequantize_blocks_ref(kv, torch.tensor([3]))
    assert torch.equal(k[:32], exact[0].transpose(0, 1))
    assert torch.equal(k[32:64], kv.open_k[0].transpose(0, 1))
    assert torch.equal(k[64:], kv.open_k[4].transpose(0, 1)[:6])
    with pytest.raises(ValueError, match="block 1 is read from its open block and has none"):
        gather_keys_values(kv, torch.tensor([1]), 5, open_from=0)


def test_memory_and_faults(device: torch.device) -> None:
    kv = Int8KV.empty(3, 1, 2, 128, torch.bfloat16, device)
    names = ("k_high", "k_low", "k_lo", "k_step", "k_reach", "v", "v_scale", "v_norm")
    assert sum(getattr(kv, n).nbytes for n in names) == 3 * Int8KV.block_bytes(2, 128)
    plain = FloatKV.empty(3, 2, 128, torch.bfloat16, device)
    assert plain.k.nbytes + plain.v.nbytes == 3 * FloatKV.block_bytes(2, 128, torch.bfloat16)
    with pytest.raises(ValueError, match="head_dim is 33"):
        FloatKV.empty(1, 1, 33, torch.float32, device)
    with pytest.raises(ValueError, match=r"k has shape \[1, 1, 16, 8\]"):
        FloatKV(*(torch.zeros(1, 1, 16, 8, device=device) for _ in range(2)))
    with pytest.raises(TypeError, match="blocks has dtype int64"):
        quantize_blocks(kv, torch.tensor([0], device=device))
    with pytest.raises(ValueError, match="copies has shape"):
        copy_blocks(kv, torch.zeros(3, dtype=torch.int32, device=device))
