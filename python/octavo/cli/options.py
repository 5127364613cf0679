"""Options that several commands share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from typer import Option

from octavo.llm import LLM
from octavo.params import SamplingParams


@dataclass(frozen=True)
class EngineOptions:
    """How the model is loaded; see `octavo.LLM`."""

    model: Annotated[
        str | None, Option("--model", "-m", help="Folder or hub id.", show_default="the embedded model")
    ] = None
    device: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto"
    dtype: Annotated[str, Option(help="auto, float32 or bfloat16; on a GPU also float16.")] = "auto"
    quantization: Annotated[str, Option(help="auto (int8 on the CPU), int8 or none.")] = "auto"
    kv_cache_dtype: Annotated[str, Option(help="auto, float32, bfloat16 or int8.")] = "auto"
    attention: Annotated[str, Option(help="dense (exact), or dynamic: leaves out what does not matter.")] = "dense"
    kv_cache_memory: Annotated[
        str | None, Option(help="Size such as 4GiB, or a fraction of the memory such as 0.3.")
    ] = None
    max_model_len: Annotated[int | None, Option(help="Longest sequence in tokens.")] = None
    max_num_seqs: Annotated[int | None, Option(help="Sequences that run at once.")] = None
    max_num_batched_tokens: Annotated[int | None, Option(help="Tokens of one step.")] = None
    threads: Annotated[int | None, Option(help="CPU threads.", show_default="one per core")] = None
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a hub id.")] = None

    def load(self, **more: Any) -> LLM:
        """The LLM of these options; `more` are further arguments of LLM."""
        options = asdict(self)
        options["quantization"] = None if self.quantization == "none" else self.quantization
        options["kv_cache_memory"] = _size_or_fraction(self.kv_cache_memory)
        return LLM(**options, **more)


def with_model(engine: EngineOptions, folder: str | None) -> EngineOptions:
    """`engine`, with the model that stands in the command as an argument."""
    return engine if folder is None else replace(engine, model=folder)


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen; see `octavo.SamplingParams`."""

    max_tokens: Annotated[int, Option("--max-tokens", "-n", help="Most tokens to generate.")] = 256
    min_tokens: Annotated[int, Option(help="No stop condition before this many tokens.")] = 0
    temperature: Annotated[
        float | None, Option("--temperature", "-t", help="0 is greedy.", show_default="the model's")
    ] = None
    top_p: Annotated[float | None, Option(show_default="the model's")] = None
    top_k: Annotated[int | None, Option(show_default="the model's")] = None
    min_p: Annotated[float | None, Option(show_default="the model's")] = None
    repetition_penalty: Annotated[float | None, Option(show_default="the model's")] = None
    presence_penalty: Annotated[float, Option()] = 0.0
    frequency_penalty: Annotated[float, Option()] = 0.0
    seed: Annotated[int | None, Option(help="Equal seeds draw equal outputs.")] = None
    stop: Annotated[list[str] | None, Option(help="End before this text; may be repeated.")] = None
    ignore_eos: Annotated[bool, Option("--ignore-eos", help="End-of-sequence does not end the output.")] = False
    timeout: Annotated[float | None, Option(help="Seconds after which a request fails.")] = None

    def params(self, **more: Any) -> SamplingParams:
        """The SamplingParams of these options; `more` are further fields."""
        return SamplingParams(**asdict(self), **more)


def _size_or_fraction(text: str | None) -> str | float | None:
    """A text such as "0.3" as a number; sizes with a unit, or whole numbers of bytes, stay texts."""
    try:
        number = float(text) if text else 0.0
    except ValueError:
        return text
    return number if 0.0 < number < 1.0 else text
