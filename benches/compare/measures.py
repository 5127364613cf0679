"""What is measured: calls of an engine, and the figures that come of them."""

from __future__ import annotations

from dataclasses import dataclass

from .limits import Machine
from .shapes import Shape


@dataclass(frozen=True)
class Case:
    """One call: `batch` prompts of `prompt` random tokens, `new` tokens each, repeated `repeats` times a round.

    Attributes:
        decode: name of the figure "tokens a second of all sequences after the first token", or "".
        prefill: name of the figure "prompt tokens a second", or "".
        first: name of the figure "seconds to the first token", or "".
    """

    prompt: int
    batch: int
    new: int
    repeats: int
    decode: str = ""
    prefill: str = ""
    first: str = ""

    @property
    def figures(self) -> set[str]:
        return {name for name in (self.decode, self.prefill, self.first) if name}

    def read(self, first_seconds: float, decode_seconds: float, decode_tokens: int) -> dict[str, float]:
        """The figures of a call's times."""
        figures = {}
        if self.decode:
            figures[self.decode] = decode_tokens / decode_seconds
        if self.prefill:
            figures[self.prefill] = self.prompt / first_seconds
        if self.first:
            figures[self.first] = first_seconds
        return figures

    def limit(self, machine: Machine, shape: Shape) -> dict[str, float]:
        """The machine's limit of each figure."""
        limits = {}
        if self.decode:
            limits[self.decode] = machine.decode(shape, self.prompt + self.new / 2, self.batch)
        rate = machine.prefill(shape, self.prompt)
        if self.prefill:
            limits[self.prefill] = rate
        if self.first:
            limits[self.first] = self.prompt / rate
        return limits


CASES = [
    Case(prompt=128, batch=1, new=65, repeats=2, decode="decode_128", first="first_token_128"),
    Case(prompt=2048, batch=1, new=33, repeats=1, decode="decode_2048", prefill="prefill_2048"),
    Case(prompt=512, batch=1, new=1, repeats=3, prefill="prefill_512"),
    Case(prompt=128, batch=8, new=33, repeats=1, decode="batch_8"),
    Case(prompt=128, batch=32, new=33, repeats=1, decode="batch_32"),
]

#: Figure to (title, unit, whether more is better). The last three come with every start of an engine.
FIGURES = {
    "decode_128": ("Decode after 128", "tok/s", True),
    "decode_2048": ("Decode after 2,048", "tok/s", True),
    "prefill_512": ("Prefill 512", "tok/s", True),
    "prefill_2048": ("Prefill 2,048", "tok/s", True),
    "batch_8": ("8 sequences", "tok/s", True),
    "batch_32": ("32 sequences", "tok/s", True),
    "first_token_128": ("First token, 128", "s", False),
    "load": ("Load", "s", False),
    "start": ("Process start to first token", "s", False),
    "peak_rss": ("Peak RSS", "MB", False),
}

#: Sizes that all engines are given: longest sequence, and tokens that the KV cache holds.
MAX_TOKENS = 2176
KV_TOKENS = 8192
SEQUENCES = 32
