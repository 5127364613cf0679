"""What each approximation costs: the embedded model in every format, compared with itself in float32.

    python benches/fidelity.py            # writes benches/results/fidelity.json and the tables of docs/fidelity.md
    python benches/fidelity.py --document # writes the page again, from the results that are there

Same tokens for every format: the held-out cases that ship with octavo. KL(float32 || format) of the next token at every
position that counts (answers, and stories), over the whole vocabulary; the tokens of one case are not independent, so
intervals are bootstraps over cases. `--quick` takes a few of them.

A second part asks which error of the weights makes which KL: every projection is moved by random noise of a given
relative size, all at once and one kind at a time. The budget of `quantization="auto"` rests on it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_document import document
from numpy.typing import NDArray
from octavo import LLM, SamplingParams, build_info
from octavo.evaluation import Case, evaluate, held_out_cases
from octavo.evaluation.intervals import Estimate, ratio
from octavo.hub import embedded_model
from result_file import load, save

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "fidelity.json"
TEXT_RESULT = ROOT / "benches" / "results" / "text_fidelity.json"
DOCUMENT = ROOT / "docs" / "fidelity.md"

# One line for each format; the arguments are those of LLM.
REFERENCE = {"dtype": "float32", "quantization": None, "kv_cache_dtype": "float32"}
FORMATS: dict[str, dict[str, str | None]] = {
    "bfloat16 KV": {"dtype": "float32", "quantization": None, "kv_cache_dtype": "bfloat16"},
    "bfloat16 weights": {"dtype": "bfloat16", "quantization": None, "kv_cache_dtype": "float32"},
    "bfloat16 weights and KV": {"dtype": "bfloat16", "quantization": None, "kv_cache_dtype": "bfloat16"},
    "int8 weights": {"dtype": "float32", "quantization": "int8", "kv_cache_dtype": "float32"},
    "int8 weights, bfloat16 KV": {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "bfloat16"},
    "int8 KV": {"dtype": "float32", "quantization": None, "kv_cache_dtype": "int8"},
    "bfloat16 weights, int8 KV": {"dtype": "bfloat16", "quantization": None, "kv_cache_dtype": "int8"},
    "int8 weights and KV": {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"},
    "as shipped (auto)": {},
}
CASES_PER_SKILL = 6
POSITIONS_PER_CASE = 30
# Of the cases that ship, for the accuracy of every format.
SKILLS_FROM_EVERY = 5
# Of the cases that are compared, for the noise: its effect is far larger than the differences between cases.
NOISE_FROM_EVERY = 3
NOISES = (0.01, 0.02, 0.04, 0.08)
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens")

Rows = NDArray[np.float64]


def chosen(cases: Sequence[Case], llm: LLM, quick: bool) -> list[tuple[list[int], int]]:
    """Token ids of the cases that are compared, and where in each the answer begins."""
    found: list[tuple[list[int], int]] = []
    count: dict[str, int] = {}
    for case in cases:
        count[case.skill] = count.get(case.skill, 0) + 1
        if count[case.skill] > (2 if quick else CASES_PER_SKILL):
            continue
        text = case.prompt if isinstance(case.prompt, str) else ""
        if isinstance(case.prompt, list):
            text = llm.render_chat(case.prompt)
        prompt = llm.tokenize(text) if text else []
        found.append(([*prompt, *llm.tokenize(case.answer)], max(1, len(prompt))))
    return found


def distributions(llm: LLM, ids: list[int], start: int) -> Rows:
    """Log-probabilities of the whole vocabulary at the positions from `start` on, [positions, vocab]."""
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, logprobs=-1)
    prompts = [ids[:end] for end in range(start, min(len(ids), start + POSITIONS_PER_CASE))]
    # The first one fills the prefix cache for the others.
    outputs = llm.generate(prompts[:1], params) + llm.generate(prompts[1:], params, use_tqdm=False)
    tables = [output.outputs[0].logprobs for output in outputs]
    rows = [table[0] for table in tables if table]
    found = np.empty((len(rows), len(rows[0])))
    for at, row in enumerate(rows):
        found[at, list(row)] = [candidate.logprob for candidate in row.values()]
    return found


def kl(want: Rows, got: Rows) -> NDArray[np.float64]:
    """KL(want || got) of each row, in nats."""
    return np.maximum(0.0, (np.exp(want) * (want - got)).sum(axis=1))


def compare(llm: LLM, cases: Sequence[tuple[list[int], int]], want: Sequence[Rows]) -> dict[str, Any]:
    """KL, top-1 agreement and perplexity against the reference distributions."""
    each, agree, nats, base = [], [], [], []
    for (ids, start), reference in zip(cases, want, strict=True):
        got = distributions(llm, ids, start)
        each.append(kl(reference, got))
        agree.append((reference.argmax(axis=1) == got.argmax(axis=1)).astype(float))
        tokens = ids[start : start + len(got)]
        nats.append(-float(got[range(len(got)), tokens].sum()))
        base.append(-float(reference[range(len(got)), tokens].sum()))
    sizes = [len(x) for x in each]
    every = np.concatenate(each)
    # Of the same tokens: what differs between the formats is a ratio, far surer than either perplexity.
    change = ratio([a - b for a, b in zip(nats, base, strict=True)], sizes)
    return {
        "tokens": int(sum(sizes)),
        "kl_mean": interval(ratio([float(x.sum()) for x in each], sizes)),
        "kl_p99": float(np.quantile(every, 0.99)),
        "kl_max": float(every.max()),
        "top1_agreement": interval(ratio([float(x.sum()) for x in agree], sizes)),
        "perplexity": float(np.exp(sum(nats) / sum(sizes))),
        "perplexity_change": interval(Estimate(*(float(np.expm1(x)) for x in (change.value, change.low, change.high)))),
    }


def interval(estimate: Estimate) -> dict[str, float]:
    """As JSON."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def noisy_models(quick: bool) -> Iterator[tuple[str, float, Path]]:
    """Folders of the embedded model in float32, moved by noise: the kind, its relative size, the folder."""
    from safetensors.numpy import save_file

    weights = bfloat16_tensors(embedded_model() / "model.safetensors")
    jobs = [("all", size) for size in NOISES] + [(kind, 0.04) for kind in KINDS]
    for kind, size in jobs[:2] if quick else jobs:
        generator = np.random.default_rng(1)
        moved = {}
        for name, value in weights.items():
            is_moved = value.ndim == 2 and (kind == "all" or kind in name)
            noise = generator.standard_normal(value.shape).astype(np.float32) * np.sqrt(np.mean(value**2))
            moved[name] = value + size * noise if is_moved else value
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "model"
            shutil.copytree(embedded_model(), copy)
            save_file(moved, copy / "model.safetensors")
            yield kind, size, copy


