"""Dynamic attention against the formula, and its bounds against exact attention in float64."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from octavo.triton_kernels.block_ops import quantize_blocks_ref
from octavo.triton_kernels.dynamic_attention import (
    FIELDS,
    SelectionParams,
    Workspace,
    assign_workspace,
    dynamic_attention,
    dynamic_attention_ref,
)
from octavo.triton_kernels.kv_cache import Int8KV, gather_keys_values
from octavo.triton_kernels.paged_attention import paged_attention_ref

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
KINDS = ("clustered", "needle", "sink", "diffuse", "outlier")


class Cases:
    """Decodes over shuffled blocks, one sequence for each context."""

    def __init__(
        self,
        contexts: list[int],
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
        kind: str = "clustered",
    ) -> None:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        counts = [-(-c // 32) for c in contexts]
        blocks = sum(counts) + 1
        order = torch.randperm(blocks, generator=generator).to(torch.int32)
        self.tables = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
        at = 0
        for s, count in enumerate(counts):
            self.tables[s, :count] = order[at : at + count]
            at += count
        q = normal(len(contexts), heads, head_dim) * 2
        k = normal(blocks, kv_heads, 32, head_dim) + 4 * normal(head_dim)
        v = normal(blocks, kv_heads, 32, head_dim)
        direction = q.view(len(contexts), kv_heads, -1, head_dim).mean((0, 2))
        pull = {"clustered": 1.5, "needle": 0.0, "sink": 0.0, "diffuse": 0.0, "outlier": 1.0}[kind]
        k += pull * normal(blocks, 1, 1, 1) * direction[:, None]
        for s, count in enumerate(counts):
            if kind == "needle" and count > 2:
                k[self.tables[s, count // 2], :, 5] += 8 * direction
            if kind == "sink":
                k[self.tables[s, 0], :, 0] += 8 * direction
        if kind == "outlier":
            k[:, :, 3] *= 6
            v[:, :, 3] *= 6
        open_block_of = torch.randperm(blocks, generator=generator).to(torch.int32)
        self.kv = Int8KV.empty(blocks, blocks, kv_heads, head_dim, dtype, device, open_block_of.to(device))
        self.kv.open_k[open_block_of.long()] = k.to(device, dtype)
        self.kv.open_v[open_block_of.long()] = v.to(device, dtype)
        quantize_blocks_ref(self.kv, torch.arange(blocks))
        for s, context in enumerate(contexts):
            if context % 32:
                # Places that no token has yet.
                self.kv.open_k[open_block_of[self.tables[s, counts[s] - 1]].long(), :, context % 32 :] = torch.nan
        self.q = q.to(device, dtype)
        self.tables = self.tables.to(device)
        self.contexts = torch.tensor(contexts, dtype=torch.int32, device=device)
        self.scale = head_dim**-0.5

    def run(
        self,
        op: object,
        selection: SelectionParams,
        min_context: int = 1,
        softcap: float | None = None,
        splits: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(out, report, lengths of the sequences that chose)."""
        workspace = Workspace.empty(int(((self.contexts + 31) // 32).sum()), self.q.shape[1], self.q.device)
        workspace.scores.fill_(torch.nan)
        workspace.mass.fill_(torch.nan)
        lens, starts = assign_workspace(self.contexts, min_context, workspace.blocks(self.q.shape[1]))
        out = torch.full_like(self.q, 7.0)
        report = torch.zeros(len(lens), self.kv.kv_heads, FIELDS, device=self.q.device)
        op(  # type: ignore[operator]
            self.q,
            self.kv,
            self.tables,
            lens,
            starts,
            out,
            scale=self.scale,
            selection=selection,
            workspace=workspace,
            report=report,
            softcap=softcap,
            num_splits=splits,
        )
        return out, report, lens

    def exact(self, softcap: float | None = None) -> torch.Tensor:
        """Dense attention over the stored cache in float64, `[S, H, D]`."""
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        group = self.q.shape[1] // self.kv.kv_heads
        for s, context in enumerate(self.contexts.tolist()):
            k, v = gather_keys_values(self.kv, self.tables[s], context, (context - 1) // 32 * 32)
            rows = self.q[s].double().view(self.kv.kv_heads, group, -1)
            scores = torch.einsum("hgd,nhd->hgn", rows, k.double()) * self.scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[s] = torch.einsum("hgn,nhd->hgd", scores.softmax(-1), v.double()).reshape(self.q.shape[1:])
        return out


MODELS = [
    # heads, kv_heads, head_dim, dtype, softcap
    (4, 1, 64, torch.bfloat16, None),
    (6, 2, 32, torch.float32, None),
    (3, 1, 80, torch.float16, 20.0),
    (2, 2, 16, torch.float32, 15.0),
]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "dtype", "softcap"), MODELS)
def test_kernels_follow_the_rule(
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    softcap: float | None,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    cases = Cases([400, 1, 33, 500], **shape, dtype=dtype, device=device, generator=generator)
    selection = SelectionParams(0.05)
    found, report, _ = cases.run(dynamic_attention, selection, softcap=softcap, splits=3)
    wanted, expected, _ = cases.run(dynamic_attention_ref, selection, softcap=softcap)
    assert expected[:, :, 1].sum() > 0, "nothing is left out here"
    assert_close("out", found, wanted, TOLERANCE[dtype])
    # A share next to the edge of a bucket may fall to either side of it.
    assert torch.equal(report[..., 0], expected[..., 0])
    assert ((report[..., 1] - expected[..., 1]).abs() <= 1).all()
    same = report[..., 1] == expected[..., 1]
    assert same.float().mean() > 0.7
    torch.testing.assert_close(report[same], expected[same], rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error_bound", [0.2, 1e-2])
def test_the_bound_holds_in_float64(
    kind: str, error_bound: float, device: torch.device, generator: torch.Generator
) -> None:
    """By the reference, whose kernels' twin it is: many shapes in little time; the kernels on one of them."""
    for number in range(12):
        draw = torch.Generator().manual_seed(number + int(1e4 * error_bound))
        heads, kv_heads, head_dim, _, softcap = MODELS[number % len(MODELS)]
        contexts = torch.randint(200, 900, (2,), generator=draw).tolist()
        shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "dtype": torch.float32}
        cases = Cases(contexts, **shape, device=device, generator=draw, kind=kind)
        op = dynamic_attention if number == 1 else dynamic_attention_ref
        out, report, _ = cases.run(op, SelectionParams(error_bound), softcap=softcap)
        assert (report[..., 3] <= error_bound).all()
        error = (out.double() - cases.exact(softcap)).norm(dim=-1)
        per_head = report[..., 5].repeat_interleave(heads // kv_heads, 1)
        # What leaving out costs; the rounding of scores and sums comes on top, in proportion to the values.
        rounding = 1e-4 * cases.kv.v_norm.max()
        assert (error <= per_head + rounding).all(), f"seed {number}: {(error - per_head).max()} above the bound"


def test_what_is_omitted_is_measured_exactly(device: torch.device, generator: torch.Generator) -> None:
    """The reported mass is the mass of the blocks that are not read: above it by the slack alone."""
    shape = {"heads": 2, "kv_heads": 1, "head_dim": 64, "dtype": torch.bfloat16}
    cases = Cases([700], **shape, device=device, generator=generator)
    # Values that say which block they are of: their weighted mean tells the weights.
    blocks = cases.tables[0].long()
    cases.kv.v.zero_()
    cases.kv.v_scale.fill_(1.0)
    for i, block in enumerate(blocks[:-1].tolist()):
        cases.kv.v[block, :, :, i] = 1
    cases.kv.open_v.zero_()
    cases.kv.open_v[..., 63] = 1.0
    out, report, _ = cases.run(dynamic_attention, SelectionParams(0.1, 0, 0))
    exact = cases.exact()[0]
    left = out[0] == 0
    left[:, 22:] = False
    assert 0 < left[0, :21].sum() < 21
    omitted = torch.where(left, exact.to(left.device), 0.0).sum(-1)
    assert (omitted <= report[0, 0, 3]).all()
    assert report[0, 0, 3] <= omitted.max() * 1.05


def test_short_sequences_and_those_without_room_are_left_alone(
    device: torch.device, generator: torch.Generator
) -> None:
    shape = {"heads": 2, "kv_heads": 1, "head_dim": 16, "dtype": torch.float32}
    cases = Cases([200, 100, 150], **shape, device=device, generator=generator)
    out, report, lens = cases.run(dynamic_attention, SelectionParams(0.1), min_context=120)
    assert lens.tolist() == [200, 0, 150]
    assert out[1].eq(7.0).all()
    assert report[1].eq(0).all()
    lens, starts = assign_workspace(cases.contexts, 120, 7)
    assert lens.tolist() == [200, 0, 0]
    assert starts.tolist() == [0, 7, 7]


def test_a_loose_bound_reads_less_and_none_everything(device: torch.device, generator: torch.Generator) -> None:
    shape = {"heads": 4, "kv_heads": 1, "head_dim": 32, "dtype": torch.float32}
    cases = Cases([400], **shape, device=device, generator=generator)
    left = [float(cases.run(dynamic_attention, SelectionParams(e))[1][0, 0, 1]) for e in (0.3, 0.03, 1e-7)]
    assert left[0] > left[1] > left[2]
    out, report, _ = cases.run(dynamic_attention, SelectionParams(1e-12))
    assert report.eq(0).all()
    starts = torch.tensor([0, 1], dtype=torch.int32, device=device)
    dense = paged_attention_ref(cases.q, cases.kv, cases.tables, starts, cases.contexts, scale=cases.scale)
    assert_close("out", out, dense, 2e-5)


def test_what_is_no_number_reads_everything(device: torch.device, generator: torch.Generator) -> None:
    shape = {"heads": 2, "kv_heads": 1, "head_dim": 16, "dtype": torch.float32}
    cases = Cases([200, 200], **shape, device=device, generator=generator)
    cases.kv.k_lo[cases.tables[0, 4].long()] = torch.nan
    out, report, _ = cases.run(dynamic_attention, SelectionParams(0.2))
    assert out[0].isnan().all()
    assert report[0].eq(0).all()
    assert out[1].isfinite().all()
    assert report[1, 0, 1] > 0


def test_faults_are_named(device: torch.device, generator: torch.Generator) -> None:
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": torch.float32}
    cases = Cases([40], **shape, device=device, generator=generator)
    with pytest.raises(ValueError, match="num_splits is 65"):
        cases.run(dynamic_attention, SelectionParams(0.1), splits=65)
    cases.q = cases.q[:, :3]
    with pytest.raises(ValueError, match="3 query heads over 2 KV heads"):
        cases.run(dynamic_attention, SelectionParams(0.1))
    cases.q = cases.q.half()
    with pytest.raises(ValueError, match="cast q"):
        cases.run(dynamic_attention, SelectionParams(0.1))
