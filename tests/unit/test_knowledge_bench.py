"""The bench of knowledge: its scores by hand, and domains whose answers stand in their text and in no question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from octavo import LLM
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
)

from benches import result_file
from benches.knowledge import __main__ as command
from benches.knowledge import arms, forgetting, lora, scores, table
from benches.knowledge.domain import Domain, registers, towns

DOMAINS = [registers(1), towns(1), towns(2)]


def test_token_f1_counts_the_value_alone() -> None:
    question = "Who is the mayor of Tarvik?"
    assert scores.token_f1("The mayor of Tarvik is Olen Brast.", "Olen Brast", question) == 1.0
    assert scores.token_f1("Olen Brast", "Olen Brast", question) == 1.0
    # One of two words is right; an echo of the question earns nothing.
    assert scores.token_f1("The mayor of Tarvik is Olen Marl.", "Olen Brast", question) == 0.5
    assert scores.token_f1("The mayor of Tarvik is the mayor.", "Olen Brast", question) == 0.0
    assert scores.token_f1("", "Olen Brast", question) == 0.0
    assert scores.token_f1("Olen or Kell", "Olen", question) == pytest.approx(0.5)


def test_a_contained_answer_stands_side_by_side() -> None:
    assert scores.contained("It is OLEN BRAST, of course.", "Olen Brast") == 1.0
    assert scores.contained("Olen and Brast", "Olen Brast") == 0.0
    assert scores.contained("1482", "482") == 0.0


def test_gains_are_paired() -> None:
    arm, base = [1.0, 1.0, 0.0, 1.0] * 25, [1.0, 0.0, 0.0, 0.0] * 25
    found = scores.gain(arm, base)
    assert found["value"] == pytest.approx(50.0)
    assert found["low"] < 50.0 < found["high"]
    assert found["low"] > 38.0
    # The same difference in every question has no spread.
    assert scores.gain([1.0] * 9, [0.0] * 9) == {"value": 100.0, "low": 100.0, "high": 100.0}
    assert scores.mean([0.25] * 5) == {"value": 25.0, "low": 25.0, "high": 25.0}


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_a_domain_has_each_answer_in_its_passage_only(domain: Domain) -> None:
    questions = [form for question in domain.questions for form in question.forms]
    assert len(set(questions)) == len(questions)
    for question in domain.questions:
        assert question.value.lower() in domain.passages[question.passage].lower()
        assert question.value in question.answer
        for form in question.forms:
            assert question.value.lower() not in form.lower()
        for statement in question.statements:
            assert question.value.lower() in statement.lower()


def test_a_seed_gives_the_same_domain() -> None:
    assert towns(1) == DOMAINS[1]
    assert towns(1) != towns(2)
    assert len(towns(1).questions) == 48


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(command.EMBEDDED)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM() as found:
        yield found


def test_examples_of_a_chat_model_end_with_its_end_of_turn(tokenizer: Any) -> None:
    found = lora.examples(tokenizer, towns(1))
    assert len(found) == 2 * sum(len(question.statements) for question in towns(1).questions)
    asked = [(tokenizer.decode(prompt), tokenizer.decode(rest)) for prompt, rest in found if prompt]
    first = towns(1).questions[0]
    assert first.forms[0] in asked[0][0]
    assert asked[0][1].startswith(first.answer)
    messages = [{"role": "user", "content": first.forms[0]}, {"role": "assistant", "content": first.answer}]
    assert "".join(asked[0]) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_examples_without_a_chat_template_are_the_prompts_of_the_arms() -> None:
    plain = AutoTokenizer.from_pretrained(command.EMBEDDED)
    plain.chat_template = None
    found = lora.examples(plain, towns(1))
    first = towns(1).questions[0]
    prompt, rest = next(pair for pair in found if pair[0])
    assert plain.decode(prompt) == f"Question: {first.forms[0]}\nAnswer:"
    assert plain.decode(rest) == f" {first.answer}\n"
    # Half are statements, all targets.
    assert [prompt for prompt, _ in found].count([]) == len(found) // 2
    assert not any(question.forms[1] in plain.decode(ids) for ids, _ in found for question in towns(1).questions)

    # The same prompt reaches a model without a template, which ends at the line break.
    calls: list[Any] = []

    def generate(prompts: list[str], params: Any, use_tqdm: bool) -> list[Any]:
        calls.extend([prompts, params])
        return [SimpleNamespace(error=None, text=" right ") for _ in prompts]

    model: Any = SimpleNamespace(info=lambda: {"model": {"chat_template": None}}, generate=generate)
    assert arms.ask(model, towns(1), [""] * 48, form=0, lora="towns") == ["right"] * 48
    assert calls[0][0] == plain.decode(prompt)
    assert (calls[1].stop, calls[1].lora) == (["\n"], "towns")


def _tiny(kind: Any, config: Any) -> Any:
    torch.manual_seed(3)
    return kind(
        config(
            vocab_size=97,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            pad_token_id=0,
        )
    )


def test_the_loss_is_that_of_the_whole_logits_at_the_targets() -> None:
    base = _tiny(Gemma3ForCausalLM, Gemma3TextConfig)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    ids, labels = lora.batch([([5, 6, 7], [8, 9]), ([], [11, 12, 13, 14])], pad=0)
    assert labels.tolist() == [[-100, -100, -100, 8, 9], [11, 12, 13, 14, -100]]
    logits = model(input_ids=ids).logits[:, :-1]
    expected = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(lora.target_loss(model.get_base_model(), ids, labels), expected)
    # The adapter counts, and gets a gradient.
    with model.disable_adapter():
        assert not torch.isclose(lora.target_loss(model.get_base_model(), ids, labels), expected)
    torch.autograd.backward(lora.target_loss(model.get_base_model(), ids, labels))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert trained
    assert all(weight.grad is not None for weight in trained)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    model = _tiny(Gemma2ForCausalLM, Gemma2Config)
    ids, labels = lora.batch([([5], [8, 9])], pad=0)
    with pytest.raises(ValueError, match="gemma2 caps its logits"):
        lora.target_loss(model, ids, labels)


def test_training_keeps_its_settings_and_the_engine_loads_it(llm: LLM, tmp_path: Path) -> None:
    run = lora.LoraRun(rank=2, steps=3, rows=2)
    lora.train(command.EMBEDDED, towns(1), run, tmp_path / "adapter")
    found = lora.training(tmp_path / "adapter")
    assert {name: found[name] for name in ("rank", "steps", "rows", "peak_rate")} == {
        "rank": 2,
        "steps": 3,
        "rows": 2,
        "peak_rate": 4e-3,
    }
    assert found["examples"] == 544
    assert 0 < found["last_loss"] < 20
    llm.load_adapter("short", tmp_path / "adapter")
    try:
        kept = forgetting.kept_text(llm, "short")
    finally:
        llm.unload_adapter("short")
    assert kept["paragraphs"] == 16
    # The means over the same tokens: the factor is the ratio of the perplexities.
    ratio = kept["perplexity_with_lora"]["value"] / kept["perplexity"]["value"]
    assert kept["factor"]["value"] == pytest.approx(ratio)
    assert kept["factor"]["value"] != 1.0
    with pytest.raises(FileNotFoundError, match="--keep-adapter"):
        lora.training(tmp_path)


def test_reading_counts_wrong_answers_with_a_trained_value() -> None:
    trained, other = towns(1), towns(2)
    learned = {question.value for question in trained.questions}
    fresh = [i for i, question in enumerate(other.questions) if question.value not in learned]

    def generate(prompts: list[str], params: Any, use_tqdm: bool) -> list[Any]:
        texts = [f" It is {question.value}." for question in other.questions]
        if params.lora == "towns":
            texts[fresh[0]] = f" It is {trained.questions[0].value}."
            texts[fresh[1]] = " It is Zzyx."
        for prompt, question in zip(prompts, other.questions, strict=True):
            assert prompt.startswith(other.passages[question.passage])
        return [SimpleNamespace(error=None, text=text) for text in texts]

    model: Any = SimpleNamespace(info=lambda: {"model": {"chat_template": None}}, generate=generate)
    found = forgetting.kept_reading(model, "towns", trained, other)
    assert found["questions"] == 48
    assert found["contained"]["value"] == 100.0
    assert found["contained_with_lora"]["value"] == pytest.approx(100 * 46 / 48)
    assert found["contained_gain"]["value"] == pytest.approx(-100 * 2 / 48)
    assert found["trained_with_lora"] == 1


def test_nats_of_a_text_are_those_of_its_tokens(llm: LLM) -> None:
    text = "The cat sat on the mat."
    (nats,), (tokens,) = forgetting.text_nats(llm, [text])
    ids = llm.tokenize(text)
    assert tokens == len(ids) - 1
    # An independent reference: the model of transformers, in float32.
    model = AutoModelForCausalLM.from_pretrained(command.EMBEDDED, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    expected = functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum").item()
    assert nats == pytest.approx(expected, rel=0.02)


def test_settings_are_the_models_unless_the_command_gives_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.settings(command.parsed([])) == lora.LoraRun()
    assert command.settings(command.parsed(["--model", "m", "--lora"])) == lora.PRETRAINED
    given = command.settings(command.parsed(["--model", "m", "--lora", "--steps", "5", "--rate", "0.25"]))
    assert (given.steps, given.peak_rate, given.rows) == (5, 0.25, lora.PRETRAINED.rows)
    for nothing_trains in (["--model", "m", "--steps", "5"], ["--adapter", "a", "--rate", "0.1"]):
        with pytest.raises(SystemExit):
            command.parsed(nothing_trains)
        assert "nothing trains" in capsys.readouterr().err


def test_the_result_has_the_settings_of_each_adapter() -> None:
    for name, found in result_file.load(table.RESULT)["models"].items():
        run = lora.LoraRun() if name == "embedded" else lora.PRETRAINED
        settings = found["prose"]["lora"]
        assert settings["rank"] == run.rank, name
        assert settings["peak_rate"] == run.peak_rate, name
        assert settings["steps"] == run.steps, name


def test_the_document_has_the_measured_rows() -> None:
    text = (table.RESULT.parents[2] / "docs" / "knowledge.md").read_text(encoding="utf-8")
    result = result_file.load(table.RESULT)
    tables = table.all_rows(result)
    assert all(tables)
    for row in (row for part in tables for row in part):
        assert row in text, f"{row} is not in docs/knowledge.md; print the rows with python -m benches.knowledge.table"


def test_the_best_arm_gains_what_the_gate_asks() -> None:
    for model, found in result_file.load(table.RESULT)["models"].items():
        gains = [arm["f1_gain"] for arm in found["prose"]["arms"].values() if "f1_gain" in arm]
        best = max(gains, key=lambda gain: gain["value"])
        assert best["value"] >= 18, model
        assert best["low"] > 18, model
