"""The executor on the device: the engine submits a step plan and waits for its tokens.

A step may be submitted while the one before it is on the device. The device then fills its placeholders with the tokens
that the step before samples, and the engine plans while the device computes.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from octavo import _core
from octavo.gpu import sampler
from octavo.gpu.attention import Report
from octavo.gpu.batch import DeviceToHost, HostBatch, HostToDevice, build_batch, open_pairs, to_device
from octavo.gpu.device_adapters import DeviceAdapters
from octavo.gpu.errors import faults
from octavo.gpu.graphs import DecodeGraph, DecodeGraphs
from octavo.gpu.kv import KvPool
from octavo.gpu.lora import Resident, host_adapters
from octavo.gpu.model import Model
from octavo.gpu.plan import Ints, Plan, Records

Array = np.ndarray[Any, Any]
Logprobs = list[Array]


class Runner:
    """Runs steps of a model over a KV pool. It keeps no state of requests."""

    def __init__(self, model: Model, kv: KvPool, graphs: DecodeGraphs | None, adapters: DeviceAdapters) -> None:
        self.model, self.kv, self.graphs, self.adapters = model, kv, graphs, adapters
        device = model.weights.norm.device
        self._device = device
        self._host_to_device = HostToDevice(device)
        self.max_in_flight = kv.policy.max_in_flight
        """Steps that may be submitted before the oldest one is waited for: 1 or 2."""
        self.open_blocks = kv.format.int8
        """Whether the plan must name open blocks."""
        self._sampled = _Sampled(torch.empty(0, dtype=torch.int32, device=device), np.empty(0, np.int64))
        self._submitted: deque[_Submitted] = deque()
        self._rows = torch.empty(0, model.spec.hidden, device=device)

    def submit(self, plan: _core.Plan) -> None:
        """Sends a step to the device. The step submitted before samples the tokens of its `placeholders`."""
        # The engine's thread has a current device of its own.
        with faults("a step"), self._on_device(), torch.inference_mode():
            self._submitted.append(self._run(Plan.of(plan)))

    def wait(self) -> tuple[Array, Logprobs | None, Report | None]:
        """Waits for the oldest step. Results for the `samples` of its plan, in order, and a report of named numbers.

        Returns:
            Tokens uint32 `[D]` (2^32 - 1: the logits were not numbers). Ids, log-probabilities and ranks as
            `sampler.logprobs` gives them, if a sample asks for some. A report, f64 `[S]` for each name, or None.
        """
        step = self._submitted.popleft()
        with faults("a step"), self._on_device(), torch.inference_mode():
            tokens, *table = step.samples.wait()
            report = self.kv.policy.report(step.seqs, step.host_batch)
        self._rows = step.rows
        if not table:
            return tokens.view(np.uint32), None, report
        ids, values, ranks = table
        return tokens.view(np.uint32), [ids.view(np.uint32), values, ranks.view(np.uint32)], report

    def read_rows(self, first: int, count: int) -> Array:
        """Logits f32 `[count, vocab]` of the step last waited for: in plan order, without the rows sampled here."""
        with faults("the logits of a step"), self._on_device(), torch.inference_mode():
            logits: Array = self.model.logits(self._rows[first : first + count]).cpu().numpy()
            return logits

    def adapter_bytes(self, rank: int) -> int:
        """Device memory of an adapter whose largest rank this is."""
        return self.adapters.bytes_of(rank)

    def pack_adapter(self, file: _core.AdapterFile) -> Resident:
        """Copies an adapter to the device. Its memory is free again when the result is dropped."""
        with faults("the copy of an adapter"), self._on_device(), torch.inference_mode():
            return self.adapters.pack(file)

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _run(self, plan: Plan) -> _Submitted:
        host_batch = build_batch(plan)
        sampled, rest = output_rows(plan, host_batch)
        words = plan.samples.view(np.int32).reshape(-1, sampler.WORDS)
        placeholders, sample_of = placeholder_rows(plan, host_batch, self._sampled.seqs)
        opened = self.kv.changed(open_pairs(plan)) if self.kv.format.int8 else plan.sealed
        order = np.argsort(host_batch.first_rows)
        ids, lens = plan.seqs["adapter"][order], plan.seqs["query_len"][order].astype(np.int32)
        adapters = host_adapters(ids, lens, plan.adapters, self.model.deterministic)
        tiles = (adapters.rows, adapters.slots)
        more = (opened, plan.copies, plan.open_copies, sampled, rest, words, *tiles, placeholders, sample_of)
        batch, sent = to_device(host_batch, plan.sealed[:, 0], self._host_to_device, *more)
        open_changes, block_copies, open_copies, sample_rows, rest_rows, rule_words, *rest_sent = sent
        tile_rows, tile_slots, *placeholder_index = rest_sent
        batch = replace(batch, adapters=adapters.on_device(tile_rows, tile_slots, self.model.ops))
        if len(placeholders):
            # -1: the logits were not finite. The engine ends such a request after the step.
            rows, sample = (index.long() for index in placeholder_index)
            batch.tokens[rows] = self._sampled.tokens[sample].clamp(min=0)
        if len(opened):
            self.kv.set_open_blocks(opened, open_changes)
        if len(plan.copies):
            self.kv.copy(self.model.ops, block_copies, open_copies)
        graph = self.graphs.fitting(host_batch, batch.adapters) if self.graphs is not None else None
        if graph is None:
            hidden = self.model.forward(batch, self.kv)
        else:
            graph.run(batch)
            hidden = graph.hidden
        samples = self._sample(graph, hidden, sample_rows, plan.samples, rule_words)
        self._sampled = _Sampled(samples[0], plan.samples["seq"].astype(np.int64))
        # An index copies: the next step may overwrite the hidden states of a graph.
        return _Submitted(DeviceToHost(samples), hidden[rest_rows] if len(rest) else hidden[:0], plan.seqs, host_batch)

    def _sample(
        self,
        graph: DecodeGraph | None,
        hidden: torch.Tensor,
        rows: torch.Tensor,
        samples: Records,
        words: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Tokens int32 `[D]`, and the three tables of log-probabilities if some are asked for."""
        if not len(samples):
            return [rows]
        top = int(samples["logprobs"].max())
        if graph is not None and sampler.is_greedy(samples) and top < 0:
            return [graph.best[rows]]
        logits = self.model.logits(hidden[rows]) if graph is None else graph.logits[rows]
        kernels = self.model.ops.kernels
        tokens = sampler.sample(logits, sampler.Rules.of(samples, words), kernels)
        return [tokens, *(sampler.logprobs(logits, tokens, top, kernels) if top >= 0 else ())]


