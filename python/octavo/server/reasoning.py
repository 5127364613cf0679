"""Reasoning before an answer: where the prompt leaves it, its grammar, and the number of its tokens."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from octavo.llm import LLM
from octavo.server.calls.formats import AROUND, REASONING, lark_escaped, literal
from octavo.server.parsing import Parser, Piece, Reasoning, Thinking, Without
from octavo.structured import Budgeted, Grammar, Structured

# inside: the output begins with reasoning. ended: the prompt has closed it. open: the output may begin with it.
State: TypeAlias = Literal["inside", "ended", "open"]

# The text from the end mark to the answer.
_GAP = r"GAP: /[ \t\r\n]{1,4}/"
# Tokens that reasoning leaves for an answer that the request forces, or half of max_tokens.
_ANSWER_TOKENS = 512


def state_after(name: str, prompt: str, continued: str = "") -> State:
    """Where `prompt` leaves the reasoning.

    Args:
        name: of the reasoning's format.
        continued: the beginning of the answer, if the prompt ends with one.
    """
    begin, end = REASONING[name]
    text = prompt.rstrip()
    if text.endswith(end):
        return "ended"
    if text.endswith(begin):
        return "inside"
    if continued.strip() and text.endswith(continued.strip()):
        return "inside" if continued.rfind(begin) > continued.rfind(end) else "ended"
    # Without a mark in the prompt, this format begins with reasoning.
    return "inside" if name == "deepseek_r1" else "open"


def parser(name: str, rest: Parser, state: State) -> Parser:
    """A parser of reasoning, followed by what `rest` parses."""
    if name in AROUND:
        rest = Without(rest, *AROUND[name])
    return Thinking(rest, *REASONING[name], inside=state == "inside")


def held(llm: LLM, name: str, state: State, body: str | None, *, free: bool, budget: int | None) -> Structured:
    """What an output with reasoning before an answer must be.

    Args:
        body: the right side of a rule that holds the answer; None: any text.
        free: the output may end within the reasoning, because nothing forces an answer.
        budget: limit of the reasoning in tokens; None: no other than that an answer needs room.
    """
    answer = r"/(.|\n)*/" if body is None else body
    whole = Grammar(_grammar(llm, name, state, answer, free=free))
    if state == "ended" or (free and budget is None):
        return whole
    begin, end = REASONING[name]
    rest = _grammar(llm, name, "ended", answer, free=free).replace("start: ", f"start: {literal(llm, end)} GAP? ", 1)
    ended = Grammar(f"{rest}{_GAP}\n")
    if budget == 0 and state == "inside":
        return ended
    return Budgeted(
        output=whole,
        begin=begin if state == "open" else None,
        end=end,
        answer=ended,
        max_tokens=budget,
        answer_tokens=0 if free else _ANSWER_TOKENS,
    )


def _grammar(llm: LLM, name: str, state: State, body: str, *, free: bool) -> str:
    """The Lark grammar of an output with reasoning before what `body` holds."""
    begin, end = (literal(llm, mark) for mark in REASONING[name])
    rules = [f"answer: {body}"]
    whole = "answer"
    if name in AROUND:
        # The model may write its marks around the answer.
        before, after = (literal(llm, mark) for mark in AROUND[name])
        whole = f"{before}? answer {after}?"
    if state == "ended":
        return "\n".join([f"start: {whole}", *rules]) + "\n"
    if end.startswith("<["):
        # The mark is one token, which plain text never becomes.
        rules += [f"reasoning: THOUGHT {end}", r"THOUGHT: /(.|\n)*/"]
        unfinished = "THOUGHT"
    else:
        escaped = lark_escaped(REASONING[name][1])
        rules += [f"reasoning[lazy]: /(.|\\n)*{escaped}/"]
        unfinished = "UNFINISHED"
        if free:
            rules.append(f"UNFINISHED: /(.|\\n)*/ & ~/(.|\\n)*{escaped}(.|\\n)*/")
    rules.append(_GAP)
    ways = [f"reasoning GAP? {whole}", *([unfinished] if free else [])]
    if state == "inside":
        # Some models repeat the mark that the template wrote.
        start = " | ".join([*ways, *(f"{begin} {way}" for way in ways if begin.startswith("<["))])
    else:
        start = " | ".join([whole, *(f"{begin} {way}" for way in ways)])
    return "\n".join([f"start: {start}", *rules]) + "\n"


class ReasoningCounter:
    """Counts the tokens of one sample's reasoning, without its marks.

    Args:
        name: of the reasoning's format.
        state: where the prompt leaves the reasoning.
    """

    def __init__(self, llm: LLM, name: str, state: State) -> None:
        self._llm = llm
        self._begin, self._end = REASONING[name]
        self._ids: list[int] = []
        self._seen = state == "inside"
        self._done = False
        self.tokens = 0

    def feed(self, token_ids: list[int], pieces: list[Piece]) -> None:
        """Takes the tokens of a portion, and what the parser made of their text."""
        if self._done:
            return
        self._ids += token_ids
        self._seen = self._seen or any(isinstance(piece, Reasoning) for piece in pieces)
        ended = any(not isinstance(piece, Reasoning) for piece in pieces)
        if ended and not self._seen:
            self._done = True
        elif ended:
            self.finish()
        elif self._seen:
            self.tokens = len(self._ids)

    def finish(self) -> None:
        """The exact number, when the reasoning or the output has ended."""
        if self._done:
            return
        self._done = True
        self.tokens = self._count() if self._seen else 0
        self._ids = []

    def _count(self) -> int:
        ids = self._ids
        end = self._single(self._end)
        last = (ids.index(end) if end in ids else len(ids)) if end is not None else self._before(self._end)
        text = self._text(last)
        if not text.lstrip().startswith(self._begin):
            return last
        begin = self._single(self._begin)
        first = ids.index(begin) + 1 if begin in ids[:last] else self._before(self._begin, after=True)
        return max(0, last - first)

    def _single(self, mark: str) -> int | None:
        ids = self._llm.tokenize(mark, add_special_tokens=False)
        return ids[0] if len(ids) == 1 else None

    def _text(self, count: int) -> str:
        return self._llm.detokenize(self._ids[:count], skip_special_tokens=False)

    def _before(self, mark: str, *, after: bool = False) -> int:
        """Number of tokens whose text stands before `mark`, or up to its end."""
        at = self._text(len(self._ids)).find(mark)
        if at < 0:
            return len(self._ids)
        wanted = at + (len(mark) if after else 0)
        low, high = 0, len(self._ids)
        while low < high:
            middle = (low + high) // 2
            if len(self._text(middle)) < wanted:
                low = middle + 1
            else:
                high = middle
        return low


class Sample(Protocol):
    """News of a sample, of the engine or of an output."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def finish_reason(self) -> str | None: ...


class Reader(Parser):
    """Reads one sample: its text into pieces, and the number of its reasoning tokens.

    Args:
        parser: of the text.
        counter: of the reasoning tokens, or None without reasoning.
    """

    def __init__(self, parser: Parser, counter: ReasoningCounter | None = None) -> None:
        self._parser = parser
        self._counter = counter

    @property
    def reasoning_tokens(self) -> int:
        return 0 if self._counter is None else self._counter.tokens

    def read(self, sample: Sample) -> list[Piece]:
        """The pieces of a portion; at the end of the sample also the remaining ones."""
        pieces = self.feed(sample.text)
        if sample.finish_reason is not None:
            pieces += self.finish(cut=sample.finish_reason == "length")
        if self._counter is not None:
            self._counter.feed(sample.token_ids, pieces)
            if sample.finish_reason is not None:
                self._counter.finish()
        return pieces

    def reason(self, sample: Sample) -> str | None:
        """The reason why the answer has ended; None while it goes on. Asked after `read`."""
        return sample.finish_reason

    def feed(self, text: str) -> list[Piece]:
        return self._parser.feed(text)

    def finish(self, *, cut: bool = False) -> list[Piece]:
        return self._parser.finish(cut=cut)
