"""Models with their applications in this process, and conversations with calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
from octavo import LLM
from octavo.server import ServerConfig, create_app
from starlette.testclient import TestClient

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Served:
    """A model with its application in this process."""

    def __init__(self, llm: LLM, config: ServerConfig) -> None:
        self.llm = llm
        self.http = TestClient(create_app(llm, config))
        self.client = openai.OpenAI(base_url="http://testserver/v1", api_key="x", max_retries=0, http_client=self.http)

    def prompt(self, messages: list[dict[str, Any]], **more: Any) -> str:
        """The prompt of a conversation. /tokenize must count the same."""
        body = {"messages": messages, **more}
        found = self.http.post("/v1/chat/completions", json={**body, "max_tokens": 1, "return_token_ids": True})
        assert found.status_code == 200, found.text
        ids = found.json()["prompt_token_ids"]
        assert self.http.post("/tokenize", json=body).json()["tokens"] == ids
        return self.llm.detokenize(ids, skip_special_tokens=False)

    def refused(self, **body: Any) -> tuple[str, str]:
        found = self.http.post("/v1/chat/completions", json={"max_tokens": 1, **body})
        assert found.status_code == 400, found.text
        error = found.json()["error"]
        return error["param"], error["message"]


@contextmanager
def serving(template: str | None, **config: Any) -> Iterator[Served]:
    with LLM(max_num_seqs=2, **({"chat_template": template} if template else {})) as llm:
        yield Served(llm, ServerConfig(**config))


def asked(*calls: tuple[str | None, Any], results: bool = True) -> list[dict[str, Any]]:
    """A conversation with one call or several of `weather`: (id, arguments) each."""
    made = [{"id": i, "type": "function", "function": {"name": "weather", "arguments": a}} for i, a in calls]
    turns: list[dict[str, Any]] = [{"role": "user", "content": "How is it?"}, {"role": "assistant", "tool_calls": made}]
    if results:
        turns += [{"role": "tool", "tool_call_id": i, "content": f"answer {n}"} for n, (i, _) in enumerate(calls)]
    return turns
