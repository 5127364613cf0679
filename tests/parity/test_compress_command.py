"""`compress` and `octavo compress`: from files to a model folder with a report."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import assert_same_logprobs, reference_logprobs
from octavo import LLM
from octavo.cli import app
from octavo.compress import compress, compress_model
from octavo.compress.live_model import load_model
from octavo.errors import InvalidRequestError, MissingDependencyError, OctavoError
from octavo.evaluation import Case
from octavo.evaluation.paired import CaseScore, compare_skills, mcnemar, paired_difference
from octavo.hub import embedded_model
from random_models import CASES, write_model
from typer.testing import CliRunner

pytestmark = pytest.mark.filterwarnings("ignore")
CHAT = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "2 + 3 = 5."}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    lines = [{"messages": CHAT}, {"text": "Once upon a time there was a fox named Clover. " * 8}] * 20
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "cases.jsonl"
    lines: list[dict[str, Any]] = [
        {"skill": "sums", "messages": [CHAT[0]], "answer": "2 + 3 = 5."},
        {"skill": "sums", "messages": [{"role": "user", "content": "What is 4 + 4?"}], "answer": "4 + 4 = 8."},
        {"skill": "stories", "text": "Once upon a time there was a fox."},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["compress", *map(str, arguments)])


def test_width_and_distillation_in_one_command(data: Path, cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = run(embedded_model(), "-o", out, "--ratio", 0.4, "--data", data, "--cases", cases, "--keep", 1.0)
    report = json.loads((out / "compress.json").read_text())
    assert report["parameters"][0] == 2_755_392
    assert report["parameters"][1] <= 0.4 * 2_755_392
    assert report["skills"]["sums"]["before"] == 1.0
    assert report["skills"]["sums"]["p_value"] == mcnemar(report["skills"]["sums"]["lost"], 0)
    assert "decoding one sequence" in report["speed"]
    assert "p (McNemar)" in result.output
    assert set(report["skills"]) == {"sums", "stories"}
    assert [step["step"] for step in report["steps"]] == ["distillation"]
    assert len(report["steps"][0]["cuts"]) == 2
    # A few steps do not bring the skills back.
    assert report["kept"] < 1.0
    assert result.exit_code == 3, result.output
    assert "--keep asks for 100.0%" in result.output
    assert not (tmp_path / "small.work").exists()
    assert load_model(out, "auto").dtype == torch.bfloat16
    with LLM(out) as llm:
        assert llm.info()["model"]["parameters"] == report["parameters"][1]


def test_tools_can_be_combined_and_what_was_not_measured_says_so(data: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Once upon a time there was a fox named Clover. What is 2 + 3? 2 + 3 = 5.\n")
    source = tmp_path / "source"
    shutil.copytree(embedded_model(), source)
    made = compress(source, tmp_path / "small", vocab=corpus, ratio=0.7, data=data)
    assert made.enough is None
    assert [step["step"] for step in made.report.steps] == ["vocabulary", "distillation"]
    report = json.loads((made.folder / "compress.json").read_text())
    assert report["skills"] == report["kept"] == "not measured"
    assert load_model(made.folder).config.vocab_size == made.report.steps[0]["rows"][1]


def test_experts_of_a_model_with_a_real_tokenizer(data: Path, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "qwen3-moe")
    bigger = {**case.options, "vocab_size": 2048, "num_hidden_layers": 2}
    write_model(type(case)(case.name, case.model_type, bigger), tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(embedded_model() / name, tmp_path / "model" / name)
    made = compress(tmp_path / "model", tmp_path / "small", experts=0.5, data=data)
    assert made.report.steps[0]["experts"] == (8, 4)
    model = load_model(made.folder)
    assert model.model.layers[0].mlp.experts.down_proj.shape[0] == 4
    draw = random.Random(2)
    tokens = [draw.randrange(2048) for _ in range(20)]
    assert torch.isfinite(reference_logprobs(model, tokens)).all()


def test_an_interrupted_call_continues_and_another_one_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    shutil.copytree(embedded_model(), source)
    out = tmp_path / "small"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compress_model, "report_of", stop)
        with pytest.raises(KeyboardInterrupt):
            compress(source, out, ratio=0.7, data=data)
    work = tmp_path / "small.work"
    start = (work / "cut-1" / "start" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(InvalidRequestError, match="other arguments"):
        compress(source, out, ratio=0.6, data=data)
    assert (work / "cut-1" / "start" / "model.safetensors").stat().st_mtime_ns == start
    made = compress(source, out, ratio=0.7, data=data)
    whole = compress(source, tmp_path / "whole", ratio=0.7, data=data)
    tokens = list(range(3, 40))
    logprobs = [reference_logprobs(load_model(folder), tokens) for folder in (made.folder, whole.folder)]
    assert_same_logprobs(logprobs[0], logprobs[1], 0.0)


def test_a_full_disk_loses_nothing_that_was_finished(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    shutil.copytree(embedded_model(), source)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(compress_model, "report_of", full)
        with pytest.raises(OctavoError, match="run the same command again"):
            compress(source, tmp_path / "small", ratio=0.7, data=data)
    assert (tmp_path / "small.work" / "cut-1" / "start" / "config.json").is_file()
    assert not (tmp_path / "small").exists()
    assert compress(source, tmp_path / "small", ratio=0.7, data=data).folder.is_dir()


def test_arguments_that_cannot_be_right_are_refused_before_any_work(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = embedded_model()
    for arguments, message in (
        ({}, "nothing to do"),
        ({"rows": 10, "ratio": 0.5, "data": data}, "rows is the size"),
        ({"ratio": 0.5}, "data is missing"),
        ({"experts": 0.5}, "data is missing"),
        ({"ratio": 0.5, "data": data, "passes": 0}, "passes is 0"),
        ({"ratio": 1.5, "data": data}, "ratio is 1.5"),
        ({"ratio": 0.001, "data": data}, "pruning by auto reaches"),
        ({"ratio": 0.5, "data": tmp_path / "none.jsonl"}, "none.jsonl"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            compress(model, out, **arguments)
        assert not out.exists()
        shutil.rmtree(tmp_path / "out.work", ignore_errors=True)
    write_model(CASES[0], tmp_path / "other")
    with pytest.raises(InvalidRequestError, match="keep needs skills"):
        compress(tmp_path / "other", out, ratio=0.5, data=data, keep=0.9)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(InvalidRequestError, match="exists already"):
        compress(model, tmp_path / "there", ratio=0.5, data=data)


def test_a_missing_module_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "torch" else find(name, *a))
    with pytest.raises(MissingDependencyError, match=r"needs torch: pip install 'octavo\[train\]'"):
        load_model(embedded_model())


def test_mcnemar_is_the_exact_test() -> None:
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    # 2 * (1 + 10) / 2 ** 10, and 2 / 2 ** 6.
    assert mcnemar(1, 9) == mcnemar(9, 1) == 22 / 1024
    assert mcnemar(6, 0) == 1 / 32
    assert 0.0 < mcnemar(900, 1100) < 1e-4


def test_each_skill_has_its_test_of_what_was_lost_and_gained() -> None:
    cases = [*[Case("sums", [CHAT[0]], "5")] * 10, Case("stories", None, "A fox.")]
    before = [CaseScore(i < 8, 1.0, 2) for i in range(10)] + [CaseScore(None, 3.0, 2)]
    after = [CaseScore(i in (0, 9), 1.0, 2) for i in range(10)] + [CaseScore(None, 3.0, 2)]
    changes = compare_skills(cases, before, after)
    assert (changes["sums"].lost, changes["sums"].gained) == (7, 1)
    assert changes["sums"].p_value == mcnemar(7, 1) == 18 / 256
    assert changes["stories"].p_value is changes["stories"].lost is None


def test_the_interval_is_of_pairs() -> None:
    before = [1.0, 0.0] * 50
    same = paired_difference(before, before)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    worse = paired_difference(before, [0.0] * 100)
    assert worse.value == -0.5
    assert -0.65 < worse.low < -0.5 < worse.high < -0.35
