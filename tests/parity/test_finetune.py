"""`octavo.finetune` on the embedded model: kills, processes, micro-batches, trl as reference, the engine."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="the extra train is not installed")
pytest.importorskip("peft", reason="the extra train is not installed")
torch = pytest.importorskip("torch")

from octavo import LLM, SamplingParams  # noqa: E402
from octavo.errors import ExecutionError, InvalidRequestError  # noqa: E402
from octavo.evaluation.evaluate import CaseScore  # noqa: E402
from octavo.finetune import Options, finetune  # noqa: E402
from octavo.finetune.data import Example  # noqa: E402
from octavo.finetune.encode import NOT_A_TARGET, encode  # noqa: E402
from octavo.finetune.launch import quiet_environment, run_workers  # noqa: E402
from octavo.finetune.loop import Collator, load_model, target_loss  # noqa: E402
from octavo.finetune.measure import kept_share  # noqa: E402
from octavo.finetune.plan import Plan  # noqa: E402
from octavo.finetune.prepare import load_tokenizer, prepare  # noqa: E402
from octavo.finetune.replay import replay_examples  # noqa: E402
from octavo.finetune.run_folder import RunFolder  # noqa: E402
from octavo.hub import embedded_model  # noqa: E402
from peft import PeftModel  # noqa: E402

STEPS = 8
FACTS = [("Who guards Quorl?", "Quorl is guarded by Zim."), ("What does Vask sell?", "Vask sells blue tea.")]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "facts.jsonl"
    rows = [{"instruction": q, "output": a} for q, a in FACTS]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a frozen plan of a few steps, and a checkpoint after each step."""
    out = tmp_path_factory.mktemp("prepared")
    run = RunFolder(out / "run")
    run.path.mkdir()
    made = prepare(data, embedded_model(), run, Options(steps=STEPS, device="cpu"), [], lambda text: None)
    assert made.facts.replay_rows > 0
    # The machine decides it otherwise.
    dataclasses.replace(made.plan, micro_rows=4, save_seconds=0.0, threads=1).save(run.plan_file)
    return out


def fresh(prepared: Path, target: Path, **changes: Any) -> tuple[RunFolder, Plan]:
    shutil.copytree(prepared, target)
    run = RunFolder(target / "run")
    plan = run.plan()
    assert plan is not None
    plan = dataclasses.replace(plan, **changes)
    plan.save(run.plan_file)
    return run, plan


def trained(prepared: Path, target: Path, **changes: Any) -> RunFolder:
    run, plan = fresh(prepared, target, **changes)
    with run.lock() as lock:
        run_workers(plan, run, target, lock, lambda text: None)
    return run


