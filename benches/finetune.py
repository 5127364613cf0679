"""Measures `octavo finetune` on the embedded model: facts, kills, the micro-batch, and trl's own command line.

python -m benches.finetune facts kills grid trl      # -> benches/results/finetune.json; any of the four
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from octavo import LLM
from octavo.evaluation import evaluate, read_cases
from octavo.finetune import Options
from octavo.finetune.launch import quiet_environment
from octavo.finetune.prepare import prepare
from octavo.finetune.run_folder import RunFolder
from octavo.hub import embedded_model

from . import result_file
from .knowledge.domain import towns

RESULT = Path(__file__).parent / "results" / "finetune.json"
_WEIGHTS = "adapter_model.safetensors"
_KILLS, _KILLED_STEPS = 10, 40
# What a user sets for the same adapter with trl's command line, beside model, data and output.
_TRL_SETTINGS = [
    *("--use_peft", "--lora_r", "16", "--lora_alpha", "32", "--lora_target_modules", "all-linear"),
    *("--learning_rate", "3e-3", "--num_train_epochs", "40", "--per_device_train_batch_size", "16"),
    *("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--eos_token", "<|im_end|>"),
]


def write_data(folder: Path, seed: int = 1) -> tuple[Path, Path]:
    """48 facts of made-up towns in one question form, and cases that ask them in another."""
    data, cases = folder / "facts.jsonl", folder / "cases.jsonl"
    questions = towns(seed).questions
    rows = [{"instruction": q.forms[0], "output": q.answer} for q in questions]
    asked = [
        {
            "skill": "new question form",
            "messages": [{"role": "user", "content": q.forms[1]}],
            "answer": q.value,
            "match": "contains",
        }
        for q in questions
    ]
    for path, lines in ((data, rows), (cases, asked)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return data, cases


def timed(command: list[str], env: dict[str, str] | None = None) -> tuple[int, float, float]:
    """Exit code, seconds, and processor seconds of a command with its children."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code = subprocess.run(command, env=env or dict(os.environ), stdout=subprocess.DEVNULL, check=False).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return code, time.monotonic() - began, cpu


def facts(folder: Path) -> dict[str, Any]:
    """One command from JSON lines to an evaluated adapter, with no setting."""
    data, cases = write_data(folder)
    out = folder / "adapter"
    code, seconds, cpu = timed(
        [sys.executable, "-m", "octavo", "finetune", str(data), "-o", str(out), "--eval", str(cases)]
    )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    rows = report["evaluation"]["learned"] + report["evaluation"]["kept"]
    return {
        "settings": 0,
        "exit_code": code,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "training_seconds": report["training"]["seconds"],
        "training_cpu_seconds": report["training"]["cpu_seconds"],
        "plan": {k: report["plan"][k] for k in ("rate", "steps", "batch_rows", "replay_rows", "micro_rows", "threads")},
        **{name: report["evaluation"][name] for name in ("old_right", "kept_share", "kept_interval")},
        "skills": [
            {
                "skill": row["skill"],
                "cases": row["after"]["cases"],
                "before": row["before"]["right"],
                "after": row["after"]["right"],
                "low": (row["after"]["accuracy"] or {}).get("low"),
                "high": (row["after"]["accuracy"] or {}).get("high"),
            }
            for row in rows
        ],
    }


def planned(folder: Path, name: str, steps: int) -> RunFolder:
    """A prepared run with checkpoints after each step."""
    run = RunFolder(folder / name / "run")
    run.path.mkdir(parents=True)
    data, _ = write_data(folder)
    made = prepare(data, embedded_model(), run, Options(steps=steps, device="cpu"), [], print)
    dataclasses.replace(made.plan, save_seconds=0.0).save(run.plan_file)
    return run


