"""`octavo doctor`: checks the installation."""

from __future__ import annotations

import datetime
import importlib.util
import json
import platform
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Option

from octavo import _core
from octavo.cli.plugin_options import PluginValues, SecretValues, plugin_host
from octavo.cli.sizes import size
from octavo.errors import OctavoError
from octavo.gpu import device
from octavo.hub import embedded_model
from octavo.llm import LLM
from octavo.params import SamplingParams

if TYPE_CHECKING:
    from octavo.plugins.host.host import PluginHost
    from octavo.plugins.host.outcome import Tool

# Enough for the embedded model with a short context.
_MIN_MEMORY_BYTES = 256 << 20
_MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
_EXTRAS = {
    "server": ("fastapi", "uvicorn", "prometheus_client", "yaml"),
    "bench": ("matplotlib",),
    "hub": ("huggingface_hub",),
    "gpu": ("torch", "triton"),
    "train": ("torch", "transformers", "peft", "accelerate"),
    "train-embedded": ("torch", "safetensors", "tokenizers"),
    "plugins": ("httpx", "jsonschema", "pydantic"),
    "mcp": ("mcp",),
}


@dataclass(frozen=True)
class Check:
    """One result. `remedy`: what to do if `state` is not "ok"."""

    name: str
    state: Literal["ok", "note", "broken"]
    found: str
    remedy: str = ""


def doctor(
    plugin: PluginValues = None,
    plugin_secret_env: SecretValues = None,
    as_json: Annotated[bool, Option("--json", help="Write a JSON array.")] = False,
) -> None:
    """Check the installation, and plugins. Exit code 1 if something is broken."""
    checks = list(run_checks())
    with plugin_host(plugin, plugin_secret_env) as host:
        if host is not None:
            checks += check_plugins(host)
    if as_json:
        print(json.dumps([asdict(c) for c in checks], ensure_ascii=False, indent=2))
    else:
        _show(checks)
    if any(c.state == "broken" for c in checks):
        raise typer.Exit(1)


def run_checks() -> Iterator[Check]:
    """All checks."""
    version = platform.python_version()
    bits = struct.calcsize("P") * 8
    if sys.version_info < (3, 11) or bits != 64:
        yield Check("python", "broken", f"{version}, {bits} bits", "use a 64-bit Python from 3.11 on")
    else:
        yield Check("python", "ok", f"{version}, {platform.python_implementation()}, {platform.platform()}")
    yield from _check_engine()
    yield from _check_gpu()
    yield from _check_embedded()
    for extra, modules in _EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        if missing:
            yield Check(
                f"extra {extra}", "note", f"{', '.join(missing)} not installed", f"pip install 'octavo[{extra}]'"
            )
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(modules))


def check_plugins(host: PluginHost) -> Iterator[Check]:
    """Whether each plugin answers, what it notes, and which of its operations are to end (RFC 9745, RFC 8594)."""
    tools = host.tools()
    for name, state in host.health().items():
        what = f"plugin {name}"
        if name in tools.missing:
            yield Check(what, "broken", tools.missing[name].detail, "check its URL, and whether it runs")
            continue
        own = [tool for tool in tools if tool.plugin == name]
        version = f", version {state['version']}" if state["version"] else ""
        yield Check(what, "ok", f"level {state['level']}{version}, {len(own)} operations")
        for note in state["notes"]:
            yield Check(what, "note", note, "tell its author")
        for tool in own:
            if tool.deprecated:
                yield Check(what, "note", f"{tool.operation} is deprecated{_sunset(tool.deprecated)}", _successor(tool))


def _sunset(deprecated: object) -> str:
    end = getattr(deprecated, "sunset", None)
    return "" if end is None else f", and ends on {datetime.datetime.fromtimestamp(end, datetime.UTC):%Y-%m-%d}"


def _successor(tool: Tool) -> str:
    use = getattr(tool.deprecated, "use", None)
    return f"use {use}" if use else "ask its author for the successor"


def _check_engine() -> Iterator[Check]:
    try:
        build = _core.build_info()
    except OctavoError as error:
        yield Check("instruction set", "broken", str(error), "unset OCTAVO_ISA, or set it to one that this machine has")
        return
    if build["profile"] == "release":
        yield Check("build", "ok", f"octavo {build['version']}, {build['profile']}")
    else:
        yield Check("build", "note", f"octavo {build['version']}, {build['profile']}: slow", "install a release build")
    available = ", ".join(build["isa_available"])
    found = f"{build['isa']} (this machine has {available}), {build['threads']} threads, {build['cpu']}"
    if build["isa"] == build["isa_available"][-1] and build["isa"] != "portable":
        yield Check("instruction set", "ok", found)
    else:
        yield Check("instruction set", "note", found, "fast kernels need AVX2 or AVX-512, and OCTAVO_ISA unset")
    memory = build["memory_bytes"]
    if memory < _MIN_MEMORY_BYTES:
        yield Check("memory", "broken", size(memory), f"at least {size(_MIN_MEMORY_BYTES)} is needed")
    else:
        yield Check("memory", "ok", size(memory))


def _check_gpu() -> Iterator[Check]:
    found = device.state()
    if found["usable"]:
        facts = f"compute capability {found['capability']}, {size(found['memory_bytes'])}"
        yield Check("gpu", "ok", f"{found['name']}, {facts}, torch {found['torch']}, triton {found['triton']}")
    else:
        yield Check("gpu", "note", "none that can be used: models run on the CPU", found["problem"])


def _check_embedded() -> Iterator[Check]:
    folder = embedded_model()
    missing = [name for name in _MODEL_FILES if not (folder / name).is_file()]
    if missing:
        yield Check("embedded model", "broken", f"{folder} lacks {', '.join(missing)}", "reinstall octavo")
        return
    yield Check("embedded model", "ok", str(folder))
    try:
        with LLM(max_model_len=64, max_num_seqs=1) as llm:
            output = llm.generate("Once upon a time", SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))[0]
    except OctavoError as error:
        yield Check("generation", "broken", f"{type(error).__name__}: {error}", "reinstall octavo")
        return
    count = len(output.outputs[0].token_ids)
    if count == 4:
        yield Check("generation", "ok", f"{count} tokens: {output.text!r}")
    else:
        yield Check("generation", "broken", f"{count} tokens came instead of 4", "reinstall octavo")


def _show(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "note": "yellow", "broken": "bold red"}
    table = Table.grid(padding=(0, 2))
    for c in checks:
        table.add_row(Text(c.state, styles[c.state]), Text(c.name), Text(c.found))
        if c.remedy:
            table.add_row("", "", Text(f"-> {c.remedy}"))
    Console(highlight=False).print(table)
