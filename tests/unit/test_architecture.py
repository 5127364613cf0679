"""ARCHITECTURE.md stays true: every file it names exists, and holds the function or type named beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
# `Name::method` (`path`): a hop of the request's way.
HOPS = re.findall(r"`([A-Za-z_.:]+)`\s+\(`([\w/.-]+)`\)", TEXT)
PATHS = sorted(set(re.findall(r"`([\w.-]+/[\w/.-]+)`", TEXT)))


def test_the_way_is_listed() -> None:
    assert len(HOPS) >= 5


@pytest.mark.parametrize(("name", "path"), HOPS)
def test_hop_is_where_it_is_said_to_be(name: str, path: str) -> None:
    file = ROOT / path
    files = [file] if file.is_file() else sorted(file.rglob("*.rs")) + sorted(file.rglob("*.py"))
    assert files, f"{path} does not exist"
    last = re.split(r"::|\.", name)[-1]
    defined = re.compile(rf"\b(fn|struct|def|class|trait) {re.escape(last)}\b")
    assert any(defined.search(f.read_text(encoding="utf-8")) for f in files), f"{path} does not define {last}"


@pytest.mark.parametrize("path", PATHS)
def test_path_exists(path: str) -> None:
    assert (ROOT / path).exists()
