"""Width pruning and distillation, in one cut or, above a factor of two, in two. Every step can be resumed."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.compress.distil import Distilled, distil
from octavo.compress.importance import measure_importance
from octavo.compress.kept import most_important
from octavo.compress.live_model import layout_of, load_model, save_model, smaller_model
from octavo.compress.rows import CALIBRATION_TOKENS, Batch, Document, batch_tokens_of, batches_of
from octavo.compress.sizes import Layout, Sizes, choose_sizes
from octavo.errors import DeviceMemoryError

__all__ = ["Cut", "plan_cuts", "run_cuts"]

# Two cuts below this ratio: iterative pruning keeps more than one large cut (Minitron).
_TWO_CUTS_BELOW = 0.5
_FIRST_SHARE = 0.2
_LEAST_PART_TOKENS = 128
_LOG = logging.getLogger("octavo.compress")


@dataclass(frozen=True)
class Cut:
    """One cut and the training after it.

    Attributes:
        sizes: what the model has after the cut.
        parameters: the same in all.
        training: None until it is done.
    """

    sizes: Sizes
    parameters: int
    training: Distilled | None = None


def plan_cuts(layout: Layout, ratio: float, method: str) -> list[Cut]:
    """The sizes after each cut.

    Raises:
        InvalidRequestError: no sizes reach the ratio.
    """
    last = choose_sizes(layout, ratio, method)
    chosen = [last]
    if ratio < _TWO_CUTS_BELOW:
        middle = choose_sizes(layout, math.sqrt(ratio), method)
        pairs = zip(_numbers(middle), _numbers(last), strict=True)
        chosen.insert(0, Sizes(*(max(pair) for pair in pairs)))
    return [Cut(sizes, layout.parameters(sizes)) for sizes in chosen]


def run_cuts(
    folder: Path, work: Path, cuts: Sequence[Cut], documents: Sequence[Document], passes: int, seed: int
) -> tuple[Any, list[Cut]]:
    """Cuts and trains in `work`, where finished steps of an earlier call are not repeated.

    Returns:
        The live student in float32, and the cuts with their training.
    """
    teacher = load_model(folder, "bfloat16")
    tokens = sum(len(document.ids) for document in documents)
    longest = int(teacher.config.max_position_embeddings)
    batches = batches_of(documents, batch_tokens_of(tokens), longest, passes, seed)
    model, done = load_model(folder), []
    first = round(len(batches) * _FIRST_SHARE) if len(cuts) == 2 else 0
    shares = [batches[:first], batches[first:]] if first else [batches]
    for number, (plan, share) in enumerate(zip(cuts, shares, strict=True), 1):
        place = work / f"cut-{number}"
        place.mkdir(parents=True, exist_ok=True)
        student, training = _trained(model, teacher, place, plan.sizes, batches, share, seed)
        done.append(Cut(plan.sizes, plan.parameters, training))
        model = student
    return model, done


def _trained(
    model: Any, teacher: Any, place: Path, sizes: Sizes, batches: Sequence[Batch], share: Sequence[Batch], seed: int
) -> tuple[Any, Distilled]:
    """Cuts and trains. Where the memory does not suffice, the same batches are computed in more parts."""
    parts = 1
    while True:
        student = _cut(model, place / "start", sizes, batches)
        try:
            return student, distil(teacher, student, share, place / "checkpoints", seed, parts)
        except DeviceMemoryError:
            parts *= 2
            if share[0].ids.size // parts < _LEAST_PART_TOKENS:
                raise
            _LOG.warning("out of memory: a batch is computed in %d parts or more from here on", parts)


def _cut(model: Any, folder: Path, sizes: Sizes, batches: Sequence[Batch]) -> Any:
    """The pruned model before its training, as a model folder; read where it exists."""
    import torch

    if not folder.is_dir():
        layout = layout_of(model)
        rows, tokens = [], 0
        for batch in batches:
            rows.append(torch.from_numpy(batch.ids).long())
            tokens += batch.ids.size
            if tokens >= CALIBRATION_TOKENS:
                break
        kept = most_important(measure_importance(model, layout, rows), sizes)
        save_model(smaller_model(model, layout, kept), folder)
    return load_model(folder)


def _numbers(sizes: Sizes) -> tuple[int, ...]:
    return sizes.hidden, sizes.mlp, sizes.kv_heads, sizes.layers, sizes.experts
