"""Replay: rows of what the base model says by itself. Trained along, they keep what it can do.

The model gets the start of a user's turn and nothing else, and writes the question; then it answers it (Magpie,
arXiv:2406.08464). A model with a chat template needs no other data for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo import LLM, RequestOutput, SamplingParams
from octavo.finetune.data import Example

__all__ = ["Replayed", "replay_examples"]

# A question that fills this room did not end: it is left out.
_QUESTION_TOKENS = 256
_ANSWER_TOKENS = 256
_MARK = "octavo-mark"
_SURE = math.log(0.5)


@dataclass(frozen=True)
class Replayed:
    """A conversation of the base model with itself.

    Attributes:
        example: its question and greedy answer.
        sure: whether each token of the answer had a probability of 0.5 or more. Other answers change with the last
            bits of a sum: that they change says nothing of what was forgotten.
    """

    example: Example
    sure: bool


def replay_examples(
    folder: Path, count: int, seed: int, refused: Callable[[str], bool], **engine: Any
) -> tuple[list[Replayed], str]:
    """At most `count` conversations of the base model with itself; or none, and why.

    Args:
        refused: whether a question must not be trained on, as one of the cases that measure what was forgotten.
    """
    with LLM(str(folder), **engine) as llm:
        try:
            start = _start_of_a_question(llm)
        except ValueError as error:
            return [], str(error)
        params = [
            SamplingParams(temperature=1.0, top_p=1.0, max_tokens=_QUESTION_TOKENS, seed=seed * 1_000_003 + i)
            for i in range(2 * count)
        ]
        prompt = llm.tokenize(start, add_special_tokens=False)
        asked = [o for o in llm.generate([prompt] * len(params), params, use_tqdm=False) if o.error is None]
        questions = dict.fromkeys(
            o.text.strip() for o in asked if o.outputs[0].finish_reason == "stop" and o.text.strip()
        )
        kept = [question for question in questions if not refused(question)][:count]
        params_of_answers = SamplingParams(temperature=0.0, max_tokens=_ANSWER_TOKENS, logprobs=0)
        chats: list[list[dict[str, Any]]] = [[{"role": "user", "content": question}] for question in kept]
        answers = llm.chat(chats, params_of_answers, use_tqdm=False) if chats else []
        found = [
            Replayed(
                Example(0, ({"role": "user", "content": question}, {"role": "assistant", "content": answer.text})),
                _sure(answer),
            )
            for question, answer in zip(kept, answers, strict=True)
            if answer.error is None and answer.outputs[0].finish_reason == "stop" and answer.text.strip()
        ]
    return found, "" if found else "the model writes no questions of its own"


def _sure(answer: RequestOutput) -> bool:
    rows = answer.outputs[0].logprobs or []
    return all(next(iter(row.values())).logprob >= _SURE for row in rows)


def _start_of_a_question(llm: LLM) -> str:
    """What the template writes before the first user's text."""
    try:
        rendered = llm.render_chat([{"role": "user", "content": _MARK}], add_generation_prompt=False)
    except Exception as error:
        raise ValueError(f"no chat template ({error})") from error
    before, mark, _ = rendered.partition(_MARK)
    if not mark or not before:
        raise ValueError("the chat template writes nothing before the user's text")
    return before
