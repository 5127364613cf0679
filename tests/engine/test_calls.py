"""Calls of the Python API: forms of prompts, unknown arguments, copies, and hints."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from octavo import LLM, DynamicAttention, Grammar, JsonSchema, Regex, SamplingParams
from octavo.errors import InvalidRequestError, UnknownArgumentError
from octavo.hub import embedded_model
from octavo.server import Limits, ServerConfig

TURNS = [{"role": "user", "content": "Who are you?"}]
SHORT = SamplingParams(max_tokens=4, temperature=0)
CHATS = ["chat", "stream_chat", "achat", "astream_chat"]


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result, whatever kind of function it is."""
    made = function(*args, **kwargs)
    if hasattr(made, "__anext__"):

        async def first() -> Any:
            async for output in made:
                return output
            return None

        return asyncio.run(first())
    if asyncio.iscoroutine(made):
        return asyncio.run(_awaited(made))
    return next(made) if hasattr(made, "__next__") else made


async def _awaited(made: Any) -> Any:
    return await made


@pytest.mark.parametrize("name", ["generate", "stream", "agenerate", "astream", "submit", "embed", "aembed"])
@pytest.mark.parametrize("wrong", ["max_tokenz", "sampling_param"])
def test_an_unknown_argument_is_named(llm: LLM, name: str, wrong: str) -> None:
    with pytest.raises(InvalidRequestError, match=wrong):
        call(getattr(llm, name), "x", **{wrong: 3})


@pytest.mark.parametrize(
    ("name", "wrong", "hint"),
    [
        ("generate", "sampling_param", "Did you mean sampling_params"),
        ("generate", "max_tokens", r"sampling_params=SamplingParams\(max_tokens"),
        ("generate", "temperature", r"sampling_params=SamplingParams\(temperature"),
        ("generate", "max_new_tokens", "give max_tokens"),
        ("generate", "lora_request", "LLM.load_adapter loaded"),
        ("submit", "add_special_token", "Did you mean add_special_tokens"),
        ("tokenize", "add_special_token", "Did you mean add_special_tokens"),
        ("detokenize", "skip_special_token", "Did you mean skip_special_tokens"),
        ("health", "stall_second", "Did you mean stall_seconds"),
        ("info", "verbose", "It takes none"),
        ("close", "force", "It takes none"),
    ],
)
def test_the_remedy_is_named(llm: LLM, name: str, wrong: str, hint: str) -> None:
    with pytest.raises(UnknownArgumentError, match=hint) as caught:
        call(getattr(llm, name), **{wrong: 3})
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, InvalidRequestError)


@pytest.mark.parametrize("name", [*CHATS, "render_chat"])
@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("max_tokens", r"SamplingParams\(max_tokens"),
        ("stop", r"SamplingParams\(stop"),
        ("tool", "Did you mean tools"),
        ("add_generation_promt", "Did you mean add_generation_prompt"),
        ("chat_template", r"LLM\(chat_template"),
        ("return_tensors", "render_chat returns text"),
    ],
)
def test_an_argument_is_no_variable_of_the_template(llm: LLM, name: str, wrong: str, hint: str) -> None:
    """A template would drop it in silence."""
    with pytest.raises(UnknownArgumentError, match=hint):
        call(getattr(llm, name), TURNS, **{wrong: "3"})


def test_variables_of_the_template_in_both_forms() -> None:
    template = "{{ enable_thinking }}/{{ documents | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with LLM(chat_template=template) as llm:
        plain = llm.render_chat(TURNS, enable_thinking=False, documents=[1, 2])
        assert plain.lower() == "false/2who are you?"
        nested = {"enable_thinking": False, "documents": [1, 2]}
        assert llm.render_chat(TURNS, chat_template_kwargs=nested) == plain
        assert llm.chat(TURNS, SHORT, chat_template_kwargs=nested)[0].prompt == plain
        with pytest.raises(InvalidRequestError, match="chat_template_kwargs is a list"):
            llm.render_chat(TURNS, chat_template_kwargs=[])


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("max_token", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("best_of", "give n"),
        ("guided_decoding", "JsonSchema"),
    ],
)
def test_fields_of_other_libraries(wrong: str, hint: str) -> None:
    with pytest.raises(UnknownArgumentError, match=hint):
        SamplingParams(**{wrong: 3})
    with pytest.raises(UnknownArgumentError, match="kv_cache_memory"):
        LLM(gpu_memory_utilization=0.9)  # type: ignore[call-arg]