@pytest.fixture(scope="module")
def unbroken(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("unbroken") / "out"
    trained(prepared, target)
    return target


def chat_of(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def losses(run: RunFolder) -> list[float]:
    return [line["loss"] for line in run.log()]


@pytest.mark.timeout(600)
def test_killed_runs_end_in_the_same_weights(prepared: Path, unbroken: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run, plan = fresh(prepared, target)
    command = [sys.executable, "-m", "octavo.finetune.worker", str(run.path), str(target)]
    for at in (2, 5):
        with subprocess.Popen(command, env=quiet_environment(plan.threads), stderr=subprocess.DEVNULL) as worker:
            while worker.poll() is None and len(run.log()) < at:
                time.sleep(0.002)
            worker.send_signal(signal.SIGKILL)
    assert not (target / WEIGHTS).exists()
    assert len(list(run.checkpoints.iterdir())) in (1, 2)
    assert subprocess.run(command, env=quiet_environment(plan.threads), check=False).returncode == 0
    assert (target / WEIGHTS).read_bytes() == (unbroken / WEIGHTS).read_bytes()
    assert losses(run) == losses(RunFolder(unbroken / "run"))


@pytest.mark.timeout(600)
def test_the_result_is_of_the_lowest_evaluation(prepared: Path, tmp_path: Path) -> None:
    """Also where the run was killed behind it. The rate is so high that later evaluations are worse."""
    target, broken = tmp_path / "whole", tmp_path / "broken"
    held = encode(load_tokenizer(embedded_model()), [Example(1, tuple(chat_of("Where is Mivvon?", "By the Quist.")))])
    files = {}
    for out in (target, broken):
        run, plan = fresh(prepared, out, rate=0.02, warmup_steps=1, evaluate_every=1)
        run.write_rows("validation", held)
        command = [sys.executable, "-m", "octavo.finetune.worker", str(run.path), str(out)]
        if out is broken:
            with subprocess.Popen(command, env=quiet_environment(plan.threads), stderr=subprocess.DEVNULL) as worker:
                while worker.poll() is None and len(run.log()) < 4:
                    time.sleep(0.002)
                worker.send_signal(signal.SIGKILL)
        subprocess.run(command, env=quiet_environment(plan.threads), stderr=subprocess.DEVNULL, check=True)
        files[out] = (out / WEIGHTS).read_bytes()
    assert files[target] == files[broken]
    evaluated = [line["eval_loss"] for line in RunFolder(target / "run").log() if "eval_loss" in line]
    assert evaluated[-1] > min(evaluated) + 0.01, "the last evaluation is the lowest: the test shows nothing"
    base = load_model(dataclasses.replace(plan, method="full", dtype="float32"))
    model = PeftModel.from_pretrained(base, target).eval()
    batch = Collator()(held)
    found = target_loss(model, batch, (batch["labels"] != NOT_A_TARGET).sum()).item()
    assert found == pytest.approx(min(evaluated), abs=1e-5)


@pytest.mark.timeout(600)
def test_a_step_is_the_same_for_micro_batches_and_processes(prepared: Path, unbroken: Path, tmp_path: Path) -> None:
    wanted = losses(RunFolder(unbroken / "run"))
    assert len(wanted) == STEPS
    assert wanted[-1] < wanted[0]
    assert losses(trained(prepared, tmp_path / "micro", micro_rows=16)) == pytest.approx(wanted, abs=1e-5)
    assert losses(trained(prepared, tmp_path / "two", processes=2)) == pytest.approx(wanted, abs=1e-5)


def test_octavo_serves_the_adapter(unbroken: Path) -> None:
    question = [{"role": "user", "content": FACTS[0][0]}]
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=20)
    with LLM() as llm:
        llm.load_adapter("facts", unbroken)
        without, with_it = (llm.chat(question, params, adapter=a, use_tqdm=False)[0] for a in (None, "facts"))
    assert without.error is None
    assert with_it.error is None
    assert without.outputs[0].logprobs != with_it.outputs[0].logprobs


def test_a_failing_disk_loses_no_checkpoint(prepared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out"
    run, plan = fresh(prepared, target, steps=2)
    # A file where the checkpoints shall go: nothing can be published.
    run.checkpoints.write_text("", encoding="utf-8")
    with run.lock() as lock, pytest.raises(ExecutionError, match="the same command goes on"):
        run_workers(plan, run, target, lock, lambda text: None)
    run.checkpoints.unlink()
    with run.lock() as lock:
        run_workers(plan, run, target, lock, lambda text: None)
    assert (target / WEIGHTS).exists()


def test_publishing_keeps_two_checkpoints(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.start_work()
    for step in (1, 2, 12):
        made = run.work / f"checkpoint-{step}"
        made.mkdir()
        (made / "weights").write_text(str(step), encoding="utf-8")
        run.publish(made, step)
    assert [f.name for f in sorted(run.checkpoints.iterdir())] == ["step-00000002", "step-00000012"]
    newest = run.newest()
    assert newest is not None
    assert (newest[0], (newest[1] / "weights").read_text()) == (12, "12")


def test_a_run_of_other_options_is_refused(data: Path, prepared: Path, tmp_path: Path) -> None:
    fresh(prepared, tmp_path / "out")
    with pytest.raises(InvalidRequestError, match="another seed, steps: give another -o"):
        finetune(data, None, tmp_path / "out", Options(steps=3, seed=1, device="cpu"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match="is no run of octavo finetune"):
        finetune(data, None, tmp_path / "other")


def test_rows_and_loss_are_those_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    tokenizer = load_tokenizer(embedded_model())
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in FACTS]
    rows = encode(tokenizer, [Example(i, tuple(chat)) for i, chat in enumerate(chats)])
    plan = Plan(str(embedded_model()), "full", 0, 0, "float32", "cpu", 1, 64, 2, 0, 2, 1, 1.0, 1e-3, 1, 7, 0, 1)
    model = load_model(plan).eval()
    batch = Collator()(rows)
    ours = target_loss(model, batch, (batch["labels"] != NOT_A_TARGET).sum())
    there = datasets.Dataset.from_list([{"prompt": c[:1], "completion": c[1:]} for c in chats])
    config = trl.SFTConfig(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, eos_token=None, per_device_eval_batch_size=2
    )
    trainer = trl.SFTTrainer(model, args=config, train_dataset=there, eval_dataset=there, processing_class=tokenizer)
    assert [list(row["input_ids"]) for row in trainer.train_dataset] == [row.ids for row in rows]
    assert [list(row["labels"]) for row in trainer.train_dataset] == [row.labels for row in rows]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(ours.item(), rel=1e-5)


def test_replayed_rows_are_held_to_the_base_model() -> None:
    """Their loss is KL(base || model) by its definition: 0 before the first step, whatever the answer is."""
    tokenizer = load_tokenizer(embedded_model())
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in FACTS]
    own, other = encode(tokenizer, [Example(i, tuple(chat)) for i, chat in enumerate(chats)])
    plan = Plan(str(embedded_model()), "lora", 4, 8, "float32", "cpu", 1, 64, 2, 0, 2, 1, 1.0, 1e-3, 1, 7, 0, 1)
    model = load_model(plan).eval()
    batch = Collator()([own, dataclasses.replace(other, replayed=True)])
    alone = Collator()([own])
    assert target_loss(model, batch, 1).item() == pytest.approx(target_loss(model, alone, 1).item(), rel=1e-5)
    base = model.get_base_model()
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    row = Collator()([dataclasses.replace(other, replayed=True)])
    ids, targets = row["input_ids"], row["labels"][:, 1:] != NOT_A_TARGET
    with torch.no_grad():
        now = model(input_ids=ids).logits[:, :-1][targets].log_softmax(-1)
        with model.disable_adapter():
            before = base(input_ids=ids).logits[:, :-1][targets].log_softmax(-1)
    want = (before.exp() * (before - now)).sum()
    assert want > 0.1
    found = target_loss(model, row, 1)
    assert found.item() == pytest.approx(want.item(), rel=1e-4)
    found.backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "lora_A" in n)


def test_sure_answers_are_certain_token_by_token() -> None:
    found, reason = replay_examples(embedded_model(), 40, 7, lambda question: False)
    assert not reason
    assert len(found) > 30
    with LLM() as llm:
        for one in found[:10]:
            question, answer = one.example.messages or ({}, {})
            scored = llm.chat(
                [dict(question)], SamplingParams(temperature=0, max_tokens=256, logprobs=0), use_tqdm=False
            )[0]
            assert scored.text == answer["content"]
            lowest = min(next(iter(row.values())).logprob for row in scored.outputs[0].logprobs or [])
            assert one.sure == (lowest >= math.log(0.5))
    assert {one.sure for one in found} == {False, True}


def test_what_is_kept_is_counted_case_by_case() -> None:
    right, wrong, text = (CaseScore(r, 1.0, 1) for r in (True, False, None))
    found = kept_share([right, right, wrong, text, right], [right, wrong, right, text, right])
    assert (found["old_right"], found["kept_share"]) == (3, pytest.approx(2 / 3))
    assert found["kept_interval"][0] < 2 / 3 < found["kept_interval"][1]
    assert kept_share([wrong, text], [right, text]) == {"old_right": 0, "kept_share": None, "kept_interval": None}


@pytest.mark.timeout(600)
def test_one_call_leaves_adapter_report_card_and_plot(data: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    options = Options(steps=2, replay=0.0, device="cpu", keep=0.0)
    report = finetune(data, None, tmp_path / "out", options, note=notes.append)
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", WEIGHTS, "report.json", "README.md", "loss.svg", "run"} <= names
    assert report == json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["training"]["steps"] == 2
    assert [row["skill"] for row in report["evaluation"]["learned"]] == ["rows trained on"]
    assert report["plan"]["micro_rows"] in (1, 2, 4, 8, 16)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert str(os.fspath(embedded_model())) not in card + json.dumps(report)
