"""Chat templates against transformers' own rendering, character for character."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from octavo import LLM
from octavo.errors import InvalidRequestError
from octavo.hub import embedded_model
from template_corpus import CONVERSATIONS as CORPUS_CONVERSATIONS
from template_corpus import TEMPLATES as CORPUS
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TURNS = [
    {"role": "user", "content": 'Hi <b>there</b> & "you"'},
    {"role": "assistant", "content": "  Hello!\n"},
    {"role": "user", "content": "Größe 東京 🙂\n"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TURNS]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Says what it\'s like <outside> & "when"',
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1.5}},
                "required": ["place"],
            },
        },
    }
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]

# Written for these tests: each uses what templates of published models use.
TEMPLATES = {
    "roles": "{{ bos_token }}{% for m in messages %}[{{ m.role | upper }}] {{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[ASSISTANT] {% endif %}",
    "system-first": """
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = 'You help.' -%}
    {%- set rest = messages -%}
{%- endif -%}
S: {{ system }}
{% for m in rest %}
    {%- if loop.first %}FIRST {% endif %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {{- m.role.capitalize() + ': ' + m.content.strip() }}{{ '' if loop.last else ' | ' }}
{%- endfor %}
""",
    "tools": """
{%- if tools is not none and tools %}
Tools ({{ tools | length }}):
{% for t in tools %}
{{ t | tojson }}
{{ t.function | tojson(indent=2) }}
{% endfor %}
{% endif %}
{%- for m in messages %}
<{{ m.role }}>{{ m.content }}</{{ m.role }}>
{%- endfor %}""",
    "namespace": """
{%- set ns = namespace(last=-1, n=0) -%}
{%- for m in messages[::-1] -%}
    {%- set i = messages | length - 1 - loop.index0 -%}
    {%- if ns.last < 0 and m.role == 'user' -%}{%- set ns.last = i -%}{%- endif -%}
    {%- set ns.n = ns.n + 1 -%}
{%- endfor -%}
last user at {{ ns.last }} of {{ ns.n }}; thinking {{ enable_thinking if enable_thinking is defined else 'unset' }}
{%- for m in messages if m.role != 'system' %}
{{ loop.index }}:{{ m.content.split(' ')[0] }}:{{ m.content.replace('H', 'h') }}:{{ m.content.startswith('Hi') }}
{%- if m.content.lstrip('\n ').endswith('!\n') %} (loud){% endif %}
{%- endfor %}""",
    "macro": """
{%- macro turn(role, text) -%}
<|{{ role }}|>
{{ text }}<|end|>
{% endmacro -%}
{%- for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {{- turn(m.role, m.content) }}
    {%- generation %}{% endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}""",
    "parts": """
{%- for m in messages %}
    {{- m.role ~ ': ' }}
    {%- if m.content is string %}{{ m.content }}
    {%- else %}
        {%- for part in m.content %}{% if part.type == 'text' %}{{ part['text'] }};{% endif %}{% endfor %}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}""",
    "items": "{% for m in messages %}{% for key, value in m.items() %}{{ key }}={{ value }};{% endfor %}"
    "{{ m.get('name', 'nobody') }}|{{ 'tool_calls' in m }}|{{ m.tool_calls is defined }}\n{% endfor %}",
}


def both(
    template: str, tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], **options: Any
) -> tuple[str, str]:
    want = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    tools = options.pop("tools", None)
    with LLM(chat_template=template, max_model_len=64, max_num_seqs=1, threads=1) as llm:
        return want, llm.render_chat(messages, tools=tools, **options)


CONVERSATIONS = {"turns": TURNS, "system": SYSTEM, "one": TURNS[:1], "parts": PARTS}
# Content in parts is for the templates that know of them.
PAIRS = [(t, c) for t in TEMPLATES for c in CONVERSATIONS if c != "parts" or t in ("parts", "items")]


@pytest.mark.parametrize(("name", "conversation"), PAIRS)
@pytest.mark.parametrize("start", [True, False], ids=["start", "plain"])
def test_template(name: str, conversation: str, start: bool, embedded_tokenizer: PreTrainedTokenizerFast) -> None:
    messages = CONVERSATIONS[conversation]
    want, got = both(TEMPLATES[name], embedded_tokenizer, messages, add_generation_prompt=start)
    assert got == want


def test_tools(embedded_tokenizer: PreTrainedTokenizerFast) -> None:
    want, got = both(TEMPLATES["tools"], embedded_tokenizer, TURNS, tools=TOOLS, add_generation_prompt=True)
    assert got == want


@pytest.mark.parametrize("value", [True, False, "maybe"])
def test_extra_variables(value: object, embedded_tokenizer: PreTrainedTokenizerFast) -> None:
    options: dict[str, Any] = {"enable_thinking": value, "add_generation_prompt": False}
    want, got = both(TEMPLATES["namespace"], embedded_tokenizer, TURNS, **options)
    assert got == want


@pytest.mark.parametrize("start", [True, False])
def test_embedded_template(start: bool, llm: LLM, embedded_tokenizer: PreTrainedTokenizerFast) -> None:
    want = embedded_tokenizer.apply_chat_template(SYSTEM, tokenize=False, add_generation_prompt=start)
    assert llm.render_chat(SYSTEM, add_generation_prompt=start) == want
    ids = embedded_tokenizer.apply_chat_template(SYSTEM, add_generation_prompt=start, return_dict=True)["input_ids"]
    assert llm.tokenize(want, add_special_tokens=False) == ids


def test_template_refuses() -> None:
    twice = [TURNS[0], TURNS[0]]
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        render(TEMPLATES["system-first"], twice)


def test_endless_template_is_stopped() -> None:
    loop = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequestError):
        render(loop, TURNS)


def test_broken_template_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="template"):
        LLM(chat_template="{% for m in messages %}")


def render(template: str, messages: list[dict[str, Any]]) -> str:
    with LLM(chat_template=template, max_model_len=64, max_num_seqs=1, threads=1) as llm:
        return llm.render_chat(messages)


def outcome(render: Callable[[], str]) -> str | None:
    """The text, or None where the template refuses."""
    try:
        return render()
    except (InvalidRequestError, TemplateError, ValueError, TypeError, KeyError):
        return None


@pytest.mark.parametrize("name", CORPUS)
def test_corpus(name: str, embedded_tokenizer: PreTrainedTokenizerFast) -> None:
    """Every conversation gives the same text, or is refused by both."""
    template, rendered = CORPUS[name], 0
    with LLM(chat_template=template, max_model_len=64, max_num_seqs=1, threads=1) as llm:
        for conversation, (messages, options) in CORPUS_CONVERSATIONS.items():
            # transformers wants to see the word "content" in a template before it continues a message, and marks where
            # the message ends by a text, which "strings" changes.
            if "continue_final_message" in options and ("content" not in template or name == "strings"):
                continue

            def reference(messages: Any = messages, options: Any = options) -> str:
                chat = copy.deepcopy(messages)
                return embedded_tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, **options)

            def ours(messages: Any = messages, options: Any = options) -> str:
                return llm.render_chat(messages, **{"add_generation_prompt": False, **options})

            want = outcome(reference)
            assert outcome(ours) == want, conversation
            rendered += want is not None
    assert rendered >= 3, "hardly any conversation was rendered"


def named_folder(folder: Path, files: bool) -> None:
    """The embedded model with two named templates, in files or in tokenizer_config.json."""
    shutil.copytree(embedded_model(), folder, dirs_exist_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    texts = {"default": "plain {{ messages[0].content }}", "tool_use": "{{ tools | length }} tools", "rag": "documents"}
    if files:
        (folder / "additional_chat_templates").mkdir()
        (folder / "chat_template.jinja").write_text(texts.pop("default"))
        for name, text in texts.items():
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    else:
        config["chat_template"] = [{"name": name, "template": text} for name, text in texts.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("files", [True, False], ids=["files", "tokenizer_config"])
def test_the_template_for_tools_is_taken_where_tools_are_given(files: bool, tmp_path: Path) -> None:
    named_folder(tmp_path, files)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with LLM(tmp_path, max_model_len=64, max_num_seqs=1, threads=1) as llm:
        for tools in (None, TOOLS):
            want = tokenizer.apply_chat_template(TURNS, tools=tools, tokenize=False)
            assert llm.render_chat(TURNS, tools=tools, add_generation_prompt=False) == want
