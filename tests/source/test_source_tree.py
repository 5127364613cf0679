"""The source tree stays readable: no circles, one meaning per type name, small files. Raise no limit here: split."""

from __future__ import annotations

import tree

MAX_LINES = 500
LONG_LINES, MAX_LONG_FILES = 400, 3
MAX_FUNCTION_LINES, MAX_LONG_FUNCTIONS = 60, 20
# The binding mirrors types of the engine under the same names.
MAX_DUPLICATED_TYPES = 15
MAX_BINDING_LINES = 1700
MAX_FILES_NAMING_DYNAMIC_ATTENTION = 22


def _show(files: object) -> str:
    return " ".join(str(f.relative_to(tree.ROOT)) for f in files)  # type: ignore[attr-defined]


def test_the_tree_is_found() -> None:
    assert len(tree.rust_sources()) > 150
    assert len(tree.python_sources()) > 100


def test_no_files_use_each_other_in_a_circle() -> None:
    found = tree.circles()
    assert not found, "files use each other in a circle: " + "; ".join(map(_show, found))


def test_few_type_names_are_defined_twice() -> None:
    found = tree.duplicated_types()
    assert len(found) <= MAX_DUPLICATED_TYPES, {name: _show(files) for name, files in found.items()}


def test_files_are_small() -> None:
    lines = tree.source_lines()
    assert max(lines.values()) <= MAX_LINES, _show(f for f, n in lines.items() if n > MAX_LINES)
    long = [f for f, n in lines.items() if n > LONG_LINES]
    assert len(long) <= MAX_LONG_FILES, _show(long)


def test_functions_are_short() -> None:
    found = tree.long_functions(MAX_FUNCTION_LINES)
    assert len(found) <= MAX_LONG_FUNCTIONS, found


def test_the_binding_is_thin() -> None:
    binding = tree.ROOT / "rust" / "python"
    lines = sum(n for f, n in tree.source_lines().items() if binding in f.parents)
    assert lines < MAX_BINDING_LINES


def test_dynamic_attention_stays_behind_its_door() -> None:
    found = tree.files_naming_dynamic_attention()
    assert 0 < len(found) <= MAX_FILES_NAMING_DYNAMIC_ATTENTION, _show(found)
