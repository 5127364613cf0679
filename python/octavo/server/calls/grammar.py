"""The grammar of output with tool calls: free text, and calls that are always valid."""

from __future__ import annotations

import json
from typing import Any

from octavo.llm import LLM
from octavo.server.calls.formats import Format, Parts, lark_escaped, literal, texts
from octavo.server.schemas import moved

# No free white space in JSON: a weak model might fill its answer with it.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_END_OF_VALUE = r'"\n</parameter>"'


def grammar(
    llm: LLM, form: Format, tools: list[dict[str, Any]], *, forced: bool, parallel: bool, unlike: str = ""
) -> str:
    """The Lark grammar of a text with calls of `tools`.

    Args:
        forced: at least one call and nothing else; else calls may stand anywhere in free text.
        parallel: more than one call may come.
        unlike: free text does not begin with this; "": it may begin with anything.

    The parameters of `tools` are those of `schemas.tool_functions`.
    """
    rules: list[str] = []
    bodies = "\n    | ".join(_call(llm, form, tool, f"t{i}", rules) for i, tool in enumerate(tools))
    mark = literal(llm, form.begin) if form.begin else ""
    more = f"({_join(llm, form.sep)} body)*" if parallel and form.sep is not None else ""
    call = _words(_join(llm, form.opening), "body", more, _join(llm, form.closing))
    # Each call has its own mark.
    again = bool(form.begin) and form.sep is None and parallel
    if forced:
        start = _words(mark, call)
        if again:
            gap = '"\\n"' if form.closing else ""
            start = f"{start} ({_words(gap, mark, call)})*"
    elif mark.startswith("<"):
        # The mark is one token, which plain text never becomes.
        start = f"TEXT ({_words(mark, call)})" + ("* TEXT?" if again else "?")
        rules.append("TEXT: /(.|\\n)*/")
    elif form.begin:
        start = f"(lead {call})" + ("*" if again else "?") + " TAIL?"
        escaped = lark_escaped(form.begin)
        rules += [f"lead[lazy]: /(.|\\n)*{escaped}/", f"TAIL: /(.|\\n)*/ & ~/(.|\\n)*{escaped}(.|\\n)*/"]
    else:
        # Without a mark, the beginning of the text distinguishes calls from text.
        start = f"{call} | OTHER"
        names = "|".join(lark_escaped(tool["name"]) for tool in tools)
        rules.append(_other(form.text.replace("NAMES", names), unlike))
    return "\n".join([f"start: {start}", f"body: {bodies}", *rules]) + "\n"


def _other(text: str, unlike: str) -> str:
    wanted, mark, unwanted = text.partition(" & ~/")
    rule = f"OTHER: /{wanted}/" + (f" & ~/{unwanted}/" if mark else "")
    return rule + (f" & ~/{lark_escaped(unlike)}(.|\\n)*/" if unlike else "")


def _call(llm: LLM, form: Format, tool: dict[str, Any], rule: str, rules: list[str]) -> str:
    """One alternative: a call of `tool`. Appends the rules that it uses to `rules`."""
    schema = tool.get("parameters") or {"type": "object"}
    if form.style == "python":
        return _python_call(tool["name"], schema, rule, rules)
    if form.style == "xml":
        return _xml_call(tool["name"], schema, rule, rules)
    if form.style == "named":
        parts = (*form.before, tool["name"], *form.between)
        return _words(_join(llm, parts), _json({**schema, "x-guidance": _COMPACT}), _join(llm, form.after))
    properties = {
        **form.fields,
        form.name_key: {"const": tool["name"]},
        form.key: moved(schema, f"#/properties/{form.key}"),
    }
    whole = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return _json({**whole, "x-guidance": _COMPACT})


def _arguments(schema: dict[str, Any]) -> tuple[set[str], dict[str, dict[str, Any]]]:
    """The names of the required arguments, and the schemas of all arguments, for formats without one JSON object."""
    shared: dict[str, Any] = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
    properties = schema.get("properties") or {}
    return set(schema.get("required") or ()), {
        k: {**v, **shared} if isinstance(v, dict) else {"allOf": [v], **shared} for k, v in properties.items()
    }


def _python_call(name: str, schema: dict[str, Any], rule: str, rules: list[str]) -> str:
    """`name(required=..., optional=...)`: values are JSON, which the parser accepts."""
    needed, properties = _arguments(schema)
    values = {}
    for i, (key, held) in enumerate(properties.items()):
        rules.append(
            f"{rule}v{i}: {json.dumps(key + '=', ensure_ascii=False)} {_json({**held, 'x-guidance': _COMPACT})}"
        )
        values[key] = f"{rule}v{i}"
    first = [v for k, v in values.items() if k in needed]
    later = [v for k, v in values.items() if k not in needed]
    if first:
        inside = ' ", " '.join(first) + "".join(f' (", " {v})?' for v in later)
    else:
        # The first argument has no comma before it.
        ways = [v + "".join(f' (", " {w})?' for w in later[i + 1 :]) for i, v in enumerate(later)]
        inside = f"({' | '.join(ways)})?" if ways else ""
    return _words(json.dumps(f"{name}("), inside, '")"')


def _xml_call(name: str, schema: dict[str, Any], rule: str, rules: list[str]) -> str:
    """`<function=name>`, and an argument per `<parameter=key>`: strings unquoted, all other values as JSON."""
    needed, properties = _arguments(schema)
    plain = texts(schema)
    inside = []
    for i, (key, held) in enumerate(properties.items()):
        few = plain.get(key)
        if few is not None:
            value = f"({' | '.join(json.dumps(text, ensure_ascii=False) for text in few)}) {_END_OF_VALUE}"
        elif key in plain:
            value = f"{rule}v{i}"
            # Lazy: it ends at the first end mark.
            rules.append(f"{value}[lazy]: /(.|\\n)*\\n<\\/parameter>/")
        else:
            value = f"{_json({**held, 'x-guidance': _COMPACT})} {_END_OF_VALUE}"
        rules.append(f'{rule}p{i}: {json.dumps(f"<parameter={key}>" + chr(10), ensure_ascii=False)} {value} "\\n"')
        inside.append(f"{rule}p{i}" + ("" if key in needed else "?"))
    return _words(json.dumps(f"<function={name}>\n"), *inside, '"</function>"')


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(schema, ensure_ascii=False)}"


def _join(llm: LLM, parts: Parts | None) -> str:
    return _words(*(literal(llm, part) for part in parts or ()))


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)
