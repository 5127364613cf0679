"""The rounds of an answer that calls plugins, through the stages of every chat: requests in, calls and pieces out.

It does no input or output. A driver generates each round, runs the calls, and asks for the next round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.plugins.host.outcome import Outcome
from octavo.plugins.loop import LONGEST_RESULT, WAITING, Loop, PluginCall, message_text
from octavo.server.approved import written_call
from octavo.server.calls.ids import id_with
from octavo.server.context import Context
from octavo.server.fields.requests import (
    AllowedTools,
    ChatRequest,
    ChosenTool,
    FunctionCall,
    Message,
    Tool,
    ToolCall,
)
from octavo.server.harmless import harmless_json, harmless_tool
from octavo.server.parsing import Arguments, Call, Content, Piece, Reasoning
from octavo.server.reasoning import Reader, Sample

# A result is not cut to fewer characters.
_SHORTEST_RESULT = 64
_FEWEST_TOKENS = 32


@dataclass
class Turn:
    """What the model has written in one round."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    # Name, and the parts of the arguments.
    calls: list[tuple[str, list[str]]] = field(default_factory=list)


class RoundReader(Reader):
    """Reads all rounds of an answer as one sample.

    Args:
        names: names of the operations of plugins.
        gap: text between the contents of two rounds, and between their reasoning.
        shown: give the pieces of plugins' calls, too; else only what is for the client.

    Attributes:
        turn: what the round has written so far.
        goes_on: the round has ended with calls of plugins.
        tokens: number of tokens of all rounds.
    """

    def __init__(self, names: frozenset[str], *, gap: str = "", shown: bool = False) -> None:
        self._names = names
        self._gap = gap
        self._shown = shown
        self._inner: Reader | None = None
        self._reasoning_before = 0
        self._own = False
        # The last character of all rounds' contents, and of their reasoning; which of them need a gap.
        self._last: dict[type[Piece], str] = {}
        self._gaps: set[type[Piece]] = set()
        self.goes_on = False
        self.turn = Turn()
        self.tokens = 0

    def begin(self, inner: Reader) -> None:
        """Begins a round, which `inner` reads."""
        self._reasoning_before = self.reasoning_tokens
        self._inner = inner
        self._own = False
        self._gaps = {kind for kind, last in self._last.items() if not last.isspace()}
        self.goes_on = False
        self.turn = Turn()

    @property
    def reasoning_tokens(self) -> int:
        return self._reasoning_before + (0 if self._inner is None else self._inner.reasoning_tokens)

    @property
    def own_calls(self) -> list[tuple[str, str]]:
        """Names and arguments of the round's calls of plugins."""
        return [(name, "".join(parts)) for name, parts in self.turn.calls if name in self._names]

    @property
    def client_calls(self) -> bool:
        """Whether the round has called a function of the client."""
        return any(name not in self._names for name, _ in self.turn.calls)

    def read(self, sample: Sample) -> list[Piece]:
        assert self._inner is not None
        self.tokens += len(sample.token_ids)
        pieces = [shown for piece in self._inner.read(sample) if (shown := self._take(piece)) is not None]
        self.goes_on = sample.finish_reason == "stop" and bool(self.own_calls)
        return pieces

    def reason(self, sample: Sample) -> str | None:
        return None if self.goes_on else sample.finish_reason

    def _take(self, piece: Piece) -> Piece | None:
        """Notes a piece; what of it the client sees."""
        if isinstance(piece, Call):
            self._own = piece.name in self._names
            self.turn.calls.append((piece.name, []))
        elif isinstance(piece, Arguments):
            self.turn.calls[-1][1].append(piece.text)
        else:
            (self.turn.text if isinstance(piece, Content) else self.turn.reasoning).append(piece.text)
            return self._apart(piece)
        return None if isinstance(piece, Call | Arguments) and self._own and not self._shown else piece

    def _apart(self, piece: Content | Reasoning) -> Piece:
        """A piece, after a gap if it is the first of its kind in a later round."""
        kind = type(piece)
        shown = kind(self._gap + piece.text) if kind in self._gaps else piece
        self._gaps.discard(kind)
        if piece.text:
            self._last[kind] = piece.text[-1]
        return shown


@dataclass(frozen=True)
class Ran:
    """The outcomes of a round's calls.

    Attributes:
        reason: the reason why the answer has ended; None: another round follows.
    """

    calls: tuple[PluginCall, ...]
    outcomes: tuple[Outcome, ...]
    reason: str | None

    @property
    def waiting(self) -> list[PluginCall]:
        """Calls that wait for an approval."""
        return [call for call, outcome in zip(self.calls, self.outcomes, strict=True) if outcome.status == WAITING]


