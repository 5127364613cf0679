"""Examples of a data file as token ids with weights: answers count fully, what is only read counts a tenth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from octavo.compress.rows import Document
from octavo.errors import InvalidRequestError, UnsupportedModelError

__all__ = ["Encoder"]

_READ_WEIGHT = 0.1


class Encoder:
    """The tokenizer and the chat template of a model folder."""

    def __init__(self, folder: Path, end: int | None) -> None:
        """`end`: the token after a document; None: none."""
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UnsupportedModelError(f"{folder}: transformers cannot load its tokenizer: {error}") from error
        self.end = end

    def documents(self, examples: Sequence[Mapping[str, Any]]) -> list[Document]:
        """A document of each example: {"messages"} (and "tools"), {"prompt", "completion"} or {"text"}."""
        return list(map(self.document, examples))

    def document(self, example: Mapping[str, Any]) -> Document:
        """The document of one example.

        Raises:
            InvalidRequestError: it has messages, and the model has no chat template.
        """
        if "text" in example:
            text, answers = str(example["text"]), None
        elif "messages" in example:
            text, answers = self._chat(example["messages"], example.get("tools"))
        else:
            text = f"{example['prompt']}{example['completion']}"
            answers = [(len(example["prompt"]), len(text))]
        special = "messages" not in example
        found = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        ids = list(found["input_ids"])
        weights = [1.0] * len(ids) if answers is None else list(_weights(found["offset_mapping"], answers))
        if self.end is not None and ids[-1:] != [self.end]:
            return Document([*ids, self.end], [*weights, 1.0])
        return Document(ids, weights)

    def _chat(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> tuple[str, list[tuple[int, int]] | None]:
        """The rendered chat, and where its answers are; None where the template changes what it wrote before."""
        if not self.tokenizer.chat_template:
            raise InvalidRequestError("the data have messages, and the model has no chat template: give texts")

        def render(count: int, prompt: bool) -> str:
            said: Any = list(messages[:count])
            rendered = self.tokenizer.apply_chat_template(
                said, tools=tools, tokenize=False, add_generation_prompt=prompt
            )
            return str(rendered)

        text, answers = render(len(messages), False), []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = render(number, True), render(number + 1, False)
            if not (text.startswith(after) and after.startswith(before)):
                return text, None
            answers.append((len(before), len(after)))
        return text, answers


def _weights(offsets: Sequence[tuple[int, int]], answers: Sequence[tuple[int, int]]) -> Iterator[float]:
    """The weight of each token by its characters. Both lists are in the order of the text."""
    place = 0
    for begin, _ in offsets:
        while place < len(answers) and answers[place][1] <= begin:
            place += 1
        inside = place < len(answers) and answers[place][0] <= begin
        yield 1.0 if inside else _READ_WEIGHT
