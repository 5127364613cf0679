"""`octavo chat --url`: the same conversation as with a model in the process, and clear words where there is none."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.cli import app
from octavo.server import Limits, ServerConfig, create_app
from servers import KEY, Process, uvicorn_in_thread, wait_until
from typer.testing import CliRunner, Result


def chat(*arguments: str, stdin: str = "Hello\n", **more: Any) -> Result:
    return CliRunner().invoke(app, ["chat", *arguments], input=stdin, **more)


@pytest.mark.parametrize("suffix", ["", "/", "/v1"])
def test_the_same_as_a_local_model(server: Process, llm: LLM, suffix: str) -> None:
    lines = "Hello\n\nWhy?\n/reset\nHello\n/exit\nnever\n"
    options = ["-n", "10", "-t", "0", "--json", "-s", "Be brief."]
    local = chat(*options, stdin=lines)
    remote = chat(*options, "--url", server.url + suffix, stdin=lines, env={"OCTAVO_API_KEY": KEY})
    assert remote.exit_code == 0, remote.output
    assert remote.stdout == local.stdout
    assert len(remote.stdout.splitlines()) == 3
    want = llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=10, temperature=0))[0].text
    plain = chat("-n", "10", "-t", "0", "--url", server.url, "--api-key", KEY, "-m", "octavo-embedded")
    assert plain.stdout == want + "\n"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--api-key", "wrong"], 2, "OCTAVO_API_KEY"),
        (["--api-key", KEY, "-m", "absent"], 2, "absent"),
        (["--api-key", KEY, "-t", "9"], 2, "temperature"),
        (["--api-key", KEY, "--threads", "2"], 2, "--threads"),
        (["--api-key", KEY, "--timeout", "0.001", "-n", "2000", "--ignore-eos"], 1, "timeout"),
    ],
)
def test_refusals_are_one_line(server: Process, arguments: list[str], status: int, words: str) -> None:
    result = chat("--url", server.url, *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1), result.stderr
    assert words in result.stderr


@pytest.mark.parametrize(("url", "status"), [("http://127.0.0.1:9", 1), ("127.0.0.1:9", 2), ("file:///etc", 2)])
def test_no_server_there(url: str, status: int) -> None:
    result = chat("--url", url)
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1)
    assert "127.0.0.1:9" in result.stderr or "file" in result.stderr


def test_a_terminal(llm: LLM) -> None:
    """A refused turn does not end the conversation; Ctrl-C ends an answer, and the server's request with it."""
    config = ServerConfig(limits=Limits(prompt_bytes_per_token=1))
    with uvicorn_in_thread(create_app(llm, config)) as url:
        parent, child = pty.openpty()
        start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        command = [sys.executable, "-c", start + "from octavo.cli import main; main()"]
        process = subprocess.Popen(
            [*command, "chat", "--url", url, "-n", "2500", "--ignore-eos"], stdin=child, stdout=child, stderr=child
        )
        os.close(child)
        seen = ""

        def wait_for(words: str) -> None:
            nonlocal seen
            deadline = time.monotonic() + 60
            while words not in seen:
                ready, _, _ = select.select([parent], [], [], max(deadline - time.monotonic(), 0))
                assert ready, f"{words!r} did not come: {seen!r}"
                seen += os.read(parent, 4096).decode(errors="replace")
            seen = seen[seen.index(words) + len(words) :]

        try:
            wait_for("octavo-embedded at ")
            wait_for("> ")
            os.write(parent, b"word " * 700 + b"\n")
            wait_for("/reset starts a new conversation")
            wait_for("> ")
            aborted = llm.stats()["finished"]["abort"]
            os.write(parent, b"Hello\n")
            wait_for("Hello")
            wait_for(" ")
            process.send_signal(signal.SIGINT)
            wait_for("> ")
            wait_until(lambda: llm.stats()["finished"]["abort"] == aborted + 1, "the server's request ended")
            os.write(parent, b"/exit\n")
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
            os.close(parent)


def test_json_is_json(server: Process) -> None:
    row = json.loads(chat("--url", server.url, "--api-key", KEY, "-n", "3", "--json", "--ignore-eos").stdout)
    assert row["finish_reason"] == "length"