def kills(folder: Path) -> dict[str, Any]:
    """Ends a run with SIGKILL at ten random steps; the last start runs to the end."""
    whole = planned(folder, "whole", _KILLED_STEPS)
    broken = RunFolder(folder / "broken" / "run")
    shutil.copytree(whole.path, broken.path)
    plan = whole.plan()
    assert plan is not None
    env = quiet_environment(plan.threads)
    commands = [
        [sys.executable, "-m", "octavo.finetune.worker", str(run.path), str(run.path.parent)] for run in (whole, broken)
    ]
    subprocess.run(commands[0], env=env, check=True)
    at = sorted(random.Random(23).sample(range(1, _KILLED_STEPS), _KILLS))
    for step in at:
        with subprocess.Popen(commands[1], env=env, stderr=subprocess.DEVNULL) as worker:
            while worker.poll() is None and len(broken.log()) < step:
                time.sleep(0.001)
            # Anywhere in a step, also while a checkpoint is written.
            time.sleep(random.random() * 0.3)
            worker.send_signal(signal.SIGKILL)
    subprocess.run(commands[1], env=env, check=True)
    files = [(run.path.parent / _WEIGHTS).read_bytes() for run in (whole, broken)]
    return {"steps": _KILLED_STEPS, "killed_at_steps": at, "same_weights": files[0] == files[1]}


def grid(folder: Path) -> dict[str, Any]:
    """Tokens a processor second of every micro-batch in whole runs, and which one the probe took."""
    run = planned(folder, "grid", 12)
    plan = run.plan()
    assert plan is not None
    rows: list[dict[str, Any]] = []
    for size in (1, 2, 4, 8, 16):
        other = RunFolder(folder / f"grid-{size}" / "run")
        shutil.copytree(run.path, other.path)
        dataclasses.replace(plan, micro_rows=size, save_seconds=1e6).save(other.plan_file)
        command = [sys.executable, "-m", "octavo.finetune.worker", str(other.path), str(other.path.parent)]
        subprocess.run(command, env=quiet_environment(plan.threads), stderr=subprocess.DEVNULL, check=True)
        # The first steps hold the start.
        log = other.log()[2:]
        rows.append(
            {"micro_rows": size, "tokens_per_cpu_second": sum(r["tokens"] for r in log) / sum(r["cpu"] for r in log)}
        )
    best = max(row["tokens_per_cpu_second"] for row in rows)
    mine = next(row["tokens_per_cpu_second"] for row in rows if row["micro_rows"] == plan.micro_rows)
    return {"chosen": plan.micro_rows, "share_of_best": mine / best, "grid": rows}


def trl(folder: Path) -> dict[str, Any]:
    """The same rows with `trl sft`: with its defaults and peft, and with the settings of octavo's plan."""
    data, cases = write_data(folder)
    chats = folder / "chats"
    chats.mkdir()
    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    pairs = [
        {
            "prompt": [{"role": "user", "content": row["instruction"]}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }
        for row in lines
    ]
    (chats / "train.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs), encoding="utf-8")
    env = quiet_environment(2)
    found = []
    for name, settings in (("defaults", _TRL_SETTINGS[:1] + _TRL_SETTINGS[13:]), ("as octavo's plan", _TRL_SETTINGS)):
        out = folder / f"trl-{name[:2]}"
        command = [str(Path(sys.executable).with_name("trl")), "sft", "--model_name_or_path", str(embedded_model())]
        command += ["--dataset_name", str(chats), "--output_dir", str(out), "--dtype", "float32", *settings]
        code, seconds, cpu = timed(command, env)
        row = {"run": name, "settings": sum(s.startswith("--") for s in settings) + 1, "exit_code": code}
        row |= {"seconds": seconds, "cpu_seconds": cpu, "right": None, "cases": None}
        if code == 0:
            with LLM() as llm:
                llm.load_adapter("trl", out)
                skill = evaluate(llm, read_cases(cases), adapter="trl").skills["new question form"]
            row |= {"right": skill.right, "cases": skill.cases}
        found.append(row)
    return {"runs": found}


def main() -> None:
    """Runs the parts that the command line names, and puts them into the result file."""
    parts = {part.__name__: part for part in (facts, kills, grid, trl)}
    for name in sys.argv[1:] or parts:
        with tempfile.TemporaryDirectory(prefix="octavo-bench-") as folder:
            found = parts[name](Path(folder))
        result = result_file.load(RESULT) if RESULT.exists() else {}
        result[name] = found
        result["machine"] = {"cores": len(os.sched_getaffinity(0)), "note": "shared with other jobs: see cpu_seconds"}
        result_file.save(RESULT, result)


if __name__ == "__main__":
    main()
