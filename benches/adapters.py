"""What adapters cost: decode and prefill with one of rank 16 on all projections, and with 1 to 16 different ones.

    python -m benches.adapters                    # about fifteen minutes on a calm machine, most of them peft's
    python -m benches.adapters --shapes qwen2.5-0.5b --rounds 2 --skip-peft

writes benches/results/adapters.json and the table of docs/adapter-costs.md.

Every figure is a ratio to the same batch without an adapter. Both run in one process, in turn, and the ratio is the
median over rounds. Weights are random: what they are plays no part. transformers with peft has the same checkpoint in
bfloat16, and two ways: switching (the rows of each adapter run as a batch of their own) and mixed (`adapter_names`).
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from octavo import LLM, SamplingParams, build_info
from octavo.bench.arms import measure, with_random_adapters
from octavo.bench.random_adapters import write_random_adapters

from benches.compare.shapes import SHAPES
from benches.random_checkpoint import write_checkpoint
from benches.result_file import load, save

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "adapters.json"
DOCUMENT = ROOT / "docs" / "adapter-costs.md"
BEGIN, END = "<!-- measured by benches/adapters.py -->", "<!-- end -->"
RANK = 16
COUNTS = [1, 2, 4, 8, 16]
# Rows, prompt tokens and new tokens of each measure, and the numbers of adapters.
MEASURES = {
    "decode_1": (1, 2, 49, [1]),
    "decode_8": (8, 2, 33, [1]),
    "prefill_512": (1, 512, 1, [1]),
    "curve_16": (16, 2, 25, COUNTS),
}
PEFT_ROWS, PEFT_PROMPT, PEFT_NEW = 16, 4, 4


def octavo_rows(model: Path, vocab: int, rounds: int, threads: int | None) -> list[dict[str, Any]]:
    """Ratios of every measure."""
    rows = []
    draw = np.random.default_rng(1)
    with (
        LLM(model, threads=threads, max_model_len=1024, max_loras=max(COUNTS), max_lora_memory="2GiB") as llm,
        with_random_adapters(llm, model, RANK, max(COUNTS)) as names,
    ):
        memory = llm.adapters()[0].bytes
        for name, (batch, prompt, new, counts) in MEASURES.items():
            total = (rounds + 1) * (1 + len(counts))
            batches = [draw.integers(3, vocab - 3, (batch, prompt)).tolist() for _ in range(total)]
            sampling = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True)
            arms = measure(llm, batches, names, counts, sampling, warmups=1, max_seconds=600)
            for arm in arms[1:]:
                found = arm.against(arms[0])
                row = {
                    "measure": name,
                    "threads": threads or os.cpu_count(),
                    "distinct": arm.distinct,
                    "ratio": found["first_token" if new == 1 else "decode"],
                    "cpu_ratio": found["cpu"],
                    "none_ms": 1e3 * statistics.median(arms[0].first if new == 1 else arms[0].decode),
                    "adapter_bytes": memory,
                }
                rows.append(row)
                print(row, flush=True)
    return rows


def peft_rows(model: Path, vocab: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Time of a decode step of 16 rows in transformers with peft: none, switching and mixed."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    tokens = torch.from_numpy(np.random.default_rng(2).integers(3, vocab - 3, (PEFT_ROWS, PEFT_PROMPT)))

    def decode(run: Callable[..., Any], ids: torch.Tensor) -> float:
        """Seconds of the steps after the prompt."""
        step = run(input_ids=ids, use_cache=True, logits_to_keep=1)
        begin = time.perf_counter()
        for _ in range(PEFT_NEW - 1):
            step = run(input_ids=step.logits[:, -1].argmax(-1, keepdim=True), past_key_values=step.past_key_values)
        return time.perf_counter() - begin

    with tempfile.TemporaryDirectory(prefix="octavo-adapters-") as folder:
        made = write_random_adapters(model, Path(folder), RANK, max(COUNTS))
        live = PeftModel.from_pretrained(base, made[0], adapter_name=made[0].name, autocast_adapter_dtype=False).eval()
        for other in made[1:]:
            live.load_adapter(other, adapter_name=other.name, autocast_adapter_dtype=False)
        names = [m.name for m in made]

        def none(_: int) -> float:
            with live.disable_adapter():
                return decode(live, tokens)

        def switching(count: int) -> float:
            seconds = 0.0
            for i in range(count):
                live.set_adapter(names[i])
                seconds += decode(live, tokens[i::count])
            return seconds

        def mixed(count: int) -> float:
            rows = [names[i % count] for i in range(PEFT_ROWS)]
            return decode(lambda **inputs: live(**inputs, adapter_names=rows), tokens)

        arms = [
            ("none", none, 1),
            *((w, f, c) for c in COUNTS for w, f in (("switching", switching), ("mixed", mixed))),
        ]
        times: list[list[float]] = [[] for _ in arms]
        for turn in range(rounds // 2 + 2):
            for j in range(len(arms)):
                at = (turn + j) % len(arms)
                taken = arms[at][1](arms[at][2])
                if turn:
                    times[at].append(taken)
    rows = []
    for (way, _, count), mine in zip(arms[1:], times[1:], strict=True):
        ratio = statistics.median(m / o for m, o in zip(mine, times[0], strict=True))
        none_ms = 1e3 * statistics.median(times[0]) / (PEFT_NEW - 1)
        rows.append({"way": way, "distinct": count, "ratio": ratio, "none_step_ms": none_ms})
        print(rows[-1], flush=True)
    return rows


def table(report: dict[str, Any]) -> str:
    """The part of the document that holds numbers."""
    head = "| shape | decode, 1 row | decode, 8 rows | prefill of 512 |" + "".join(f" {c} |" for c in COUNTS)
    lines = [head, "|---" * (4 + len(COUNTS)) + "|"]
    for shape, parts in report["shapes"].items():
        found = {(row["measure"], row["distinct"]): row["ratio"] for row in parts["octavo"]}
        cells = [found[name, 1] for name in ("decode_1", "decode_8", "prefill_512")]
        cells += [found["curve_16", count] for count in COUNTS]
        lines.append(f"| {SHAPES[shape].label} | " + " | ".join(f"{cell - 1:+.1%}" for cell in cells) + " |")
        for way in ("switching", "mixed"):
            peft = {row["distinct"]: row["ratio"] for row in parts["peft"] if row["way"] == way}
            if peft:
                cells_of = " | ".join(f"{peft[count] - 1:+.0%}" for count in COUNTS)
                lines.append(f"| transformers + peft, {way} | | | | {cells_of} |")
    return "\n".join(lines)


def write_document(report: dict[str, Any]) -> None:
    """Puts the table between its marks."""
    text = DOCUMENT.read_text(encoding="utf-8")
    if BEGIN not in text:
        print(f"{DOCUMENT} has no {BEGIN}: it is left as it is")
        return
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(report)}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measures, and writes the result and the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="some of: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of octavo and of torch (one per core)")
    parser.add_argument("--skip-peft", action="store_true", help="keep peft's rows of the last run")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    report = load(arguments.output) if arguments.output.exists() else {"shapes": {}}
    if not arguments.table:
        report |= {"date": datetime.date.today().isoformat(), "machine": build_info(), "rank": RANK}
        for shape in arguments.shapes.split(","):
            kept = report["shapes"].get(shape, {}).get("peft", [])
            with tempfile.TemporaryDirectory(prefix="octavo-shape-") as folder:
                model, vocab = Path(folder), SHAPES[shape].vocab_size
                write_checkpoint(SHAPES[shape], model)
                rows = octavo_rows(model, vocab, arguments.rounds, arguments.threads)
                peft = (
                    kept
                    if arguments.skip_peft
                    else peft_rows(model, vocab, arguments.rounds, arguments.threads or os.cpu_count() or 1)
                )
            report["shapes"][shape] = {"octavo": rows, "peft": peft}
            save(arguments.output, report)
    if arguments.output == RESULT:
        write_document(report)
    print(table(report))


if __name__ == "__main__":
    main()