def test_prompts_in_the_form_of_vllm(llm: LLM) -> None:
    ids = llm.tokenize("One day")
    want = llm.generate("One day", SHORT)[0]
    for form in ({"prompt": "One day"}, {"prompt_token_ids": ids}, {"prompt": "One day", "prompt_token_ids": None}):
        assert llm.generate(form, SHORT)[0].text == want.text
        (one, two) = llm.generate([form, "One day"], SHORT, use_tqdm=False)
        assert one.text == two.text == want.text
        assert call(llm.agenerate, form, SHORT).text == want.text
        assert llm.embed([form])[0].embedding == llm.embed(["One day"])[0].embedding
    output = llm.generate([{"prompt": "One day"}], SHORT)[0]
    assert (output.prompt, output.prompt_token_ids) == ("One day", ids)
    assert llm.submit({"prompt": "One day"}, SHORT).prompt == "One day"


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ({}, "exactly one"),
        ({"prompt": "x", "prompt_token_ids": [1]}, "exactly one"),
        ({"prompt": [1]}, "prompt_token_ids"),
        ({"prompt": "x", "multi_modal_data": {}}, "multi_modal_data.*text only"),
        ({"prompt": "x", "cache_salt": "s"}, r"cache_salt.*SamplingParams"),
        ({"role": "user", "content": "x"}, r"LLM\.chat"),
        ({"promt": "x"}, "promt"),
    ],
)
def test_other_dicts_are_refused(llm: LLM, form: Any, match: str) -> None:
    for prompts in (form, [form]):
        with pytest.raises(InvalidRequestError, match=match):
            llm.generate(prompts)
    with pytest.raises(InvalidRequestError, match=match):
        llm.submit(form)


@pytest.mark.parametrize("ids", [[True], [1, True], [False, 2], [[1, True]], np.array([True, False]), [np.True_]])
def test_booleans_are_no_token_ids(llm: LLM, ids: Any) -> None:
    with pytest.raises(InvalidRequestError, match="token ids"):
        llm.generate(ids)


def test_an_llm_has_one_owner(llm: LLM) -> None:
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="LLM cannot be"):
            copied(llm)
    assert llm.generate("One day", SHORT)[0].text, "the engine is still there"


def test_a_beginning_that_would_come_twice(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    folder = tmp_path / "model"
    shutil.copytree(embedded_model(), folder)
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save(str(file))
    with LLM(folder) as llm:
        text = llm.render_chat(TURNS)
        with pytest.warns(RuntimeWarning, match="the tokenizer adds it again. Use chat"):
            doubled = llm.generate(text, SHORT)[0]
        assert doubled.prompt_token_ids[:2] == [1, 1]
        # Once is enough; other ways have it once.
        llm.generate(text, SHORT)
        assert llm.chat(TURNS, SHORT)[0].prompt_token_ids[:2] != [1, 1]
        assert llm.submit(text, SHORT, add_special_tokens=False).prompt_token_ids[:2] != [1, 1]


def test_a_model_without_a_chat_template_names_generate(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(embedded_model(), folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for file in folder.glob("chat_template*"):
        file.unlink()
    with LLM(folder) as llm, pytest.raises(InvalidRequestError, match="use generate"):
        llm.chat(TURNS)


@pytest.mark.parametrize(
    ("make", "wrong", "hint"),
    [
        (JsonSchema, "schem", "schema"),
        (Regex, "patern", "pattern"),
        (Grammar, "lark_", "Grammar has no argument"),
        (DynamicAttention, "error_bond", "error_bound"),
        (ServerConfig, "api_key", "api_keys"),
        (Limits, "max_body", "Limits has no argument"),
    ],
)
def test_configurations_name_unknown_arguments(make: Any, wrong: str, hint: str) -> None:
    with pytest.raises(UnknownArgumentError, match=hint):
        make(**{wrong: 1})


@pytest.mark.parametrize("name", ["submit", "stream", "agenerate", "astream", "aembed"])
@pytest.mark.parametrize(
    ("prompt", "hint"), [(TURNS, "for chat|LLM.chat"), (["a", "b"], "generate and embed take many")]
)
def test_many_prompts_or_messages_for_one(llm: LLM, name: str, prompt: Any, hint: str) -> None:
    with pytest.raises(InvalidRequestError, match=hint):
        call(getattr(llm, name), prompt)
