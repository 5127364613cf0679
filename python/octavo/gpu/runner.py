"""What the engine calls once a step: the plan in, tokens out. Everything between stays on the device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from octavo import _core
from octavo.gpu import sampler
from octavo.gpu.batch import Layout, Staging, lay_out, to_device
from octavo.gpu.errors import faults
from octavo.gpu.graphs import DecodeGraphs
from octavo.gpu.kv import KvPool
from octavo.gpu.model import Model
from octavo.gpu.plan import ALL_LOGITS, NO_LOGITS, Ints, Plan, Records
from octavo.gpu.tails import NO_TAILS

Array = np.ndarray[Any, Any]
Logprobs = list[Array]


class Runner:
    """Runs steps of a model over a KV pool. It keeps no state of requests, beside the tails of an int8 cache."""

    def __init__(self, model: Model, kv: KvPool, graphs: DecodeGraphs | None) -> None:
        self.model, self.kv, self.graphs = model, kv, graphs
        device = model.weights.norm.device
        self._device = device
        self._staging = Staging(device)
        self._no_rows = torch.empty(0, model.spec.hidden, device=device)
        self._rest = self._no_rows
        self.keeps_blocks = kv.tails is not None
        """Whether the engine must say which blocks nobody holds any more."""
        self.reports_attention = kv.dynamic is not None
        """Whether attention leaves something out, of which `attention_reports` tells."""
        self._last: tuple[Records, Layout] | None = None

    def step(self, plan: _core.Plan) -> tuple[Array, Logprobs | None]:
        """Runs a step. For the plan's draws, in order: tokens uint32 `[D]` (2^32 - 1: the logits were not numbers), and
        log-probabilities as `sampler.logprobs` gives them, if one of them asks for some."""
        # The engine's thread has a current device of its own.
        with faults("a step"), self._on_device(), torch.inference_mode():
            return self._step(Plan.of(plan))

    def logits(self, first: int, count: int) -> Array:
        """Logits f32 `[count, vocab]` of the step's other rows that the plan asks for, in the plan's order."""
        with faults("the logits of a step"), self._on_device(), torch.inference_mode():
            logits: Array = self.model.logits(self._rest[first : first + count]).cpu().numpy()
            return logits

    def attention_reports(self) -> Array:
        """What attention read and left out for each sequence of the last step: f64 `[S, 9]`, as `Dynamic.reports`."""
        if self.kv.dynamic is None or self._last is None:
            return np.empty((0, 9))
        seqs, layout = self._last
        with faults("a report of attention"), self._on_device(), torch.inference_mode():
            return self.kv.dynamic.reports(seqs, layout.first_rows, layout.num_decodes)

    def kept_blocks(self) -> Array:
        """Blocks beside which floats are kept, uint32 `[n]`."""
        return np.empty(0, np.uint32) if self.kv.tails is None else self.kv.tails.blocks()

    def release_blocks(self, blocks: Sequence[int]) -> None:
        """Forgets what is kept beside `blocks`: nobody holds them."""
        if self.kv.tails is not None:
            self.kv.tails.release(blocks)

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _step(self, plan: Plan) -> tuple[Array, Logprobs | None]:
        layout = lay_out(plan)
        drawn, rest = wanted_rows(plan, layout)
        words = plan.draws.view(np.int32).reshape(-1, sampler.WORDS)
        tails = self.kv.tails
        step = NO_TAILS if tails is None else tails.begin(layout, plan.copies)
        batch, (changes, copies, drawn_rows, rest_rows, rule_words) = to_device(
            layout, step.filled, self._staging, step.changes, plan.copies, drawn, rest, words
        )
        if len(changes):
            self.kv.set_tails(changes)
        if len(copies):
            self.kv.copy(self.model.ops, copies)
        graph = self.graphs.fitting(layout) if self.graphs is not None else None
        if graph is None:
            hidden = self.model.forward(batch, self.kv)
        else:
            graph.run(batch)
            hidden = graph.hidden
        if tails is not None:
            tails.end(step)
        self._last = (plan.seqs, layout)
        self._rest = hidden[rest_rows] if len(rest) else self._no_rows
        if not len(drawn):
            return np.empty(0, np.uint32), None
        if graph is None:
            logits = self.model.logits(hidden[drawn_rows])
        elif sampler.is_greedy(plan.draws) and (plan.draws["logprobs"] < 0).all():
            return graph.best.cpu().numpy()[drawn].view(np.uint32), None
        else:
            logits = graph.logits[drawn_rows]
        return self._draw(logits, plan.draws, rule_words)

    def _draw(self, logits: torch.Tensor, draws: Records, words: torch.Tensor) -> tuple[Array, Logprobs | None]:
        kernels = self.model.ops.kernels
        tokens = sampler.draw(logits, sampler.Rules.of(draws, words), kernels)
        most = int(draws["logprobs"].max())
        table = sampler.logprobs(logits, tokens, most, kernels) if most >= 0 else None
        found: Array = tokens.cpu().numpy().view(np.uint32)
        if table is None:
            return found, None
        ids, values, ranks = (t.cpu().numpy() for t in table)
        return found, [ids.view(np.uint32), values, ranks.view(np.uint32)]


def wanted_rows(plan: Plan, layout: Layout) -> tuple[Ints, Ints]:
    """Rows of the batch whose tokens are drawn here, and the others whose logits the plan asks for, in its order."""
    seqs = plan.seqs
    lens = seqs["query_len"].astype(np.int32)
    last = layout.first_rows + lens - 1
    here = plan.draws["seq"].astype(np.int64)
    elsewhere = seqs["logits"] != NO_LOGITS
    elsewhere[here] = False
    rows = [
        np.arange(layout.first_rows[i] if seqs["logits"][i] == ALL_LOGITS else last[i], last[i] + 1)
        for i in np.flatnonzero(elsewhere)
    ]
    rest = np.concatenate(rows) if rows else np.empty(0)
    return last[here].astype(np.int32), rest.astype(np.int32)
