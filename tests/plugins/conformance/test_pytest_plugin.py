"""The fixtures for authors of plugins, in a pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from octavo.plugins import Plugin
from octavo.plugins.conformance.released import changes, release

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
    assert "the argument words is gone, and no alias names it" in changed.stdout
    # The file is found from another folder, and one that holds something else is named.
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    (tmp_path / "inner").mkdir()
    _write(tmp_path, "1.0.0", "words")
    assert _pytest(tmp_path / "inner", "../test_news.py").returncode == 0
    for text in ("{", "[]", '{"version": "1.0.0", "digests": {}}'):
        (tmp_path / "schemas.json").write_text(text)
        assert "--update-plugin-schemas writes it anew" in _pytest(tmp_path).stdout
    (tmp_path / "test_news.py").write_text(TESTS.replace("schemas.json", "new/folder/schemas.json"))
    assert _pytest(tmp_path, "--update-plugin-schemas").returncode == 0
    assert (tmp_path / "new" / "folder" / "schemas.json").is_file()


def _release(version: str, function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    with Plugin("news", version=version) as plugin:
        plugin.operation(**options)(function)
        return release(plugin)


def send(to: str, text: str = "") -> list[str]:
    """Sends."""
    return [to, text]


def _typed(to: int, text: str = "") -> list[str]:
    """Sends."""
    return [str(to), text]


def _renamed(whom: str, text: str = "") -> list[str]:
    """Sends."""
    return [whom, text]


def _longer(to: str, text: str = "", copies: int = 1) -> list[str]:
    """Sends."""
    return [to, text] * copies


def _wider(to: str | int, text: str = "") -> list[str]:
    """Sends."""
    return [str(to), text]


def _resulting(to: str, text: str = "") -> int:
    """Sends."""
    return len(to + text)


for _function in (_typed, _renamed, _longer, _wider, _resulting):
    _function.__name__ = "send"


@pytest.mark.parametrize(
    ("version", "function", "options", "words"),
    [
        ("1.0.0", send, {}, ""),
        ("1.0.1", _typed, {}, "to has another type"),
        ("1.1.0", _typed, {}, "to has another type"),
        ("1.1.0", _renamed, {}, "to is gone, and no alias names it"),
        ("1.1.0", _renamed, {"aliases": {"whom": ["to"]}}, ""),
        ("1.1.0", _longer, {}, ""),
        ("1.0.1", _longer, {}, "raise it"),
        ("1.1.0", _wider, {}, ""),
        ("1.1.0", _resulting, {}, "the result has another type"),
        ("1.0.0", send, {"consequential": True}, "raise it"),
        ("0.9.0", send, {}, "lower than the released"),
        ("2.0.0", send, {}, "gone"),
        # Outside of the window nothing is promised.
        ("4.0.0", send, {}, ""),
    ],
)
def test_changes(version: str, function: Callable[..., Any], options: dict[str, Any], words: str) -> None:
    found = "\n".join(changes(_release("1.0.0", send), _release(version, function, **options)))
    assert (words in found) if words else not found, found


def test_a_lost_alias_breaks_callers() -> None:
    old = _release("1.0.0", send, aliases={"to": ["whom"]})
    assert "lost its alias whom" in "".join(changes(old, _release("1.1.0", send)))


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
