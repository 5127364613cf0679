"""`quantize_folder`: copies a model with int8 weights in the layout of the kernels, which load by memory mapping."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo import _core
from octavo.errors import InvalidRequestError
from octavo.hub import resolve_model
from octavo.model_files import copy_files, new_folder

__all__ = ["QuantizedFolder", "quantize_folder"]

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class QuantizedFolder:
    """Result of `quantize_folder`.

    Attributes:
        folder: the new folder.
        weight_bytes: size of the weight file.
        kept_in_bf16: a sentence for each tensor that stays in bfloat16.
        warnings: irregular weights, such as values that are not finite.
        files: the files that were copied from the model.
    """

    folder: Path
    weight_bytes: int
    kept_in_bf16: list[str]
    warnings: list[str]
    files: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "folder": os.fspath(self.folder)}


def quantize_folder(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    quantization: str = "auto",
    threads: int | None = None,
    revision: str | None = None,
) -> QuantizedFolder:
    """Writes `model`, quantised, to the new folder `output`, which then loads like any other.

    Its outputs have the bits that the original gives with the same `quantization`.

    Args:
        model: a local folder or a hub id.
        output: a folder that does not exist yet, or is empty.
        quantization: "auto" (int8, except projections with a large quantisation error) or "int8".
        threads: CPU threads; None: one per core.
        revision: branch, tag or commit of a hub repository.

    Raises:
        ModelNotFoundError, UnsupportedModelError, CorruptModelError: the model.
        InvalidRequestError: an argument, or the output cannot be written.
    """
    if quantization not in ("auto", "int8"):
        raise InvalidRequestError(f"quantization is {quantization!r}: 'auto' or 'int8' is expected")
    source = resolve_model(model, revision)
    with new_folder(output) as (folder, target):
        made = _fill(folder, source, _name_of(model, source), quantization, threads)
    return QuantizedFolder(target, *made)


def _fill(
    folder: Path, source: Path, name: str, quantization: str, threads: int | None
) -> tuple[int, list[str], list[str], list[str]]:
    report = _core.quantize_weights(
        os.fspath(source), os.fspath(folder / _WEIGHTS), name, quantization=quantization, threads=threads
    )
    config = json.loads((source / "config.json").read_text(encoding="utf-8-sig"))
    # Other programs then do not load the weights as an ordinary checkpoint.
    config["quantization_config"] = report["quantization_config"]
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    return report["bytes"], report["kept_in_bf16"], report["warnings"], copy_files(source, folder)


def _name_of(model: str | os.PathLike[str], source: Path) -> str:
    """Name of the model in the file: the hub id, or the name of the folder without its path, which is private."""
    return source.resolve().name if Path(model).expanduser().is_dir() else os.fspath(model)
