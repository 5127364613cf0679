"""The server that most tests talk to."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from servers import KEY, Process, served


@pytest.fixture(scope="session")
def server() -> Iterator[Process]:
    """One server with the embedded model and a key, for all tests that do not change it."""
    with served("--api-key", KEY) as process:
        yield process
        assert process.process.poll() is None, "the server has ended"
        faults = [row for row in process.log if row["level"] == "error"]
        assert not faults, faults
    assert process.process.returncode == 0


@pytest.fixture(scope="session")
def client(server: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made
