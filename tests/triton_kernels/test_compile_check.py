"""The compile check: every case launches something, what it reads off a compiled kernel is there, faults are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from octavo.triton_kernels.compile_cases import cases
from octavo.triton_kernels.compile_check import SHARED_MEMORY_BYTES, faults, read, table
from octavo.triton_kernels.int8_matmul import int8_matmul
from octavo.triton_kernels.launch import record


def test_every_case_records_launches_without_a_device() -> None:
    names = [(case.op, case.name) for case in cases()]
    assert len(names) == len(set(names))
    for capability in ((8, 0), (9, 0), (10, 0)):
        for case in cases():
            with record(capability) as launches:
                case.run()
            assert launches, f"{case.op}: {case.name}"


def test_each_op_has_a_quick_case() -> None:
    assert {case.op for case in cases() if case.quick} == {case.op for case in cases()}


def test_recorded_launches_choose_by_the_device_asked_for() -> None:
    x, w = (torch.empty(n, 4096, dtype=torch.int8, device="meta") for n in (5000, 4096))
    scales = [torch.empty(n, 1, device="meta") for n in (5000, 4096)]
    descriptors = []
    for capability in ((8, 0), (9, 0)):
        with record(capability) as launches:
            int8_matmul(x, scales[0], w, scales[1])
        descriptors.append(launches[0].constants["DESCRIPTORS"])
    assert descriptors == [False, True]


def test_faults() -> None:
    fine = {"spill_bytes": 0, "shared_bytes": 200 << 10}
    assert faults(fine, 90) == []
    assert "shared memory" in faults(fine, 80)[0]
    assert faults(fine | {"spill_bytes": 8}, 90) == ["spills 8 bytes a thread"]


def test_the_committed_rows_have_no_faults_and_stand_in_the_document() -> None:
    root = Path(__file__).parents[2]
    rows = read(root / "benches" / "results" / "gpu_compile.json")
    for row in rows:
        assert row["faults"] == faults(row, row["capability"]) == [], row
        assert row["shared_bytes"] <= SHARED_MEMORY_BYTES[row["capability"]]
    names = {(case.op, case.name) for case in cases()}
    unknown = [(row["op"], row["case"]) for row in rows if (row["op"], row["case"]) not in names]
    assert not unknown, f"rows of cases that are gone: {unknown}"
    document = (root / "docs" / "gpu-kernels.md").read_text(encoding="utf-8")
    assert table(rows) in document, "run compile_check --table benches/results/gpu_compile.json --document FILE"


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is built for Linux")
def test_the_command_compiles_and_writes_rows(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "octavo.triton_kernels.compile_check", "--quick", "--op", "quantize"]
    run = subprocess.run(
        [*command, "--capability", "90", "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = read(out)
    assert [row["kernel"] for row in rows] == ["quantize_groups_kernel"] * 2
    assert all(0 < row["registers"] < 256 for row in rows)
    refused = subprocess.run(
        command, env=environment | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "unset it" in refused.stderr
