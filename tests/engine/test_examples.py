"""The examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.replace("\r", "\n").count("Traceback") == 0
    return done.stdout


def test_generate() -> None:
    assert "Once upon a time" in run("generate.py")


def test_embedding_asyncio() -> None:
    out = run("embedding_asyncio.py")
    counts = re.search(r"(\d+) finished, (\d+) cancelled, up to (\d+)", out)
    assert counts, out
    finished, cancelled, batch = map(int, counts.groups())
    assert finished + cancelled == 50
    assert cancelled > 0
    assert batch > 1
    assert "KV blocks are free" in out


def test_structured_output() -> None:
    out = run("structured_output.py")
    assert re.fullmatch(r"kind='\w+' legs=[234]\n [0-9]{1,2}:[0-5][0-9]\n(yes|no)\n", out), out


def test_serve_in_fastapi() -> None:
    assert "Octavo" in run("serve_in_fastapi.py")


def test_serve_in_flask() -> None:
    assert "Octavo" in run("serve_in_flask.py")


def test_every_example_is_run_by_a_test() -> None:
    tests = Path(__file__).parents[1].rglob("test_*.py")
    tested = {name for file in tests for name in re.findall(r'"(\w+\.py)"', file.read_text(encoding="utf-8"))}
    assert {p.name for p in EXAMPLES.glob("*.py")} <= tested, "add a test for the new example"
