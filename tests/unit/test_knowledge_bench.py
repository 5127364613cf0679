"""The bench of knowledge: its scores by hand, and domains whose answers stand in their text and in no question."""

from __future__ import annotations

import pytest

from benches import result_file
from benches.knowledge import scores, table
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


def test_the_document_has_the_measured_rows() -> None:
    text = (table.RESULT.parents[2] / "docs" / "knowledge.md").read_text(encoding="utf-8")
    result = result_file.load(table.RESULT)
    for row in table.rows(result) + table.forgotten(result):
        assert row in text, f"{row} is not in docs/knowledge.md; print the rows with python -m benches.knowledge.table"


def test_the_best_arm_gains_what_the_gate_asks() -> None:
    for model, found in result_file.load(table.RESULT)["models"].items():
        gains = [arm["f1_gain"] for arm in found["prose"]["arms"].values() if "f1_gain" in arm]
        best = max(gains, key=lambda gain: gain["value"])
        assert best["value"] >= 18, model
        assert best["low"] > 18, model
