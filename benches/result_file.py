"""Result files: JSON with short numbers; a list of equal records is a table, one record a line.

python -m benches.result_file FILE...    # rewrites files in this form

[{"m": 1, "s": 0.5}, ...]  ->  {"columns": ["m", "s"], "rows": [[1, 0.5], ...]}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_DIGITS = 5


def save(path: Path, result: Any) -> None:
    """Writes `result`; floats keep five significant digits."""
    path.write_text(f"{_text(_short(result), 0)}\n", encoding="utf-8")


def load(path: Path) -> Any:
    """Reads a result with its tables as lists of records."""
    return _records(json.loads(path.read_text(encoding="utf-8")))


def _short(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.{_DIGITS}g}")
        case dict():
            return {key: _short(part) for key, part in value.items()}
        case [dict() as first, _, *_] if first and all(isinstance(r, dict) and r.keys() == first.keys() for r in value):
            return {"columns": list(first), "rows": [[_short(record[key]) for key in first] for record in value]}
        case list() | tuple():
            return [_short(part) for part in value]
    return value


def _records(value: Any) -> Any:
    match value:
        case {"columns": columns, "rows": rows, **rest} if not rest:
            return [dict(zip(columns, map(_records, row), strict=True)) for row in rows]
        case dict():
            return {key: _records(part) for key, part in value.items()}
        case list():
            return [_records(part) for part in value]
    return value


def _text(value: Any, depth: int) -> str:
    """JSON with a line for each entry of a dictionary of more than 100 characters, and for each row of a long list."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= 100 or not any(isinstance(part, dict | list) for part in _parts(value)):
        return text
    pad, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {_text(part, depth + 1)}" for key, part in value.items()]
        return f"{{{pad}{f',{pad}'.join(lines)}{end}}}"
    return f"[{pad}{f',{pad}'.join(_text(part, depth + 1) for part in value)}{end}]"


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


if __name__ == "__main__":
    for name in sys.argv[1:]:
        save(Path(name), load(Path(name)))
