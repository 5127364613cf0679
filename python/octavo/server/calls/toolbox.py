"""The tools of a request: their description in the prompt, the grammar of the output, and its parser."""

from __future__ import annotations

import json
from typing import Any

from octavo.server.calls.as_text import result_marks
from octavo.server.calls.formats import AROUND, REASONING, Format, is_special
from octavo.server.calls.grammar import grammar
from octavo.server.calls.kinds import choice_of, offered
from octavo.server.context import Context
from octavo.server.errors import bad_request
from octavo.server.fields.requests import ChatRequest
from octavo.server.parsing import Parser, Plain
from octavo.server.schemas import tool_functions

# For a chat template without tools.
_INSTRUCTIONS = """You can call functions. To call one, write on lines of their own:
{}
Their results stand between {} and {}.
The functions, each as JSON:
"""


class Toolbox:
    """The tools that a request may call, and the format of the calls.

    Attributes:
        custom: names of functions that are custom tools for the client.
    """

    def __init__(self, context: Context, request: ChatRequest) -> None:
        limits = context.config.limits
        self._context = context
        self._request = request
        offer = offered(context, request.tools or [])
        given = offer.functions
        if len(given) > limits.tools:
            raise bad_request(f"tools has {len(given)} entries: at most {limits.tools} are taken", "tools")
        if given and len(json.dumps(given)) > limits.tools_bytes:
            raise bad_request(f"tools are longer than the {limits.tools_bytes} bytes that are taken", "tools")
        names = [t["function"]["name"] for t in given]
        if len(set(names)) < len(names):
            raise bad_request("tools: two functions have the same name", "tools")
        self._given = given
        self._choice = choice_of(request.tool_choice, offer)
        self.custom = offer.custom
        active = bool(given) and self._choice.mode != "none"
        self._format: Format | None = context.tool_format if active else None
        self._functions = [] if self._format is None else tool_functions(context, given, self._format.style)
        marks = [] if self._format is None else self._format.marks
        reasoning = context.config.reasoning_parser
        marks += () if reasoning is None else (*REASONING[reasoning], *AROUND.get(reasoning, ()))
        self.needs_special_tokens = is_special(context.llm, marks)

    @property
    def forced(self) -> bool:
        """The output must be a call."""
        return self._format is not None and self._choice.mode == "required"

    def for_template(self) -> list[dict[str, Any]] | None:
        """The tools in the form that the chat template expects."""
        return self._given if self._format is not None and self._context.template_supports_tools else None

    def instruct(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The turns of a conversation. If the template does not describe tools, the first turn does."""
        if self._format is None or self._context.template_supports_tools:
            return turns
        text = _INSTRUCTIONS.format(self._format.example(), *result_marks(self._format))
        text += "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in self._given)
        first = turns[0]
        if first["role"] == "system":
            return [{**first, "content": f"{first['content']}\n\n{text}"}, *turns[1:]]
        if not self._context.template_supports_system and first["role"] == "user":
            return [{**first, "content": f"{text}\n\n{first['content']}"}, *turns[1:]]
        return [{"role": "system", "content": text}, *turns]

    def calls(self, *, alone: bool = False, unlike: str = "") -> str | None:
        """The Lark grammar that makes calls valid under their schemas; None: there are no tools.

        Args:
            alone: the output is calls and nothing else, as if they were forced.
            unlike: free text does not begin with this.
        """
        if self._format is None:
            return None
        functions = self._functions
        if self._choice.names is not None:
            functions = [f for f in functions if f["name"] in self._choice.names]
        parallel = self._request.parallel_tool_calls is not False and not self._choice.single
        forced = alone or self.forced
        return grammar(
            self._context.llm,
            self._format,
            functions,
            forced=forced,
            parallel=parallel,
            unlike="" if forced else unlike,
        )

    def parser(self, *, answer: bool = False) -> Parser:
        """A parser for one sample, without its reasoning.

        Args:
            answer: the text is calls, or an answer that another grammar holds.
        """
        if self._format is None:
            return Plain()
        return self._format.reader(self._functions, forced=self.forced, answer=answer and not self.forced)