@dataclass(frozen=True)
class _Submitted:
    """A step on the device: its samples on their way to the host, hidden states of the other wanted rows, its plan."""

    samples: DeviceToHost
    rows: torch.Tensor
    seqs: Records
    host_batch: HostBatch


@dataclass(frozen=True)
class _Sampled:
    """Tokens that the step submitted last samples: int32 `[D]` on the device, and the index of each one's sequence."""

    tokens: torch.Tensor
    seqs: np.ndarray[Any, np.dtype[np.int64]]


def placeholder_rows(plan: Plan, host_batch: HostBatch, sampled_seqs: Array) -> tuple[Ints, Ints]:
    """Rows of the batch whose token the step before samples, and the index of each among its samples."""
    rows, before = plan.placeholders.T
    seqs = np.searchsorted(plan.seqs["query_start"], rows, side="right") - 1
    moved = host_batch.first_rows[seqs] + rows - plan.seqs["query_start"][seqs].astype(np.int32)
    return moved.astype(np.int32), np.searchsorted(sampled_seqs, before).astype(np.int32)


def output_rows(plan: Plan, host_batch: HostBatch) -> tuple[Ints, Ints]:
    """Rows of the batch whose tokens are sampled here, and the others whose logits the plan asks for, in its order."""
    seqs = plan.seqs
    last = host_batch.first_rows + seqs["query_len"].astype(np.int32) - 1
    here = plan.samples["seq"].astype(np.int64)
    first, end = host_batch.first_rows + seqs["sample_rows"].astype(np.int32).T
    elsewhere = first < end
    elsewhere[here] = False
    rows = [np.arange(first[i], end[i]) for i in np.flatnonzero(elsewhere)]
    rest = np.concatenate(rows) if rows else np.empty(0)
    return last[here].astype(np.int32), rest.astype(np.int32)
