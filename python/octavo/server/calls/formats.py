"""Formats of tool calls and reasoning: their marks and their parsers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.errors import OctavoError
from octavo.llm import LLM
from octavo.server.parsing import Bare, Calls, Either, FirstLine, Marked, Named, Parser, Pythonic, Xml

# A text in parts: each special token is a separate part.
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """One way to write calls: `begin opening call (sep call)* closing`, each call in its `style`.

    Attributes:
        begin: the mark before the calls, which distinguishes them from text; "": no mark.
        opening, closing: text around the calls of one mark.
        sep: text between calls; None: each call has its own mark.
        style: "object": `{"name": ..., key: {...}}`. "named": `before NAME between {...} after`.
            "python": `NAME(argument=value)`. "xml": `<function=NAME>`, and `<parameter=KEY>` before each value.
        key, name_key: keys of the arguments and of the name in an object.
        fields: further fields of an object, with their schemas.
        text: regular expression of text without calls, for a format without a mark. `NAMES`: names of the tools.
    """

    name: str
    parser: Callable[..., Parser]
    begin: str = ""
    opening: Parts = ()
    closing: Parts = ()
    sep: Parts | None = None
    style: Literal["object", "named", "python", "xml"] = "object"
    key: str = "arguments"
    name_key: str = "name"
    fields: Mapping[str, Any] = field(default_factory=dict)
    before: Parts = ()
    between: Parts = ()
    after: Parts = ()
    text: str = ""

    @property
    def marks(self) -> list[str]:
        """All parts that can be special tokens."""
        parts = (self.begin, *self.opening, *self.closing, *(self.sep or ()), *self.before, *self.between, *self.after)
        return [part for part in dict.fromkeys(parts) if part.strip()]

    def reader(self, tools: list[dict[str, Any]], *, forced: bool = False, answer: bool = False) -> Parser:
        """A parser for one text with calls of `tools`.

        Args:
            forced: nothing but calls can come.
            answer: the text is calls, or an answer that another grammar holds.
        """
        if self.style == "xml":
            parser = self.parser({t["name"]: texts(t.get("parameters") or {}) for t in tools})
        elif answer and not self.begin and self.style == "object":
            # Objects of an answer look like calls.
            parser = self.parser(names=frozenset(t["name"] for t in tools))
        else:
            parser = self.parser()
        calls = Calls(parser, self.begin, forced=forced)
        return Either(calls, self.begin) if answer and self.begin else calls

    def example(self) -> str:
        """An example of a call, for the instructions in the prompt."""
        name, arguments = "the function's name", "{its arguments}"
        if self.style == "python":
            call = "function(argument=value)"
        elif self.style == "xml":
            call = f"<function={name}>\n<parameter=an argument's name>\nits value\n</parameter>\n</function>"
        elif self.style == "named":
            call = "".join((*self.before, name, *self.between, arguments, *self.after))
        else:
            call = f'{{"{self.name_key}": "{name}", "{self.key}": {arguments}}}'
        return "".join((self.begin, *self.opening, call, *self.closing))


# Keywords allowed in the schema of a string that is written without quotes.
_OF_TEXTS = frozenset(
    {"type", "enum", "const", "title", "description", "default", "examples", "deprecated", "$comment"}
)


def texts(schema: dict[str, Any]) -> dict[str, list[str] | None]:
    """String parameters, which some formats write without quotes -> the allowed values, or None for any.

    Strings with a pattern or a length limit are not included: these can only be enforced in JSON."""
    found: dict[str, list[str] | None] = {}
    for key, value in (schema.get("properties") or {}).items():
        where = value
        if isinstance(value, dict) and isinstance(value.get("$ref"), str) and set(value) <= {"$ref", *_OF_TEXTS}:
            _, _, name = value["$ref"].rpartition("/")
            where = next((schema[d][name] for d in ("$defs", "definitions") if name in schema.get(d, {})), None)
        if not isinstance(where, dict) or not set(where) <= _OF_TEXTS:
            continue
        few = [where["const"]] if "const" in where else where.get("enum")
        if few is None and where.get("type") == "string":
            found[key] = None
        elif isinstance(few, list) and few and all(isinstance(x, str) and "</parameter>" not in x for x in few):
            found[key] = few
    return found


_HERMES = ("<tool_call>", "</tool_call>")
_PHI = ("<|tool_call|>", "<|/tool_call|>")
_COHERE = ("<|START_ACTION|>", "<|END_ACTION|>")
_GEMMA = ("```tool_code", "```")
_OLMO = ("<function_calls>", "</function_calls>")
_DS = {n: f"<｜tool▁{n.replace('_', '▁')}｜>" for n in ("calls_begin", "calls_end", "call_begin", "call_end", "sep")}
_DS_ENDS = (_DS["call_end"], _DS["calls_end"])


def _deepseek(sep: str, *ends: str, drop: str = "") -> Callable[[], Parser]:
    return lambda: Named(_DS["calls_begin"], sep, (*ends, *_DS_ENDS), repeat=_DS["call_begin"], drop=drop)


FORMATS = {
    f.name: f
    for f in (
        # Hermes 2, Qwen 2.5 and 3, SmolLM 3, Granite 4
        Format("hermes", lambda: Marked(*_HERMES), _HERMES[0], ("\n",), ("\n", _HERMES[1])),
        # Qwen3-Coder
        Format("qwen3_coder", Xml, _HERMES[0], ("\n",), ("\n", _HERMES[1]), style="xml"),
        # Gemma, in the format that its documentation recommends
        Format("gemma", lambda: Pythonic(*_GEMMA), _GEMMA[0], ("\n",), ("\n", _GEMMA[1]), ("\n",), "python"),
        # Mistral 7B v0.3, Nemo, Large 2407
        Format("mistral", lambda: Marked("[TOOL_CALLS]", ""), "[TOOL_CALLS]", ("[",), ("]",), (",",)),
        # Mistral Small 3.1 and later, Devstral, Magistral
        Format(
            "mistral_args",
            lambda: Named("[TOOL_CALLS]", "[ARGS]", cut="[CALL_ID]"),
            "[TOOL_CALLS]",
            style="named",
            between=("[ARGS]",),
        ),
        # Llama 3.1 and 3.2
        Format("llama3_json", Bare, key="parameters", text=r"[^{ \n](.|\n)*"),
        # Llama 3.2 and 4, if the prompt asks for it
        Format(
            "pythonic",
            lambda: Pythonic(around=("<|python_start|>", "<|python_end|>")),
            opening=("[",),
            closing=("]",),
            sep=(", ",),
            style="python",
            text=r"[^\[ \n](.|\n)*",
        ),
        # OLMo 3
        Format("olmo3", lambda: Pythonic(*_OLMO), _OLMO[0], ("\n",), ("\n", _OLMO[1]), ("\n",), "python"),
        # DeepSeek V3 and R1
        Format(
            "deepseek_v3",
            _deepseek("\n```json\n", "```", drop=_DS["sep"]),
            _DS["calls_begin"],
            closing=(_DS["calls_end"],),
            sep=("\n",),
            style="named",
            before=(_DS["call_begin"], "function", _DS["sep"]),
            between=("\n```json\n",),
            after=("\n```", _DS["call_end"]),
        ),
        # DeepSeek V3.1
        Format(
            "deepseek_v31",
            _deepseek(_DS["sep"]),
            _DS["calls_begin"],
            closing=(_DS["calls_end"],),
            sep=(),
            style="named",
            before=(_DS["call_begin"],),
            between=(_DS["sep"],),
            after=(_DS["call_end"],),
        ),
        # Granite 3
        Format("granite", lambda: Marked("<|tool_call|>", ""), "<|tool_call|>", ("[",), ("]",), (", ",)),
        # Phi-4-mini: its own tokens, and the format of vLLM's template
        Format("phi4_mini", lambda: Marked(*_PHI), _PHI[0], ("[",), ("]", _PHI[1]), (", ",)),
        Format("phi4_mini_json", lambda: Marked("functools", ""), "functools", ("[",), ("]",), (", ",)),
        # Command R7B and A
        Format(
            "cohere",
            lambda: Marked(*_COHERE, ("parameters",), name_key="tool_name"),
            _COHERE[0],
            ("[\n    ",),
            ("\n]", _COHERE[1]),
            (",\n    ",),
            key="parameters",
            name_key="tool_name",
            fields={"tool_call_id": {"type": "string", "pattern": "^[0-9]{1,2}$"}},
        ),
        # GLM-4-0414: the complete text is one call
        Format("glm4", FirstLine, style="named", between=("\n",), text=r"(.|\n)* & ~/(NAMES)\n(.|\n)*"),
    )
}
# Begin and end marks of reasoning.
REASONING = {
    # Qwen 3, SmolLM 3, OLMo 3: the model writes both marks, or the template writes the first
    "think": ("<think>", "</think>"),
    # The first mark may be missing: text before the second is reasoning
    "deepseek_r1": ("<think>", "</think>"),
    # Magistral
    "mistral": ("[THINK]", "[/THINK]"),
    # Granite 3.2
    "granite": ("Here is my thought process:", "Here is my response:"),
    # Command R7B and A
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
}
# Marks around an answer, which are removed.
AROUND = {"cohere": ("<|START_RESPONSE|>", "<|END_RESPONSE|>")}
_PROBE = {"name": "probe_tool", "description": "probe", "parameters": {"type": "object", "properties": {}}}
# Two texts that a template renders for a tool and a call -> the format. The first match counts.
_SIGNS = (
    ("<｜tool▁calls▁begin｜>", "```json", "deepseek_v3"),
    ("<｜tool▁calls▁begin｜>", "", "deepseek_v31"),
    ("[TOOL_CALLS]", "[ARGS]", "mistral_args"),
    ("[TOOL_CALLS]", "", "mistral"),
    ("<|START_ACTION|>", "", "cohere"),
    ("<function_calls>", "", "olmo3"),
    ("<|tool_call|>", "", "granite"),
    ("<|tool|>", "", "phi4_mini"),
    ("functools[", "", "phi4_mini_json"),
    ("<tool_call>", "<function=", "qwen3_coder"),
    ("<tool_call>", "", "hermes"),
    ("tool_code", "", "gemma"),
    ("[probe_tool(", "", "pythonic"),
    ("probe_tool\n{", "", "glm4"),
    ('"parameters"', "", "llama3_json"),
)


def detect(llm: LLM) -> Format | None:
    """The tool call format of the model's chat template; None: the template does not support tools."""
    tools = [{"type": "function", "function": _PROBE}]
    turns = [{"role": "user", "content": "probe"}]
    if not template_supports_tools(llm):
        return None
    text = llm.render_chat(turns, tools=tools)
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "probe_tool", "arguments": {}}}
    # Without an example call the description of the tools must be enough.
    with contextlib.suppress(OctavoError):
        text += llm.render_chat([*turns, {"role": "assistant", "content": "", "tool_calls": [call]}], tools=tools)
    name = next((name for sign, other, name in _SIGNS if sign in text and other in text), "hermes")
    return FORMATS[name]


