"""The tensors of a model folder, found under any of the names that adapters use for them."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from octavo.merge.tensor_file import Tensor, TensorFile, read_json

__all__ = ["EMBEDDING", "HEAD", "Checkpoint", "Part", "plain_name"]

EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_JSON = 100_000_000
# Names of modules that wrap a model or hold its text part. They stand before or between its own names.
_WRAPPERS = frozenset(["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module"])
_HOLDERS = re.compile(r"(?:(?:model|base_model|language_model|text_model|llm)\.)*")
_EXPERT = re.compile(r"(?P<block>layers\.\d+\.\w+)\.experts\.(?P<expert>\d+)\.(?P<leaf>\w+)")
# Spellings of the projections of one expert; the first of each is Mixtral's own.
_LEAVES = {"gate": ("w1", "gate_proj"), "up": ("w3", "up_proj"), "down": ("w2", "down_proj")}
_BLOCKS = ("mlp", "block_sparse_moe")


def plain_name(name: str) -> str:
    """A tensor's name without those of wrappers and holders: `layers.0.mlp.up_proj.weight`, `lm_head.weight`."""
    inner = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    return _HOLDERS.sub("", inner, count=1)


@dataclass(frozen=True)
class Part:
    """Rows of a tensor, which is seen as `[rows, columns]`.

    Attributes:
        tensor: the tensor of the checkpoint.
        first: its first row that belongs to the part.
        rows: how many belong to it.
    """

    tensor: Tensor
    first: int
    rows: int


class Checkpoint:
    """The weight files of a model folder.

    Attributes:
        folder: the folder.
        config: its config.json.
        files: its weight files, in the order in which they are read; of two tensors with a name the later one counts.
        index: the parsed index, or None for a single file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "config.json"
        if not path.is_file():
            raise ModelNotFoundError(f"no model at {folder}: there is no config.json in it")
        self.config: dict[str, Any] = read_json(path, _MAX_JSON)
        if self.config.get("quantization_config"):
            raise UnsupportedModelError(
                f"{path}: the model is quantised (quantization_config), and adapters merge into original weights. "
                "Give the folder of the original model; `octavo quantize` then makes an int8 copy of the result"
            )
        self.index: dict[str, Any] | None = None
        self.files = [TensorFile(folder / name) for name in self._names()]
        self._plain: dict[str, list[Tensor]] = {}
        for tensor in {name: t for file in self.files for name, t in file.tensors.items()}.values():
            self._plain.setdefault(plain_name(tensor.name), []).append(tensor)

    def _names(self) -> list[str]:
        if (self.folder / _SINGLE).is_file():
            return [_SINGLE]
        path = self.folder / _INDEX
        if not path.is_file():
            raise ModelNotFoundError(f"no weights in {self.folder}: there is no {_SINGLE} and no {_INDEX} in it")
        self.index = read_json(path, _MAX_JSON)
        shards = self.index.get("weight_map")
        if not isinstance(shards, dict):
            raise CorruptModelError(f"{path}: there is no weight_map in it")
        for name, shard in shards.items():
            if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or shard in ("", ".", ".."):
                raise CorruptModelError(f"{path}: weight_map gives {shard!r} for {name}; a file name is expected")
            if not (self.folder / shard).is_file():
                raise ModelNotFoundError(f"{path} names the shard {shard}, which is missing")
        return sorted(set(shards.values()))

    def find(self, name: str) -> Tensor | None:
        """The tensor whose plain name is `name`.

        Raises:
            UnsupportedModelError: there are several.
        """
        found = self._plain.get(name, [])
        if len(found) > 1:
            raise UnsupportedModelError(
                f"{self.folder}: {found[0].name} and {found[1].name} could both be meant by {name}. "
                "Save the text model alone"
            )
        return found[0] if found else None

    def parts(self, module: str) -> list[Part]:
        """Where the weight of a module lies; nothing if there is no such module."""
        tensor = self._weight(module)
        if tensor is not None:
            return [Part(tensor, 0, tensor.rows)]
        if match := _EXPERT.fullmatch(module):
            return self._expert(match["block"], int(match["expert"]), match["leaf"])
        return []

    def _weight(self, module: str) -> Tensor | None:
        for name in _other_blocks(module):
            if (tensor := self.find(f"{name}.weight")) is not None:
                return tensor
        return None

    def _expert(self, block: str, expert: int, leaf: str) -> list[Part]:
        """A projection of one expert under its other names, or inside the stacked tensor."""
        kind = next((kind for kind, names in _LEAVES.items() if leaf in names), None)
        if kind is None:
            return []
        for name in _LEAVES[kind]:
            if (tensor := self._weight(f"{block}.experts.{expert}.{name}")) is not None:
                return [Part(tensor, 0, tensor.rows)]
        stacked = self._stacked(block, "down_proj" if kind == "down" else "gate_up_proj")
        if stacked is None or expert >= stacked.shape[0]:
            return []
        rows = stacked.shape[1]
        if kind == "down":
            return [Part(stacked, expert * rows, rows)]
        half = rows // 2
        return [Part(stacked, expert * rows + (half if kind == "up" else 0), half)]

    def _stacked(self, block: str, name: str) -> Tensor | None:
        for other in _other_blocks(f"{block}.experts.{name}"):
            tensor = self.find(other)
            if tensor is not None and len(tensor.shape) == 3:
                return tensor
        return None

    def experts(self, block: str, name: str) -> list[list[Part]]:
        """The rows of the stacked parameter `name` (gate_up_proj or down_proj), for each expert in order."""
        stacked = self._stacked(block, name)
        if stacked is not None:
            rows = stacked.shape[1]
            return [[Part(stacked, e * rows, rows)] for e in range(stacked.shape[0])]
        leaves = ("down_proj",) if name == "down_proj" else ("gate_proj", "up_proj")
        found: list[list[Part]] = []
        for expert in itertools.count():
            parts = [p for leaf in leaves for p in self._expert(block, expert, leaf)]
            if len(parts) < len(leaves):
                break
            found.append(parts)
        return found


def _other_blocks(name: str) -> list[str]:
    """`name`, and `name` with the block of experts under the names of other versions of transformers."""
    names = [name]
    for block in _BLOCKS:
        for other in _BLOCKS:
            if other != block and f".{block}." in name:
                names.append(name.replace(f".{block}.", f".{other}.", 1))
    return names
