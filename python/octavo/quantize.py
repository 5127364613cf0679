"""`quantize_folder`: copies a model with int8 weights in the layout of the kernels, which load by memory mapping."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo import _core
from octavo.errors import InvalidRequestError
from octavo.hub import resolve_model

__all__ = ["QuantizedFolder", "quantize_folder"]

_WEIGHTS = "model.safetensors"
# Files of a model folder that are copied: no code, and no other weights.
_COPIED = re.compile(
    r"generation_config\.json|tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json"
    r"|merges\.txt|tokenizer\.model|chat_template\.(json|jinja)|(LICENSE|NOTICE|COPYING)[\w.-]*",
    re.IGNORECASE,
)
_TEMPLATES = "additional_chat_templates"


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
    target = Path(os.path.abspath(Path(output).expanduser()))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidRequestError(f"output {target} exists already: give a folder that does not")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written next to the target and renamed: the target is complete or absent.
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise InvalidRequestError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    try:
        made = _fill(partial, source, _name_of(model, source), quantization, threads)
        partial.chmod(0o755)
        partial.replace(target)
    except OSError as error:
        raise InvalidRequestError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
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
    copied = [f.name for f in sorted(source.iterdir()) if _COPIED.fullmatch(f.name) and f.is_file()]
    copied += [f"{_TEMPLATES}/{f.name}" for f in sorted(source.glob(f"{_TEMPLATES}/*.jinja")) if f.is_file()]
    for file in copied:
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / file, folder / file)
    return report["bytes"], report["kept_in_bf16"], report["warnings"], copied


def _name_of(model: str | os.PathLike[str], source: Path) -> str:
    """Name of the model in the file: the hub id, or the name of the folder without its path, which is private."""
    return source.resolve().name if Path(model).expanduser().is_dir() else os.fspath(model)
