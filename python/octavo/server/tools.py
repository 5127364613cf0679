"""The tools of a request: their description in the prompt, the grammar of the output, and its parser."""

from __future__ import annotations

import json
from typing import Any

from octavo.server.call_grammar import grammar
from octavo.server.context import Context
from octavo.server.errors import bad_request
from octavo.server.formats import AROUND, REASONING, Format, is_special, thinking
from octavo.server.parsing import Parser, Plain
from octavo.server.requests import ChatRequest, Message, NamedTool
from octavo.structured import Grammar, Structured

# For a chat template without tools.
_INSTRUCTIONS = """You can call functions. To call one, write on lines of their own:
{}
The functions, each as JSON:
"""


class Toolbox:
    """The tools that a request may call, and the format of the calls."""

    def __init__(self, context: Context, request: ChatRequest) -> None:
        limits = context.config.limits
        self._context = context
        self._request = request
        given = [t.model_dump(exclude_none=True) for t in request.tools or []]
        if len(given) > limits.tools:
            raise bad_request(f"tools has {len(given)} entries: at most {limits.tools} are taken", "tools")
        if given and len(json.dumps(given)) > limits.tools_bytes:
            raise bad_request(f"tools are longer than the {limits.tools_bytes} bytes that are taken", "tools")
        names = [t["function"]["name"] for t in given]
        if len(set(names)) < len(names):
            raise bad_request("tools: two functions have the same name", "tools")
        self._given = given
        choice = request.tool_choice
        if isinstance(choice, NamedTool):
            if choice.function.name not in names:
                raise bad_request(f"tool_choice names {choice.function.name!r}, which tools lacks", "tool_choice")
        elif choice == "required" and not given:
            raise bad_request("tool_choice is 'required': tools are missing", "tool_choice")
        self._choice = choice or ("auto" if given else "none")
        active = bool(given) and self._choice != "none"
        self._format: Format | None = context.tool_format if active else None
        marks = [] if self._format is None else self._format.marks
        reasoning = context.config.reasoning_parser
        marks += () if reasoning is None else (*REASONING[reasoning], *AROUND.get(reasoning, ()))
        self.needs_special_tokens = is_special(context.llm, marks)

    @property
    def forced(self) -> bool:
        """The output must be a call."""
        return self._format is not None and self._choice != "auto"

    def for_template(self) -> list[dict[str, Any]] | None:
        """The tools in the form that the chat template expects."""
        return self._given if self._format is not None and self._context.template_supports_tools else None

    def instruct(self, messages: list[Message]) -> list[Message]:
        """The messages. If the template does not describe tools, the first message does."""
        if self._format is None or self._context.template_supports_tools:
            return messages
        text = _INSTRUCTIONS.format(self._format.example())
        text += "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in self._given)
        first = messages[0]
        if first.role in ("system", "developer") and isinstance(first.content, str):
            return [first.model_copy(update={"content": f"{first.content}\n\n{text}"}), *messages[1:]]
        if not self._context.template_supports_system and first.role == "user" and isinstance(first.content, str):
            return [first.model_copy(update={"content": f"{text}\n\n{first.content}"}), *messages[1:]]
        return [Message(role="system", content=text), *messages]

    def structure(self) -> Structured | None:
        """The grammar that makes calls valid under their schemas."""
        if self._format is None:
            return None
        functions = [t["function"] for t in self._given]
        if isinstance(self._choice, NamedTool):
            functions = [f for f in functions if f["name"] == self._choice.function.name]
        parallel = self._request.parallel_tool_calls is not False and not isinstance(self._choice, NamedTool)
        return Grammar(grammar(self._context.llm, self._format, functions, forced=self.forced, parallel=parallel))

    def parser(self, prompt_end: str = "") -> Parser:
        """A parser for one sample. `prompt_end`: end of the prompt, which may open the reasoning."""
        functions = [t["function"] for t in self._given]
        inner = self._format.reader(functions) if self._format is not None else Plain()
        reasoning = self._context.config.reasoning_parser
        return inner if reasoning is None else thinking(reasoning, inner, prompt_end)