class Rounds:
    """The rounds of one answer.

    Args:
        request: the first round's, without the tools of plugins.
        loop: which operations there are, and what runs.
        reader: reads all rounds.
        waiting: calls of the last turn of `request`, which run before the first round.
    """

    def __init__(
        self,
        context: Context,
        request: ChatRequest,
        loop: Loop,
        reader: RoundReader,
        waiting: Sequence[PluginCall] = (),
    ) -> None:
        self._context = context
        self._request = request
        self._messages = list(request.messages)
        self._waiting = tuple(waiting)
        self._max_tokens = request.max_completion_tokens or request.max_tokens
        self._begun = False
        # Number of tokens of the last round's prompt, and of all rounds before.
        self.prompt_tokens = 0
        self._tokens_before = 0
        self.loop = loop
        self.reader = reader

    @property
    def request(self) -> ChatRequest:
        """The request of the next round."""
        request, loop = self._request, self.loop
        tools = [Tool.model_validate(harmless_tool(self._context.llm, tool.openai())) for tool in loop.tools]
        more: dict[str, Any] = {
            "messages": self._messages,
            "tools": [*(request.tools or []), *tools] or None,
            "tool_choice": self._choice(frozenset(tool.name for tool in loop.tools)),
            "timeout": request.timeout if loop.seconds_left is None else max(loop.seconds_left, 1e-3),
        }
        if loop.again:
            more["parallel_tool_calls"] = False if len(loop.again) == 1 else request.parallel_tool_calls
        if self._max_tokens is not None:
            more |= {"max_tokens": None, "max_completion_tokens": max(self._max_tokens - self.reader.tokens, 1)}
        if self._begun:
            more |= {"prompt_logprobs": None, "add_generation_prompt": None}
        return request.model_copy(update=more)

    def begin(self, inner: Reader) -> None:
        """Notes that a round is generated, whose text `inner` reads."""
        self._begun = True
        self._tokens_before = self.reader.tokens
        self.reader.begin(inner)

    def calls(self) -> list[PluginCall]:
        """The calls to run now; empty: the answer has ended."""
        if not self._begun:
            return list(self._waiting)
        if not self.reader.goes_on:
            return []
        made: list[PluginCall] = []
        for name, arguments in self.reader.own_calls:
            # The id says what was written under which schema: an approval may come much later.
            written = written_call(self.loop.tool(name), arguments)
            call_id = id_with(self._context.new_call_id([call.id for call in made]), written)
            made.append(PluginCall(call_id, name, arguments))
        return made

    def take(self, calls: Sequence[PluginCall], outcomes: Sequence[Outcome]) -> Ran:
        """Adds the calls and their outcomes to the conversation."""
        self.loop.take(outcomes)
        self._context.plugin_calls.update((o.plugin, o.operation, o.status) for o in outcomes)
        self._context.deprecated_calls.update((o.plugin, o.operation) for o in outcomes if o.deprecated)
        answered = [(c, o) for c, o in zip(calls, outcomes, strict=True) if o.status != WAITING]
        if self._begun:
            turn = self.reader.turn
            made = [ToolCall(id=c.id, function=FunctionCall(name=c.name, arguments=c.arguments)) for c, _ in answered]
            self._messages.append(
                Message(
                    role="assistant",
                    content="".join(turn.text) or None,
                    reasoning_content="".join(turn.reasoning) or None,
                    tool_calls=made or None,
                )
            )
        most = self._most_of_a_result(len(answered))
        for call, outcome in answered:
            text = shown_result(self._context, outcome, most)
            self._messages.append(Message(role="tool", tool_call_id=call.id, name=call.name, content=text))
        ran = Ran(tuple(calls), tuple(outcomes), None)
        return Ran(ran.calls, ran.outcomes, self._reason(ran))

    def _most_of_a_result(self, count: int) -> int:
        """Number of tokens of each of `count` results: the next round needs room for them and for an answer."""
        used = self.prompt_tokens + self.reader.tokens - self._tokens_before
        left = self._context.max_model_len - used
        return max(left // (2 * max(count, 1)), _FEWEST_TOKENS)

    def _reason(self, ran: Ran) -> str | None:
        if ran.waiting or (self._begun and self.reader.client_calls):
            return "stop"
        if self._max_tokens is not None and self.reader.tokens >= self._max_tokens:
            return "length"
        return None

    def _choice(self, offered: frozenset[str]) -> Any:
        """`tool_choice` of the next round. What forces a call holds for the first round: the model must answer once."""
        choice, again = self._request.tool_choice, self.loop.again
        if again:
            return _allowed("required", sorted(again))
        if isinstance(choice, ChosenTool) and choice.type == "allowed_tools" and choice.allowed_tools is not None:
            gone = self.loop.names - offered
            tools = [tool for tool in choice.allowed_tools.tools if _name(tool) not in gone]
            mode = "auto" if self._begun else choice.allowed_tools.mode
            return ChosenTool(type=choice.type, allowed_tools=AllowedTools(mode=mode, tools=tools))
        if self._begun and choice != "none":
            return "auto"
        return choice


def shown_result(context: Context, outcome: Outcome, most: int | None = None) -> str:
    """What the model reads of an outcome: untrusted text, of at most a quarter of the context.

    Args:
        most: number of its tokens, if less.
    """
    longest, quarter = LONGEST_RESULT, context.max_model_len // 4
    most = quarter if most is None else min(most, quarter)
    while True:
        text = harmless_json(context.llm, message_text(outcome, longest))
        count = len(context.llm.tokenize(text, add_special_tokens=False))
        if count <= most or longest < _SHORTEST_RESULT:
            return text
        longest = int(min(longest, len(text)) * min(0.9, most / count))


def _allowed(mode: Any, names: Sequence[str]) -> ChosenTool:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return ChosenTool(type="allowed_tools", allowed_tools=AllowedTools(mode=mode, tools=tools))


def _name(tool: dict[str, Any]) -> Any:
    inner = tool.get("function")
    return inner.get("name") if isinstance(inner, dict) else tool.get("name")
