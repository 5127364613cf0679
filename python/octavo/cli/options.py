"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from typer import Option

from octavo.config import EngineConfig
from octavo.errors import InvalidRequestError
from octavo.llm import LLM
from octavo.params import SamplingParams

C = TypeVar("C", bound=type)


def _from_config(*, serve: bool) -> Callable[[C], C]:
    """Adds an option for each field of `EngineConfig` that has one; those of `octavo serve` alone where `serve`."""

    def add(cls: C) -> C:
        kinds = get_type_hints(EngineConfig)
        for option in fields(EngineConfig):
            metadata = dict(option.metadata)
            kind = metadata.pop("kind", kinds[option.name])
            if metadata and metadata.pop("serve_only", False) == serve:
                cls.__annotations__[option.name] = Annotated[kind, Option(**metadata)]
                setattr(cls, option.name, option.default)
        make: Any = dataclass(frozen=True)
        made: C = make(cls)
        return made

    return add


@_from_config(serve=False)
class EngineOptions:
    """How the model is loaded; see `octavo.EngineConfig`."""

    model: Annotated[
        str | None, Option("--model", "-m", help="Folder or hub id.", show_default="the embedded model")
    ] = None

    def load(self, **more: Any) -> LLM:
        """The LLM of these options; `more` are further arguments of LLM."""
        options = {**vars(self), **more}
        options["quantization"] = None if options["quantization"] == "none" else options["quantization"]
        options["kv_cache_memory"] = _size_or_fraction(options["kv_cache_memory"])
        return LLM(**options)

    def changed(self) -> list[str]:
        """Names of the options that do not have their default."""
        return [name for name, value in vars(self).items() if value != getattr(type(self), name)]


@_from_config(serve=True)
class ServeOptions(EngineOptions):
    """`EngineOptions`, and those that only `octavo serve` has."""

    def load(self, **more: Any) -> LLM:
        return super().load(chat_template=_template(vars(self)["chat_template"]), **more)


E = TypeVar("E", bound=EngineOptions)


def with_model(engine: E, folder: str | None) -> E:
    """`engine`, with the model that stands in the command as an argument."""
    return engine if folder is None else type(engine)(**{**vars(engine), "model": folder})


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


def _template(given: str | None) -> str | None:
    """The text of a template that is given as such, or as a file."""
    if given is None or "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--chat-template {given}: {error}") from error


def _size_or_fraction(text: str | None) -> str | float | None:
    """A text such as "0.3" as a number; sizes with a unit, or whole numbers of bytes, stay texts."""
    try:
        number = float(text) if text else 0.0
    except ValueError:
        return text
    return number if 0.0 < number < 1.0 else text
