"""Calls and results in a conversation whose chat template shows none: text in the form that the model was taught."""

from __future__ import annotations

import json
from typing import Any

from octavo.server.calls.formats import Format

# Marks around the result of a call.
_RESULT = ("<tool_response>", "</tool_response>")
# Gemma's documentation uses a code block.
_GEMMA_RESULT = ("```tool_output", "```")


def result_marks(form: Format) -> tuple[str, str]:
    """The marks around the result of a call in `form`."""
    return _GEMMA_RESULT if form.name == "gemma" else _RESULT


def calls_as_text(turns: list[dict[str, Any]], form: Format, *, results: bool) -> list[dict[str, Any]]:
    """`turns` with their calls in the assistant's text and, if `results` says so, their results in the user's.

    Parallel calls carry their ids where the form has a place for one. Their results always do.
    """
    out: list[dict[str, Any]] = []
    calls: dict[str, dict[str, Any]] = {}
    # Results of one turn.
    texts: list[str] | None = None
    for turn in turns:
        if turn.get("tool_calls"):
            several = len(turn["tool_calls"]) > 1
            for call in turn["tool_calls"]:
                calls[call["id"]] = {**call["function"], "several": several}
            text = _joined(turn["content"], write_calls(form, turn["tool_calls"]))
            out.append({**{k: v for k, v in turn.items() if k != "tool_calls"}, "content": text})
        elif results and turn["role"] in ("tool", "function"):
            text = _result(form, turn, calls.get(turn.get("tool_call_id") or ""))
            if texts is None:
                texts = []
                out.append({"role": "user", "content": texts})
            texts.append(text)
            continue
        elif turn["role"] == "user" and texts is not None:
            # Strict templates want the roles in turn.
            texts.append(f"\n{turn['content']}")
        else:
            out.append(turn)
        texts = None
    return [
        {**turn, "content": "\n".join(turn["content"])} if isinstance(turn["content"], list) else turn for turn in out
    ]


def _joined(text: str, more: str) -> str:
    return text + ("" if not text or text[-1].isspace() else "\n") + more


def _result(form: Format, turn: dict[str, Any], call: dict[str, Any] | None) -> str:
    begin, end = result_marks(form)
    head: dict[str, Any] = {}
    name = turn.get("name") or (call and call["name"])
    if name:
        head["name"] = name
    if turn.get("tool_call_id") and (call is None or call["several"]):
        head["id"] = turn["tool_call_id"]
        if call is not None and not _has_place_for_id(form):
            head["arguments"] = call["arguments"]
    if set(head) <= {"name"}:
        return f"{begin}\n{turn['content']}\n{end}"
    return f"{begin}\n{_json(head)}\n{turn['content']}\n{end}"


def _has_place_for_id(form: Format) -> bool:
    return form.style == "object"


def write_calls(form: Format, calls: list[dict[str, Any]]) -> str:
    """`calls` as a model writes them in `form`."""
    texts = [_write(form, call, i, several=len(calls) > 1) for i, call in enumerate(calls)]
    opening, closing = "".join(form.opening), "".join(form.closing)
    if form.sep is not None:
        return form.begin + opening + "".join(form.sep).join(texts) + closing
    return "\n".join(form.begin + opening + text + closing for text in texts)


def _write(form: Format, call: dict[str, Any], index: int, *, several: bool) -> str:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if form.style == "python":
        return f"{name}({', '.join(f'{key}={_json(value)}' for key, value in arguments.items())})"
    if form.style == "xml":
        inside = "".join(
            f"<parameter={key}>\n{value if isinstance(value, str) else _json(value)}\n</parameter>\n"
            for key, value in arguments.items()
        )
        return f"<function={name}>\n{inside}</function>"
    if form.style == "named":
        return "".join((*form.before, name, *form.between, _json(arguments), *form.after))
    fields = {key: str(index) for key in form.fields}
    whole = {**fields, form.name_key: name, form.key: arguments}
    return _json({**whole, "id": call["id"]} if several and not fields else whole)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
