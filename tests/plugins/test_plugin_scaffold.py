"""`octavo plugin new` writes a project whose tests pass, and never overwrites one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from octavo.cli import app
from octavo.errors import InvalidRequestError
from octavo.plugins.scaffold import FRAMEWORKS, new_project
from typer.testing import CliRunner


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_new_project_passes_its_own_tests(framework: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["plugin", "new", "my-words", "--framework", framework, "--folder", str(tmp_path / "p")]
    )
    assert result.exit_code == 0, result.output
    listed = [Path(line).relative_to(tmp_path / "p").as_posix() for line in result.stdout.split()]
    assert listed == ["my_words_plugin.py", "app.py", "tests/test_plugin.py", "README.md", "pyproject.toml"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    # starlette's client names a successor of httpx.
    command += ["-W", "ignore::DeprecationWarning:fastapi", "-W", "ignore::DeprecationWarning:starlette"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path / "p", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{6 if framework == 'none' else 7} passed" in done.stdout


def test_a_folder_with_files_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("mine")
    with pytest.raises(InvalidRequestError, match="not empty"):
        new_project("weather", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["app.py"]
    assert (tmp_path / "app.py").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["plugin", "new", "weather", "--folder", str(tmp_path / "file" / "p")])
    assert result.exit_code == 2
    assert "cannot be made" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["2x"], "name is '2x'"), (["a/../b"], "name is"), (["weather", "--framework", "django"], "fastapi, flask, none")],
)
def test_wrong_input_is_named(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plugin", "new", *arguments, "--folder", str(tmp_path / "p")])
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "p").exists()