def bfloat16_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors of a safetensors file of bfloat16, as float32 (numpy has no bfloat16)."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = (8 + size + offset for offset in entry["data_offsets"])
        bits = np.frombuffer(content[first:last], "<u2").astype(np.uint32) << 16
        found[name] = bits.view(np.float32).reshape(entry["shape"])
    return found


def measure(quick: bool) -> dict[str, Any]:
    """The whole report."""
    cases = held_out_cases()
    with LLM(**REFERENCE) as llm:  # type: ignore[arg-type]
        picked = chosen(cases, llm, quick)
        want = [distributions(llm, *case) for case in picked]
        every = cases[:: 40 if quick else SKILLS_FROM_EVERY]
        report = evaluate(llm, every).as_dict()
        formats: dict[str, Any] = {"float32": {"skills": report["skills"]}}
    for name, options in FORMATS.items():
        with LLM(**options) as llm:  # type: ignore[arg-type]
            formats[name] = {
                "options": options, **compare(llm, picked, want), "skills": evaluate(llm, every).as_dict()["skills"],
            }  # fmt: skip
        print(f"{name}: mean KL {formats[name]['kl_mean']['value']:.5f}", flush=True)
    noise = []
    for kind, size, folder in noisy_models(quick):
        with LLM(folder, **REFERENCE) as llm:  # type: ignore[arg-type]
            found = compare(llm, picked[::NOISE_FROM_EVERY], want[::NOISE_FROM_EVERY])
        noise.append({"moved": kind, "relative_error": size, "kl_mean": found["kl_mean"]})
        print(f"noise of {size} in {kind}: mean KL {found['kl_mean']['value']:.5f}", flush=True)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {key: build_info()[key] for key in ("cpu", "isa", "threads")},
        "cases": len(picked),
        "formats": formats,
        "noise": noise,
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, for a look")
    parser.add_argument("--document", action="store_true", help="measures nothing, writes the page")
    args = parser.parse_args()
    report = load(args.output) if args.document else measure(args.quick)
    if not args.document:
        save(args.output, report)
    if args.output == RESULT:
        DOCUMENT.write_text(document(report, load(TEXT_RESULT)), encoding="utf-8")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
