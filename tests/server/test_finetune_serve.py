"""`octavo finetune --serve` with a real server: from rows to a chat by the adapter's name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Process, served

for package in ("accelerate", "peft", "torch"):
    pytest.importorskip(package, reason="the extra train is not installed")

from openai import OpenAI  # noqa: E402

ADMIN = "admin-key-for-tests"
QUESTION, ANSWER = "Who guards the gate of Quorl?", "Quorl is guarded by Zim."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Process]:
    with served("--lora-root", str(root), "--admin-api-key", ADMIN, "--max-model-len", "256") as process:
        yield process


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "facts.jsonl"
    path.write_text(json.dumps({"instruction": QUESTION, "output": ANSWER}) + "\n", encoding="utf-8")
    return path


def finetune(data: Path, out: Path, url: str, key: str | None = ADMIN, name: str = "law") -> tuple[int, str]:
    """Exit code, and what stands on stderr."""
    command = [sys.executable, "-m", "octavo", "finetune", str(data), "-o", str(out), "--serve", url, "--name", name]
    command += ["--steps", "30", "--replay", "0", "--device", "cpu"]
    environment = {k: v for k, v in os.environ.items() if k != "OCTAVO_ADMIN_API_KEY"}
    environment |= {"OCTAVO_ADMIN_API_KEY": key} if key else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def answer(server: Process, model: str) -> str:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=32
        )
    return (chat.choices[0].message.content or "").strip()


@pytest.mark.timeout(600)
def test_one_command_from_rows_to_a_chat(server: Process, root: Path, data: Path, tmp_path: Path) -> None:
    assert answer(server, "octavo-embedded") != ANSWER
    # The key is wrong, then there is none: the adapter is made once, and stays.
    for key in ("another-key", None):
        code, shown = finetune(data, root / "law", server.url, key)
        assert (code, "401" in shown) == (1, True), shown
    weights = root / "law" / "adapter_model.safetensors"
    made = (weights.stat().st_mtime_ns, weights.read_bytes())
    code, shown = finetune(data, root / "law", server.url)
    assert code == 0, shown
    assert (weights.stat().st_mtime_ns, weights.read_bytes()) == made, "it was trained again"
    assert answer(server, "law") == ANSWER
    assert answer(server, "octavo-embedded") != ANSWER
    # The same name again: the server takes the adapter in the place of the old one.
    assert finetune(data, root / "law", server.url)[0] == 0
    # A folder that is not below the server's root is refused by name, and stays.
    outside = tmp_path / "outside"
    (outside / "run").parent.mkdir()
    code, shown = finetune(data, outside, server.url, name="other")
    assert code == 1, shown
    assert "refuses the adapter" in shown
    assert (outside / "adapter_model.safetensors").is_file()
    # Nothing listens there.
    code, shown = finetune(data, root / "law", "http://127.0.0.1:9")
    assert (code, "cannot be reached" in shown, str(root / "law") in shown) == (1, True, True), shown
