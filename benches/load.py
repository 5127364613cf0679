"""What a start costs: from a bfloat16 checkpoint, quantised at load, and from what `octavo quantize` makes of it.

    python -m benches.load                   # writes benches/results/load.json
    python -m benches.load --shapes qwen2.5-0.5b --rounds 1

Shapes are real, weights random, the tokenizer is as large as theirs. Every start is a fresh process, the files in the
page cache, the two forms in turns; figures are medians. Processor seconds are given beside those of the clock, which
others on the machine lengthen. Decoding from the mapped file and from memory is compared in one process, a few tokens
of each in turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benches.compare.shapes import SHAPES
from benches.random_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "load.json"

_PEAK = """
def peak():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""
_START = (
    _PEAK
    + """
import json, sys, time
from octavo import LLM, SamplingParams
begin = time.perf_counter()
llm = LLM(sys.argv[1], max_model_len=2048, max_num_seqs=8)
load, load_peak = time.perf_counter() - begin, peak()
next(llm.stream(list(range(1, 17)), SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)))
memory = {part["name"]: part["bytes"] for part in llm.info()["memory"]}
print(json.dumps({"first_token_at": time.monotonic(), "load_seconds": load, "load_peak_bytes": load_peak,
                  "peak_bytes": peak(), "weight_bytes": memory["weights"]}))
"""
)
_QUANTIZE = (
    _PEAK
    + """
import json, sys
from octavo.quantize import quantize_folder
made = quantize_folder(sys.argv[1], sys.argv[2])
print(json.dumps({"file_bytes": made.weight_bytes, "peak_bytes": peak()}))
"""
)
# Tokens of each turn are few, so that both forms meet the same disturbances.
_DECODE = """
import json, statistics, sys, time
from octavo import LLM, SamplingParams
params = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)
models = [LLM(folder, max_model_len=256, max_num_seqs=1, enable_prefix_caching=False) for folder in sys.argv[1:3]]
speeds = [[], []]
for turn in range(int(sys.argv[3]) + 1):
    for i, llm in enumerate(models):
        metrics = llm.generate(list(range(1, 17)), params)[0].metrics
        if turn:
            speeds[i].append(1 / metrics.tpot_seconds)
ratios = [mapped / memory for memory, mapped in zip(*speeds)]
print(json.dumps({"memory": statistics.median(speeds[0]), "mapped": statistics.median(speeds[1]),
                  "mapped_to_memory": statistics.median(ratios), "turns": len(ratios)}))
"""


def run(code: str, *arguments: object) -> dict[str, Any]:
    """What `code` prints in a fresh interpreter, with the seconds since its start."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    found: dict[str, Any] = json.loads(done.stdout)
    if "first_token_at" in found:
        found["start_to_first_token_seconds"] = found.pop("first_token_at") - begin
    return {**found, "seconds": seconds, "processor_seconds": cpu}


def median(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of each figure; bytes are whole."""
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return {key: int(value) if key.endswith("bytes") else round(value, 4) for key, value in medians.items()}


def measure(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """All figures of a shape."""
    checkpoint, quantized = folder / name, folder / f"{name}-int8"
    if not (checkpoint / "model.safetensors").is_file():
        write_checkpoint(SHAPES[name], checkpoint)
    shutil.rmtree(quantized, ignore_errors=True)
    made = run(_QUANTIZE, checkpoint, quantized)
    starts: dict[str, list[dict[str, Any]]] = {"checkpoint": [], "quantized": []}
    for _ in range(rounds):
        for form, path in (("checkpoint", checkpoint), ("quantized", quantized)):
            starts[form].append(run(_START, path))
    return {
        "quantize": made,
        **{form: median(rows) for form, rows in starts.items()},
        "decode_tokens_per_second": run(_DECODE, checkpoint, quantized, 4 * rounds + 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="folder that keeps the checkpoints (3.5 GB)")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    from octavo import build_info

    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.cache or Path(scratch)
        shapes = {name: measure(name, folder, arguments.rounds) for name in arguments.shapes}
    result = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m benches.load",
        "rounds": arguments.rounds,
        "machine": {**build_info(), "system": f"{platform.system()} {platform.release()}"},
        # Above the number of threads: others were at work, and seconds are longer than they need be.
        "load_average": os.getloadavg()[1],
        "shapes": shapes,
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
