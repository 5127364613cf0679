"""A plugin's author needs no engine: `octavo.plugins` loads neither it nor a framework."""

from __future__ import annotations

import subprocess
import sys

import octavo
import pytest

HEAVY = ["octavo._core", "torch", "numpy", "fastapi", "starlette", "flask", "httpx", "httpcore", "mcp", "jsonschema"]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_of_plugins_loads_no_engine_and_no_framework() -> None:
    code = f"import octavo.plugins, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == "[]"


def test_the_check_runs_without_the_engine() -> None:
    code = (
        "import sys; sys.modules['octavo._core'] = None; sys.argv = ['check', 'http://127.0.0.1:9']; "
        "import runpy; runpy.run_module('octavo.plugins.check', run_name='__main__')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.startswith("octavo: ")
    assert "Does it run" in found.stderr


def test_the_names_of_the_package_are_still_there() -> None:
    code = (
        "import octavo; from octavo import *; print(octavo.LLM is LLM, octavo.params.SamplingParams is SamplingParams)"
    )
    assert run(code) == "True True"
    assert set(octavo.__all__) <= set(dir(octavo))
    for name in octavo.__all__:
        assert getattr(octavo, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    for name in ("Lmm", "__main__", "_hidden"):
        with pytest.raises(AttributeError, match=name):
            getattr(octavo, name)
