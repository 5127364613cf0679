"""The settings of a run, found from the data, the model and the machine. Each comes with its reason."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from octavo.errors import InvalidRequestError, UnsupportedDeviceError
from octavo.finetune.memory import check_memory, needed

__all__ = ["DataFacts", "ModelFacts", "Plan", "learning_rate", "make_plan", "model_facts"]

Method = Literal["lora", "full"]
METHODS = ("auto", "lora", "qlora", "full")
# The rate of LoRA: 3e-3 at the 2.7 M weights of the embedded model (measured), less with the size.
_RATE, _RATE_WEIGHTS, _RATE_POWER = 3e-3, 2.7e6, 0.3
_FULL_RATE_SHARE = 0.1
_RANK = 16
# A small set is repeated up to this many steps, but not more often than this.
_MIN_STEPS, _MAX_EPOCHS, _EPOCHS = 300, 40, 3


@dataclass(frozen=True)
class ModelFacts:
    """Of config.json and the headers of the weights.

    Attributes:
        weights: number of values of all tensors.
        linear: shapes [out, in] of the linear projections that LoRA changes.
        width, layers, vocabulary: of the configuration.
        max_length: tokens of the context.
    """

    weights: int
    linear: list[tuple[int, int]]
    width: int
    layers: int
    vocabulary: int
    max_length: int


@dataclass(frozen=True)
class DataFacts:
    """Counts of the data after its preparation. Lengths are in tokens."""

    format: str
    rows: int
    validation_rows: int
    replay_rows: int
    duplicates: int
    leaks: int
    length: int
    cut_rows: int
    gone_rows: int
    tokens: int
    targets: int


@dataclass(frozen=True)
class Plan:
    """All that a run depends on. Written as plan.json before the first step, and not changed after it.

    Attributes:
        batch_rows: rows of one step; `replay_rows` of them are replayed. The same on every machine.
        micro_rows: rows of one forward pass; the machine's, and without influence on the result but for rounding.
        processes: one for each device.
        threads: of each process; with other threads the last bits of a sum differ.
        save_seconds: time between two checkpoints, at least.
        rate: the peak; it rises over `warmup_steps` and falls as a cosine to a tenth.
        memory: `octavo.finetune.memory.MemoryLine` as plain values: what one device needs before the first row.
        why: a reason for each setting.
    """

    model: str
    method: Method
    rank: int
    alpha: int
    dtype: str
    device: str
    processes: int
    length: int
    batch_rows: int
    replay_rows: int
    micro_rows: int
    steps: int
    epochs: float
    rate: float
    warmup_steps: int
    seed: int
    evaluate_every: int
    threads: int
    save_seconds: float = 10.0
    memory: list[dict[str, Any]] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Writes the plan: complete or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Reads a plan.

        Raises:
            InvalidRequestError: it is none; the message says what to delete.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InvalidRequestError(f"{path}: no plan of this version ({error}): delete its folder") from error


def model_facts(folder: Path) -> ModelFacts:
    """Reads config.json and the headers of the weights; no weight is read.

    Raises:
        InvalidRequestError: the folder lacks them.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shapes = _shapes(folder)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{folder}: {error}: a folder of config.json and safetensors is expected") from error
    config = config.get("text_config", config)
    linear = [
        (s[0], s[1])
        for name, s in shapes.items()
        if len(s) == 2 and name.endswith(".weight") and not any(part in name for part in ("embed", "lm_head"))
    ]
    return ModelFacts(
        weights=sum(math.prod(shape) for shape in shapes.values()),
        linear=linear,
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        vocabulary=config["vocab_size"],
        max_length=config.get("max_position_embeddings", 2048),
    )


def learning_rate(weights: int, method: Method) -> float:
    """The peak rate: 3e-3 x (2.7 M / weights)^0.3 for LoRA, from 1e-4 to 3e-3; a tenth of it for all weights."""
    rate = _RATE * (_RATE_WEIGHTS / max(weights, 1)) ** _RATE_POWER
    rate = min(_RATE, max(1e-4, rate))
    return float(f"{rate * (_FULL_RATE_SHARE if method == 'full' else 1):.2g}")


