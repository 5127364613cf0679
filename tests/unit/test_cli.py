"""The command line: in process where that shows enough, as a program where signals and pipes matter."""

from __future__ import annotations

import importlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import octavo
import pytest
from octavo import LLM, SamplingParams
from octavo.cli import app
from octavo.cli.info import size
from typer.testing import CliRunner, Result


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [*arguments], input=stdin)


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_version_and_help() -> None:
    assert run("--version").stdout.strip() == f"octavo {octavo.__version__}"
    shown = run("--help").stdout
    assert all(name in shown for name in ("generate", "chat", "eval", "quantize", "info", "doctor"))
    for name in ("generate", "chat", "eval", "quantize", "info", "doctor"):
        assert run(name, "--help").stdout == run(name, "-h").stdout


def test_generate_is_the_api(llm: LLM) -> None:
    want = llm.generate("Once upon a time", SamplingParams(max_tokens=12, temperature=0))[0].text
    result = run("generate", "Once upon a time", "-n", "12", "-t", "0")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == want + "\n"
    assert run("generate", "-", "-n", "12", "-t", "0", stdin="Once upon a time").stdout == want + "\n"
    assert run("generate", "-n", "12", "-t", "0", stdin="Once upon a time\n").stdout == want + "\n"


def test_generate_json(llm: LLM) -> None:
    result = run(
        "generate", "One day", "-n", "5", "--seed", "3", "--samples", "2", "--logprobs", "1", "--json", "--ignore-eos"
    )
    assert result.exit_code == 0, result.stderr
    (row,) = lines(result.stdout)
    params = SamplingParams(max_tokens=5, seed=3, n=2, ignore_eos=True)
    want = llm.generate("One day", params)[0]
    assert row["prompt"] == "One day"
    assert [o["token_ids"] for o in row["outputs"]] == [o.token_ids for o in want.outputs]
    assert row["text"] == want.text
    assert row["metrics"]["generated_tokens"] == 10
    assert all(len(o["logprobs"]) == 5 for o in row["outputs"])


def test_generate_chat(llm: LLM) -> None:
    want = llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=10, temperature=0))[0].text
    assert run("generate", "Hello", "--chat", "-n", "10", "-t", "0").stdout == want + "\n"


def test_prompts_file(tmp_path: Path, llm: LLM) -> None:
    rows = ["One day", {"prompt": "The cat"}, {"messages": [{"role": "user", "content": "Hello"}]}]
    source, target = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n\n".join(json.dumps(r) for r in rows) + "\n")
    result = run("generate", "--prompts-file", str(source), "-o", str(target), "-n", "6", "-t", "0")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    got = lines(target.read_text())
    params = SamplingParams(max_tokens=6, temperature=0)
    want = [*llm.generate(["One day", "The cat"], params), llm.chat(rows[2]["messages"], params)[0]]  # type: ignore[index]
    assert [g["text"] for g in got] == [w.text for w in want]
    assert "messages" in got[2]
    assert (
        lines(run("generate", "--prompts-file", "-", "-n", "6", "-t", "0", stdin=source.read_text()).stdout)[0]["text"]
        == want[0].text
    )


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["generate", "x", "--prompts-file", "y"], 2, "exclude each other"),
        (["generate", "x", "--top-p", "3"], 2, "top_p"),
        (["generate", ""], 2, "empty"),
        (["generate", "x", "--max-model-len", "-5"], 2, "max_model_len"),
        (["generate", "x", "--kv-cache-memory", "much"], 2, "kv_cache_memory"),
        (["generate", "x", "--prompts-file", "/nowhere.jsonl"], 2, "exclude"),
        (["generate", "--prompts-file", "/nowhere.jsonl"], 2, "nowhere"),
        (["generate", "x", "-o", "/nowhere/at/all"], 2, "nowhere"),
        (["generate", "x", "-m", "/nowhere"], 1, "/nowhere"),
        (["generate", "x", "-n", "2000", "--ignore-eos", "--timeout", "0.01"], 1, "timeout"),
        (["info", "/nowhere"], 1, "/nowhere"),
        (["chat", "-t", "-1"], 2, "temperature"),
        (["generate", "x", "--nonsense"], 2, "--nonsense"),
        (["nonsense"], 2, "nonsense"),
    ],
    ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else None,
)
def test_errors_are_one_line(arguments: list[str], status: int, words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == status
    assert words in result.stderr
    assert "Traceback" not in result.output
    if result.stderr.startswith("octavo: "):
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("line", ["{", "5", '{"text": "x"}', '{"prompt": 5}', '{"messages": "x"}', "[1, 2]"])
def test_bad_lines_are_numbered(line: str) -> None:
    result = run("generate", "--prompts-file", "-", stdin=f'"fine"\n{line}\n')
    assert result.exit_code == 2
    assert "line 2" in result.stderr


def test_failed_prompts_are_marked() -> None:
    prompts = '"One day"\n"Two"\n'
    result = run("generate", "--prompts-file", "-", "-n", "2000", "--ignore-eos", "--timeout", "0.01", stdin=prompts)
    assert result.exit_code == 1
    assert [r["error"]["type"] for r in lines(result.stdout)] == ["RequestTimeoutError"] * 2


def test_chat_from_a_pipe(llm: LLM) -> None:
    params = SamplingParams(max_tokens=10, temperature=0)
    first = [{"role": "user", "content": "Hello"}]
    answer = llm.chat(first, params)[0].text
    second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "Why?"}]
    want = [answer, llm.chat(second, params)[0].text, answer]
    result = run("chat", "-n", "10", "-t", "0", "--json", stdin="Hello\n\nWhy?\n/reset\nHello\n/exit\nnever\n")
    assert result.exit_code == 0, result.stderr
    assert [r["content"] for r in lines(result.stdout)] == want
    assert run("chat", "-n", "10", "-t", "0", stdin="Hello\n").stdout == answer + "\n"


