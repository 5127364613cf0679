"""`octavo bench latency --lora-rank`: the adapters that it makes, its ratios, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from octavo.bench.arms import Arm, parse_counts
from octavo.bench.random_adapters import write_random_adapters
from octavo.cli import app
from octavo.errors import InvalidRequestError
from octavo.hub import embedded_model
from octavo.merge import merge_adapter
from typer.testing import CliRunner


def test_random_adapters_fit_the_model(tmp_path: Path) -> None:
    first, second = write_random_adapters(embedded_model(), tmp_path / "adapters", 3, 2)
    made = merge_adapter(embedded_model(), first, tmp_path / "out")
    assert len(made.merged) == 6 * 7
    assert not made.warnings
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (first, second)]
    assert len(weights[0]) == len(weights[1])
    assert weights[0] != weights[1]
    again = write_random_adapters(embedded_model(), tmp_path / "again", 3, 1)[0]
    assert (again / "adapter_model.safetensors").read_bytes() == weights[0]
    with pytest.raises(InvalidRequestError, match="no projections"):
        write_random_adapters(tmp_path, tmp_path / "none", 3, 1)


def test_ratios_are_medians_within_rounds() -> None:
    """A slow round slows both arms, and leaves the ratio."""
    base = Arm(0, [1.0, 10.0, 1.0], [0.5, 5.0, 0.5])
    arm = Arm(4, [1.2, 12.0, 3.0], [0.6, 6.0, 1.0])
    assert arm.against(base) == pytest.approx({"batch": 1.2, "first_token": 1.2, "decode": 1.2})
    shown = arm.as_dict(base)
    assert (shown["distinct"], shown["latency_ms"]["count"]) == (4, 3)
    assert shown["decode_ms"] == pytest.approx(2000)
    only_first = Arm(0, [1.0], [1.0])
    assert "decode" not in arm.against(Arm(0, base.seconds, base.seconds))
    assert only_first.against(only_first) == {"batch": 1.0, "first_token": 1.0}


def test_counts() -> None:
    assert parse_counts("--distinct", "4,1,2,2", 8) == [1, 2, 4]
    for text, word in (("1,x", "numbers"), ("", "numbers"), ("9", "8 rows"), ("0", "8 rows")):
        with pytest.raises(InvalidRequestError, match=word):
            parse_counts("--distinct", text, 8)


def test_command() -> None:
    small = [
        "--input-len",
        "6",
        "--output-len",
        "3",
        "--batch-size",
        "4",
        "--num-iters",
        "2",
        "--num-iters-warmup",
        "1",
    ]
    run = ["bench", "latency", *small, "--lora-rank", "3", "--distinct", "1,4"]
    result = CliRunner().invoke(app, [*run, "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["lora_rank"] == 3
    assert [arm["distinct"] for arm in shown["adapters"]] == [1, 4]
    assert all(arm["against_none"]["batch"] > 0 for arm in shown["adapters"])
    table = CliRunner().invoke(app, run).stdout
    assert "4 adapters: decode against none" in table