def template_supports_tools(llm: LLM) -> bool:
    """Whether the model's chat template describes tools."""
    try:
        text = llm.render_chat([{"role": "user", "content": "probe"}], tools=[{"type": "function", "function": _PROBE}])
    except OctavoError:
        return False
    return "probe_tool" in text


def template_supports_system(llm: LLM) -> bool:
    """Whether the model's chat template includes a system message."""
    try:
        text = llm.render_chat([{"role": "system", "content": "probe_system"}, {"role": "user", "content": "probe"}])
    except OctavoError:
        return False
    return "probe_system" in text


def default_format(llm: LLM) -> Format:
    """The format for a model whose chat template does not support tools."""
    try:
        text = llm.render_chat([{"role": "user", "content": "probe"}])
    except OctavoError:
        text = ""
    return FORMATS["gemma" if "<start_of_turn>" in text else "hermes"]


def literal(llm: LLM, text: str) -> str:
    """`text` in a grammar: a special token by its id, because plain text never becomes one."""
    ids = llm.tokenize(text, add_special_tokens=False)
    if len(ids) == 1 and llm.detokenize(ids, skip_special_tokens=True) == "":
        return f"<[{ids[0]}]>"
    return json.dumps(text, ensure_ascii=False)


def is_special(llm: LLM, marks: list[str] | Parts) -> bool:
    """Whether one of the marks is a special token, which text without special tokens lacks."""
    return any(literal(llm, mark).startswith("<[") for mark in marks if mark)


def lark_escaped(text: str) -> str:
    """`text` escaped for a regular expression in a grammar."""
    return "".join(f"\\{c}" if c in "[]()/.|\\?*+{}^$" else c for c in text)