def make_plan(
    folder: Path,
    model: ModelFacts,
    data: DataFacts,
    machine: Mapping[str, Any],
    *,
    method: str = "auto",
    replay: float = 0.25,
    steps: int | None = None,
    rate: float | None = None,
    processes: int | None = None,
    seed: int = 7,
) -> Plan:
    """Decides everything but `micro_rows`, which a probe does (`octavo.finetune.probe`).

    Args:
        machine: "device" ("cpu" or "cuda"), "devices", "memory_bytes" and "bfloat16".

    Raises:
        UnsupportedDeviceError: QLoRA without CUDA.
        DeviceMemoryError: the weights and their gradients do not fit; the message has both sizes.
        InvalidRequestError: an unknown method.
    """
    why: dict[str, str] = {}
    chosen = _method(method, why)
    dtype = "bfloat16" if machine["device"] == "cuda" and machine["bfloat16"] else "float32"
    why["dtype"] = (
        "the GPU computes bfloat16; adapters stay float32" if dtype == "bfloat16" else "exact repetition on the CPU"
    )
    adapter = 0 if chosen == "full" else sum(_RANK * (out + in_) for out, in_ in model.linear)
    memory = needed(model.weights, adapter, dtype)
    smaller = "--method lora needs less" if chosen == "full" else "Take a smaller model"
    check_memory(memory, machine["memory_bytes"], smaller)
    batch = _batch_rows(data.rows, why)
    replayed = min(round(batch * replay), batch - 1) if data.replay_rows else 0
    own = batch - replayed
    planned = _steps(data.rows, own, why) if steps is None else steps
    if steps is not None:
        why["steps"] = "given"
    why["rate"] = (
        "given" if rate is not None else f"{model.weights:,} weights, {chosen}: small models need higher rates"
    )
    why["length"] = f"99 % of the rows fit; {data.cut_rows} are cut, {data.gone_rows} are left out"
    why["replay_rows"] = (
        f"{replayed} of {batch} rows are the base model's own answers: they keep what it can do"
        if replayed
        else "none: no chat template, or --replay 0"
    )
    devices = processes or (machine["devices"] if machine["device"] == "cuda" else 1)
    return Plan(
        model=str(folder),
        method=chosen,
        rank=_RANK if chosen == "lora" else 0,
        alpha=2 * _RANK if chosen == "lora" else 0,
        dtype=dtype,
        device=machine["device"],
        processes=devices,
        length=data.length,
        batch_rows=batch,
        replay_rows=replayed,
        micro_rows=0,
        steps=planned,
        epochs=round(planned * own / data.rows, 3),
        rate=learning_rate(model.weights, chosen) if rate is None else rate,
        warmup_steps=max(1, round(0.03 * planned)),
        seed=seed,
        evaluate_every=max(1, round(data.rows / own / 4)) if data.validation_rows else 0,
        threads=machine["threads"] // devices or 1,
        memory=[dataclasses.asdict(line) for line in memory],
        why=why,
    )


def _method(method: str, why: dict[str, str]) -> Method:
    if method not in METHODS:
        raise InvalidRequestError(f"method is {method!r}: {', '.join(METHODS)} are known")
    if method == "qlora":
        raise UnsupportedDeviceError(
            "method qlora needs CUDA and bitsandbytes, and is not built yet: --method lora trains the same adapter"
        )
    why["method"] = (
        "given" if method != "auto" else "LoRA on all linear layers learns like full training, at less memory"
    )
    return "full" if method == "full" else "lora"


def _batch_rows(rows: int, why: dict[str, str]) -> int:
    batch = 16 if rows < 2_000 else 32 if rows < 20_000 else 64
    why["batch_rows"] = f"{rows:,} rows; the same on every machine"
    return batch


def _steps(rows: int, own: int, why: dict[str, str]) -> int:
    epoch = rows / own
    steps = math.ceil(max(_EPOCHS * epoch, min(_MIN_STEPS, _MAX_EPOCHS * epoch)))
    why["steps"] = (
        f"at least {_EPOCHS} epochs; a small set is repeated to {_MIN_STEPS} steps, up to {_MAX_EPOCHS} times"
    )
    return steps


def _shapes(folder: Path) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError("there is no *.safetensors")
    for file in files:
        with file.open("rb") as data:
            size = int.from_bytes(data.read(8), "little")
            if size > 100_000_000:
                raise ValueError(f"{file.name}: no safetensors header")
            header = json.loads(data.read(size))
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return shapes
