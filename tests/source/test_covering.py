"""Every source file has a row in tests/sources.toml, and every row names tests that exist."""

from __future__ import annotations

import covering
import pytest
import tree


def test_every_source_file_is_covered() -> None:
    files = [str(f.relative_to(tree.ROOT)) for f in tree.rust_sources() + tree.python_sources()]
    assert not [file for file in files if not covering.rows(file)]


@pytest.mark.parametrize("row", covering.TABLE, ids=lambda row: row["sources"][0])
def test_rows_name_what_exists(row: dict[str, list[str]]) -> None:
    for test in row["tests"]:
        assert (tree.ROOT / test).exists(), test
    sources = [str(f.relative_to(tree.ROOT)) for f in tree.rust_sources() + tree.python_sources()]
    for pattern in row["sources"]:
        assert any(covering.matches(file, pattern) for file in sources) or "embedded" in pattern, pattern


def test_patterns() -> None:
    assert covering.matches("rust/cache/src/a/b.rs", "rust/cache/src/**")
    assert covering.matches("python/octavo/llm.py", "python/octavo/*.py")
    assert not covering.matches("python/octavo/gpu/load.py", "python/octavo/*.py")
