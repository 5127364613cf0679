"""The files of the source tree, and figures of them. `python tests/source/tree.py` prints all of these."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import python_tree
import rust_tree

ROOT = Path(__file__).resolve().parents[2]
# Where a reader finds a name of dynamic attention.
DYNAMIC_ATTENTION = re.compile(
    r"dynamic[_ ]?attention|attention::dynamic|\bdynamic::|DynamicParams|AttentionReport|AttentionBound"
    r"|AttentionMetrics|error_bound",
    re.IGNORECASE,
)
_SKIPPED = {"target", "__pycache__", "node_modules"}


def _below(folder: str, suffix: str) -> list[Path]:
    """Files below a folder; a folder that is a link is another folder's."""
    found = (ROOT / folder).rglob(f"*{suffix}")
    return sorted(f for f in found if not _SKIPPED & set(f.parts) and not any(p.is_symlink() for p in f.parents))


def rust_sources() -> list[Path]:
    """The Rust files that are compiled into the crates, without tests and criterion benches."""
    files = _below("rust", ".rs") + _below("benches/rust", ".rs")
    return [f for f in files if "src" in f.relative_to(ROOT).parts and not rust_tree.is_test_file(f.relative_to(ROOT))]


def python_sources() -> list[Path]:
    return _below("python", ".py") + _below("triton_kernels", ".py")


def source_lines() -> dict[Path, int]:
    return {f: f.read_text(encoding="utf-8").count("\n") for f in rust_sources() + python_sources()}


def circles() -> list[list[Path]]:
    """Sets of files that use each other in a circle."""
    found = _components(python_tree.edges(python_tree.module_names(ROOT, python_sources())))
    crates: dict[Path, list[Path]] = defaultdict(list)
    for file in rust_sources():
        crates[next(p for p in file.parents if p.name == "src")].append(file)
    for src, files in sorted(crates.items()):
        found += _components(rust_tree.Crate(src, files).edges())
    return found


def _components(edges: dict[Path, set[Path]]) -> list[list[Path]]:
    """Strongly connected components of more than one file."""
    reach: dict[Path, set[Path]] = {}
    for start in edges:
        seen: set[Path] = set()
        todo = list(edges[start])
        while todo:
            file = todo.pop()
            if file not in seen:
                seen.add(file)
                todo += edges.get(file, ())
        reach[start] = seen
    in_circle = {f for f in edges if f in reach[f]}
    return sorted({tuple(sorted(g for g in in_circle if g in reach[f] and f in reach[g])) for f in in_circle}, key=str)


def duplicated_types() -> dict[str, list[Path]]:
    """Names of Rust types that more than one file defines."""
    where: dict[str, list[Path]] = defaultdict(list)
    for file in rust_sources():
        for name in rust_tree.types(file):
            where[name].append(file)
    return {name: files for name, files in sorted(where.items()) if len(files) > 1}


def long_functions(limit: int) -> list[tuple[int, str]]:
    """(lines, where) of functions of more than `limit` lines, the longest first."""
    found = [(n, f"{_name(f)} {name}") for f in rust_sources() for name, n in rust_tree.functions(f)]
    found += [(n, f"{_name(f)} {name}") for f in python_sources() for name, n in python_tree.functions(f)]
    return sorted((entry for entry in found if entry[0] > limit), reverse=True)


def files_naming_dynamic_attention() -> list[Path]:
    return [f for f in rust_sources() + python_sources() if DYNAMIC_ATTENTION.search(f.read_text(encoding="utf-8"))]


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def main() -> None:
    lines = source_lines()
    binding = sum(n for f, n in lines.items() if "rust/python/" in str(f))
    print(f"source lines: {sum(lines.values())}; of the binding: {binding}")
    for circle in circles():
        print(f"circle of {len(circle)}:", *map(_name, circle))
    for name, files in duplicated_types().items():
        print(f"type {name}:", *map(_name, files))
    for file, count in sorted(lines.items(), key=lambda item: -item[1])[:12]:
        print(f"file of {count} lines: {_name(file)}")
    for count, where in long_functions(60):
        print(f"function of {count} lines: {where}")
    print(f"files naming dynamic attention: {len(files_naming_dynamic_attention())}")


if __name__ == "__main__":
    main()
