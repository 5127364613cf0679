"""From a file of JSON lines to a trained, evaluated and described adapter."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.errors import InvalidRequestError, MissingDependencyError
from octavo.evaluation import read_cases
from octavo.finetune.data import read_examples
from octavo.finetune.prepare import Options, Prepared, prepare
from octavo.finetune.run_folder import RunFolder
from octavo.hub import resolve_model
from octavo.model_files import copy_files

__all__ = ["finetune", "plan_run"]

_NEEDED = ("torch", "transformers", "peft", "accelerate")


def finetune(
    data: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    revision: str | None = None,
    note: Callable[[str], None] = warnings.warn,
) -> dict[str, Any]:
    """Trains `model` on `data`, and evaluates the result. The same call after an interruption goes on.

    Args:
        data: file of JSON lines, see `octavo.finetune.data`.
        model: folder or hub id; None: the embedded model.
        output: folder of the result; None: the data's name with "-adapter".
        note: gets each remark as a line.

    Returns:
        The report, as it stands in report.json.

    Raises:
        InvalidRequestError: bad data or options, or `output` holds something else.
        MissingDependencyError: the extra `train` is not installed.
        DeviceMemoryError, ExecutionError: the training failed; finished checkpoints are kept.
    """
    from octavo.finetune.launch import run_workers
    from octavo.finetune.measure import cases_of, measure, old_cases
    from octavo.finetune.report import make_report, write_report

    options = options or Options()
    source, out = Path(data).expanduser(), output_folder(data, output)
    folder = resolve_model(model, revision)
    run = RunFolder(out / "run")
    own = read_cases(options.evaluation) if options.evaluation else []
    need_extra()
    with run.lock() as lock:
        prepared = prepare(source, folder, run, options, own, note)
        if prepared.resumed and (newest := run.newest()):
            note(f"goes on from step {newest[0]} of {prepared.plan.steps}")
        plan = prepared.plan
        if not (out / "adapter_model.safetensors").exists() or plan.method == "full":
            plan = run_workers(plan, run, out, lock, note)
        if plan.method == "full":
            copy_files(folder, out)
        new = own or cases_of(read_examples(source)[1], run)
        measured = measure(plan, folder, out, new, old_cases(folder, run))
        log = run.log()
        report = make_report(plan, prepared.facts, log, measured, options.keep)
        base = "octavo's embedded model" if model is None else str(model)
        write_report(out, report, log, base, source.name)
    return report


def plan_run(
    data: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    revision: str | None = None,
    note: Callable[[str], None] = warnings.warn,
) -> Prepared:
    """What `finetune` would do: prepares the run in a temporary folder beside the output, and removes it again."""
    options = options or Options()
    out = output_folder(data, output)
    need_extra()
    existing = RunFolder(out / "run")
    own = read_cases(options.evaluation) if options.evaluation else []
    folder = resolve_model(model, revision)
    if existing.plan() is not None:
        return prepare(Path(data).expanduser(), folder, existing, options, own, note)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="octavo-plan-") as name:
        run = RunFolder(Path(name))
        return prepare(Path(data).expanduser(), folder, run, options, own, note)


def output_folder(data: str | os.PathLike[str], output: str | os.PathLike[str] | None) -> Path:
    """Where the result goes.

    Raises:
        InvalidRequestError: the folder is there, and is not one of this command.
    """
    source = Path(data).expanduser()
    out = Path(os.path.abspath(Path(output).expanduser() if output else f"{source.stem}-adapter"))
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "run").is_dir())):
        raise InvalidRequestError(f"output {out} exists already, and is no run of octavo finetune: give another -o")
    return out


def need_extra() -> None:
    """
    Raises:
        MissingDependencyError: a package of the extra `train` is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"{missing[0]} is needed for training: pip install 'octavo[train]'")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    sys.stdout.flush()
