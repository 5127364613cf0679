"""The folder of a run: plan, rows, log and checkpoints. What it names is complete at any time.

`plan.json` holds the settings; it is written last of what is prepared. `rows.jsonl`, `replay.jsonl` and
`validation.jsonl` hold token ids and labels. `log.jsonl` has a line for each step and each evaluation. The folder
`checkpoints` holds `step-N` folders, of which the newest two are kept. What is being written is in `work`, which is
emptied at the start.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from octavo.errors import InvalidRequestError
from octavo.finetune.encode import Row
from octavo.finetune.plan import Plan

__all__ = ["RunFolder"]

_KEPT = 2
_LOCK_SECONDS = 30


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan_file = path / "plan.json"
        self.log_file = path / "log.jsonl"
        self.best_file = path / "best.safetensors"
        self.work = path / "work"
        self.checkpoints = path / "checkpoints"

    def lock(self) -> IO[str]:
        """Holds the folder for this process and its children; a process that is just ending is waited for.

        Raises:
            InvalidRequestError: another process trains here, or the folder cannot be written.
        """
        # Not on every system that octavo's other commands run on.
        import fcntl

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("w")
        except OSError as error:
            raise InvalidRequestError(f"cannot write to {self.path}: {error.strerror or error}") from error
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() > until:
                    raise InvalidRequestError(
                        f"another process trains in {self.path}: wait for it, or stop it"
                    ) from error
                time.sleep(0.2)
            else:
                return file

    def write_rows(self, name: str, rows: Iterable[Row]) -> None:
        """Writes `name`.jsonl: complete or not at all."""
        partial = self.path / f"{name}.partial"
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps([row.ids, row.labels]) + "\n")
        partial.replace(self.path / f"{name}.jsonl")

    def read_rows(self, name: str) -> list[Row]:
        """The rows of `name`.jsonl."""
        with (self.path / f"{name}.jsonl").open(encoding="utf-8") as file:
            return [Row(*json.loads(line)) for line in file]

    def plan(self) -> Plan | None:
        """The plan, if the run was prepared."""
        return Plan.load(self.plan_file) if self.plan_file.exists() else None

    def newest(self) -> tuple[int, Path] | None:
        """Step and folder of the newest finished checkpoint."""
        found = [(int(f.name.removeprefix("step-")), f) for f in self.checkpoints.glob("step-*")]
        return max(found, default=None)

    def publish(self, made: Path, step: int) -> None:
        """Makes a written checkpoint the newest one. Older ones go after that, except one."""
        target = self.checkpoints / f"step-{step:08d}"
        self.checkpoints.mkdir(exist_ok=True)
        for file in made.iterdir():
            _to_disk(file)
        if target.exists():
            shutil.rmtree(made)
            return
        made.replace(target)
        _to_disk(self.checkpoints)
        for old in sorted(self.checkpoints.glob("step-*"))[:-_KEPT]:
            # Renamed first: a folder that is half removed must not look finished.
            gone = self.work / f"{old.name}.old"
            self.work.mkdir(exist_ok=True)
            old.replace(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def start_work(self) -> None:
        """Removes what an unfinished run left half written."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def log(self) -> list[dict[str, Any]]:
        """The lines of the log; one that was not finished is left out."""
        if not self.log_file.exists():
            return []
        lines = self.log_file.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def cut_log(self, step: int) -> list[dict[str, Any]]:
        """Keeps the lines up to `step`: later steps are done again."""
        kept = [line for line in self.log() if line["step"] <= step]
        partial = self.log_file.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        partial.replace(self.log_file)
        return kept


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
