"""Each promise of SECURITY.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| Promise")]


def named(row: str) -> list[tuple[str, str]]:
    return re.findall(r"`([\w./]+\.(?:rs|py))::(\w+)`", row)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:42])
def test_promise_names_tests_that_exist(row: str) -> None:
    tests = named(row)
    assert tests, f"no test is named: {row}"
    for file, name in tests:
        content = (ROOT / file).read_text()
        assert re.search(rf"\b(?:fn|def) {name}\b", content), f"{file} has no test {name}"


def test_every_table_was_read() -> None:
    assert len(ROWS) >= 19
