"""A model that writes given texts, and the tools that tests of the rounds share."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from octavo import Grammar, LLM, SamplingParams


class Scripted(LLM):
    """The embedded model, held to one text after the other: the engine, its tokens and its streams are real.

    Attributes:
        script: texts that are still to come.
        prompts, asked: what was submitted.
    """

    def __init__(self, *script: str, **options: Any) -> None:
        super().__init__(**{"max_num_seqs": 4, **options})
        self.script = list(script)
        self.prompts: list[str] = []
        self.asked: list[SamplingParams] = []

    def submit(self, prompt: Any, sampling_params: SamplingParams | None = None, **more: Any) -> Any:
        assert sampling_params is not None
        self.prompts.append(prompt)
        self.asked.append(sampling_params)
        text = self.script.pop(0)
        held = Grammar(f"start: {json.dumps(text)}")
        return super().submit(prompt, replace(sampling_params, structured=held), **more)


def call(name: str, **arguments: Any) -> str:
    """A call in the format of the embedded model."""
    return "<tool_call>" + json.dumps({"name": name, "arguments": arguments}) + "</tool_call>"
