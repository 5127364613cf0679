"""What the output of a request must be: reasoning, then calls of functions or an answer in a format."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from octavo.server import reasoning
from octavo.server.calls.formats import AROUND, REASONING
from octavo.server.calls.toolbox import Toolbox
from octavo.server.context import Context
from octavo.server.continuation import continued_text
from octavo.server.errors import ApiError, bad_request
from octavo.server.fields.requests import ChatRequest, ResponseFormat, Sampling, StructuredOutputs
from octavo.server.lark import lark_body, lark_choice
from octavo.server.reasoning import Reader, ReasoningCounter, parser, state_after
from octavo.server.schemas import answer_schema
from octavo.structured import Grammar, JsonSchema, Regex, Structure, Structured

_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class OutputFormat:
    """What the output of a request is held to, and how it is read.

    Attributes:
        structured: for SamplingParams; None: free output.
        reader: makes a reader for each sample.
    """

    structured: Structured | None
    reader: Callable[[], Reader]


def output_format(context: Context, request: ChatRequest, toolbox: Toolbox, prompt: str) -> OutputFormat:
    """The output format of a chat request. Reasoning is free text before what the request asks for.

    Args:
        prompt: the rendered messages.

    Raises:
        ApiError: 400 for fields that are invalid or exclude each other.
    """
    name, llm = context.config.reasoning_parser, context.llm
    state = "ended" if name is None else state_after(name, prompt, continued_text(request))
    answer = answer_format(context, request)
    held: Structure | None = answer
    if toolbox.forced:
        held = _grammar(toolbox.calls())
    elif answer is not None:
        # The model calls a function, or answers in the format.
        calls = toolbox.calls(alone=True)
        if calls is not None:
            held = Grammar(
                f"start: calls | answer\ncalls: {lark_body(Grammar(calls))}\nanswer: {lark_choice(answer)}\n"
            )
    else:
        begin = "" if name is None or state != "open" else REASONING[name][0]
        held = _grammar(toolbox.calls(unlike=begin))
    output: Structured | None = held
    budget = _budget(context, request)
    if name is not None and (held is not None or budget is not None) and (state != "ended" or name in AROUND):
        free = answer is None and not toolbox.forced
        body = None if held is None else lark_body(held)
        output = reasoning.held(llm, name, state, body, free=free, budget=budget)

    def reader() -> Reader:
        inner = toolbox.parser(answer=answer is not None)
        if name is None:
            return Reader(inner)
        return Reader(parser(name, inner, state), ReasoningCounter(llm, name, state))

    return OutputFormat(output, reader)


def _budget(context: Context, request: ChatRequest) -> int | None:
    """The request's limit of reasoning tokens.

    Raises:
        ApiError: 400 if the server does not know where the model's reasoning ends.
    """
    budget = request.thinking_token_budget
    if budget is None or budget < 0:
        return None
    if context.config.reasoning_parser is None:
        raise bad_request(
            f"thinking_token_budget is {budget}: the server was started without --reasoning-parser",
            "thinking_token_budget",
        )
    return budget


def answer_format(context: Context, request: Sampling) -> Structure | None:
    """What the answer of `request` is held to; None: free text.

    Raises:
        ApiError: 400 if response_format and structured_outputs both constrain the answer.
    """
    found: list[tuple[str, Structure]] = []
    if request.response_format is not None:
        form = response_format(context, request.response_format)
        if form is not None:
            found.append(("response_format", form))
    if request.structured_outputs is not None:
        name = request.given_name("structured_outputs")
        found.append(("structured_outputs", _outputs(context, request.structured_outputs, name)))
    if len(found) > 1:
        raise bad_request(f"{found[0][0]} and {found[1][0]} exclude each other", found[1][0])
    return found[0][1] if found else None


def _grammar(lark: str | None) -> Grammar | None:
    return None if lark is None else Grammar(lark)


def field_of(request: Sampling) -> str:
    """The request's field that errors about the output format name."""
    if request.response_format is not None:
        return "response_format"
    if request.structured_outputs is not None:
        return request.given_name("structured_outputs")
    return "tools"


def response_format(context: Context, form: ResponseFormat) -> Structure | None:
    """OpenAI's `response_format`, extended by `regex` and `grammar`."""
    if form.type == "text":
        return None
    if form.type == "json_object":
        return JsonSchema(_OBJECT)
    if form.type == "json_schema":
        if form.json_schema is None:
            raise bad_request("response_format.json_schema is missing", "response_format.json_schema")
        schema = _OBJECT if form.json_schema.schema_ is None else form.json_schema.schema_
        held = answer_schema(context, schema, "response_format", strict=bool(form.json_schema.strict))
        return JsonSchema(held, disable_additional_properties=False)
    if form.type == "regex":
        return Regex(_needed(form.pattern, "response_format.pattern"))
    return Grammar(_needed(form.grammar, "response_format.grammar"))


def _needed(value: str | None, name: str) -> str:
    if value is None:
        raise bad_request(f"{name} is missing", name)
    return value


def _outputs(context: Context, given: StructuredOutputs, name: str) -> Structure:
    wanted = [n for n in ("json_", "regex", "choice", "grammar", "json_object") if getattr(given, n) is not None]
    if len(wanted) != 1:
        raise _one_of()
    if given.json_ is not None:
        closed = given.disable_additional_properties
        held = answer_schema(context, given.json_, name, strict=True, closed=closed)
        return JsonSchema(held, disable_additional_properties=False)
    if given.regex is not None:
        return Regex(given.regex)
    if given.grammar is not None:
        return Grammar(given.grammar)
    if given.json_object:
        return JsonSchema(_OBJECT)
    if not given.choice or not all(given.choice):
        raise bad_request("structured_outputs.choice: texts are expected", "structured_outputs.choice")
    return Grammar("start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in given.choice))


def _one_of() -> ApiError:
    message = "structured_outputs: exactly one of json, regex, choice, grammar and json_object is expected"
    return bad_request(message, "structured_outputs")