def test_chat_system_message(llm: LLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    want = llm.chat(messages, SamplingParams(max_tokens=10, temperature=0))[0].text
    assert run("chat", "-s", "Be brief.", "-n", "10", "-t", "0", stdin="Hello\n").stdout == want + "\n"


def test_info(llm: LLM) -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert facts["spec"] == llm.spec
    assert facts["limits"] == llm.info()["limits"]
    shown = run("info").stdout
    assert all(part["name"] in shown and f"{part['bytes']:,}" in shown for part in facts["memory"])
    assert facts["machine"]["isa"] in shown


def test_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    checks = {c["name"]: c for c in json.loads(result.stdout)}
    assert checks["generation"]["state"] == "ok"
    assert all(c["remedy"] for c in checks.values() if c["state"] != "ok")
    assert "generation" in run("doctor").stdout

    # By its full name: `octavo.cli.doctor` is the command itself.
    monkeypatch.setattr(importlib.import_module("octavo.cli.doctor"), "embedded_model", lambda: tmp_path)
    result = run("doctor")
    assert result.exit_code == 1
    assert "model.safetensors" in result.stdout


def test_bench_kernels() -> None:
    result = run(
        "bench", "kernels", "rms_norm", "qwen", "--seconds", "0", "--threads", "1", "--isa", "portable", "--json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["limits"]["isa"], found["limits"]["threads"]) == ("portable", 1)
    assert found["limits"]["read"] > 1e8
    (row,) = found["rows"]
    assert (row["kernel"], row["shape"], row["sizes"]) == ("rms_norm", "qwen2.5-0.5b", "rows=256 width=896")
    assert row["seconds_p20"] <= row["seconds_p50"] <= row["seconds_p80"]
    assert row["share"] == pytest.approx(row["bytes_per_second"] / found["limits"]["read"])
    wrong = run("bench", "kernels", "no", "such", "row")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
    assert "no and such and row" in wrong.stderr
    assert run("bench", "kernels", "--isa", "sse9").exit_code == 2


def test_bench_attention(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    arguments = ("--context", "640", "--seconds", "0", "--threads", "1", "--result-filename", str(file))
    result = run("bench", "attention", *arguments)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(file.read_text())["rows"]
    assert len(result.stdout.splitlines()) == len(rows) + 1 == 2 * 3 * 9 + 1
    for row in rows:
        if row["way"].startswith("certified"):
            assert row["max_omitted_mass"] <= float(row["way"].split()[1])
    near = {row["way"]: row for row in rows if (row["looks"], row["head_dim"]) == ("near", 64)}
    assert near["certified 0.1"]["bytes"] < near["int8 dense"]["bytes"] < near["bf16 dense"]["bytes"]
    assert near["int8 dense"]["relative_error"] == 0 < near["certified 0.1"]["relative_error"] < 0.2
    assert run("bench", "attention", "--context", "3").exit_code == 2


def test_sizes() -> None:
    assert [size(n) for n in (5, 1536, 3 << 20, 5 << 30)] == [
        "5 bytes",
        "1.5 KiB (1,536)",
        "3.0 MiB (3,145,728)",
        "5.0 GiB (5,368,709,120)",
    ]


# Whoever started the tests may have ignored SIGINT (shells do for background jobs): children would inherit that.
_START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from octavo.cli import main; main()"
PROGRAM = [sys.executable, "-c", _START]


def test_broken_pipe_is_quiet() -> None:
    """A reader that has seen enough: no traceback, no message."""
    process = subprocess.Popen(
        [*PROGRAM, "generate", "Once", "-n", "2000", "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(5)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(30), errors) == (141, b"")


def test_ctrl_c_is_quiet() -> None:
    process = subprocess.Popen(
        [*PROGRAM, "generate", "Once", "-n", "2500", "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")


def test_module_is_the_program() -> None:
    shown = subprocess.run([sys.executable, "-m", "octavo", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == f"octavo {octavo.__version__}"


class Terminal:
    """`octavo chat` on a pseudo-terminal."""

    def __init__(self, *options: str) -> None:
        self.parent, child = pty.openpty()
        self.process = subprocess.Popen(
            [*PROGRAM, "chat", *options], stdin=child, stdout=child, stderr=child, start_new_session=True
        )
        os.close(child)
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.parent)

    def type(self, text: str) -> None:
        os.write(self.parent, text.encode())

    def wait_for(self, words: str) -> None:
        """Reads until `words` came, and forgets all up to them."""
        deadline = time.monotonic() + 30
        while words not in self.seen:
            ready, _, _ = select.select([self.parent], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{words!r} did not come: {self.seen!r}"
            self.seen += os.read(self.parent, 4096).decode(errors="replace")
        self.seen = self.seen[self.seen.index(words) + len(words) :]


def test_chat_on_a_terminal() -> None:
    """Answers stream, Ctrl-C stops an answer and not the program, Ctrl-D ends it."""
    with Terminal("-n", "2000", "--ignore-eos") as terminal:
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        terminal.wait_for("Hello")
        terminal.wait_for(" ")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("> ")
        terminal.type("/reset\n")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0


def test_chat_survives_a_full_context() -> None:
    with Terminal("-n", "5", "--max-model-len", "64") as terminal:
        terminal.wait_for("> ")
        terminal.type("many words " * 50 + "\n")
        terminal.wait_for("/reset starts a new conversation")
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        terminal.wait_for("tokens/s")
        terminal.wait_for("> ")
        terminal.type("/exit\n")
        assert terminal.process.wait(30) == 0
