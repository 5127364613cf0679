"""The tensors of a PEFT adapter, grouped by the module that they belong to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from octavo.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from octavo.merge.adapter_config import AdapterConfig
from octavo.merge.tensor_file import Tensor, TensorFile

__all__ = ["AdapterFolder", "Group"]

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Ends of names, and the attribute of `Group` that holds the tensor. The name of the adapter may stand between.
_NAME = r"(?:\.[^.]+)?"
_ENDS = {
    re.compile(rf"(.+)\.lora_A{_NAME}\.weight"): "first",
    re.compile(rf"(.+)\.lora_B{_NAME}\.weight"): "second",
    re.compile(rf"(.+)\.lora_B{_NAME}\.bias"): "bias",
    re.compile(rf"(.+)\.lora_embedding_A{_NAME}"): "first",
    re.compile(rf"(.+)\.lora_embedding_B{_NAME}"): "second",
    re.compile(rf"(.+)\.lora_magnitude_vector{_NAME}(?:\.weight)?"): "lengths",
}
_TOKENS = ".token_adapter.trainable_tokens_delta"


@dataclass
class Group:
    """What the adapter adds to one module or parameter.

    Attributes:
        module: its name, as in the live model.
        first: lora_A `[rank, in]`; of an embedding `[rank, vocabulary]`.
        second: lora_B `[out, rank]`; of an embedding `[width, rank]`.
        bias: lora_B's bias.
        lengths: DoRA's magnitudes.
        embedding: the tensors are those of an embedding.
    """

    module: str
    first: Tensor | None = None
    second: Tensor | None = None
    bias: Tensor | None = None
    lengths: Tensor | None = None
    embedding: bool = False


@dataclass
class AdapterFolder:
    """A checked adapter.

    Attributes:
        folder: the folder.
        config: its adapter_config.json.
        groups: products, by the module's name in the file.
        whole: tensors that take the place of the model's, by their names there.
        tokens: rows of embeddings, by the module's name.
    """

    folder: Path
    config: AdapterConfig
    groups: dict[str, Group] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> AdapterFolder:
        """Reads the adapter of `folder` and checks it in itself, every value included.

        Raises:
            ModelNotFoundError, UnsupportedModelError, CorruptModelError: what is wrong with it.
        """
        if not folder.is_dir():
            raise ModelNotFoundError(f"no adapter at {folder}: give the folder that holds adapter_config.json")
        adapter = cls(folder, AdapterConfig.read(folder))
        path = folder / _WEIGHTS
        if not path.is_file():
            what = f"there is no {_WEIGHTS} in it"
            if (folder / "adapter_model.bin").is_file():
                what += (
                    ", only adapter_model.bin, a PyTorch pickle, which can run code and is not read. "
                    "Save it again with PEFT: save_pretrained(..., safe_serialization=True)"
                )
            raise ModelNotFoundError(f"no adapter at {folder}: {what}")
        tensors = TensorFile(path).tensors
        if not tensors:
            raise CorruptModelError(f"{path} holds no tensors")
        for tensor in tensors.values():
            adapter._add(tensor)
        for group in adapter.groups.values():
            adapter._check(group)
        for tensor in tensors.values():
            _check_values(tensor)
        return adapter

    def _add(self, tensor: Tensor) -> None:
        name = tensor.name.removeprefix(_PREFIX)
        for end, attribute in _ENDS.items():
            if match := end.fullmatch(name):
                module = match[1]
                group = self.groups.setdefault(module, Group(module))
                if getattr(group, attribute) is not None:
                    raise CorruptModelError(f"{tensor.file.path}: {module} has {attribute!r} twice, as {tensor.name}")
                setattr(group, attribute, tensor)
                group.embedding |= "lora_embedding" in end.pattern
                return
        if name.endswith(_TOKENS):
            self.tokens[name.removesuffix(_TOKENS)] = tensor
        elif any(part.startswith("lora_") or part == "token_adapter" for part in name.split(".")):
            raise UnsupportedModelError(f"{tensor.file.path}: {tensor.name} is no tensor of LoRA that octavo knows")
        else:
            self.whole[name.replace(".base_layer.", ".")] = tensor

    def _check(self, group: Group) -> None:
        where, name = f"{self.folder / _WEIGHTS}", group.module
        if group.first is None or group.second is None:
            missing = "lora_A" if group.first is None else "lora_B"
            raise CorruptModelError(f"{where}: {name} has no {missing}")
        for tensor in (group.first, group.second):
            if len(tensor.shape) != 2 or 0 in tensor.shape:
                raise CorruptModelError(
                    f"{where}: {tensor.name} has the shape {list(tensor.shape)}; a matrix is expected"
                )
        if group.first.shape[0] != group.second.shape[1]:
            raise CorruptModelError(
                f"{where}: the rank of {name} is {group.first.shape[0]} by {group.first.name}, "
                f"and {group.second.shape[1]} by {group.second.name}"
            )
        for has, wanted, what, option in (
            (group.lengths is not None, self.config.dora, "lora_magnitude_vector", "use_dora"),
            (group.bias is not None, self.config.lora_bias and not group.embedding, "a bias of lora_B", "lora_bias"),
        ):
            if has != wanted:
                raise CorruptModelError(
                    f"{where}: {name} has {'' if has else 'not '}{what}, and {option} is {str(wanted).lower()} in "
                    f"{self.config.path.name}"
                )


def _check_values(tensor: Tensor) -> None:
    for first, block in tensor.blocks():
        if not (finite := np.isfinite(block)).all():
            row, column = np.argwhere(~finite)[0]
            raise CorruptModelError(
                f"{tensor.file.path}: {tensor.name} has the value {block[row, column]} in row {first + row}. "
                "The file is damaged, or the training failed"
            )
