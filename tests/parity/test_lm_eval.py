"""lm-evaluation-harness on octavo and on its own transformers model: the same log-likelihoods, texts and scores."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from octavo.hub import embedded_model
from random_models import Case, write_model

pytest.importorskip("lm_eval", reason="lm-evaluation-harness: pip install '.[test-clients]'")

# Of the harness and what it needs, not of octavo.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
# Less than the model's, which leaves octavo the room of the predicted token.
MAX_LENGTH = 200
TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "tiny_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["t", "\n\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    # A third of the harness's own generation tasks give neither do_sample nor a temperature.
    "tiny_bare_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["t", "\n\n"], "max_new_tokens": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}
ANSWERS = ("tiny_answer", "tiny_bare_answer")
ROWS = [
    {"question": "Once upon a time", "choices": [" there", " a fox ", "\nSam"], "answer": 0},
    {"question": "The fox said ", "choices": ["hello", "no", "yes, of course"], "answer": 1},
    {"question": "", "choices": ["One day", "naïve café 東京"], "answer": 1},
    {"question": "many words " * 150, "choices": [" and", " end"], "answer": 0},
]
TEXTS = ["One day Sam packed cheese.", "She saw a key. " * 60, "x", "東京, Привет"]


def rows_of(task: str) -> list[dict[str, Any]]:
    # The harness's own model generates nothing from nothing.
    return [row for row in ROWS if row["question"] or task not in ANSWERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads the embedded one's tokens."""
    made = tmp_path_factory.mktemp("model")
    write_model(Case("lm-eval", "qwen3", {"vocab_size": 2048, "eos_token_id": 2}), made)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_model() / name, made / name)
    return made


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        rows: list[dict[str, Any]] = [{"text": t} for t in TEXTS] if name == "tiny_text" else rows_of(name)
        (made / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        data = {"data_files": {"test": str(made / f"{name}.jsonl")}, "cache_dir": str(made / "cache")}
        spec = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **task}
        # JSON is YAML.
        (made / f"{name}.yaml").write_text(json.dumps(spec))
    return made


def evaluate(model: Any, tasks: Path) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(  # type: ignore[no-any-return]
        model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, log_samples=True
    )


@pytest.fixture(scope="module")
def both(folder: Path, tasks: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What octavo gives, and what transformers gives."""
    from lm_eval.models.huggingface import HFLM
    from octavo.lm_eval import OctavoLM

    ours = OctavoLM(str(folder), dtype="float32", quantization="none", max_length=MAX_LENGTH)
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", max_length=MAX_LENGTH)
    try:
        yield evaluate(ours, tasks), evaluate(theirs, tasks)
    finally:
        ours.llm.close()


@pytest.mark.parametrize("task", TASKS)
def test_the_same_responses(both: tuple[dict[str, Any], dict[str, Any]], task: str) -> None:
    ours, theirs = (sorted(r["samples"][task], key=lambda s: s["doc_id"]) for r in both)
    assert len(ours) == len(theirs) == (len(TEXTS) if task == "tiny_text" else len(rows_of(task)))
    for one, other in zip(ours, theirs, strict=True):
        assert one["arguments"] == other["arguments"]
        if task in ANSWERS:
            assert one["resps"] == other["resps"]
            continue
        for a, b in zip(one["resps"], other["resps"], strict=True):
            (got,), (want,) = a, b
            if task == "tiny_text":
                assert got == pytest.approx(want, rel=1e-5)
            else:
                assert got[0] == pytest.approx(want[0], abs=1e-3, rel=1e-4)
                assert got[1] == want[1], "whether it is the greedy answer"


def test_the_same_scores(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    ours, theirs = both
    for task in TASKS:
        want = {k: v for k, v in theirs["results"][task].items() if isinstance(v, float)}
        assert want
        assert {k: ours["results"][task][k] for k in want} == pytest.approx(want, rel=1e-4)


def test_chat_templates(folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM
    from octavo.lm_eval import OctavoLM

    ours = OctavoLM(str(folder))
    try:
        theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu")
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is"}]
        for generation in (True, False):
            text = theirs.apply_chat_template(turns, add_generation_prompt=generation)
            assert ours.apply_chat_template(turns, add_generation_prompt=generation) == text
        assert ours.prefix_token_id == theirs.prefix_token_id
        for text in ("a b", "<|im_end|>a", ""):
            assert ours.tok_encode(text) == theirs.tok_encode(text)
    finally:
        ours.llm.close()


def test_sampling_and_bad_arguments() -> None:
    from lm_eval.api.instance import Instance
    from octavo.errors import InvalidRequestError
    from octavo.lm_eval import OctavoLM

    with pytest.raises(InvalidRequestError, match="max_length"):
        OctavoLM(max_length=10**6)
    model = OctavoLM(think_end_token="</think>", max_num_seqs=4, batch_size="auto", device="cpu:0")
    try:
        given = {"until": ["zzz"], "max_gen_toks": 8, "temperature": 0.9, "do_sample": True, "seed": 3}
        ask = [Instance("generate_until", {}, ("Once", given), i) for i in range(2)]
        assert len(set(model.generate_until(ask, disable_tqdm=True))) == 1, "equal seeds draw equal texts"
        empty = Instance("generate_until", {}, ("", {"until": "a", "max_gen_toks": 4}), 0)
        assert isinstance(model.generate_until([empty], disable_tqdm=True)[0], str)
        long = Instance("generate_until", {}, ("Once", {"until": [], "max_gen_toks": 10**6}), 0)
        with pytest.raises(InvalidRequestError, match="max_gen_toks"):
            model.generate_until([long], disable_tqdm=True)
    finally:
        model.llm.close()


def test_entry_point() -> None:
    (found,) = importlib.metadata.entry_points(group="lm_eval.models", name="octavo")
    from octavo.lm_eval import OctavoLM

    assert found.load() is OctavoLM


def test_command_line(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own, in this process and without its thousands of tasks, which take long to read."""
    import lm_eval.tasks
    from octavo import lm_eval as ours

    own = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own)
    command = ["lm_eval", "--model", "octavo", "--model_args", "max_model_len=512", "--tasks", "tiny_choice"]
    command += ["--include_path", str(tasks), "--output_path", str(tmp_path), "--limit", "2"]
    monkeypatch.setattr(sys, "argv", command)
    ours.main()
    (file,) = tmp_path.rglob("results*.json")
    assert json.loads(file.read_text())["n-samples"]["tiny_choice"]["effective"] == 2
