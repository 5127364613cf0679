"""The generation keys of lm-evaluation-harness: each is done as its `hf` model does it, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from octavo.errors import InvalidRequestError

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness: pip install '.[test-clients]'")

from octavo.lm_eval import OctavoLM  # noqa: E402
from octavo.lm_eval_keys import generation_keys  # noqa: E402

# Of the harness and what it needs, not of octavo.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def model() -> Iterator[OctavoLM]:
    made = OctavoLM()
    yield made
    made.llm.close()


def ask(model: OctavoLM, **given: Any) -> str:
    from lm_eval.api.instance import Instance

    request = Instance("generate_until", {}, ("One day", given), 0)
    return model.generate_until([request], disable_tqdm=True)[0]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 0},
        {"temperature": None, "do_sample": None},
        {"do_sample": False},
        {"do_sample": False, "temperature": 1.0},
        {"do_sample": False, "temperature": 0.0, "top_p": 0.95},
        {"top_p": 0.95},
        {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "use_cache": True},
    ],
)
def test_greedy_unless_sampling_is_asked_for(model: OctavoLM, given: dict[str, Any]) -> None:
    assert generation_keys(given, 12).sampling["temperature"] == 0
    whole = ask(model, until=["\n"], max_gen_toks=12, do_sample=False)
    assert {ask(model, until=["\n"], max_gen_toks=12, **given) for _ in range(2)} == {whole}


def test_a_temperature_alone_samples(model: OctavoLM) -> None:
    texts = {ask(model, until=[], max_gen_toks=12, temperature=1.5, seed=seed) for seed in range(6)}
    assert len(texts) > 1
    assert generation_keys({"temperature": 0.7, "top_p": 0.9, "top_k": 5}, 12).sampling == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
    }


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_every_name_of_the_limit(model: OctavoLM, name: str) -> None:
    assert generation_keys({name: 3}, 12).max_tokens == 3
    assert len(model.tok_encode(ask(model, until=[], **{name: 3}))) <= 3


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"num_beams": 10}, "num_beams=10.*num_beams=1"),
        ({"num_return_sequences": 4}, "num_return_sequences=4"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({"max_length": 30}, "max_length.*max_gen_toks"),
        ({"stop": ["x"]}, "stop.*until"),
        ({"eos_token_id": 5}, "eos_token_id.*stop_token_ids"),
        ({"temprature": 1}, "temprature.*temperature"),
        ({"do_sample": True}, "do_sample is true.*temperature"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample is true.*temperature"),
        ({"do_sample": "yes"}, "do_sample is 'yes'"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"max_gen_toks": "many"}, "max_gen_toks is 'many'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(model: OctavoLM, given: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        ask(model, **{"until": ["\n"], **given})


def test_penalties_and_stop_tokens_count(model: OctavoLM) -> None:
    plain = ask(model, until=[], max_gen_toks=24)
    assert ask(model, until=[], max_gen_toks=24, repetition_penalty=3.0) != plain
    second = model.tok_encode(plain)[1]
    assert len(ask(model, until=[], max_gen_toks=24, stop_token_ids=[second])) < len(plain)
    assert len(ask(model, until=[], max_gen_toks=24, min_new_tokens=24)) >= len(plain)


def test_reasoning_ends_at_a_token_or_a_text(model: OctavoLM) -> None:
    plain = ask(model, until=[], max_gen_toks=24)
    ids = model.tok_encode(plain)
    end = ids[4]
    for given in (end, str(end), model.llm.detokenize([end])):
        made = OctavoLM(think_end_token=given)
        try:
            last = len(ids) - ids[::-1].index(end)
            assert ask(made, until=[], max_gen_toks=24) == model.llm.detokenize(ids[last:]).lstrip()
        finally:
            made.llm.close()


def test_variables_of_the_chat_template() -> None:
    """As the harness's own model takes them."""
    template = "{{ enable_thinking }} {{ tone }}{% for m in messages %} {{ m.content }}{% endfor %}"
    made = OctavoLM(chat_template=template, enable_thinking=False, chat_template_args={"tone": "dry"})
    try:
        assert made.apply_chat_template([{"role": "user", "content": "Hi"}]) == "False dry Hi"
    finally:
        made.llm.close()


def test_every_task_file_of_the_harness_is_read() -> None:
    """Each generation key that the shipped tasks give is known, and only beam search is refused."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda *_: None)
    seen = beams = 0
    for file in (Path(lm_eval.__file__).parent / "tasks").rglob("*"):
        if not file.name.endswith(("yaml", "yml")):
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        at = text.find("\ngeneration_kwargs:")
        if at < 0:
            continue
        # Only the block: whole files take long to read.
        lines = text[at + 1 :].splitlines()
        end = next((i for i, line in enumerate(lines[1:], 1) if line[:1] not in ("", " ", "-", "#")), len(lines))
        given = yaml.load("\n".join(lines[:end]), Loader)["generation_kwargs"] or {}
        seen += 1
        if given.get("num_beams", 1) == 1:
            generation_keys(given, 256)
        else:
            beams += 1
    assert seen > 100
    assert beams < 10
