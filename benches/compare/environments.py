"""`setup`: environments, models and the probe of the machine's limits. What is there already is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from typing import Any

from .places import HERE, ROOT, TOOLS, Places, all_engines

_CONVERTERS = {
    "checkpoint": "checkpoint",
    "gguf": "gguf_model",
    "openvino": "openvino_model",
    "ctranslate2": "ctranslate2_model",
}


def setup(places: Places, engines: list[str], shapes: list[str]) -> None:
    """Makes all that `run` needs for these engines and shapes."""
    build_limits(places)
    table = tomllib.loads((HERE / "engines.toml").read_text())
    for name in [TOOLS, *engines]:
        if name not in places.pythons:
            install(places, name, table[name])
    forms = dict.fromkeys(["checkpoint", *(all_engines()[engine]["model"] for engine in engines)])
    for shape in shapes:
        for form in forms:
            make_model(places, shape, form)


def say(text: str) -> None:
    print(f"compare: {text}", file=sys.stderr, flush=True)


def build_limits(places: Places) -> None:
    """Compiles benches/rust/benches/limits.rs."""
    command = ["cargo", "build", "--quiet", "--release", "-p", "octavo-bench", "--bench", "limits"]
    say("the probe of the machine's limits")
    lines = subprocess.run(
        [*command, "--message-format=json"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    built = [message["executable"] for message in map(json.loads, lines) if message.get("executable")]
    places.limits.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(built[-1], places.limits)


def install(places: Places, name: str, entry: dict[str, Any]) -> None:
    """A virtual environment with the pinned packages; octavo's gets this checkout, built anew each time."""
    folder = places.environment(name)
    wanted = json.dumps([entry["packages"], entry.get("pip_options", [])])
    stamp = folder / "compare.json"
    if name != "octavo" and stamp.exists() and stamp.read_text() == wanted:
        return
    say(f"the environment of {name}")
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    # A folder is built and installed again each time.
    packages = entry["packages"] or [str(ROOT)]
    environment = {**os.environ, **entry.get("environment", {})}
    subprocess.run([*pip, *entry.get("pip_options", []), *packages], check=True, env=environment)
    stamp.write_text(wanted)


def make_model(places: Places, shape: str, form: str) -> None:
    """A shape's model in one form; the conversions start from the checkpoint."""
    target = places.model(shape, form)
    done = target.parent / f"{form}.done"
    if done.exists():
        return
    say(f"{shape} as {form}")
    checkpoint = places.model(shape, "checkpoint")
    if form == "octavo":
        command = [str(places.python("octavo")), "-m", "octavo", "quantize", str(checkpoint), str(target)]
        if subprocess.run([*command[:4], "--help"], capture_output=True, check=False).returncode:
            say("this octavo has no `quantize`: it will quantise the checkpoint at each load")
            return
    else:
        module = f"benches.compare.convert.{_CONVERTERS[form]}"
        sources = [] if form == "checkpoint" else [str(checkpoint)]
        command = [str(places.python(TOOLS)), "-m", module, shape, *sources, str(target)]
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    done.touch()
