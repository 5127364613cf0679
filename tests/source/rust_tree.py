"""Reads the Rust sources as text: modules, what they use from each other, types, functions. No compiler is needed."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

# A comment, a raw string, a string, or a character. Lifetimes ('a) do not match.
_OPAQUE = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | b?r(\#*)".*?"\1 | b?"(?:\\.|[^"\\])*" | '(?:\\.[^']*|[^\\'])'""", re.DOTALL | re.VERBOSE
)
_VISIBILITY = r"(?:pub(?:\([^)]*\))? )?"
_TEST_ITEM = re.compile(rf"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*{_VISIBILITY}(?:mod \w+ \{{|mod \w+;|fn |impl |use )")
_TEST_FILE = re.compile(r"(^|_)tests?(_\w+)?$")
_TYPE = re.compile(rf"^{_VISIBILITY}(?:unsafe )?(?:struct|enum|trait|type|union) (\w+)", re.MULTILINE)
_ITEM = r"\b(?:fn|struct|enum|trait|type|const|static|mod) {0}\b|macro_rules! {0}\b"

Module = tuple[str, ...]
Edges = dict[Path, set[Path]]


def _spaces(text: str) -> str:
    """`text` with everything but line ends replaced by spaces."""
    return re.sub(r"[^\n]", " ", text)


def block_end(code: str, start: int) -> int:
    """Index behind the block whose opening brace is the first one from `start` on."""
    depth = 0
    for brace in re.compile(r"[{}]").finditer(code, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return brace.end()
    return len(code)


def code_of(file: Path) -> str:
    """The code of a file: comments, strings and test items are replaced by spaces, so that line numbers stay."""
    code = _OPAQUE.sub(lambda m: _spaces(m.group()), file.read_text(encoding="utf-8"))
    for item in reversed(list(_TEST_ITEM.finditer(code))):
        is_statement = item.group().endswith((";", "use "))
        end = code.find(";", item.end() - 1) + 1 if is_statement else block_end(code, item.end() - 1)
        code = code[: item.start()] + _spaces(code[item.start() : end]) + code[end:]
    return code


def is_test_file(file: Path) -> bool:
    return bool(_TEST_FILE.search(file.stem)) or "tests" in file.parts


def types(file: Path) -> list[str]:
    """Names of the types that a file defines at its top level."""
    return _TYPE.findall(code_of(file))


def functions(file: Path) -> list[tuple[str, int]]:
    """(name, lines) of each function with a body."""
    code, found = code_of(file), []
    for name in re.finditer(r"\bfn (\w+)", code):
        brace = re.compile(r"[{;]").search(code, name.end())
        if brace and brace.group() == "{":
            found.append((name.group(1), code.count("\n", name.start(), block_end(code, brace.start())) + 1))
    return found


def bodies(file: Path, function: str) -> list[str]:
    """The bodies of the functions of this name."""
    code, found = code_of(file), []
    for name in re.finditer(rf"\bfn {function}\b", code):
        brace = re.compile(r"[{;]").search(code, name.end())
        if brace and brace.group() == "{":
            found.append(code[brace.start() : block_end(code, brace.start())])
    return found


def _use_tree(tree: str) -> list[tuple[str, str]]:
    """(path, local name) of every leaf of a use declaration."""
    tree = tree.strip()
    if "{" not in tree:
        path, _, alias = tree.partition(" as ")
        return [(path.strip(), (alias or path.split("::")[-1]).strip())]
    head, _, rest = tree.partition("{")
    leaves: list[tuple[str, str]] = []
    item, depth = "", 0
    for character in rest[: rest.rfind("}")] + ",":
        if character == "," and depth == 0:
            leaves += _use_tree(item) if item.strip() else []
            item = ""
        else:
            depth += {"{": 1, "}": -1}.get(character, 0)
            item += character
    prefix = head.strip()
    name_of_prefix = prefix.rstrip(":").split("::")[-1]
    return [
        (re.sub(r"::self$", "", prefix + path), name_of_prefix if name == "self" else name) for path, name in leaves
    ]


class Crate:
    """The modules of one crate, and which file uses which.

    A use that goes through a re-export counts as a use of the file that defines the item. A re-export itself
    (`pub use`) is not a use: a facade does not depend on what it shows.
    """

    def __init__(self, src: Path, files: list[Path]) -> None:
        self._file_of: dict[Module, Path] = {}
        self._module_of: dict[Path, Module] = {}
        self._code: dict[Module, str] = {}
        self._uses: dict[Module, list[tuple[bool, str, str]]] = {}
        for file in files:
            parts = file.relative_to(src).with_suffix("").parts
            module = () if parts in (("lib",), ("main",)) else parts[:-1] if parts[-1] == "mod" else parts
            self._file_of[module], self._module_of[file] = file, module
            code = self._code[module] = code_of(file)
            self._uses[module] = [
                (bool(use.group(1)), path, name)
                for use in re.finditer(r"\b(pub(?:\([^)]*\))? )?use ([^;]+);", code)
                for path, name in _use_tree(re.sub(r"\s+", " ", use.group(2)))
            ]

    def edges(self) -> Edges:
        """Which files of the crate each file uses."""
        edges: Edges = defaultdict(set)
        for module, code in self._code.items():
            file = self._file_of[module]
            paths = [path for public, path, _ in self._uses[module] if not public]
            body = re.sub(rf"\b{_VISIBILITY}use [^;]+;", "", code)
            paths += re.findall(r"(?<![\w:])((?:crate|super|self)(?:::\w+)+)", body)
            if children := [m[-1] for m in self._file_of if m and m[:-1] == module]:
                paths += re.findall(rf"(?<![\w:])((?:{'|'.join(children)})(?:::\w+)+)", body)
            found = {self._resolve(module, path.removesuffix("::*"), frozenset()) for path in paths}
            edges[file] |= {f for f in found if f is not None and f != file}
        return edges

    def _resolve(self, module: Module, path: str, seen: frozenset[tuple[Module, str]]) -> Path | None:
        """The file that defines what `path` means in `module`; None: another crate's."""
        segments, here = path.split("::"), module
        if segments[0] == "crate":
            here, segments = (), segments[1:]
        elif segments[0] in ("super", "self"):
            while segments and segments[0] in ("super", "self"):
                here = here[:-1] if segments[0] == "super" else here
                segments = segments[1:]
        elif (*module, segments[0]) not in self._file_of:
            return None
        while segments and (*here, segments[0]) in self._file_of:
            here, segments = (*here, segments[0]), segments[1:]
        if here not in self._file_of or (here, path) in seen:
            return None
        if segments:
            for _, target, name in self._uses[here]:
                if name == segments[0]:
                    return self._resolve(here, target, seen | {(here, path)})
                if name == "*" and not self._defines(here, segments[0]):
                    file = self._resolve(here, target[:-3], seen | {(here, path)})
                    if file and self._defines(self._module_of[file], segments[0]):
                        return file
        return self._file_of[here]

    def _defines(self, module: Module, name: str) -> bool:
        return bool(re.search(_ITEM.format(name), self._code[module]))
