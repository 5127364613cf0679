"""`EngineConfig`: the options of `LLM`, in one place. The engine resolves them (rust/engine/src/resolve.rs)."""

# `_option` returns the field of one class.
# ruff: noqa: RUF009

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict, TypeVar

from octavo.attention import DynamicAttention
from octavo.attention import resolve as resolve_attention
from octavo.calls import unknown_argument
from octavo.errors import InvalidRequestError
from octavo.parse_bytes import parse_bytes

__all__ = ["EngineArguments", "EngineConfig"]

T = TypeVar("T")


def _option(default: T, help: str | None = None, **cli: Any) -> T:
    """A field with its command-line option: `help`, and arguments of `typer.Option`. Without `help` there is no option.
    `kind` is the option's type, if it is not the field's. `serve_only` options belong to `octavo serve` alone."""
    made: T = field(default=default, metadata={} if help is None else {"help": help, **cli})
    return made


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is loaded and run.

    Attributes:
        device: "cpu", "cuda", or "auto": a GPU that can be used, else the CPU.
        dtype: "auto", "float32", "bfloat16", on a GPU also "float16": computation and storage where not quantised.
        quantization: "auto" (int8 on the CPU, but for projections that it would change too much; on a GPU none, unless
            the checkpoint is int8), "int8", or None.
        kv_cache_dtype: "auto" (the model's dtype), "float32", "bfloat16", or "int8": a little over half of the memory
            of bfloat16; on a GPU the model's dtype.
        kv_cache_memory: bytes, a text such as "4GiB", or a fraction of the device's memory; None: enough for
            `max_num_seqs`, at most half of what is free, on a GPU 90 % of what weights and the largest step leave.
        max_model_len: longest sequence, prompt and output together; None: what the model was made for, if it fits.
        max_num_seqs: sequences that run at once (default 64, on a GPU 256).
        max_num_batched_tokens: tokens of one step (default 512, on a GPU 8192).
        max_queue: requests that may wait (default 1024).
        max_loras: distinct adapters that run at once (default 8); further ones wait.
        max_lora_rank: largest rank of an adapter (default 256).
        max_lora_memory: bytes, or a text such as "1GiB", that adapters in memory may take; None: a tenth of the
            weights, and at least 256 MiB. Nothing is taken before an adapter is used.
        enable_prefix_caching: share the KV blocks of equal prefixes.
        attention: "dense" (exact), "dynamic", or `DynamicAttention(...)`: each query reads only the values that matter,
            from an int8 cache, and outputs report the max omitted mass in `metrics.attention`. On a GPU the queries
            of prompts read everything.
        deterministic: on a GPU, batch-invariant kernels: bit-identical output, whatever else is in the batch, at some
            speed. On the CPU output is always batch-invariant.
        threads: CPU threads; None: one per core.
        seed: of requests that bring none.
        revision: branch, tag or commit of a hub repository.
        tokenizer: folder or tokenizer.json, if not the model's.
        chat_template: text of a Jinja template, if not the model's.
    """

    device: str = _option("auto", "auto, cpu or cuda.")
    dtype: str = _option("auto", "auto, float32 or bfloat16; on a GPU also float16.")
    quantization: str | None = _option("auto", "auto (int8 on the CPU), int8 or none.", kind=str)
    kv_cache_dtype: str = _option("auto", "auto, float32, bfloat16 or int8.")
    attention: str | DynamicAttention = _option(
        "dense", "dense (exact), or dynamic: leaves out what does not matter.", kind=str
    )
    kv_cache_memory: int | float | str | None = _option(
        None, "Size such as 4GiB, or a fraction of the memory such as 0.3.", kind=str | None
    )
    max_model_len: int | None = _option(None, "Longest sequence in tokens.")
    max_num_seqs: int | None = _option(None, "Sequences that run at once.")
    max_num_batched_tokens: int | None = _option(None, "Tokens of one step.")
    threads: int | None = _option(None, "CPU threads.", show_default="one per core")
    revision: str | None = _option(None, "Branch, tag or commit of a hub id.")
    deterministic: bool = _option(False)
    chat_template: str | None = _option(
        None, "File with a Jinja template, or its text.", show_default="the model's", serve_only=True
    )
    tokenizer: str | os.PathLike[str] | None = _option(
        None, "Folder or tokenizer.json.", show_default="the model's", kind=str | None, serve_only=True
    )
    enable_prefix_caching: bool = _option(
        True, "Share KV blocks between requests with equal prefixes.", serve_only=True
    )
    seed: int = _option(0, "Seed of requests without a seed.", serve_only=True)
    max_queue: int | None = _option(None, "Maximum number of waiting requests.", show_default="1024", serve_only=True)
    max_loras: int | None = _option(None, "Distinct adapters that run at once.", show_default="8", serve_only=True)
    max_lora_rank: int | None = _option(None, "Largest rank of an adapter.", show_default="256")
    max_lora_memory: int | str | None = _option(
        None, "Memory for adapters, such as 1GiB.", kind=str | None, show_default="a tenth of the weights, from 256MiB"
    )

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> EngineConfig:
        """The configuration of keyword arguments.

        Raises:
            UnknownArgumentError: there is no such argument; the message names the nearest, or a remedy.
        """
        known = ["model", *(f.name for f in fields(cls))]
        for name in arguments.keys() - known:
            raise unknown_argument("LLM", name, known)
        return cls(**arguments)

    def for_engine(self) -> dict[str, Any]:
        """The engine's part of the fields, in types of JSON. The engine checks them.

        Raises:
            InvalidRequestError: attention, kv_cache_memory, or None where an option has no such value.
        """
        for f in fields(self):
            # The engine reads None as "not given".
            if getattr(self, f.name) is None and f.default is not None and f.name != "quantization":
                raise InvalidRequestError(f"{f.name} is None: leave it out, or give a value such as {f.default!r}")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("device", "revision")}
        dynamic = resolve_attention(self.attention)
        size, fraction = parse_bytes(self.kv_cache_memory)
        lora_memory, share = parse_bytes(self.max_lora_memory, "max_lora_memory")
        if share is not None:
            raise InvalidRequestError(f"max_lora_memory is {share}: bytes, or a text such as '1GiB', are expected")
        return {
            **values,
            "attention": None if dynamic is None else asdict(dynamic),
            "max_lora_memory": lora_memory,
            "kv_cache_memory": fraction if size is None else size,
            "quantization": "none" if self.quantization is None else self.quantization,
            "tokenizer": None if self.tokenizer is None else os.fspath(self.tokenizer),
        }


class EngineArguments(TypedDict, total=False):
    """`EngineConfig` as keyword arguments, for type checkers. A test holds the two equal."""

    device: str
    dtype: str
    quantization: str | None
    kv_cache_dtype: str
    attention: str | DynamicAttention
    kv_cache_memory: int | float | str | None
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    threads: int | None
    revision: str | None
    deterministic: bool
    chat_template: str | None
    tokenizer: str | os.PathLike[str] | None
    enable_prefix_caching: bool
    seed: int
    max_queue: int | None
    max_loras: int | None
    max_lora_rank: int | None
    max_lora_memory: int | str | None


C = TypeVar("C", bound=type)


def takes_config(cls: C) -> C:
    """Shows the fields of `EngineConfig` in the signature and the docstring ("{options}") of a class whose constructor
    takes them as keyword arguments."""
    kinds = inspect.Parameter
    constructor: Any = vars(cls)["__init__"]
    init = inspect.signature(constructor)
    own = [p for p in init.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
    options = [kinds(f.name, kinds.KEYWORD_ONLY, default=f.default, annotation=f.type) for f in fields(EngineConfig)]
    constructor.__signature__ = init.replace(parameters=[*own, *options])
    _, attributes = (EngineConfig.__doc__ or "").split("Attributes:\n")
    cls.__doc__ = (cls.__doc__ or "").replace("        {options}\n", attributes.rstrip() + "\n")
    return cls
