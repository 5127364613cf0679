"""What every generator returns: a document as weighted text segments, and the chat format built from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

# The loss weight of text the model only has to read: low, since a question or a fresh random key cannot be
# predicted, but not zero, since the words around them can.
READ_WEIGHT = 0.1
# The loss weight of a word of a story's cast, such as the name of its hero.
CAST_WEIGHT = 3.0

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- endif -%}"
)


@dataclass(frozen=True)
class Segment:
    """A piece of text and the weight of its tokens in the loss; 1 is that of an answer."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Document:
    """One training example. ``skill`` names its generator; the mix and held-out losses are counted by it."""

    skill: str
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """The whole text, as the tokenizer is trained on it."""
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Turn:
    """A question and the answer that the model should learn."""

    question: str
    answer: str


def chat(skill: str, turns: Sequence[Turn], system: str | None = None) -> Document:
    """Writes turns in the chat format of ``CHAT_TEMPLATE``. Answers and their end marks carry full weight."""
    segments = []
    if system is not None:
        segments.append(Segment(f"{TURN_START}system\n{system}{TURN_END}\n", READ_WEIGHT))
    for turn in turns:
        head = f"{TURN_START}user\n{turn.question}{TURN_END}\n{TURN_START}assistant\n"
        segments += [Segment(head, READ_WEIGHT), Segment(f"{turn.answer}{TURN_END}"), Segment("\n", 0.0)]
    return Document(skill, tuple(segments))


def prompt(question: str, system: str | None = None) -> str:
    """The text that asks for an answer: what the template renders with a generation prompt."""
    opening = "" if system is None else f"{TURN_START}system\n{system}{TURN_END}\n"
    return f"{opening}{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n"
