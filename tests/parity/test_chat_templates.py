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


PUBLISHED = {
    f"published-{path.stem}": path.read_text()
    for path in sorted(Path(__file__).with_name("templates").glob("*/*.jinja"))
}


@pytest.mark.parametrize("name", [*CORPUS, *PUBLISHED])
def test_corpus(name: str, embedded_tokenizer: PreTrainedTokenizerFast) -> None:
    """Every conversation gives the same text, or is refused by both."""
    template, rendered = {**CORPUS, **PUBLISHED}[name], 0
    with LLM(chat_template=template, max_model_len=64, max_num_seqs=1, threads=1) as llm:
        for conversation, (messages, options) in CORPUS_CONVERSATIONS.items():
            # transformers wants to see the word "content" in a template before it continues a message, and marks where
            # the message ends by a text, which "strings" changes.
            if name in PUBLISHED:
                options = {"bos_token": "<s>", **options}
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
    # Many published ones want the roles in turn.
    assert rendered >= (1 if name in PUBLISHED else 3), "hardly any conversation was rendered"


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


NULLS: list[dict[str, Any]] = [
    {"role": "user", "content": "weather?", "name": None},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
]
# Llama 3's way, which would write the word None, and tests of several kinds.
WITHOUT_NULLS = [
    "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}</>{% endfor %}",
    "{% for m in messages %}{{ m.content is none }}{{ m.content is defined }}{{ 'content' in m }}{% endfor %}",
    "{% for m in messages %}{{ m }}{% endfor %}",
    "{% for m in messages %}{% if m.content %}{{ m.content }}{% endif %}{{ m.name }}{% endfor %}",
]


@pytest.mark.parametrize("template", WITHOUT_NULLS)
def test_fields_that_are_null_are_left_out(template: str, embedded_tokenizer: PreTrainedTokenizerFast) -> None:
    want, got = both(template, embedded_tokenizer, NULLS, add_generation_prompt=False)
    assert got == want
    assert "None" not in got


def test_a_template_that_needs_a_null_sees_it(embedded_tokenizer: PreTrainedTokenizerFast) -> None:
    """As DeepSeek's: without the field it fails, in transformers too."""
    template = (
        "{% for m in messages %}{% if m['content'] is none %}<call>{{ m.tool_calls[0].function.name }}"
        "{% else %}{{ '<' + m['role'] + '>' + m['content'] }}{% endif %}{% endfor %}"
    )
    assert (
        outcome(lambda: embedded_tokenizer.apply_chat_template(NULLS, chat_template=template, tokenize=False)) is None
    )
    assert render(template, NULLS) == "<user>weather?<call>f"


@pytest.mark.parametrize("tools", [None, [], TOOLS], ids=["null", "none", "some"])
def test_tools_that_are_asked_for_their_length(
    tools: list[dict[str, Any]] | None, embedded_tokenizer: PreTrainedTokenizerFast
) -> None:
    """As Qwen3-Coder's template asks: none is no iterable."""
    template = (
        "{%- if not tools is defined %}{%- set tools = [] %}{%- endif %}"
        "{%- if tools is iterable and tools | length > 0 %}TOOLS{%- endif %}"
        "{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}{%- endfor %}"
    )
    want, got = both(template, embedded_tokenizer, TURNS, tools=tools, add_generation_prompt=False)
    assert got == want


SPECIAL: list[dict[str, Any]] = [
    {"image_token": "<|im_start|>", "pad_token": "<|im_end|>"},
    {"extra_special_tokens": {"audio_token": "<|im_start|>", "boi": "<|im_end|>"}},
    {"bos_token": {"__type": "AddedToken", "content": "<|im_start|>"}, "eos_token": None},
]


@pytest.mark.parametrize("config", SPECIAL)
@pytest.mark.parametrize("in_map", [False, True], ids=["config", "map"])
def test_special_tokens_reach_the_template_by_name(config: dict[str, Any], in_map: bool, tmp_path: Path) -> None:
    shutil.copytree(embedded_model(), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    told = json.loads(path.read_text())
    told.pop("added_tokens_decoder", None)
    if in_map:
        plain = {k: v["content"] if isinstance(v, dict) and "content" in v else v for k, v in config.items()}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({k: v for k, v in plain.items() if v is not None}))
    else:
        told.update(config)
    path.write_text(json.dumps(told))
    names = ["bos_token", "eos_token", "pad_token", "image_token", "audio_token", "boi", "unk_token"]
    template = "|".join(f"{{{{ {name} }}}}" for name in names)
    want = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(TURNS, chat_template=template, tokenize=False)
    with LLM(tmp_path, chat_template=template, max_model_len=64, max_num_seqs=1, threads=1) as llm:
        assert llm.render_chat(TURNS, add_generation_prompt=False) == want
