"""The server that most tests talk to."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import openai
import pytest
from client_cases import MODEL, THINKING, thinking_model
from servers import KEY, Process, served


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """A connection that a module's tests leave open is an error of that module, not of a later one."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def server() -> Iterator[Process]:
    """One server with the embedded model and a key, for all tests that do not change it."""
    yield from _faultless("--api-key", KEY)


@pytest.fixture(scope="session")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server whose chat template opens the reasoning, as those of DeepSeek R1, QwQ and Qwen3-Thinking do."""
    folder = thinking_model(tmp_path_factory.mktemp("thinking"))
    template = tmp_path_factory.mktemp("template") / "thinking.jinja"
    template.write_text(THINKING)
    options = ["--reasoning-parser", "think", "--chat-template", str(template), "--served-model-name", MODEL]
    yield from _faultless(str(folder), "--api-key", KEY, *options)


def _faultless(*arguments: str) -> Iterator[Process]:
    with served(*arguments) as process:
        yield process
        assert process.process.poll() is None, "the server has ended"
        faults = [row for row in process.log if row["level"] == "error"]
        assert not faults, faults
    assert process.process.returncode == 0


@pytest.fixture(scope="session")
def client(server: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made
