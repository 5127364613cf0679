"""`adapter_config.json` of PEFT's LoRA: what a merge can honour, and what it refuses by name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from octavo.merge.tensor_file import read_json

__all__ = ["AdapterConfig"]

_MAX_BYTES = 1 << 20
# Fields that say how the adapter was trained or where its parts lie, and do not change its product.
_WITHOUT_EFFECT = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "velora_config",
    ]
)
_USED = frozenset(
    [
        "alpha_pattern",
        "bias",
        "init_lora_weights",
        "lora_alpha",
        "lora_bias",
        "r",
        "rank_pattern",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    ]
)
# Fields that give the adapter another form, and why it has no merged one.
_REFUSED = {
    "alora_invocation_tokens": "it acts from certain tokens on, and a merged matrix acts on all of them",
    "arrow_config": "it chooses among adapters for each token",
    "kasa_config": "it changes the weights of the base model, too",
    "layer_replication": "it repeats layers",
    "megatron_config": "its tensors belong to Megatron",
    "monteclora_config": "it draws weights at random",
    "use_bdlora": "its matrices are stored in blocks",
    "use_qalora": "it averages groups of the input",
}
# Initial values that take a part out of the base model's weights.
_CHANGES_BASE = re.compile(r"pissa.*|olora|corda|loftq|lora_ga", re.IGNORECASE)


@dataclass(frozen=True)
class AdapterConfig:
    """The fields that a merge needs.

    Attributes:
        path: the file.
        rank: of modules that no pattern names.
        alpha: of modules that no pattern names.
        ranks: patterns of names, and the rank of such modules.
        alphas: the same for alpha.
        rslora: the scale is alpha / sqrt(rank) instead of alpha / rank.
        dora: the rows of every adapted matrix get lengths of their own.
        lora_bias: the second matrices have biases.
        token_indices: rows of embeddings that were trained, by the module's name; "" is the embedding.
        parameters: targets that are parameters, not modules.
        targets: targets that are modules, if they are a list.
        base_model: name of the model that the adapter was trained on, for messages.
    """

    path: Path
    rank: int
    alpha: float
    ranks: dict[str, float]
    alphas: dict[str, float]
    rslora: bool
    dora: bool
    lora_bias: bool
    token_indices: dict[str, list[int]]
    parameters: list[str]
    targets: list[str]
    base_model: str

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Reads and checks the file of `folder`.

        Raises:
            ModelNotFoundError, UnsupportedModelError, CorruptModelError: the file.
        """
        path = folder / "adapter_config.json"
        if not path.is_file():
            raise ModelNotFoundError(f"no adapter at {folder}: there is no adapter_config.json in it")
        fields = _Fields(path, read_json(path, _MAX_BYTES))
        fields.refuse()
        return cls(
            path=path,
            rank=int(fields.number("r", 8)),
            alpha=fields.number("lora_alpha", 8),
            ranks=fields.pattern("rank_pattern"),
            alphas=fields.pattern("alpha_pattern"),
            rslora=fields.flag("use_rslora"),
            dora=fields.flag("use_dora"),
            lora_bias=fields.flag("lora_bias"),
            token_indices=fields.token_indices(),
            parameters=fields.names("target_parameters"),
            targets=[] if isinstance(fields.values.get("target_modules"), str) else fields.names("target_modules"),
            base_model=str(fields.values.get("base_model_name_or_path") or "an unnamed model"),
        )

    def scale_of(self, name: str, rank: int) -> float:
        """What the product of the two matrices of the module or parameter `name` is multiplied by.

        Raises:
            CorruptModelError: the file's rank is another one.
        """
        stated = self._found(self.ranks, name, self.rank, "rank_pattern")
        if stated != rank:
            raise CorruptModelError(
                f"{self.path}: the rank of {name} is {stated:g} by r and rank_pattern, "
                f"and its tensors have the rank {rank}"
            )
        alpha = self._found(self.alphas, name, self.alpha, "alpha_pattern")
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def _found(self, patterns: dict[str, float], name: str, other: float, field: str) -> float:
        for pattern, value in patterns.items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", name):
                    return value
            except re.error as error:
                raise CorruptModelError(
                    f"{self.path}: {field} has {pattern!r}, no regular expression: {error}"
                ) from error
        return other


@dataclass(frozen=True)
class _Fields:
    """The parsed file."""

    path: Path
    values: dict[str, Any]

    def refuse(self) -> None:
        kind = self.values.get("peft_type")
        if kind != "LORA":
            raise UnsupportedModelError(
                f"{self.path}: peft_type is {kind!r}; octavo merges 'LORA'. Merge this one with PEFT (merge_and_unload)"
            )
        for name, value in self.values.items():
            if name in _USED or name in _WITHOUT_EFFECT or not value:
                continue
            why = _REFUSED.get(name, "octavo does not know this field, and ignoring it could change the result")
            raise UnsupportedModelError(f"{self.path}: {name} is {_short(value)}, which cannot be merged: {why}")
        init = self.values.get("init_lora_weights", True)
        if isinstance(init, str) and _CHANGES_BASE.fullmatch(init):
            raise UnsupportedModelError(
                f"{self.path}: init_lora_weights is {init!r}, so the adapter belongs to a changed base model. "
                "Save it again with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )
        if (bias := self.values.get("bias", "none")) not in ("none", "all", "lora_only"):
            raise UnsupportedModelError(f"{self.path}: bias is {bias!r}; 'none', 'all' or 'lora_only' is expected")

    def number(self, name: str, default: float) -> float:
        return self._number(name, self.values.get(name, default))

    def _number(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CorruptModelError(f"{self.path}: {name} is {_short(value)}; a number is expected")
        if name in ("r", "rank_pattern") and (value < 1 or value != int(value)):
            raise CorruptModelError(f"{self.path}: {name} is {_short(value)}; a whole number above 0 is expected")
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if value not in (None, False, True) or (isinstance(value, int) and not isinstance(value, bool)):
            raise CorruptModelError(f"{self.path}: {name} is {_short(value)}; true or false is expected")
        return bool(value)

    def pattern(self, name: str) -> dict[str, float]:
        value = self.values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise CorruptModelError(f"{self.path}: {name} is {_short(value)}; an object is expected")
        return {key: self._number(name, number) for key, number in value.items()}

    def names(self, name: str) -> list[str]:
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise CorruptModelError(f"{self.path}: {name} is {_short(value)}; a list of names is expected")
        return value

    def token_indices(self) -> dict[str, list[int]]:
        name = "trainable_token_indices"
        value = self.values.get(name)
        found = {} if not value else value if isinstance(value, dict) else {"": value}
        for rows in found.values():
            if not isinstance(rows, list) or not all(type(row) is int and row >= 0 for row in rows):
                raise CorruptModelError(f"{self.path}: {name} is {_short(value)}; lists of token ids are expected")
        return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
