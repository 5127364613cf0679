"""Reads the Python sources: which module imports which, and how long functions are."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

# Compiled: there is no source file of it.
_EXTENSION = "_core"


def module_names(root: Path, files: list[Path]) -> dict[str, Path]:
    """Dotted name -> file. `triton_kernels/` is imported as `octavo.triton_kernels`."""
    names = {}
    for file in files:
        parts = file.relative_to(root).with_suffix("").parts
        parts = parts[1:] if parts[0] == "python" else ("octavo", *parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def edges(names: dict[str, Path]) -> dict[Path, set[Path]]:
    """Which files each file imports; imports inside functions and for type checks alone count as well."""
    found: dict[Path, set[Path]] = defaultdict(set)
    for name, file in names.items():
        package = name if file.stem == "__init__" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = _absolute(node, package)
                imported = [alias.name for alias in node.names if alias.name != _EXTENSION]
                targets = [f"{base}.{item}" if f"{base}.{item}" in names else base for item in imported]
            found[file] |= {names[t] for t in targets if t in names and names[t] != file}
    return found


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def functions(file: Path) -> list[tuple[str, int]]:
    """(name, lines) of each function."""
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    nodes = [node for node in tree if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in nodes]


def bodies(file: Path, function: str) -> list[str]:
    """The sources of the functions of this name."""
    text = file.read_text(encoding="utf-8")
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [ast.get_source_segment(text, node) or "" for node in nodes if node.name == function]
