"""The reading of the source tree finds what it is made to find."""

from __future__ import annotations

from pathlib import Path

import python_tree
import rust_tree
import tree


def _crate(folder: Path, files: dict[str, str]) -> rust_tree.Crate:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return rust_tree.Crate(folder, [folder / name for name in files])


def _circles(edges: dict[Path, set[Path]]) -> list[list[str]]:
    return [[file.name for file in circle] for circle in tree._components(edges)]


def test_a_circle_through_a_re_export_is_found(tmp_path: Path) -> None:
    crate = _crate(
        tmp_path,
        {
            "lib.rs": "mod a;\nmod b;\npub use a::A;\npub use b::B;\n",
            "a.rs": "use crate::B;\npub struct A(B);\n",
            "b.rs": "use crate::{A as Other};\npub struct B(Option<Box<Other>>);\n",
        },
    )
    assert _circles(crate.edges()) == [["a.rs", "b.rs"]]


def test_a_child_that_uses_its_parent_is_a_circle_if_the_parent_uses_it(tmp_path: Path) -> None:
    files = {"lib.rs": "mod m;\n", "m/child.rs": "use super::SIZE;\npub fn f() -> usize { SIZE }\n"}
    uses = _crate(
        tmp_path, {**files, "m/mod.rs": "mod child;\npub const SIZE: usize = 1;\npub fn g() { child::f(); }\n"}
    )
    assert _circles(uses.edges()) == [["child.rs", "mod.rs"]]
    shows = _crate(tmp_path, {**files, "m/mod.rs": "mod child;\npub use child::f;\npub const SIZE: usize = 1;\n"})
    assert _circles(shows.edges()) == []


def test_comments_strings_and_tests_do_not_count(tmp_path: Path) -> None:
    crate = _crate(
        tmp_path,
        {
            "lib.rs": "mod a;\nmod b;\n",
            "a.rs": "use crate::b::f;\npub struct A;\npub fn g() { f(); }\n",
            "b.rs": '// crate::a::A\npub fn f() { print("crate::a::A"); }\n'
            "#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n",
        },
    )
    assert _circles(crate.edges()) == []
    assert rust_tree.types(tmp_path / "a.rs") == ["A"]


def test_lengths_of_functions(tmp_path: Path) -> None:
    (tmp_path / "a.rs").write_text(
        'fn one() { print("}"); }\nfn three() {\n    one();\n}\ntrait T { fn none(&self); }\n'
    )
    assert rust_tree.functions(tmp_path / "a.rs") == [("one", 1), ("three", 3)]
    (tmp_path / "a.py").write_text("def f():\n    def g():\n        pass\n    return g\n")
    assert sorted(python_tree.functions(tmp_path / "a.py")) == [("f", 4), ("g", 2)]


def test_python_imports_inside_functions_count(tmp_path: Path) -> None:
    package = tmp_path / "python" / "octavo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from octavo.a import f\n")
    (package / "a.py").write_text("def f():\n    from octavo import b, _core\n    return b\n")
    (package / "b.py").write_text("from .a import f\n")
    names = python_tree.module_names(tmp_path, sorted(package.glob("*.py")))
    assert _circles(python_tree.edges(names)) == [["a.py", "b.py"]]
