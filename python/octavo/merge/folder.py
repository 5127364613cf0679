"""`merge_adapter`: writes a model with a PEFT adapter in its weights, tensor by tensor."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from octavo.errors import CorruptModelError, InvalidRequestError
from octavo.hub import resolve_model
from octavo.merge.adapter import AdapterFolder
from octavo.merge.checkpoint import Checkpoint
from octavo.merge.edits import Apply
from octavo.merge.plan import Placed, Plan, Slot, make_plan
from octavo.merge.tensor_file import Floats, Tensor, TensorFile, block_ranges, from_float32, header_bytes
from octavo.model_files import TOKENIZER_FILES, copy_files, new_folder

__all__ = ["MergedFolder", "merge_adapter"]

_COPIED_BYTES = 1 << 24
_TOKENIZERS = ("auto", "model", "adapter")


@dataclass(frozen=True)
class MergedFolder:
    """Result of `merge_adapter`.

    Attributes:
        folder: the new folder.
        weight_bytes: size of its weight files.
        merged: names of the tensors that the adapter changed.
        replaced: names of tensors that it holds as a whole.
        warnings: what you may not expect, such as a head that is no longer tied.
        files: the small files that were copied.
    """

    folder: Path
    weight_bytes: int
    merged: list[str]
    replaced: list[str]
    warnings: list[str]
    files: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "folder": os.fspath(self.folder)}


def merge_adapter(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tokenizer: str = "auto",
    revision: str | None = None,
) -> MergedFolder:
    """Writes `model` with the PEFT adapter `adapter` in its weights to the new folder `output`.

    Sums are float32; the result is stored in the type that the tensor has in the model. The files of the model keep
    their names and their order of tensors.

    Args:
        model: a local folder or a hub id, not quantised.
        adapter: the folder with adapter_config.json and adapter_model.safetensors.
        output: a folder that does not exist yet, or is empty.
        tokenizer: whose tokenizer and chat template are copied: "model", "adapter", or "auto" (the adapter's if it
            changes the number of tokens and has a tokenizer.json, else the model's).
        revision: branch, tag or commit of a hub repository.

    Raises:
        ModelNotFoundError, UnsupportedModelError, CorruptModelError: the model or the adapter.
        InvalidRequestError: an argument, or the output cannot be written.
    """
    if tokenizer not in _TOKENIZERS:
        raise InvalidRequestError(f"tokenizer is {tokenizer!r}: one of {', '.join(map(repr, _TOKENIZERS))} is expected")
    checkpoint = Checkpoint(resolve_model(model, revision))
    read = AdapterFolder.read(Path(adapter).expanduser())
    plan = make_plan(checkpoint, read)
    words = _tokenizer_folder(tokenizer, read.folder, plan)
    with new_folder(output) as (folder, target):
        outputs = [(file, _slots(file, plan)) for file in checkpoint.files]
        if plan.head is not None:
            outputs[-1][1].append(plan.head)
        _check_space(folder, outputs)
        for file, slots in outputs:
            _write(folder / file.path.name, slots, file.metadata)
        total = _write_json(folder, checkpoint, plan, outputs)
        files = copy_files(checkpoint.folder, folder, words)
    changed = sorted(slot.name for _, slots in outputs for slot in slots if slot.edits)
    return MergedFolder(target, total, changed, sorted(plan.replaced), plan.warnings, files)


def _tokenizer_folder(tokenizer: str, adapter: Path, plan: Plan) -> Path | None:
    """The folder with the tokenizer, if it is the adapter's."""
    own = [f.name for f in sorted(adapter.iterdir()) if TOKENIZER_FILES.fullmatch(f.name)]
    if tokenizer == "adapter" and "tokenizer.json" not in own:
        raise InvalidRequestError(f"tokenizer is 'adapter', and there is no tokenizer.json in {adapter}")
    if tokenizer == "adapter" or (tokenizer == "auto" and plan.vocabulary is not None and "tokenizer.json" in own):
        return adapter
    if own:
        plan.warnings.append(
            f"the adapter brings {', '.join(own)}, and the model's are used; tokenizer='adapter' takes them instead"
        )
    return None


def _slots(file: TensorFile, plan: Plan) -> list[Slot]:
    return [plan.slots.get(name) or Slot(name, tensor, tensor.shape) for name, tensor in file.tensors.items()]


def _check_space(folder: Path, outputs: list[tuple[TensorFile, list[Slot]]]) -> None:
    needed = sum(header_bytes(_heads(slots), None)[1] for _, slots in outputs)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidRequestError(
            f"the merged model needs {needed:,} bytes, and {folder.parent} has {free:,} free: give another output"
        )


def _heads(slots: list[Slot]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(slot.name, slot.source.dtype, slot.shape) for slot in slots]


def _write(path: Path, slots: list[Slot], metadata: object) -> None:
    with path.open("wb") as file:
        file.write(header_bytes(_heads(slots), metadata)[0])
        for slot in slots:
            if slot.edits:
                # What is not finite is refused by name.
                with np.errstate(all="ignore"):
                    _write_edited(file, slot)
            else:
                _copy(file, slot.source)
        file.flush()
        os.fsync(file.fileno())


def _copy(file: BinaryIO, tensor: Tensor) -> None:
    end = tensor.offset + tensor.nbytes
    for at in range(tensor.offset, end, _COPIED_BYTES):
        file.write(tensor.file.data[at : min(end, at + _COPIED_BYTES)].data)


def _write_edited(file: BinaryIO, slot: Slot) -> None:
    """Writes blocks of rows. An edit begins only when its rows come: few matrices are in memory."""
    columns = slot.shape[-1] if len(slot.shape) > 1 else 1
    bounds = sorted({0, slot.rows, *(p.first for p in slot.edits), *(p.first + p.rows for p in slot.edits)})
    for first, last in itertools.pairwise(bounds):
        edits = [p for p in slot.edits if p.first <= first and last <= p.first + p.rows]
        started: list[tuple[Placed, Apply]] = []
        for placed in edits:
            before = list(started)
            blocks = lambda before=before, p=placed: _blocks(slot, p.first, p.first + p.rows, columns, before)  # noqa: E731
            started.append((placed, placed.edit.start(blocks)))
        for at, block in _blocks(slot, first, last, columns, started):
            stored = from_float32(block, slot.source.dtype)
            if edits and not _finite(stored, slot.source.dtype):
                raise CorruptModelError(
                    f"merged values of {slot.name} in rows {first + at} to {first + at + len(block) - 1} "
                    f"are not finite in {slot.source.dtype}"
                )
            file.write(np.ascontiguousarray(stored).data)


def _blocks(
    slot: Slot, first: int, last: int, columns: int, started: list[tuple[Placed, Apply]]
) -> Iterator[tuple[int, Floats]]:
    """Rows `first` to `last` behind the edits in `started`; numbers count from `first`."""
    fresh = next((i for i in reversed(range(len(started))) if started[i][0].edit.whole), None)
    raw = None if fresh is not None else slot.source.raw()
    for start, end in block_ranges(last - first, columns):
        if raw is None:
            block = np.empty((end - start, columns), np.float32)
        else:
            block = slot.source.floats(raw[first + start : first + end])
        for placed, apply in started[fresh or 0 :]:
            block = apply(block, first + start - placed.first)
        yield start, block


def _finite(stored: Any, dtype: str) -> bool:
    if dtype == "BF16":
        return bool((stored & 0x7F80 != 0x7F80).all())
    return bool(np.isfinite(stored).all())


def _write_json(folder: Path, model: Checkpoint, plan: Plan, outputs: list[tuple[TensorFile, list[Slot]]]) -> int:
    """config.json and the index; returns the size of all tensors."""
    config = dict(model.config)
    if plan.untied:
        config["tie_word_embeddings"] = False
    if plan.vocabulary is not None:
        holder = config if "vocab_size" in config or "text_config" not in config else config["text_config"]
        holder["vocab_size"] = plan.vocabulary
    _dump(folder / "config.json", config)
    total = sum(header_bytes(_heads(slots), None)[1] for _, slots in outputs)
    if model.index is not None:
        index = dict(model.index)
        metadata = index.get("metadata")
        index["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}
        index["weight_map"] = {slot.name: file.path.name for file, slots in outputs for slot in slots}
        _dump(folder / "model.safetensors.index.json", index)
    return total


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
