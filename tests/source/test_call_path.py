"""The path from `LLM.generate` to the kernel's entry is short, and ARCHITECTURE.md lists it as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import python_tree
import rust_tree
import tree

MAX_NAMES = 11
TEXT = (tree.ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
# | number | `Name::function` | `path/of/file` | how it is reached |
ROW = re.compile(r"^\| *\d+ *\| *`([\w.:]+)` *\| *`([\w/.]+)` *\| *(.*?) *\|$", re.MULTILINE)
PATH: list[tuple[str, str, str]] = ROW.findall(TEXT)


def _bodies(name: str, file: str) -> list[str]:
    function = re.split(r"::|\.", name)[-1]
    path: Path = tree.ROOT / file
    return python_tree.bodies(path, function) if path.suffix == ".py" else rust_tree.bodies(path, function)


def test_the_path_begins_and_ends_where_it_should() -> None:
    assert PATH[0][0] == "LLM.generate"
    assert PATH[-1][1].startswith("rust/kernels/src/attention/")


def test_the_path_is_short() -> None:
    assert len(PATH) <= MAX_NAMES


@pytest.mark.parametrize("index", range(len(PATH) - 1), ids=lambda i: PATH[i][0])
def test_each_function_calls_the_next(index: int) -> None:
    """The body of each function calls the next one, or hands its work to the thread or the pool that runs it."""
    (name, file, _), (callee, callee_file, reached) = PATH[index], PATH[index + 1]
    bodies = _bodies(name, file)
    assert bodies, f"{file} does not define {name}"
    assert _bodies(callee, callee_file), f"{callee_file} does not define {callee}"
    # "called by X", or "called" by its own name.
    through = re.match(r"through `([\w:.]+)`", reached)
    called = through.group(1) if through else re.split(r"::|\.", callee)[-1]
    assert any(re.search(rf"\b{re.escape(called)}\b", body) for body in bodies), f"{name} does not call {called}"
