"""Adapters: LoRA weights under a name, which a request chooses."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from typing import Any

from octavo import _core
from octavo.calls import names_arguments
from octavo.errors import InvalidRequestError
from octavo.inputs import as_name, as_path
from octavo.params import SamplingParams

__all__ = ["Adapter", "AdapterMethods", "with_adapter"]


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter. Made by `LLM.load_adapter`.

    Attributes:
        name: what requests give as `adapter` or `SamplingParams.lora`.
        generation: counts the contents that the name has had, from 1 on.
        digest: SHA-256 of its content. Equal digests share cached prefixes, whatever their names.
        rank: the largest rank of its projections.
        bytes: memory that it takes while requests use it.
    """

    name: str
    generation: int
    digest: str
    rank: int
    bytes: int

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Adapter:
        """From the engine's form."""
        return cls(*(fields[name] for name in ("name", "generation", "digest", "rank", "bytes")))


@names_arguments(owner="LLM")
class AdapterMethods:
    """The methods of `LLM` for adapters."""

    _engine: _core.Engine

    def load_adapter(self, name: str, path: str | os.PathLike[str], expected_generation: int | None = None) -> Adapter:
        """Loads the LoRA adapter of a PEFT folder under a name. Requests may use it at once.

        The files are checked now. The adapter is packed at its first use, and takes memory from then on. A name that is
        loaded again stands for the new content; requests that run keep the old one.

        Args:
            name: what requests give as `adapter` or `SamplingParams.lora`.
            path: a folder with adapter_config.json and adapter_model.safetensors.
            expected_generation: load only if the name has this generation; 0: only if it is free.

        Raises:
            ModelNotFoundError, UnsupportedModelError, CorruptModelError: the files; the message names file and field.
            AdapterConflictError: the name has another generation than `expected_generation`.
            InvalidRequestError: the name, or `max_lora_rank` or `max_lora_memory` is too low for the adapter.
        """
        loaded = self._engine.load_adapter(as_name(name), as_path(path, "an adapter"), _generation(expected_generation))
        for text in loaded["warnings"]:
            warnings.warn(f"adapter {name!r}: {text}", RuntimeWarning, stacklevel=3)
        return Adapter.of(loaded)

    def unload_adapter(self, name: str) -> None:
        """Removes the name of an adapter. Requests that run with it go on; its memory goes with the last one.

        Raises:
            AdapterNotFoundError: no adapter has the name.
        """
        self._engine.unload_adapter(as_name(name))

    def adapters(self) -> list[Adapter]:
        """The loaded adapters, sorted by name."""
        return [Adapter.of(fields) for fields in self._engine.adapters()]


def with_adapter(params: SamplingParams, adapter: str | Adapter | None) -> SamplingParams:
    """The parameters with the argument `adapter` as their `lora`."""
    if adapter is None:
        return params
    name = f"{adapter.name}@{adapter.generation}" if isinstance(adapter, Adapter) else adapter
    if not isinstance(name, str):
        raise InvalidRequestError(f"adapter is a {type(adapter).__name__}: the name of a loaded adapter is expected")
    if params.lora == name:
        return params
    if params.lora is not None:
        raise InvalidRequestError(
            f"adapter is {name!r} and lora of sampling_params is {params.lora!r}: give one of the two"
        )
    return replace(params, lora=name)


def _generation(expected: object) -> int | None:
    if expected is None or (isinstance(expected, int) and not isinstance(expected, bool) and 0 <= expected < 2**63):
        return expected
    raise InvalidRequestError(f"expected_generation is {expected!r}: an integer from 0 on, or None, is expected")
