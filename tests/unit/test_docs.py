"""What the documents say is true: their examples run, their tables name everything."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from octavo import LLM, SamplingParams, errors
from octavo.bench.random_adapters import write_random_adapters
from octavo.cli import app
from octavo.cli.bench import bench
from octavo.cli.plugin import plugin
from octavo.evaluation import evaluate, first_of_each, held_out_cases
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
SERVER = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
OWN_CASES = """\
{"skill": "JSON", "prompt": "An object: ", "answer": "{}", "match": "json"}
{"skill": "prose", "text": "One day."}
"""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("text", [README, API], ids=["README.md", "python-api.md"])
def test_python_examples_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a document in one program, in order; `await` at top level is as in a notebook."""
    (tmp_path / "own.jsonl").write_text(OWN_CASES)
    monkeypatch.chdir(tmp_path)
    # Of the cases that ship the first of each skill show as much.
    few = first_of_each(held_out_cases(), 5)
    monkeypatch.setattr(sys.modules[evaluate.__module__], "held_out_cases", lambda: few)
    code = "\n".join(blocks(text, "python"))
    assert "LLM(" in code
    indented = "\n".join(f"    {line}" for line in code.splitlines())
    scope: dict[str, object] = {}
    exec(compile(f"async def main():\n{indented}\n    llm.close()\n", "example", "exec"), scope)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        asyncio.run(scope["main"]())  # type: ignore[operator]
    assert out.getvalue().strip()


def commands() -> list[str]:
    found = [line for block in blocks(README + CLI, "sh") for line in block.splitlines()]
    return [
        line.split("  ")[0].strip() for line in found if re.match(r"octavo |echo .*\| octavo|printf .*\| octavo", line)
    ]


@pytest.mark.parametrize("command", commands())
def test_commands_run(command: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('"One day"\n{"messages": [{"role": "user", "content": "Hi"}]}\n')
    (tmp_path / "own.jsonl").write_text(OWN_CASES)
    (tmp_path / "notes.md").write_text("The key of Aro is 4100. " * 20)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "notes.md").write_text("The key of Aro is 4100. " * 20)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "model").symlink_to(LLM_FOLDER)
    write_random_adapters(LLM_FOLDER, tmp_path, 2, 1)[0].rename(tmp_path / "path" / "to" / "adapter")
    # The command as a user types it, with this interpreter's octavo.
    line = re.sub(r"\boctavo (?=[a-z])", lambda _: f"{shlex.quote(sys.executable)} -m octavo ", command, count=1)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


LLM_FOLDER = Path(inspect.getfile(LLM)).parent / "embedded"


def test_there_are_commands_to_run() -> None:
    assert len(commands()) >= 8


def test_api_names_every_argument_and_field() -> None:
    arguments = [n for n, p in inspect.signature(LLM.__init__).parameters.items() if p.kind is not p.VAR_KEYWORD]
    fields = [f.name for f in dataclasses.fields(SamplingParams)]
    missing = [n for n in arguments[1:] + fields + errors.__all__ if not re.search(rf"`[a-z. ]*{n}[`=(]", API)]
    assert not missing, f"docs/python-api.md does not name {missing}"


def test_api_names_every_method() -> None:
    names = [n for n in dir(LLM) if not n.startswith("_")]
    assert not [n for n in names if n not in API]


def test_cli_document_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    names = re.findall(r"^  ([a-z]+)  ", shown, flags=re.MULTILINE)
    assert names
    assert all(f"## octavo {name}" in CLI for name in names)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+)", CLI + SERVER))))
def test_documented_options_exist(option: str) -> None:
    groups = {"bench": bench, "plugin": plugin}
    benches = [[group, name.name or ""] for group, found in groups.items() for name in found.registered_commands]
    names = ["generate", "chat", "serve", "eval", "quantize", "merge", "compress", "finetune", "pack", "info", "doctor"]
    known = [*([name] for name in names), *benches]
    shown = "".join(CliRunner().invoke(app, [*c, "--help"]).stdout for c in known)
    assert option in shown


def test_links_lead_somewhere() -> None:
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8")):
            assert target.startswith("http") or (file.parent / target).exists(), f"{file.name}: {target}"
