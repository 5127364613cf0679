"""Training data: one JSON object a line, in one of four formats that are found from the keys.

{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
{"prompt": ..., "completion": ...}
{"instruction": ..., "input": ..., "output": ...}       "input" may be missing
{"text": ...}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import InvalidRequestError

__all__ = ["Example", "duplicates_removed", "read_examples", "split_by_prompt"]

_KEYS = {
    "messages": ({"messages"}, set()),
    "prompt": ({"prompt", "completion"}, set()),
    "instruction": ({"instruction", "output"}, {"input"}),
    "text": ({"text"}, set()),
}
_ROLES = ("system", "user", "assistant")
# Bad lines that one error names.
_MAX_NAMED = 5
# Rows of the validation split, and the share of the data below which there is none.
_SPLIT_SHARE = 0.05
_MIN_VALIDATION, _MAX_VALIDATION = 16, 500


@dataclass(frozen=True)
class Example:
    """One line.

    Attributes:
        line: its number in the file, from 1 on.
        messages: the conversation; None for a text and for a bare prompt.
        prompt: what comes before the answer, for `prompt` + `completion`; "" for a text.
        answer: the completion, or the text; "" for a conversation.
    """

    line: int
    messages: tuple[Mapping[str, str], ...] | None
    prompt: str = ""
    answer: str = ""

    def key(self) -> str:
        """SHA-256 of what the model is asked: rows of equal prompts fall into the same split."""
        asked: Any = self.prompt or self.answer
        if self.messages is not None:
            asked = [[m["role"], m["content"]] for m in self.messages[: self._last_question() + 1]]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()

    def whole(self) -> str:
        """SHA-256 of the whole row."""
        parts = [[m["role"], m["content"]] for m in self.messages or ()]
        return hashlib.sha256(json.dumps([parts, self.prompt, self.answer], ensure_ascii=False).encode()).hexdigest()

    def _last_question(self) -> int:
        assert self.messages is not None
        return max((i for i, m in enumerate(self.messages) if m["role"] == "user"), default=0)


def read_examples(path: str | os.PathLike[str]) -> tuple[str, list[Example]]:
    """The format and the rows of a file of JSON lines. Empty lines are skipped.

    Raises:
        InvalidRequestError: the file cannot be read, or lines are bad; the message has their numbers.
    """
    name = os.fspath(path)
    try:
        text = Path(name).expanduser().read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{name}: {error}: a file of JSON lines in UTF-8 is expected") from error
    kind, found, bad = "", [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            format_ = _format_of(row)
            if kind and format_ != kind:
                raise ValueError(f"format {format_}, but the lines before are of format {kind}")
            kind = format_
            found.append(_example(number, kind, row))
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f"; and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
        raise InvalidRequestError(f"{name}: {'; '.join(bad[:_MAX_NAMED])}{more}")
    if not found:
        raise InvalidRequestError(f"{name}: there is no row in it; a JSON object a line is expected")
    return kind, found


def duplicates_removed(examples: Iterable[Example]) -> tuple[list[Example], int]:
    """The rows without later copies of equal ones, and how many copies there were."""
    kept: dict[str, Example] = {}
    count = 0
    for example in examples:
        count += 1
        kept.setdefault(example.whole(), example)
    return list(kept.values()), count - len(kept)


def split_by_prompt(examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """Rows to train on, and 5 % of the rows, held out by the hash of their prompt: equal prompts stay together.

    The order of the file has no influence. Fewer than 16 rows would say nothing: then nothing is held out.
    """
    wanted = min(int(len(examples) * _SPLIT_SHARE), _MAX_VALIDATION)
    if wanted < _MIN_VALIDATION:
        return list(examples), []
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.key(), []).append(example)
    held, rows = set(), 0
    for key in sorted(groups):
        if rows + len(groups[key]) <= wanted:
            held.add(key)
            rows += len(groups[key])
    train = [example for example in examples if example.key() not in held]
    return train, [example for example in examples if example.key() in held]


def _format_of(row: object) -> str:
    if not isinstance(row, dict):
        raise ValueError("a JSON object is expected")
    for kind, (needed, optional) in _KEYS.items():
        if kind in row:
            if missing := sorted(needed - set(row)):
                raise ValueError(f"{kind} needs {missing[0]} beside it")
            if unknown := sorted(set(row) - needed - optional):
                raise ValueError(f"unknown key {unknown[0]!r}: known beside {kind} are {_others(kind)}")
            return kind
    raise ValueError("messages, or prompt and completion, or instruction and output, or text is expected")


def _others(kind: str) -> str:
    needed, optional = _KEYS[kind]
    return ", ".join(sorted((needed | optional) - {kind})) or "none"


def _example(line: int, kind: str, row: dict[str, Any]) -> Example:
    if kind == "messages":
        return Example(line, _messages(row["messages"]))
    for key, value in row.items():
        if not isinstance(value, str):
            raise ValueError(f"{key} is {value!r}: a text is expected")
    if kind == "instruction":
        asked = "\n\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
        return Example(line, _messages([_message("user", asked), _message("assistant", row["output"])]))
    answer = row["text"] if kind == "text" else row["completion"]
    if not answer.strip():
        raise ValueError("the text to learn is empty")
    return Example(line, None, row.get("prompt", ""), answer)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _messages(value: object) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages: a list of {'role': ..., 'content': ...} is expected")
    for message in value:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(f"message {message!r}: exactly role and content are expected (tool calls are not trained)")
        if message["role"] not in _ROLES:
            raise ValueError(f"role {message['role']!r}: {', '.join(_ROLES)} are known")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(f"content of {message['role']} is empty or no text")
    if value[-1]["role"] != "assistant":
        raise ValueError(f"the last message is of {value[-1]['role']}: the answer to learn, of assistant, is expected")
    return tuple(value)
