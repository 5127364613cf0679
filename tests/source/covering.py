"""Prints the test commands for changed source files, by the table in tests/sources.toml."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TABLE: list[dict[str, Any]] = tomllib.loads((ROOT / "tests" / "sources.toml").read_text(encoding="utf-8"))["covers"]


def matches(file: str, pattern: str) -> bool:
    """Whether a pattern covers a file: `folder/**` covers everything below it, `folder/*.py` what lies in it."""
    if pattern.endswith("/**"):
        return file.startswith(pattern[:-2])
    return PurePosixPath(file).parent == PurePosixPath(pattern).parent and PurePosixPath(file).match(pattern)


def rows(file: str) -> list[dict[str, Any]]:
    """The rows of the table that cover a file, given relative to the root."""
    return [row for row in TABLE if any(matches(file, pattern) for pattern in row["sources"])]


def main() -> None:
    changed = sys.argv[1:]
    if not changed:
        command = ["git", "diff", "--name-only", "HEAD"]
        changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    commands = dict.fromkeys(row["command"] for file in changed for row in rows(file))
    print("\n".join(commands) or "no row of tests/sources.toml covers these files")


if __name__ == "__main__":
    main()
