"""Everything before the first step: rows, replay, plan and micro-batch, frozen in the folder of the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.evaluation import Case, held_out_cases
from octavo.finetune.data import Example, duplicates_removed, read_examples, split_by_prompt
from octavo.finetune.encode import NOT_A_TARGET, Row, cut, encode, p99_length
from octavo.finetune.machine import machine_facts
from octavo.finetune.memory import MemoryLine
from octavo.finetune.plan import DataFacts, ModelFacts, Plan, make_plan, model_facts
from octavo.finetune.probe import micro_rows
from octavo.finetune.replay import replay_examples
from octavo.finetune.run_folder import RunFolder
from octavo.model_files import TOKENIZER_FILES

__all__ = ["KEEP", "Options", "Prepared", "prepare"]

# Replayed rows: at most this many; fewer where the steps use fewer. One in ten is kept apart, to measure what was
# forgotten.
_MAX_REPLAY = 1_000
_KEPT_APART = 10
# Share of the old right answers below which a run warns.
KEEP = 0.95


@dataclass(frozen=True)
class Options:
    """What a user may set; nothing has to be.

    Attributes:
        method: "auto", "lora", "qlora" or "full".
        replay: share of each batch that repeats what the base model says by itself; 0: none.
        keep: share of the old right answers that the run has to keep.
        rate, steps, processes, device: instead of the planned values.
        evaluation: file of cases as `octavo eval` takes them.
    """

    method: str = "auto"
    replay: float = 0.25
    keep: float = KEEP
    rate: float | None = None
    steps: int | None = None
    processes: int | None = None
    device: str | None = None
    seed: int = 7
    evaluation: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("replay", 0.0, 0.9), ("keep", 0.0, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise InvalidRequestError(f"{name} is {getattr(self, name)!r}: {low} to {high} is expected")
        for name in ("rate", "steps", "processes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidRequestError(f"{name} is {value!r}: a number above 0 is expected")
        if self.device not in (None, "cpu", "cuda"):
            raise InvalidRequestError(f"device is {self.device!r}: cpu or cuda is expected")

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one before: all but what is measured afterwards."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("keep", "evaluation")}


@dataclass(frozen=True)
class Prepared:
    """A plan, the counts of its data, and whether a run goes on that began before."""

    plan: Plan
    facts: DataFacts
    resumed: bool


def prepare(
    data: Path, folder: Path, run: RunFolder, options: Options, cases: Sequence[Case], note: Callable[[str], None]
) -> Prepared:
    """Reads the data and freezes the plan in `run`; a run that is there already is taken as it is.

    Raises:
        InvalidRequestError: bad data, or `run` is of other data, another model or other options.
    """
    identity = _identity(data, folder, options)
    there = run.plan()
    if there is not None:
        before = json.loads((run.path / "identity.json").read_text(encoding="utf-8"))
        changed = sorted(k for k in identity if identity[k] != before.get(k))
        if changed:
            raise InvalidRequestError(
                f"{run.path.parent} holds a run with another {', '.join(changed)}: give another -o, or delete it"
            )
        facts = DataFacts(**json.loads((run.path / "data.json").read_text(encoding="utf-8")))
        return Prepared(there, facts, True)
    machine = machine_facts(options.device)
    model = model_facts(folder)
    tokenizer = load_tokenizer(folder)
    kind, examples = read_examples(data)
    examples, duplicates = duplicates_removed(examples)
    leaks = _leaks(examples, cases)
    if duplicates:
        note(f"{duplicates} rows are copies of others: each is trained once an epoch")
    if leaks:
        note(f"{leaks} rows have the prompt of a case of --eval: its result says less")
    train, held = split_by_prompt(examples)
    rows, validation = encode(tokenizer, train), encode(tokenizer, held)
    length = p99_length(rows, model.max_length)
    rows, shortened, gone = cut(rows, length)
    validation, _, _ = cut(validation, length)
    if not rows:
        raise InvalidRequestError(f"{data}: no row has an answer within {length} tokens")
    if shortened or gone:
        note(f"{shortened} rows are cut to {length} tokens, {gone} have no answer within them and are left out")
    facts = DataFacts(
        format=kind,
        rows=len(rows),
        validation_rows=len(validation),
        replay_rows=_MAX_REPLAY if options.replay else 0,
        duplicates=duplicates,
        leaks=leaks,
        length=length,
        cut_rows=shortened,
        gone_rows=gone,
        tokens=sum(len(row.ids) for row in rows),
        targets=sum(label != NOT_A_TARGET for row in rows for label in row.labels),
    )
    plan = _plan(folder, model, facts, machine, options)
    wanted = min(_MAX_REPLAY, plan.steps * plan.replay_rows)
    replayed, apart = _replay(tokenizer, folder, options.seed, train, wanted, length, note)
    facts = dataclasses.replace(facts, replay_rows=len(replayed))
    plan = _plan(folder, model, facts, machine, options)
    _write(run, {"rows": rows, "replay": replayed, "validation": validation})
    _json(run.path / "data.json", dataclasses.asdict(facts))
    _json(run.path / "identity.json", identity)
    _json(run.path / "held.json", {"held": [e.line for e in held], "apart": apart})
    plan = _with_micro_rows(plan, run, machine["memory_bytes"])
    plan.save(run.plan_file)
    return Prepared(plan, facts, False)


def _with_micro_rows(plan: Plan, run: RunFolder, memory_bytes: int) -> Plan:
    """The plan with the micro-batch that a probe finds. A probe reads a plan: it gets one of its own."""
    if plan.batch_rows % plan.processes:
        raise InvalidRequestError(
            f"processes is {plan.processes}: a step of {plan.batch_rows} rows cannot be divided by it"
        )
    probed = run.path / "probe"
    probed.mkdir(exist_ok=True)
    plan.save(probed / "plan.json")
    for name in ("rows", "replay"):
        (probed / f"{name}.jsonl").write_bytes((run.path / f"{name}.jsonl").read_bytes())
    size, why, peak = micro_rows(plan, RunFolder(probed), memory_bytes)
    shutil.rmtree(probed)
    memory = list(plan.memory)
    if peak is not None:
        measured = MemoryLine("peak", peak, f"of the whole process, measured with {size} rows at a time")
        memory.append(dataclasses.asdict(measured))
    return dataclasses.replace(plan, micro_rows=size, memory=memory, why=plan.why | {"micro_rows": why})


def _plan(folder: Path, model: ModelFacts, facts: DataFacts, machine: dict[str, Any], options: Options) -> Plan:
    return make_plan(
        folder,
        model,
        facts,
        machine,
        method=options.method,
        replay=options.replay,
        steps=options.steps,
        rate=options.rate,
        processes=options.processes,
        seed=options.seed,
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, of transformers, without its code."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _replay(
    tokenizer: Any,
    folder: Path,
    seed: int,
    train: list[Example],
    wanted: int,
    length: int,
    note: Callable[[str], None],
) -> tuple[list[Row], list[list[str]]]:
    """Rows of the base model's own answers, and pairs of question and sure answer that are kept apart."""
    if wanted == 0:
        return [], []
    taken = {_asked(m) for e in train for m in [e.messages] if m} | {
        _asked(case.prompt) for case in held_out_cases() if isinstance(case.prompt, list)
    }
    found, reason = replay_examples(folder, wanted + wanted // 9, seed, lambda question: question in taken)
    if not found:
        note(f"no replay: {reason}; the run may forget more")
        return [], []
    apart = [one.example for one in found[::_KEPT_APART] if one.sure]
    rest = [one.example for i, one in enumerate(found) if i % _KEPT_APART]
    kept, _, _ = cut(encode(tokenizer, rest), max(length, 512))
    return kept, [[e.messages[0]["content"], e.messages[1]["content"]] for e in apart if e.messages]


def _asked(messages: Sequence[Any]) -> str:
    """The last text of a user."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "").strip()


def _leaks(examples: Sequence[Example], cases: Sequence[Case]) -> int:
    """Rows that a case of the evaluation asks word by word."""
    asked = {_asked(c.prompt) if isinstance(c.prompt, list) else (c.prompt or "").strip() for c in cases} - {""}
    return sum((_asked(e.messages) if e.messages else e.prompt.strip()) in asked for e in examples)


def _identity(data: Path, folder: Path, options: Options) -> dict[str, Any]:
    """Digests of what a run is made of. The weights count by size and time: hashing them takes minutes."""
    try:
        content = data.expanduser().read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{data}: {error.strerror or error}") from error
    small = [f for f in sorted(folder.iterdir()) if f.name == "config.json" or TOKENIZER_FILES.fullmatch(f.name)]
    weights = [(f.name, f.stat().st_size) for f in sorted(folder.glob("*.safetensors"))]
    text = [[f.name, hashlib.sha256(f.read_bytes()).hexdigest()] for f in small]
    model = hashlib.sha256(json.dumps([text, weights]).encode()).hexdigest()
    return {"data": hashlib.sha256(content).hexdigest(), "model": model, **options.identity()}


def _write(run: RunFolder, parts: dict[str, list[Row]]) -> None:
    try:
        for name, rows in parts.items():
            run.write_rows(name, rows)
    except OSError as error:
        raise InvalidRequestError(f"cannot write to {run.path}: {error.strerror or error}") from error


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
