"""Adapters and packs on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from typer import Option
from typer.core import TyperCommand

from octavo.cli.command import fail
from octavo.errors import InvalidRequestError
from octavo.llm import LLM
from octavo.params import SamplingParams
from octavo.server.lazy_llm import model_name
from octavo.server.names import check_name

# Options that take several values, as in vLLM: `--lora-modules sql=path law=path`.
_SEVERAL = ("--lora-modules", "--pack", "--plugin", "--plugin-secret-env", "--plugin-approval")
_VALUE = re.compile(r"[^-=\s{][^=]*=.+|\{.*", re.DOTALL)
# Options of vLLM and SGLang for adapters, with what to use here.
_ELSEWHERE = {
    "--fully-sharded-loras": "leave it out, adapters are not sharded",
    "--lora-dtype": "leave it out, adapters are packed as the model is",
    "--lora-extra-vocab-size": "leave it out, adapters with tokens of their own are merged with octavo merge",
    "--lora-paths": "use --lora-modules",
    "--max-cpu-loras": "use --max-lora-memory",
    "--max-loaded-loras": "any number may be loaded, use --max-lora-memory for those in memory",
    "--max-loras-per-batch": "use --max-loras",
}
_KEYS = ("name", "path", "base_model_name")


class Module(NamedTuple):
    """An adapter that a server loads at its start. `base_model_name`: the model that the user expects."""

    name: str
    path: str
    base_model_name: str | None = None


@dataclass(frozen=True)
class LoraOptions:
    """An adapter for all requests of a run."""

    lora: Annotated[str | None, Option("--lora", help="Folder of a LoRA adapter to use.", show_default=False)] = None

    def load_into(self, llm: LLM) -> str | None:
        """Loads the adapter; its name."""
        return None if self.lora is None else llm.load_adapter(_name_of(self.lora), self.lora).name


@dataclass(frozen=True)
class AttachedOptions(LoraOptions):
    """An adapter and packs for all requests of a run."""

    pack: Annotated[
        list[str] | None,
        Option("--pack", help="Knowledge pack before each prompt; may be repeated.", show_default=False),
    ] = None

    def attach(self, llm: LLM, params: SamplingParams) -> SamplingParams:
        """`params` with the adapter and the packs, which are loaded."""
        found: dict[str, Any] = {}
        adapter = self.load_into(llm)
        if adapter is not None:
            found["lora"] = adapter
        if self.pack:
            found["pack"] = [llm.load_pack(_name_of(path, taken=i), path).name for i, path in enumerate(self.pack)]
        return replace(params, **found) if found else params

    def refuse(self, why: str) -> None:
        """Refuses the options.

        Raises:
            InvalidRequestError: one of them is given.
        """
        for name in ("lora", "pack"):
            if getattr(self, name):
                raise InvalidRequestError(f"--{name} {why}")


def _name_of(path: str, taken: int = 0) -> str:
    """A name for what lies at `path`: its last part, in characters that names may have."""
    name = re.sub(r"[^\w.-]+", "-", Path(path.rstrip("/")).name).strip("-") or "attached"
    return f"{name}-{taken}" if taken else name


def lora_modules(given: Iterable[str]) -> list[Module]:
    """The values of --lora-modules.

    Raises:
        InvalidRequestError: a value has another form.
    """
    return [_module(value) for value in given]


def _module(value: str) -> Module:
    if not value.lstrip().startswith("{"):
        return Module(*named_path(value, "--lora-modules"))
    try:
        found = json.loads(value)
    except ValueError as error:
        raise InvalidRequestError(f"--lora-modules {value[:80]}: no JSON: {error}") from error
    unknown = next((key for key in found if key not in _KEYS), None)
    if unknown is not None:
        raise InvalidRequestError(f"--lora-modules {value[:80]}: the key {unknown!r} is not known: {', '.join(_KEYS)}")
    if not all(isinstance(found.get(key), str) and found[key] for key in ("name", "path")):
        raise InvalidRequestError(f'--lora-modules {value[:80]}: {{"name": ..., "path": ...}} with texts is expected')
    base = found.get("base_model_name")
    if base is not None and not isinstance(base, str):
        raise InvalidRequestError(f"--lora-modules {value[:80]}: base_model_name is no text")
    return Module(found["name"], found["path"], base)


def named_path(value: str, option: str) -> tuple[str, str]:
    """The parts of NAME=PATH.

    Raises:
        InvalidRequestError: it has another form.
    """
    name, equals, path = value.partition("=")
    if not equals or not name.strip() or not path.strip():
        raise InvalidRequestError(f"{option} is {value[:80]!r}: NAME=PATH is expected")
    return name.strip(), path.strip()


def load_attached(llm: LLM, names: Sequence[str], modules: Sequence[Module], packs: Sequence[tuple[str, str]]) -> None:
    """Loads what a server starts with.

    Args:
        names: names that the server gives to the model; empty: the default.

    Raises:
        InvalidRequestError: a name has another meaning, or an adapter expects another model.
        OctavoError: an adapter or a pack cannot be loaded.
    """
    names = names or (model_name(llm),)
    seen: set[str] = set()
    for name, path, base in modules:
        check_name(name, names, "a name in --lora-modules")
        if name in seen:
            raise InvalidRequestError(f"--lora-modules has the name {name!r} twice: give each adapter its own")
        if base is not None and base not in names:
            raise InvalidRequestError(
                f"--lora-modules: base_model_name of {name!r} is {base[:80]!r}, and {', '.join(names)} is served: "
                "--served-model-name adds names"
            )
        seen.add(name)
        llm.load_adapter(name, path)
    for name, path in packs:
        check_name(name, (), "a name in --pack")
        llm.load_pack(name, path)


class ServeCommand(TyperCommand):
    """A command with options that take several values, and remedies for options of other servers."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for name in (argument.partition("=")[0] for argument in args):
            if name in _ELSEWHERE:
                fail(f"there is no option {name}: {_ELSEWHERE[name]}", 2)
        return super().parse_args(ctx, spread(args))


def spread(arguments: Sequence[str]) -> list[str]:
    """`arguments` with the option before each of its values. A value is NAME=PATH or a JSON object."""
    out: list[str] = []
    option, first = "", False
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, _ = argument.partition("=")
            option, first = name if name in _SEVERAL else "", not equals
        elif first or not _VALUE.fullmatch(argument):
            # The first value may have any form: a wrong one is named later.
            option, first = option if first else "", False
        elif option:
            out.append(option)
        out.append(argument)
    return out
