"""What dynamic attention does on real heads: those of the embedded model, on held-out text.

    python benches/dynamic_attention.py
    python benches/dynamic_attention.py --speed      # only the table of `octavo bench attention`

writes benches/results/dynamic_attention.json and the tables of docs/dynamic-attention.md, that of speed from
benches/results/attention.json.

Three parts, all against dense attention over the same int8 cache:

- heads: prompts of some 2,300 tokens, at several bounds, certified and estimated, every call audited (`audit=1`):
  how many calls go dense, what is read, what the bounds say and how far off the calls were in truth;
- audit: such prompts until a million calls have been audited at the default bound; a violation is a fault;
- quality: KL of the next token and perplexity at the same positions, and accuracy by skill on the same cases, paired.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

from fidelity import chosen, compare, distributions
from octavo import LLM, DynamicAttention, SamplingParams, build_info
from octavo.evaluation import evaluate, held_out_cases
from result_file import load, save

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "dynamic_attention.json"
DOCUMENT = ROOT / "docs" / "dynamic-attention.md"
BEGIN, END = "<!-- measured by benches/dynamic_attention.py -->", "<!-- end -->"
SPEED = ROOT / "benches" / "results" / "attention.json"
BEGIN_SPEED, END_SPEED = "<!-- measured by octavo bench attention -->", "<!-- end of speed -->"
SPEED_CONTEXTS = (8192, 32768, 131072)

WAYS = (("certified", 0.1), ("certified", 0.01), ("certified", 0.001), ("estimated", 0.01), ("estimated", 0.001))
# Contexts here are short: queries choose from the third block on.
MIN_CONTEXT = 64
PROMPT_TOKENS = 2300
AUDITED_CALLS = 1_000_000
SKILLS_FROM_EVERY = 5


def choice(bound: float, audit: int = 0, mode: Any = "certified") -> DynamicAttention:
    """The default but for short contexts."""
    return DynamicAttention(mode=mode, error_bound=bound, min_context=MIN_CONTEXT, audit=audit)


def prompts(llm: LLM, count: int) -> list[list[int]]:
    """Token ids of stories, one after the other, cut where a prompt is full. Each begins elsewhere."""
    texts = [
        case.answer if isinstance(case.prompt, list) or not case.prompt else case.prompt for case in held_out_cases()
    ]
    stream: list[int] = []
    for text in sorted(texts, key=len, reverse=True):
        stream += llm.tokenize(text)
        if len(stream) > 40 * PROMPT_TOKENS:
            break
    room = max(1, len(stream) - PROMPT_TOKENS)
    return [stream[(i * 977) % room :][:PROMPT_TOKENS] for i in range(count)]


def heads(count: int) -> list[dict[str, Any]]:
    """A row for each mode and bound."""
    rows = []
    for mode, bound in WAYS:
        with LLM(attention=choice(bound, 1, mode)) as llm:
            outputs = llm.generate(prompts(llm, count), SamplingParams(max_tokens=32, temperature=0), use_tqdm=False)
            found = [o.metrics.attention for o in outputs if o.metrics is not None and o.metrics.attention is not None]
            stats = llm.stats()["attention"]
        calls = sum(a.calls for a in found)
        row = {
            "mode": mode,
            "error_bound": bound,
            "calls": calls,
            "dense_share": stats["dense_calls"] / stats["calls"],
            "bytes_share": stats["bytes_read"] / stats["bytes_dense"],
            "max_bound": max(a.max_omitted_mass for a in found),
            "mean_bound": sum(a.mean_omitted_mass * a.calls for a in found) / calls,
            "mean_estimate": sum(a.mean_estimated_mass * a.calls for a in found) / calls,
            "max_mass": max(a.max_audited_mass or 0.0 for a in found),
            "max_output_bound": max(a.max_output_error for a in found),
            "max_output_error": max(a.max_audited_error or 0.0 for a in found),
            "audited_calls": sum(a.audited_calls for a in found),
            "violations": sum(a.violations for a in found),
        }
        rows.append(row)
        print(f"{mode} {bound}: {row}", flush=True)
    return rows


def audit(calls: int) -> dict[str, int]:
    """Generations at the default bound until so many calls were audited."""
    with LLM(attention=choice(0.01, audit=1)) as llm:
        for index, prompt in enumerate(prompts(llm, 1000)):
            llm.generate(prompt, SamplingParams(max_tokens=64, seed=index), use_tqdm=False)
            stats = llm.stats()["attention"]
            if stats["audited_calls"] >= calls:
                break
    print(f"audit: {stats}", flush=True)
    return {"audited_calls": stats["audited_calls"], "violations": stats["violations"]}


def quality(quick: bool) -> dict[str, Any]:
    """Dynamic against dense, over the same int8 cache, case by case."""
    cases = held_out_cases()
    every = cases[:: 40 if quick else SKILLS_FROM_EVERY]
    with LLM(kv_cache_dtype="int8") as llm:
        picked = chosen(cases, llm, quick)
        want = [distributions(llm, *case) for case in picked]
        dense = evaluate(llm, every).as_dict()["skills"]
    with LLM(attention=choice(0.01)) as llm:
        found = compare(llm, picked, want)
        dynamic = evaluate(llm, every).as_dict()["skills"]
        stats = llm.stats()["attention"]
    print(f"quality: {found}", flush=True)
    return {
        "cases": len(picked),
        "error_bound": 0.01,
        **found,
        "bytes_share": stats["bytes_read"] / stats["bytes_dense"],
        "skills_dense": dense,
        "skills_dynamic": dynamic,
    }


def table(report: dict[str, Any]) -> str:
    """The part of the document that holds numbers."""
    lines = [
        f"The embedded model (6 layers of 6 query heads of 32 values on 2 KV heads), prompts of {PROMPT_TOKENS:,}",
        "tokens of held-out text. Every call is compared with a dense call:",
        "",
        "| mode | bound | dense calls | bytes read | left out: estimate, mean | bound, mean | bound, largest "
        "| in truth, largest | output error: bound | in truth |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["heads"]:
        cells = (
            row["mode"],
            f"{row['error_bound']:g}",
            f"{row['dense_share']:.0%}",
            f"{row['bytes_share']:.1%}",
            f"{row['mean_estimate']:.1e}",
            f"{row['mean_bound']:.1e}",
            f"{row['max_bound']:.1e}",
            f"{row['max_mass']:.1e}",
            f"{row['max_output_bound']:.2g}",
            f"{row['max_output_error']:.2g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    q, a = report["quality"], report["audit"]
    change = q["perplexity_change"]
    lines += [
        "",
        f"{a['audited_calls']:,} audited calls of generations at a bound of 0.01: {a['violations']} violations.",
        "",
        f"At a bound of 0.01, against dense attention over the same cache, on {q['tokens']:,} positions of",
        f"{q['cases']} held-out cases: KL of the next token {q['kl_mean']['value']:.1e} nats in the mean,",
        f"{q['kl_p99']:.1e} at the 99th percentile; the same best token at {q['top1_agreement']['value']:.1%};",
        f"perplexity {change['value']:+.2%} ({change['low']:+.2%} to {change['high']:+.2%});",
        f"{q['bytes_share']:.0%} of the bytes read. Accuracy by skill, on the same cases:",
        "",
        "| skill | dense | dynamic |",
        "|---|---|---|",
    ]
    for name, dense in q["skills_dense"].items():
        if dense.get("accuracy") is not None:
            lines.append(f"| {name} | {shown(dense)} | {shown(q['skills_dynamic'][name])} |")
    return "\n".join(lines)


def speed_table(measured: dict[str, Any]) -> str:
    """The table of `octavo bench attention`: each kind of head, at the default bound."""
    machine = measured["machine"]
    lines = [
        f"{machine['cpu']}, {machine['isa']}, one thread (`{measured['command']}`, benches/results/attention.json):",
        "",
        "| heads of | tokens | look | dense int8 | certified 0.01 | over int8 | over bfloat16 | int8 bytes read "
        "| estimated 0.01 | over int8 | over bfloat16 | int8 bytes read |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases: dict[tuple[int, int, str], dict[str, dict[str, Any]]] = {}
    for row in measured["rows"]:
        cases.setdefault((row["head_dim"], row["context"], row["looks"]), {})[row["way"]] = row
    for (head_dim, context, looks), ways in cases.items():
        if context not in SPEED_CONTEXTS:
            continue
        int8, float_ = ways["int8 dense"], ways["bf16 dense"]
        cells = [str(head_dim), f"{context:,}", looks, f"{1e3 * int8['seconds_p50']:.2f} ms"]
        for chosen_ in (ways["certified 0.01"], ways["estimated 0.01"]):
            seconds = chosen_["seconds_p50"]
            cells += [
                f"{1e3 * seconds:.2f} ms",
                f"{int8['seconds_p50'] / seconds:.2f}x",
                f"{float_['seconds_p50'] / seconds:.2f}x",
                f"{chosen_['bytes'] / int8['bytes']:.0%}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def put(document: str, begin: str, text: str, end: str) -> str:
    """The document with `text` between two marks."""
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def shown(skill: dict[str, Any]) -> str:
    """An accuracy."""
    value = skill["accuracy"]
    return f"{(value['value'] if isinstance(value, dict) else value):.1%}"


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--quick", action="store_true", help="a small part of the work, for a look")
    parser.add_argument("--audited", type=int, default=AUDITED_CALLS, help="calls to audit")
    parser.add_argument("--speed", action="store_true", help="write the table of speed and measure nothing")
    args = parser.parse_args()
    speed = speed_table(load(SPEED))
    text = DOCUMENT.read_text(encoding="utf-8")
    if args.speed:
        DOCUMENT.write_text(put(text, BEGIN_SPEED, speed, END_SPEED), encoding="utf-8")
        return
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": {key: build_info()[key] for key in ("cpu", "isa", "threads")},
        "heads": heads(1 if args.quick else 6),
        "audit": audit(100_000 if args.quick else args.audited),
        "quality": quality(args.quick),
    }
    save(args.output, report)
    if args.output == RESULT:
        text = put(put(text, BEGIN, table(report), END), BEGIN_SPEED, speed, END_SPEED)
        DOCUMENT.write_text(text, encoding="utf-8")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
