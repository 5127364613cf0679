"""A model that lies on the disk is used without any connection."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

SCRIPT = """
import sys

def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__",):
        raise SystemExit(f"network: {event} {arguments}")

sys.addaudithook(watch)
from octavo import LLM, SamplingParams
from octavo.hub import embedded_model

for model in (None, embedded_model()):
    with LLM(model, max_model_len=64) as llm:
        assert llm.generate("x", SamplingParams(max_tokens=2))[0].finished
print("done")
"""


def test_no_socket_is_opened() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr + run.stdout
    assert run.stdout.strip() == "done"


def test_the_watch_sees_connections() -> None:
    """The test above would fail if something were fetched."""
    script = SCRIPT.split("from octavo import")[0] + "import socket; socket.create_connection(('127.0.0.1', 9))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "network: socket." in run.stderr


def test_no_network_library_is_linked() -> None:
    """What the hook cannot see is the Rust side: none of its libraries can speak to a network."""
    lock = Path(__file__).parents[2] / "Cargo.lock"
    names = {package["name"] for package in tomllib.loads(lock.read_text())["package"]}
    assert "octavo-engine" in names
    network = {"reqwest", "hyper", "ureq", "curl", "tokio", "native-tls", "rustls", "hf-hub", "socket2", "mio"}
    assert not names & network
