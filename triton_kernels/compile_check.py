"""Compiles every kernel in every committed configuration ahead of time: no GPU and no driver are needed.

    python -m octavo.triton_kernels.compile_check [--quick] [--op OP] [--case TEXT] [--capability 80] [--out FILE]

Launchers run on meta tensors and their launches are recorded: the check compiles the variants that users launch. A
kernel fails if it spills registers (a stack in `cuobjdump -res-usage` that instructions use), or if it needs more
shared memory than a block of that device may have. Rows list registers, shared memory, tensor-core and TMA
instructions. They depend on the kernels and on Triton's version only: a second run writes the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from .compile_cases import Case, cases
from .launch import INTERPRETED, Launch, record

CAPABILITIES = (90, 80, 100)
SHARED_MEMORY_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Shared memory limit of a block, per compute capability."""

INSTRUCTIONS = {
    "mma.sync": r"\bmma\.sync",
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "TMA": r"\bcp\.async\.bulk\.tensor",
    "cp.async": r"\bcp\.async\.c[ag]",
}

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


def compile_source(launch: Launch) -> ASTSource:
    """What Triton's launcher would compile for these arguments: ones and multiples of 16 are known to the compiler."""
    signature: dict[str, str] = {}
    constants = dict(launch.constants)
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        if name in launch.constants:
            signature[name] = "constexpr"
            continue
        value = launch.arguments[name]
        signature[name] = _type(value)
        if isinstance(value, torch.Tensor) or (
            isinstance(value, int) and not parameter.do_not_specialize and value % 16 == 0
        ):
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif value is None or (value == 1 and isinstance(value, int) and not parameter.do_not_specialize):
            signature[name] = "constexpr"
            constants[name] = value
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def _type(value: Any) -> str:
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if value is None or abs(value) < 1 << 31 else "i64"


def compile_launch(launch: Launch, arch: int) -> dict[str, Any]:
    """Registers, spills, shared memory and instructions of one compiled kernel."""
    options = {"num_warps": launch.options.warps, "num_stages": launch.options.stages, "enable_fp_fusion": True}
    compiled = triton.compile(compile_source(launch), target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        numbers = {key: int(number) for key, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
        stack = numbers["STACK"] + numbers["LOCAL"]
        # The compiler reserves a few bytes now and then that no instruction loads or stores.
        if stack and not re.search(r"\b(STL|LDL)\b", _tool("nvdisasm", "-c", file.name)):
            stack = 0
    return {
        "registers": numbers["REG"],
        "spill_bytes": stack,
        "shared_bytes": compiled.metadata.shared,
        "warps": launch.options.warps,
        "stages": launch.options.stages,
        "instructions": [name for name, pattern in INSTRUCTIONS.items() if re.search(pattern, ptx)],
    }


def _tool(name: str, *arguments: str) -> str:
    """What one of the tools that come with Triton prints."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def faults(row: Mapping[str, Any], arch: int) -> list[str]:
    """Reasons to reject a compiled kernel; empty if there are none."""
    found = []
    if row["spill_bytes"]:
        found.append(f"spills {row['spill_bytes']} bytes a thread")
    if row["shared_bytes"] > SHARED_MEMORY_BYTES[arch]:
        found.append(f"needs {row['shared_bytes']} bytes of shared memory of {SHARED_MEMORY_BYTES[arch]}")
    return found


def rows_of(chosen: Iterable[Case], architectures: Iterable[int]) -> Iterator[dict[str, Any]]:
    """One row per distinct kernel, case and device."""
    chosen = list(chosen)
    for arch in architectures:
        for case in chosen:
            with record((arch // 10, arch % 10)) as launches:
                case.run()
            for launch in launches:
                row = compile_launch(launch, arch)
                head = {"op": case.op, "case": case.name, "kernel": launch.kernel.__name__, "capability": arch}
                yield head | row | {"faults": faults(row, arch)}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Merges the rows into those of the same Triton version, one row a line. Called after each row."""
    note = "Compiled ahead of time; nothing here was run or measured on a GPU."
    same = path.exists() and json.loads(path.read_text(encoding="utf-8"))["triton"] == triton.__version__
    kept = read(path) if same else []
    key = ("capability", "op", "case", "kernel")
    merged = {tuple(row[name] for name in key): row for row in [*kept, *rows]}
    columns = list(rows[0])
    lines = ",\n".join(f"  {json.dumps([merged[k][name] for name in columns])}" for k in sorted(merged))
    head = f' "note": {json.dumps(note)},\n "triton": {json.dumps(triton.__version__)},\n'
    head += f' "columns": {json.dumps(columns)},\n'
    path.write_text(f'{{\n{head} "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of `write`."""
    written = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(written["columns"], row, strict=True)) for row in written["rows"]]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown table of the rows: a line per kernel and case, a column per device."""
    cells: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in rows:
        found = " ".join(row["instructions"]) or "-"
        text = f"{row['registers']}, {row['shared_bytes']:,}, {found}"
        cells.setdefault((row["op"], row["case"], row["kernel"]), {})[row["capability"]] = text
    devices = sorted({capability for cell in cells.values() for capability in cell})
    lines = ["| op | case | kernel | " + " | ".join(f"sm_{device}" for device in devices) + " |"]
    lines.append("|---" * (3 + len(devices)) + "|")
    for (op, case, kernel), cell in sorted(cells.items()):
        line = [op, case, f"`{kernel}`", *(cell.get(device, "") for device in devices)]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def write_table(document: Path, text: str) -> None:
    """Replaces the table in `document`, from its head line to the end of the file."""
    before, found, _ = document.read_text(encoding="utf-8").partition(text.partition("| sm_")[0])
    if not found:
        raise ValueError(f"{document} has no such table")
    document.write_text(f"{before}{text}\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Prints a line per kernel; 1 if any fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one configuration per kernel")
    parser.add_argument("--capability", type=int, nargs="*", default=list(CAPABILITIES), choices=CAPABILITIES)
    parser.add_argument("--op", nargs="*", help="only these ops")
    parser.add_argument("--case", default="", help="only cases with this text in their name")
    parser.add_argument("--out", type=Path, help="write the rows as JSON; rows there of other kernels are kept")
    parser.add_argument("--table", type=Path, help="compile nothing: print the rows of a JSON file as Markdown")
    parser.add_argument("--document", type=Path, help="with --table: replace the table at the end of this file")
    options = parser.parse_args(arguments)
    if options.table:
        text = table(read(options.table))
        write_table(options.document, text) if options.document else print(text)
        return 0
    if INTERPRETED:
        print("TRITON_INTERPRET is set: unset it, interpreted kernels cannot be compiled", file=sys.stderr)
        return 2
    chosen = [
        case
        for case in cases()
        if (case.quick or not options.quick) and (not options.op or case.op in options.op) and options.case in case.name
    ]
    rows = []
    failed = 0
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)
        for row in rows_of(chosen, options.capability):
            rows.append(row)
            failed += bool(row["faults"])
            print(
                f"sm_{row['capability']:<4}{row['op']:<20}{row['case']:<34}{row['kernel']:<30}"
                f"{row['registers']:>4} registers {row['shared_bytes']:>7} B shared  "
                f"{' '.join(row['instructions']):<20} "
                f"{'; '.join(row['faults'])}",
                flush=True,
            )
            if options.out:
                write(options.out, rows)
    print(f"{len(rows)} kernels compiled, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
