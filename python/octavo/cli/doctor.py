"""`octavo doctor`: is everything in place, and what can be added."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import typer

from octavo import LLM, SamplingParams, build_info
from octavo.cli import options
from octavo.errors import OctavoError
from octavo.hub import embedded_model

_EXTRAS = {"hub": ["huggingface_hub"], "gpu": ["torch", "triton"]}
_LITTLE_MEMORY = 2 * 2**30


@dataclass(frozen=True)
class Check:
    """One finding. "note" is worth knowing; "bad" means that octavo will not work as it should."""

    name: str
    state: Literal["ok", "note", "bad"]
    detail: str


def doctor(json_output: options.Json = False) -> None:
    """Check the installation. Ends with 1 if something is broken."""
    checks = run_checks()
    if json_output:
        json.dump([asdict(c) for c in checks], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
        for check in checks:
            print(f"{marks[check.state]}  {check.name}: {check.detail}")
    if any(c.state == "bad" for c in checks):
        raise typer.Exit(1)


def run_checks() -> list[Check]:
    """All checks, in order."""
    single: list[Callable[[], Check]] = [_python, _instructions, _memory, _embedded]
    return [check() for check in single] + [_extra(name, modules) for name, modules in _EXTRAS.items()]


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")


def _instructions() -> Check:
    try:
        facts = build_info()
    except OctavoError as error:
        return Check("instructions", "bad", str(error))
    found = f"{facts['isa']} of {', '.join(facts['isa_available'])} on {facts['cpu']}, {facts['threads']} threads"
    if facts["profile"] != "release":
        return Check("instructions", "note", f"{found}; this is a debug build, which is slow")
    slow = facts["isa"] == "portable"
    return Check("instructions", "note" if slow else "ok", found + ("; no AVX2: this will be slow" if slow else ""))


def _memory() -> Check:
    size = build_info()["memory_bytes"]
    detail = f"{size / 2**30:.1f} GiB"
    return Check("memory", "ok", detail) if size >= _LITTLE_MEMORY else Check("memory", "note", f"{detail} is little")


def _embedded() -> Check:
    folder = embedded_model()
    if not (folder / "config.json").is_file():
        return Check("embedded model", "bad", f"missing at {folder}: reinstall octavo")
    try:
        begin = time.perf_counter()
        with LLM() as llm:
            output = llm.generate("Once upon a time", SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))[0]
    except OctavoError as error:
        return Check("embedded model", "bad", str(error))
    count = len(output.outputs[0].token_ids)
    took = time.perf_counter() - begin
    state: Literal["ok", "bad"] = "ok" if count == 4 else "bad"
    return Check("embedded model", state, f"{count} tokens in {1000 * took:.0f} ms, loading included")


def _extra(name: str, modules: list[str]) -> Check:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        return Check(f"extra [{name}]", "note", f"not installed; if you need it: pip install 'octavo[{name}]'")
    return Check(f"extra [{name}]", "ok", ", ".join(modules))
