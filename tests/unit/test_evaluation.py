"""`octavo eval` and its parts: cases, intervals, counts against a computation of their own."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.cli import app
from octavo.errors import ContextLengthError, InvalidRequestError
from octavo.evaluation import Case, evaluate, first_of_each, held_out_cases, read_cases
from octavo.evaluation.intervals import perplexity, proportion, ratio
from typer.testing import CliRunner


def question(**more: Any) -> dict[str, Any]:
    return {"skill": "s", "prompt": "Once", "answer": "upon", **more}


@pytest.mark.parametrize(
    ("match", "answer", "output", "right"),
    [
        ("exact", "4", " 4\n", True),
        ("exact", "4", "42", False),
        ("start", "Pip", " Pip went home", True),
        ("start", "Pip", "So Pip went home", False),
        ("contains", "Pip", "So Pip went home", True),
        ("contains", "Pip", "So pip went home", False),
        ("json", '{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ("json", '{"a": 1}', '{"a": true}', False),
        ("json", '{"a": 1}', '{"a": "1"}', False),
        ("json", '{"a": 1}', '{"a": 1', False),
        ("json", "[1, 2]", "[2, 1]", False),
    ],
)
def test_when_an_answer_is_right(match: Any, answer: str, output: str, right: bool) -> None:
    assert Case("s", "p", answer, match).is_right(output) is right


def test_a_file_is_read_plain_and_packed(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    rows = [question(), {"skill": "t", "text": "a b"}, {"skill": "m", "messages": messages, "answer": "x"}]
    text = "\n\n".join(map(json.dumps, rows)) + "\n"
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    want = [Case("s", "Once", "upon"), Case("t", None, "a b"), Case("m", messages, "x")]
    assert read_cases(tmp_path / "a.jsonl") == read_cases(str(tmp_path / "a.jsonl.gz")) == want


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        (json.dumps({"prompt": "a", "answer": "b"}), "skill is missing"),
        (json.dumps(question(answer="")), "answer is ''"),
        (json.dumps(question(answer=4)), "answer is 4"),
        (json.dumps(question(match="fuzzy")), "'fuzzy'"),
        (json.dumps(question(match=["exact"])), "exact"),
        (json.dumps(question(match="json")), "not JSON"),
        (json.dumps(question(solution="b")), "'solution'"),
        (json.dumps(question(messages=[{}])), "either prompt or messages"),
        (json.dumps({"skill": "s", "messages": [], "answer": "b"}), "messages"),
        (json.dumps({"skill": "s", "text": "a", "answer": "b"}), "text and answer"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(question()) + "\n" + line + "\n")
    with pytest.raises(InvalidRequestError, match="line 2") as error:
        read_cases(path)
    assert words in str(error.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "false.jsonl.gz").write_text("not packed")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"x" * 999)[:-9])
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    for name in ("empty.jsonl", "false.jsonl.gz", "cut.jsonl.gz", "latin.jsonl", "absent.jsonl"):
        with pytest.raises(InvalidRequestError, match=name):
            read_cases(tmp_path / name)
    with pytest.raises(InvalidRequestError, match="directory"):
        read_cases(tmp_path)


def test_wilson_is_that_of_the_literature() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                    (1, 29, 0.0061, 0.1718)):  # fmt: skip
        found = proportion(right, count)
        assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert proportion(20, 20).high == 1.0
    with pytest.raises(ValueError, match="no share"):
        proportion(0, 0)


def test_the_bootstrap_covers_the_truth() -> None:
    import numpy as np

    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        tokens = generator.integers(5, 50, 60)
        # The nats of a document share a factor: tokens of one are not independent.
        nats = tokens * generator.gamma(4.0, 0.25, 60)
        found = ratio(list(nats), list(tokens))
        assert found.value == pytest.approx(nats.sum() / tokens.sum())
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99
    assert perplexity([math.log(4) * 3], [3]).high == pytest.approx(4.0)
    with pytest.raises(ValueError, match="sum of 0"):
        ratio([], [])


def test_counts_are_those_of_the_model(llm: LLM) -> None:
    given = "Once upon a time, there was a"
    told = llm.generate(given, SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))[0]
    cases = [
        Case("told", given, told.text, "start"),
        Case("told", given, "zebra zebra", "start"),
        Case("read", None, given),
    ]
    report = evaluate(llm, cases)
    assert (report.skills["told"].right, report.skills["told"].cases) == (1, 2)
    assert report.skills["read"].accuracy is None
    output = llm.generate(given, SamplingParams(max_tokens=1, prompt_logprobs=0))[0]
    rows = [next(iter(row.values())).logprob for row in output.prompt_logprobs or [] if row is not None]
    assert report.skills["read"].tokens == len(rows)
    assert report.skills["read"].perplexity.value == pytest.approx(math.exp(-sum(rows) / len(rows)))
    assert evaluate(llm, cases) == report


def test_what_cannot_be_evaluated_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        evaluate(llm, [])
    with pytest.raises(InvalidRequestError, match="nothing to predict"):
        evaluate(llm, [Case("s", None, "a")])
    with pytest.raises(ContextLengthError):
        evaluate(llm, [Case("s", "word " * 4000, "a")])


def test_the_shipped_cases_are_small_and_whole() -> None:
    cases = held_out_cases()
    assert len({case.skill for case in cases}) >= 12
    assert all(sum(case.skill == skill for case in cases) >= 60 for skill in {case.skill for case in cases})


def test_the_first_cases_of_each_skill() -> None:
    cases = [Case(skill, None, text) for skill, text in (("a", "1"), ("b", "2"), ("a", "3"), ("b", "4"), ("a", "5"))]
    assert [case.answer for case in first_of_each(cases, 1)] == ["1", "2"]
    assert [case.answer for case in first_of_each(cases, 2)] == ["1", "2", "3", "4"]
    assert first_of_each(cases, 9) == cases
    skills = {case.skill for case in held_out_cases()}
    assert {case.skill for case in first_of_each(held_out_cases(), 1)} == skills


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(question()) + "\n" + json.dumps({"skill": "t", "text": "Once upon a time"}) + "\n")
    result = CliRunner().invoke(app, ["eval", "--data", str(path), "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report["skills"]) == {"s", "t"}
    assert report["model"]["quantization"]
    shown = CliRunner().invoke(app, ["eval", "--data", str(path)]).stdout
    assert "perplexity" in shown
    assert "to" in shown
    wrong = CliRunner().invoke(app, ["eval", "--data", str(tmp_path / "absent")])
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("octavo: ")
