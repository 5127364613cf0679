"""Tuning with a timer that does not measure: what is fastest is found, written, and read by launchers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from octavo.triton_kernels import tune, tuned
from octavo.triton_kernels.int8_matmul import _config as matmul_config
from octavo.triton_kernels.int8_matmul import config_for
from octavo.triton_kernels.launch import INTERPRETED, record
from octavo.triton_kernels.paged_attention import Config

FACTS = {"device": "none"}


@pytest.fixture(autouse=True)
def _own_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tuned, "user_folder", lambda: tmp_path)
    tuned.forget()
    yield
    tuned.forget()


def job(space: dict[tuple[int, ...], float | Exception], wrong: tuple[int, ...] = ()) -> tuple[tune.Job, tune.Timer]:
    """A job over configurations with these times, the first being the default."""
    names = list(space)

    def now() -> tuple[int, ...]:
        found = tuned.lookup("op", "key", torch.device("cpu"))
        assert found is not None
        return found

    def run() -> torch.Tensor:
        cost = space[now()]
        if isinstance(cost, Exception):
            raise cost
        return torch.full((3,), 9.0 if now() == wrong else 1.0)

    def timer(call: Callable[[], object]) -> float:
        call()
        cost = space[now()]
        assert isinstance(cost, float)
        return cost

    return tune.Job("op", "key", names[0], tuple(names), run), timer


def test_the_fastest_right_one_wins() -> None:
    times: dict[tuple[int, ...], float | Exception] = {
        (1,): 2.0,
        (2,): 1.5,
        (3,): 0.1,
        (4,): RuntimeError("out of resource: shared memory"),
        (5,): 1.0,
    }
    assert tune.best_of(*job(times, wrong=(3,))) == ((5,), 1.0, 2.0)


def test_a_small_gain_is_noise() -> None:
    assert tune.best_of(*job({(1,): 2.0, (2,): 1.99}))[0] == (1,)


def test_a_lost_device_ends_it() -> None:
    with pytest.raises(RuntimeError, match="illegal"):
        tune.best_of(*job({(1,): 2.0, (2,): RuntimeError("CUDA error: illegal memory access")}))


def test_tables_are_written_after_each_key_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "interpreter.json"
    found, timer = job({(1,): 2.0, (2,): 1.0})
    assert tune.tune(iter([found]), timer, file, FACTS, 60) == 1
    assert json.loads(file.read_text()) == {"device": "none", "configurations": {"op": {"key": [2]}}}
    tuned.write(file, {"op": {"other": (7,)}}, FACTS)
    assert tuned.read(file) == {"op": {"key": (2,), "other": (7,)}}
    assert tune.tune(iter([found]), timer, file, FACTS, -1) == 0


@pytest.mark.skipif(not INTERPRETED, reason="a GPU has a table of another name")
def test_launchers_read_the_table(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    default = matmul_config("w8a8", 16, cpu, False)
    assert default == config_for("w8a8", 16, 9)
    mine = default._replace(columns=64, warps=8)
    tuned.write(tmp_path / "interpreter.json", {"int8_matmul": {"w8a8 16": tune._plain(mine)}}, FACTS)
    tuned.forget()
    assert matmul_config("w8a8", 16, cpu, False) == mine
    assert isinstance(matmul_config("w8a8", 16, cpu, False).split, bool)
    assert matmul_config("w8a8", 17, cpu, False) == config_for("w8a8", 17, 9)
    assert matmul_config("w8a8", 16, cpu, True) == config_for("w8a8", 16, 9, True), "deterministic reads no table"
    with record((9, 0)):
        assert matmul_config("w8a8", 16, cpu, False) == default, "the compile check is of what is committed"


@pytest.mark.parametrize("text", ["", "[]", '{"configurations": {"op": {"key": ["x"]}}}', '{"configurations": 3}'])
def test_a_damaged_table_is_no_table(text: str, tmp_path: Path) -> None:
    file = tmp_path / "interpreter.json"
    file.write_text(text)
    assert tuned.read(file) == {}


def test_every_job_runs_its_default_and_others(device: torch.device) -> None:
    """One key of each op with two configurations; the space of every key holds its default."""
    seen: set[str] = set()
    keys = []
    for found in tune.jobs(device, small=True):
        keys.append((found.op, found.key))
        assert found.default in found.space
        assert len(found.space) > 4
        if found.op not in seen:
            seen.add(found.op)
            short = tune.Job(found.op, found.key, found.default, found.space[:1], found.run)
            tune.best_of(short, lambda run: float(bool(run() is not None)))
    assert seen == {"int8_matmul", "paged_attention", "lora_shrink", "lora_expand"}
    assert ("paged_attention", "int8 decode 128") in keys
    assert len(Config._fields) == 4


def test_the_command_says_that_there_is_no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "octavo.triton_kernels.tune"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "nothing to tune" in run.stderr
