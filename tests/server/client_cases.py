"""What the tests of clients ask for: types, a question, a template that opens the reasoning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from octavo import LLM, SamplingParams
from octavo.hub import embedded_model
from pydantic import BaseModel, ConfigDict, Field

MODEL = "octavo-embedded"
QUESTION = "Who are you?"
TURNS: list[Any] = [{"role": "user", "content": QUESTION}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 48}
# Enough for any call or object of the types below.
WIDE: dict[str, Any] = {"temperature": 0, "max_tokens": 200}
# "<", with which a call begins. With this bias the embedded model calls wherever it may.
CALLING = {"30": 100}

THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""


def thinking_model(folder: Path) -> Path:
    """The embedded model with "</think>" in the place of its full stop: its reasoning ends with its first sentence."""
    source = embedded_model()
    for path in source.iterdir():
        if path.name != "tokenizer.json":
            (folder / path.name).symlink_to(path)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    model = tokenizer["model"]
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    model["merges"] = [m for m, pair in zip(model["merges"], pairs, strict=True) if "." not in "".join(pair)]
    model["vocab"]["</think>"] = model["vocab"].pop(".")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


# Of the clients and what they need, not of octavo.
QUIET = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

City = Literal["Paris", "Rome"]
Days = Literal[1, 2, 3]


class Animal(BaseModel):
    """An animal."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat", "dog"]
    legs: int = Field(ge=0, le=8)


class Flag(BaseModel):
    """What pydantic writes unless it is strict: an object that says nothing of further keys."""

    ok: bool


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city for some days.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def whole_answer(llm: LLM, question: str = QUESTION, **fields: Any) -> str:
    """What the engine itself says."""
    return llm.chat([{"role": "user", "content": question}], SamplingParams(**{**GREEDY, **fields}), use_tqdm=False)[
        0
    ].text
