"""The package as such: names, errors, what an import costs."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import octavo
import pytest
from octavo import LLM, errors
from octavo.errors import InvalidRequestError, OctavoError


def test_public_names_exist() -> None:
    assert set(octavo.__all__) >= {"LLM", "SamplingParams", "RequestOutput", "errors", "build_info", "__version__"}
    for name in octavo.__all__:
        assert hasattr(octavo, name), name


def test_import_is_light() -> None:
    """No heavy module comes with `import octavo`."""
    heavy = (
        "numpy",
        "torch",
        "rich",
        "typer",
        "tqdm",
        "transformers",
        "tokenizers",
        "huggingface_hub",
    )
    code = f"import octavo, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", errors.__all__)
def test_errors(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, OctavoError)
    assert kind.__doc__
    error = kind("what, and what to do")
    assert str(error) == "what, and what to do"
    assert type(pickle.loads(pickle.dumps(error))) is kind


def test_errors_are_also_the_builtin_ones() -> None:
    assert issubclass(errors.InvalidRequestError, ValueError)
    assert issubclass(errors.ContextLengthError, InvalidRequestError)
    assert issubclass(errors.RequestTimeoutError, TimeoutError)
    assert issubclass(errors.MissingDependencyError, ImportError)


def test_build_info() -> None:
    info = octavo.build_info()
    assert info["version"] == octavo.__version__
    assert info["isa"] in info["isa_available"]
    assert info["isa_available"][0] == "portable"
    assert info["threads"] >= 1
    assert info["memory_bytes"] > 1 << 26


def test_unknown_arguments_name_the_nearest() -> None:
    with pytest.raises(InvalidRequestError, match="kv_cache_memory"):
        LLM(kv_cache_mem="4GiB")
    with pytest.raises(InvalidRequestError, match="enable_prefix_caching"):
        LLM.from_pretrained(None, enable_prefix_cache=False)


def test_the_refusal_knows_every_argument() -> None:
    """The list that hints are drawn from is the signature's."""
    names = [n for n, p in inspect.signature(LLM.__init__).parameters.items() if p.kind is not p.VAR_KEYWORD]
    with pytest.raises(InvalidRequestError) as caught:
        LLM(xyzzy=1)
    assert all(n in str(caught.value) for n in names if n != "self")


def test_docstring_names_every_argument() -> None:
    names = [n for n, p in inspect.signature(LLM.__init__).parameters.items() if p.kind is not p.VAR_KEYWORD]
    assert all(f"{n}:" in (LLM.__doc__ or "") for n in names if n != "self")


def test_triton_kernels_are_part_of_the_package() -> None:
    from octavo import triton_kernels

    assert triton_kernels.__doc__
