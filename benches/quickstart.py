"""What a newcomer meets: import, start to first token, speed of the embedded model, sizes.

    python benches/quickstart.py            # writes benches/results/quickstart.json

Each figure is the median of several fresh processes (import, start) or runs (speed).
`--install` also builds a wheel and
installs it with its dependencies into a fresh environment, to measure sizes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "quickstart.json"

_IMPORT = "import time; t = time.perf_counter(); import octavo; print(time.perf_counter() - t)"
_START = """
import time
from octavo import LLM, SamplingParams
t = time.perf_counter()
llm = LLM()
next(llm.stream("Once upon a time", SamplingParams(temperature=0)))
print(time.perf_counter() - t)
"""
_SPEED = """
import time, json
from octavo import LLM, SamplingParams
llm = LLM()
params = SamplingParams(max_tokens=256, temperature=0, ignore_eos=True)
llm.generate("warm up", params)
single = []
for i in range(5):
    m = llm.generate(f"Once upon a time {i}", params)[0].metrics
    single.append(1 / m.tpot_seconds)
many = []
for i in range(3):
    t = time.perf_counter()
    llm.generate([f"Story {i} number {k}." for k in range(32)], params, use_tqdm=False)
    many.append(32 * 256 / (time.perf_counter() - t))
print(json.dumps([sorted(single)[2], sorted(many)[1]]))
"""


def run(code: str) -> str:
    """Output of `code` in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def seconds(code: str, runs: int = 7) -> float:
    """Median of what `code` prints."""
    return statistics.median(float(run(code)) for _ in range(runs))


def install_sizes() -> dict[str, int]:
    """Bytes of the wheel, and of a fresh environment's site-packages with octavo and all it needs (pip left out)."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip"]
        subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "-w", folder, str(ROOT)], check=True)
        wheel = next(Path(folder).glob("octavo-*.whl"))
        target = Path(folder) / "site"
        subprocess.run([*pip, "install", "--quiet", "--no-compile", "--target", str(target), str(wheel)], check=True)
        size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file() and not f.is_symlink())
        return {"wheel_bytes": wheel.stat().st_size, "installed_bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="measure the wheel and a fresh installation too")
    arguments = parser.parse_args()
    single, many = json.loads(run(_SPEED))
    result = {
        "date": datetime.date.today().isoformat(),
        "command": "python benches/quickstart.py --install",
        "machine": json.loads(run("import json, octavo; print(json.dumps(octavo.build_info()))")),
        "import_seconds": round(seconds(_IMPORT), 4),
        "llm_to_first_token_seconds": round(seconds(_START), 4),
        "tokens_per_second_single": round(single),
        "tokens_per_second_32_sequences": round(many),
    }
    if arguments.install:
        result.update(install_sizes())
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
