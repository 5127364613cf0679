"""`compress`: one call for all ways to make a model smaller. Interrupted, the same call continues."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.compress.data_file import read_examples
from octavo.compress.report import Measured, Report, decode_rate, measure, report_of
from octavo.compress.vocabulary import corpus_texts, prune_vocabulary
from octavo.errors import InvalidRequestError, OctavoError
from octavo.evaluation.cases import Case, held_out_cases, read_cases
from octavo.hub import embedded_model, resolve_model
from octavo.model_files import copy_files

__all__ = ["Compressed", "compress"]


@dataclass(frozen=True)
class Compressed:
    """Result of `compress`.

    Attributes:
        folder: the new model folder.
        report: what is in its compress.json.
        enough: whether it keeps as much as was asked for; None if nothing was asked.
    """

    folder: Path
    report: Report
    enough: bool | None


@dataclass(frozen=True)
class _Plan:
    """The arguments of `compress`, checked."""

    model: Path
    target: Path
    vocab: str | None
    rows: int | None
    experts: float | None
    ratio: float | None
    data: str | None
    method: str
    passes: int
    seed: int

    def words(self) -> dict[str, Any]:
        """What two calls must share for one to continue the other."""
        found = {name: value for name, value in vars(self).items() if name not in ("target",)}
        found["model"] = os.fspath(self.model)
        for name in ("vocab", "data"):
            if found[name] is not None:
                found[name] = hashlib.sha256(Path(found[name]).expanduser().read_bytes()).hexdigest()
        return found


def compress(
    model: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    vocab: str | os.PathLike[str] | None = None,
    rows: int | None = None,
    experts: float | None = None,
    ratio: float | None = None,
    data: str | os.PathLike[str] | None = None,
    method: str = "auto",
    passes: int = 1,
    cases: str | os.PathLike[str] | None = None,
    keep: float | None = None,
    revision: str | None = None,
    seed: int = 0,
) -> Compressed:
    """Writes a smaller `model` of the same family to `output`, with a report in compress.json.

    Several ways may be combined; they run in the order of the arguments. Until the end, finished work is kept in
    `<output>.work`. The same call continues there.

    Args:
        model: a folder or a hub id; None: the embedded model.
        output: a folder that does not exist yet, or is empty.
        vocab: a text file. Tokens that it and the chat template do not need are removed, without training.
        rows: with `vocab`: tokens to keep.
        experts: part of the routed experts to keep, without training. `data` calibrates.
        ratio: part of the parameters to keep, by pruning and distillation on `data`.
        data: JSON lines as `data_file.read_examples` describes them.
        method: with `ratio`: "width", "depth" or "auto".
        passes: with `ratio`: how often each example is seen.
        cases: a file as `octavo eval` reads it, for the report. None: the cases that ship for the embedded model,
            for others nothing: the report then says "not measured".
        keep: smallest mean over the skills of right answers after, by those before.
        revision: branch, tag or commit of a hub id.
        seed: of the order of the examples.

    Raises:
        InvalidRequestError: an argument, a line of a file (by number), or the output.
        MissingDependencyError: a module of `octavo[train]` is not installed.
        ModelNotFoundError, UnsupportedModelError, CorruptModelError: the model.
        DeviceMemoryError: the memory does not hold the plan; the message has a smaller one.
    """
    plan = _checked(model, output, vocab, rows, experts, ratio, data, method, passes, revision, seed)
    asked = _cases(model, cases)
    if keep is not None and not any(case.prompt is not None for case in asked):
        raise InvalidRequestError("keep needs skills to measure: give cases, a file as `octavo eval --data` reads it")
    examples = [] if plan.data is None else read_examples(plan.data)
    _check_sizes(plan)
    work = _work_folder(plan)
    try:
        before = _once(work / "before.json", plan.model, asked)
        made, steps = _made(plan, work, examples)
        after = measure(made, asked)
        # Both in one moment: what else the machine does has changed since the start.
        report = report_of(before, after, (decode_rate(plan.model), decode_rate(made)), asked, steps)
        report.save(made)
        if plan.target.is_dir():
            plan.target.rmdir()
        made.rename(plan.target)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OctavoError(
            f"no space is left at {work}. What was finished is kept: free some, and run the same command again"
        ) from error
    shutil.rmtree(work)
    return Compressed(plan.target, report, None if keep is None else report.kept is not None and report.kept >= keep)


def _checked(
    model: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    vocab: Any,
    rows: int | None,
    experts: float | None,
    ratio: float | None,
    data: Any,
    method: str,
    passes: int,
    revision: str | None,
    seed: int,
) -> _Plan:
    if vocab is None and experts is None and ratio is None:
        raise InvalidRequestError("nothing to do: give vocab, experts or ratio")
    if rows is not None and vocab is None:
        raise InvalidRequestError("rows is the size of the vocabulary: give vocab, too")
    if (experts is not None or ratio is not None) and data is None:
        raise InvalidRequestError("data is missing: experts and ratio need examples, a file of JSON lines")
    if passes < 1:
        raise InvalidRequestError(f"passes is {passes}: 1 or more is expected")
    target = Path(os.path.abspath(Path(output).expanduser()))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidRequestError(f"output {target} exists already: give a folder that does not")
    folder = resolve_model(model, revision)
    named = [None if path is None else os.fspath(path) for path in (vocab, data)]
    return _Plan(folder, target, named[0], rows, experts, ratio, named[1], method, passes, seed)


def _check_sizes(plan: _Plan) -> None:
    """Refuses sizes that no pruning reaches before any work."""
    if plan.experts is None and plan.ratio is None:
        return
    from octavo.compress.cuts import plan_cuts
    from octavo.compress.experts import experts_per_layer
    from octavo.compress.live_model import empty_model, layout_of

    model = empty_model(plan.model)
    if plan.experts is not None:
        experts_per_layer(model.config, layout_of(model), plan.experts)
    if plan.ratio is not None:
        plan_cuts(layout_of(model), plan.ratio, plan.method)


def _cases(model: object, cases: str | os.PathLike[str] | None) -> Sequence[Case]:
    if cases is not None:
        return read_cases(cases)
    return held_out_cases() if model is None or Path(str(model)) == embedded_model() else []


def _work_folder(plan: _Plan) -> Path:
    """The folder with what is finished; of another plan it is refused."""
    work = plan.target.with_name(f"{plan.target.name}.work")
    text = json.dumps(plan.words(), indent=2, sort_keys=True) + "\n"
    path = work / "plan.json"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise InvalidRequestError(f"{work} belongs to a call with other arguments: delete it, or give another output")
    try:
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(f"cannot write to {work}: {error.strerror or error}") from error
    return work


def _once(path: Path, folder: Path, cases: Sequence[Case]) -> Measured:
    """Measures the original, which an earlier call may have done."""
    if path.is_file():
        from octavo.evaluation.paired import CaseScore

        found = json.loads(path.read_text(encoding="utf-8"))
        if len(found["scores"]) == len(cases):
            return Measured(**{**found, "scores": [CaseScore(**score) for score in found["scores"]]})
    before = measure(folder, cases)
    path.write_text(json.dumps(dataclasses.asdict(before)), encoding="utf-8")
    return before


def _made(plan: _Plan, work: Path, examples: list[dict[str, Any]]) -> tuple[Path, list[dict[str, Any]]]:
    """The smaller model in a folder of `work`, and what was done."""
    folder, steps = plan.model, []
    if plan.vocab is not None:
        place = work / "vocabulary"
        shutil.rmtree(place, ignore_errors=True)
        pruned = prune_vocabulary(folder, place, corpus_texts(plan.vocab), rows=plan.rows)
        steps.append({"step": "vocabulary", **{k: v for k, v in pruned.as_dict().items() if k != "folder"}})
        folder = place
    if plan.experts is not None:
        steps.append(_prune_experts(folder, work / "experts", plan, examples))
        folder = work / "experts"
    if plan.ratio is not None:
        steps.append(_distil(folder, work, plan, examples))
        folder = work / "distilled"
    return folder, steps


def _prune_experts(folder: Path, place: Path, plan: _Plan, examples: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    from octavo.compress.documents import Encoder
    from octavo.compress.experts import experts_per_layer, most_used_experts, score_experts
    from octavo.compress.live_model import layout_of, load_model, save_model, smaller_model
    from octavo.compress.rows import calibration_rows

    assert plan.experts is not None
    model = load_model(folder, "auto")
    layout = layout_of(model)
    count = experts_per_layer(model.config, layout, plan.experts)
    documents = Encoder(folder, None).documents(examples)
    rows = calibration_rows(documents, int(model.config.max_position_embeddings), plan.seed)
    scores = score_experts(model, [torch.from_numpy(ids).long() for ids in rows])
    shutil.rmtree(place, ignore_errors=True)
    save_model(smaller_model(model, layout, most_used_experts(scores, layout, model.config, count)), place)
    copy_files(folder, place)
    return {
        "step": "experts",
        "experts": (layout.sizes.experts, count),
        "calibration_tokens": sum(r.size for r in rows),
    }


def _distil(folder: Path, work: Path, plan: _Plan, examples: list[dict[str, Any]]) -> dict[str, Any]:
    from octavo.compress.cuts import plan_cuts, run_cuts
    from octavo.compress.documents import Encoder
    from octavo.compress.live_model import end_token, layout_of, load_model, save_model

    assert plan.ratio is not None
    original = load_model(folder, "auto")
    layout, dtype = layout_of(original), original.dtype
    cuts = plan_cuts(layout, plan.ratio, plan.method)
    documents = Encoder(folder, end_token(original.config)).documents(examples)
    del original
    student, done = run_cuts(folder, work, cuts, documents, plan.passes, plan.seed)
    place = work / "distilled"
    shutil.rmtree(place, ignore_errors=True)
    save_model(student.to(dtype), place)
    copy_files(folder, place)
    return {
        "step": "distillation",
        "before": dataclasses.asdict(layout.sizes),
        "cuts": [dataclasses.asdict(one) for one in done],
    }
