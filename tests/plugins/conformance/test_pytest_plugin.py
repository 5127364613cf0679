"""The fixtures for authors of plugins, in a pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PLUGIN = """
from octavo.plugins import Plugin
plugin = Plugin("news", version="{version}")
@plugin.operation()
def find({argument}: str) -> list[str]:
    "Finds news."
    return [{argument}]
"""
TESTS = """
from news import plugin
def test_protocol(check_plugin):
    assert check_plugin(plugin).level == 2
def test_schemas(check_plugin_schemas):
    check_plugin_schemas(plugin, "schemas.json")
"""


def _pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "octavo.plugins.pytest_plugin", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def _write(folder: Path, version: str, argument: str) -> None:
    (folder / "news.py").write_text(PLUGIN.format(version=version, argument=argument))


def test_schemas_are_recorded_and_compared(tmp_path: Path) -> None:
    (tmp_path / "test_news.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text("")
    _write(tmp_path, "1.0.0", "words")
    first = _pytest(tmp_path)
    assert "schemas.json does not exist" in first.stdout
    assert "1 failed, 1 passed" in first.stdout
    assert _pytest(tmp_path, "--update-plugin-schemas").returncode == 0
    assert _pytest(tmp_path).returncode == 0
    _write(tmp_path, "1.0.0", "phrase")
    changed = _pytest(tmp_path)
    assert "the schema of v1/find changed, and the version is still 1.0.0: raise it" in changed.stdout


def test_changes() -> None:
    from octavo.plugins.pytest_plugin import changes

    old = {"version": "1.0.0", "digests": {"v1/find": "a"}}
    assert changes(old, {"version": "1.1.0", "digests": {"v1/find": "b"}}) == []
    assert changes(old, {"version": "1.0.0", "digests": {"v1/find": "b"}})
    assert "gone" in changes(old, {"version": "2.0.0", "digests": {"v2/find": "a"}})[0]
    # Outside of the window nothing is promised.
    assert changes(old, {"version": "4.0.0", "digests": {"v4/find": "a"}}) == []


def test_a_broken_plugin_fails_the_test(tmp_path: Path) -> None:
    (tmp_path / "test_url.py").write_text("def test_url(check_plugin):\n    check_plugin('http://127.0.0.1:9')\n")
    (tmp_path / "conftest.py").write_text("")
    assert "Does it run" in _pytest(tmp_path).stdout


def test_it_costs_nothing_where_it_is_not_used() -> None:
    """pytest loads the module in each run of each project: it must not load the engine, or what plugins need."""
    code = (
        "import sys, pytest; before = set(sys.modules); import octavo.plugins.pytest_plugin; "
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before}), 'octavo._core' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['octavo'] False"


def test_the_entry_point_names_the_module() -> None:
    root = Path(__file__).resolve().parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"octavo_plugins": "octavo.plugins.pytest_plugin"}
    pytest.importorskip("octavo.plugins.pytest_plugin")
