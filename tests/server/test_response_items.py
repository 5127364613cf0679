"""Items and tools of the Responses API: one turn for one answer, custom tools, namespaces, and what is skipped."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from in_process import TOOL, Served, serving
from octavo.server import ServerConfig

MODEL = "octavo-embedded"
# Turns of user and assistant alternate, except for calls: as Mistral's templates want it.
STRICT = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}"
    "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% endif %}[{{ m.role }}]{{ m.reasoning_content or '' }}|{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<{{ c.id }} {{ c.function.name }} "
    "{{ c.function.arguments | tojson }}>{% endfor %}"
    "{% if m.tool_call_id %}={{ m.tool_call_id }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
)
FUNCTION: Any = {"type": "function", **TOOL["function"]}
USER: Any = {"role": "user", "content": "W?"}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Applies a patch."}


def call(call_id: str, name: str = "weather", arguments: str = "{}", **more: Any) -> Any:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **more}


def result(call_id: str, output: Any = "1") -> Any:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def reasoning(text: str) -> Any:
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


@pytest.fixture(scope="module")
def strict() -> Iterator[Served]:
    with serving(STRICT, tool_parser="hermes") as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with serving(None) as made:
        yield made


def prompt_of(served: Served, items: Any, **more: Any) -> str:
    """The prompt of a request. /v1/responses/input_tokens must count the same."""
    found = served.client.responses.create(model=MODEL, input=items, max_output_tokens=1, **more)
    counted = served.client.responses.input_tokens.count(model=MODEL, input=items, **more)
    assert found.usage
    assert found.usage.input_tokens == counted.input_tokens
    prompts: list[str] = []
    render = served.llm.render_chat
    try:
        served.llm.render_chat = lambda *a, **k: prompts.append(render(*a, **k)) or prompts[-1]  # type: ignore[method-assign,func-returns-value]
        served.client.responses.input_tokens.count(model=MODEL, input=items, **more)
    finally:
        del served.llm.render_chat
    return prompts[-1].partition("[{")[0]


ANSWERS: list[tuple[list[Any], str]] = [
    (
        [
            USER,
            {"role": "assistant", "content": "Let me see"},
            call("c1"),
            result("c1"),
            {"role": "assistant", "content": "It is 1"},
            USER,
        ],
        "[user]|W?\n[assistant]|Let me see<c1 weather {}>\n[tool]|1=c1\n[assistant]|It is 1\n[user]|W?\n",
    ),
    (
        [USER, reasoning("hm"), call("c1"), call("c2"), result("c1"), result("c2", "2")],
        "[user]|W?\n[assistant]hm|<c1 weather {}><c2 weather {}>\n[tool]|1=c1\n[tool]|2=c2\n",
    ),
    (
        [
            USER,
            reasoning("a"),
            {"role": "assistant", "content": "x"},
            reasoning("b"),
            {"role": "assistant", "content": "y"},
            USER,
        ],
        "[user]|W?\n[assistant]a\nb|x\n\ny\n[user]|W?\n",
    ),
    (
        [
            USER,
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]},
            {"role": "assistant", "content": "x"},
        ],
        "[user]|W?\n[assistant]s|x\n",
    ),
    (
        [USER, call("c1"), result("c1"), call("c2"), result("c2")],
        "[user]|W?\n[assistant]|<c1 weather {}>\n[tool]|1=c1\n[assistant]|<c2 weather {}>\n[tool]|1=c2\n",
    ),
    (
        [
            USER,
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"role": "assistant", "content": "x"},
            call("c1"),
            result("c1"),
        ],
        "[user]|W?\n[assistant]|x<c1 weather {}>\n[tool]|1=c1\n",
    ),
    (
        [{"role": "developer", "content": "D"}, {"role": "system", "content": "E"}, USER],
        "[system]|D\n\nE\n[user]|W?\n",
    ),
    (
        [
            USER,
            {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin"},
            {"type": "custom_tool_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "done"}]},
        ],
        '[user]|W?\n[assistant]|<c1 apply_patch {"input": "*** Begin"}>\n[tool]|done=c1\n',
    ),
    (
        [USER, call("c1", "find", namespace="mcp__files__"), result("c1")],
        "[user]|W?\n[assistant]|<c1 mcp__files__find {}>\n[tool]|1=c1\n",
    ),
    (
        [USER, call("c1", arguments='{"a": "cut'), result("c1")],
        '[user]|W?\n[assistant]|<c1 weather {"a": "cut"}>\n[tool]|1=c1\n',
    ),
]


@pytest.mark.parametrize(("items", "wanted"), ANSWERS)
def test_the_items_of_an_answer_are_one_turn(items: list[Any], wanted: str, strict: Served) -> None:
    assert prompt_of(strict, items) == wanted
    assert prompt_of(strict, items, tools=[FUNCTION]) == wanted


def test_turns_of_the_user_join_where_roles_must_alternate(strict: Served, plain: Served) -> None:
    """Codex sends the environment and the question as two turns."""
    items = [USER, {"role": "user", "content": [{"type": "input_text", "text": "V?"}]}]
    assert prompt_of(strict, items) == "[user]|W?\n\nV?\n"
    assert "W?<|im_end|>\n<|im_start|>user\nV?" in prompt_of(plain, items), "other templates keep the turns"


def test_instructions_join_the_first_messages(strict: Served) -> None:
    items = [{"role": "developer", "content": [{"type": "input_text", "text": "D"}]}, USER]
    assert prompt_of(strict, items, instructions="I") == "[system]|I\n\nD\n[user]|W?\n"


NAMED: list[tuple[list[Any], str]] = [
    (
        [USER, {"role": "assistant", "content": "x"}, call("c1"), {"type": "function_call", "call_id": "c2"}],
        "input[3].name",
    ),
    ([USER, call("c1"), {"type": "function_call_output", "call_id": "c1"}], "input[2].output"),
    ([USER, call("c1"), result("c1", [{"type": "input_image"}])], "input[2].output[0]"),
    (
        [USER, {"role": "assistant", "content": "x"}, {"role": "assistant", "content": [{"type": "x"}]}],
        "input[2].content[0]",
    ),
    ([USER, call("c1"), result("c1"), {"role": "nobody", "content": "x"}], "input[3].role"),
    ([USER, {"type": "compaction", "encrypted_content": "x"}], "input[1]"),
    ([USER, {"type": "item_reference", "id": "msg_x"}], "input[1]"),
    ([USER, {"type": "function_call", "call_id": "c1", "name": 3}], "input[1].name"),
]


@pytest.mark.parametrize(("items", "name"), NAMED)
def test_errors_name_the_item_in_param_and_text(items: list[Any], name: str, plain: Served) -> None:
    for more in ({}, {"instructions": "I"}):
        found = plain.http.post("/v1/responses", json={"input": items, **more})
        assert found.status_code == 400
        error = found.json()["error"]
        assert error["param"] == name
        assert error["message"].startswith(name.removesuffix("[0]"))
        assert "messages[" not in error["message"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"input": []}, "input"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"tools": [FUNCTION, {"type": "web_search"}, {"type": "custom"}]}, "tools[2].name"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [FUNCTION, {"type": "function"}]}]},
            "tools[0].tools[1].name",
        ),
        ({"tools": [{"type": "namespace", "tools": []}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": ["message"]}]}, "input[0]"),
        ({"input": [{"type": "additional_tools", "tools": 3}]}, "input[0].tools"),
        ({"input": [{"type": "additional_tools", "tools": [{"type": "function"}]}, USER]}, "input[0].tools[0].name"),
        (
            {
                "tools": [FUNCTION],
                "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": ["g"]}]},
            },
            "tool_choice",
        ),
        (
            {
                "tools": [FUNCTION],
                "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "g"}]},
            },
            "tool_choice",
        ),
        ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.tools"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "x", "tools": []}}, "tool_choice.mode"),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []}},
            "tool_choice",
        ),
    ],
)
def test_errors_name_the_tool(body: dict[str, Any], name: str, plain: Served) -> None:
    for path in ("/v1/responses", "/v1/responses/input_tokens"):
        found = plain.http.post(path, json={"input": "x", **body})
        assert (found.status_code, found.json()["error"]["param"]) == (400, name), found.text


# --- tools ----------------------------------------------------------------------------------------------------------

BUILT_IN = [
    "web_search", "web_search_preview", "local_shell", "shell", "mcp", "image_generation", "file_search",
    "code_interpreter", "computer_use_preview", "apply_patch", "tool_search", "something_new",
]  # fmt: skip


@pytest.mark.parametrize("kind", BUILT_IN)
def test_tools_of_servers_are_skipped_with_a_warning(kind: str, llm: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = Served(llm, ServerConfig())
    ask: Any = {"model": MODEL, "temperature": 0}
    with caplog.at_level(logging.WARNING, "octavo.server"):
        for _ in range(2):
            done = served.client.responses.create(
                input="x", tools=[FUNCTION, {"type": kind}], tool_choice="required", max_output_tokens=80, **ask
            )
    assert done.output[0].type == "function_call"
    assert [t.type for t in done.tools] == ["function", kind]
    assert caplog.text.count("is skipped") == 1
    assert repr(kind) in caplog.text
    chat = served.client.chat.completions.create(
        messages=[USER],
        tools=[TOOL, {"type": kind}],
        tool_choice="required",
        max_tokens=80,
        **ask,  # type: ignore[list-item]
    )
    assert chat.choices[0].message.tool_calls
    alone = served.client.responses.create(input="x", tools=[{"type": kind}], max_output_tokens=4, **ask)  # type: ignore[list-item]
    assert alone.output_text == served.client.responses.create(input="x", max_output_tokens=4, **ask).output_text


def test_custom_tools_of_responses(plain: Served) -> None:
    """A call of a custom tool comes back as its own item, streamed and whole, and goes on."""
    ask: Any = {"model": MODEL, "tools": [PATCH], "max_output_tokens": 400, "parallel_tool_calls": False}
    for choice in ({"type": "custom", "name": "apply_patch"}, "required"):
        done = plain.client.responses.create(input="Patch it.", tool_choice=choice, temperature=0, **ask)  # type: ignore[call-overload]
        item = done.output[0]
        assert (item.type, item.name) == ("custom_tool_call", "apply_patch")
        events = list(
            plain.client.responses.create(input="Patch it.", tool_choice=choice, temperature=0, stream=True, **ask)
        )  # type: ignore[call-overload]
        deltas = [e.delta for e in events if e.type == "response.custom_tool_call_input.delta"]
        (ended,) = [e for e in events if e.type == "response.custom_tool_call_input.done"]
        assert "".join(deltas) == ended.input == item.input == events[-1].response.output[0].input
        assert [e.sequence_number for e in events] == list(range(len(events)))
    turns: Any = [
        {"role": "user", "content": "Patch it."},
        item.model_dump(exclude_none=True),
        {"type": "custom_tool_call_output", "call_id": item.call_id, "output": "done"},
    ]
    assert plain.client.responses.create(input=turns, **{**ask, "max_output_tokens": 4}).output is not None


def test_custom_tools_of_chat(plain: Served) -> None:
    tool: Any = {"type": "custom", "custom": {"name": "note", "format": {"type": "text"}}}
    ask: Any = {"model": MODEL, "messages": [USER], "tools": [tool, TOOL], "temperature": 0, "max_tokens": 400}
    ask |= {"parallel_tool_calls": False, "tool_choice": {"type": "custom", "custom": {"name": "note"}}}
    said = plain.client.chat.completions.create(**ask).choices[0].message
    (made,) = said.tool_calls or []
    assert (made.type, made.custom.name) == ("custom", "note")
    chunks = list(plain.client.chat.completions.create(stream=True, **ask))
    lot = [d for c in chunks for d in (c.choices[0].delta.tool_calls or [])]
    assert "".join(d.custom["input"] for d in lot) == made.custom.input  # type: ignore[attr-defined]
    assert [d.index for d in lot] == [0] * len(lot)
    turns = [USER, said.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": made.id, "content": "ok"}]
    assert json.dumps({"input": made.custom.input}, ensure_ascii=False)[1:-1] in plain.prompt(turns, tools=[tool])


def test_the_grammar_of_a_custom_tool_is_shown(plain: Served, caplog: pytest.LogCaptureFixture) -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": 'start: "xyzzy"'}
    with caplog.at_level(logging.WARNING, "octavo.server"):
        prompt = plain.prompt([USER], tools=[{"type": "custom", "custom": {"name": "note", "format": form}}])
    assert "xyzzy" in prompt
    assert "not enforced" in caplog.text


@pytest.mark.parametrize("space", ["files", "mcp__files__", "with space", "long" * 20])
def test_namespaces(space: str, plain: Served) -> None:
    """Tools of a namespace are called by both names, also where two namespaces have the same tool."""
    tools: Any = [
        {"type": "namespace", "name": name, "description": "Files.", "tools": [{**FUNCTION, "name": "find"}]}
        for name in (space, "other")
    ]
    ask: Any = {"model": MODEL, "input": "x", "tools": tools, "temperature": 0, "max_output_tokens": 80}
    choice: Any = {"type": "function", "namespace": space, "name": "find"}
    done = plain.client.responses.create(tool_choice=choice, **ask)
    item = done.output[0]
    assert (item.type, item.namespace, item.name) == ("function_call", space, "find")  # type: ignore[union-attr]
    allowed: Any = {"type": "allowed_tools", "mode": "required", "tools": [choice]}
    done = plain.client.responses.create(tool_choice=allowed, parallel_tool_calls=False, **ask)
    assert done.output[0].namespace == space  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools(mode: str, plain: Served) -> None:
    """The prompt has all tools; the model can call the allowed ones only."""
    other = {**FUNCTION, "name": "other"}
    allowed: Any = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "other"}]}
    ask: Any = {"model": MODEL, "input": "x", "tools": [FUNCTION, other], "parallel_tool_calls": False}
    count = plain.client.responses.input_tokens.count
    assert count(tool_choice=allowed, **ask) == count(**ask)
    done = plain.client.responses.create(tool_choice=allowed, temperature=0, max_output_tokens=80, **ask)
    names = [item.name for item in done.output if item.type == "function_call"]
    assert names == ["other"] if mode == "required" else set(names) <= {"other"}
    chat: Any = {"model": MODEL, "messages": [USER], "parallel_tool_calls": False, "max_tokens": 80}
    second = {"type": "function", "function": {**TOOL["function"], "name": "other"}}
    inner = {"mode": mode, "tools": [{"type": "function", "function": {"name": "other"}}]}
    said = plain.client.chat.completions.create(
        tools=[TOOL, second],
        tool_choice={"type": "allowed_tools", "allowed_tools": inner},
        **chat,  # type: ignore[list-item]
    )
    calls = [made.function.name for made in said.choices[0].message.tool_calls or []]  # type: ignore[union-attr]
    assert calls == ["other"] if mode == "required" else set(calls) <= {"other"}
    nothing = plain.client.responses.create(
        tool_choice={**allowed, "mode": "auto", "tools": []}, max_output_tokens=4, **ask
    )
    assert nothing.output_text is not None
