"""Which device is chosen, and what is said where a GPU cannot be used."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from octavo import LLM
from octavo.errors import InvalidRequestError, MissingDependencyError, UnsupportedDeviceError
from octavo.gpu import device

GPU = torch.cuda.is_available()


class Driver:
    """A driver with `count` devices; `code` is what its calls return."""

    def __init__(self, count: int, code: int = 0) -> None:
        self.count, self.code = count, code

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.code

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return self.code


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with one GPU that torch can use."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(1))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    return monkeypatch


def test_a_usable_gpu_is_taken(driver: pytest.MonkeyPatch) -> None:
    assert device.find_problem() is None
    assert device.choose("auto", embedded=False) == "cuda"
    assert device.choose("cuda", embedded=True) == "cuda"
    assert device.choose("auto", embedded=True) == "cpu"
    assert device.choose("cpu", embedded=False) == "cpu"


def problem(kind: type[Exception], *texts: str) -> None:
    """ "auto" goes to the CPU, "cuda" says why it cannot."""
    assert device.choose("auto", embedded=False) == "cpu"
    with pytest.raises(kind) as caught:
        device.choose("cuda", embedded=False)
    for text in (*texts, "octavo[gpu]" if kind is MissingDependencyError and "CUDA" not in texts else "device='cpu'"):
        assert text in str(caught.value)


def test_without_torch(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(importlib.util, "find_spec", lambda name: None)
    problem(MissingDependencyError, "torch and triton")


def test_with_an_old_torch(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(importlib.metadata, "version", lambda name: {"torch": "2.5.1+cu124", "triton": "3.6.0"}[name])
    problem(MissingDependencyError, "torch 2.6 or newer", "2.5.1+cu124")


def test_without_a_driver(driver: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    driver.setattr(ctypes, "CDLL", missing)
    problem(UnsupportedDeviceError, "no NVIDIA driver")


def test_with_a_driver_that_fails(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(ctypes, "CDLL", lambda name: Driver(1, code=803))
    problem(UnsupportedDeviceError, "error 803", "nvidia-smi")


def test_without_a_device(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(ctypes, "CDLL", lambda name: Driver(0))
    problem(UnsupportedDeviceError, "no GPU", "CUDA_VISIBLE_DEVICES")


def test_with_a_torch_without_cuda(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(torch.version, "cuda", None)
    problem(MissingDependencyError, "without CUDA", "CUDA")


def test_with_a_driver_too_old_for_torch(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(torch.cuda, "is_available", lambda: False)
    problem(UnsupportedDeviceError, "Update the driver")


def test_with_a_gpu_too_old_for_the_kernels(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    problem(UnsupportedDeviceError, "7.5", "8.0 or newer")


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="device is 'tpu'"):
        LLM(device="tpu")


@pytest.mark.skipif(GPU, reason="this machine has a GPU")
def test_here_cuda_says_what_is_missing(tiny: Path) -> None:
    with pytest.raises(UnsupportedDeviceError, match="NVIDIA driver"):
        LLM(tiny, device="cuda")
    state = device.state()
    assert not state["usable"]
    assert "driver" in state["problem"]


@pytest.mark.skipif(GPU, reason="this machine has a GPU")
def test_without_a_gpu_torch_is_never_imported(tiny: Path) -> None:
    code = "import sys, octavo; octavo.LLM(sys.argv[1]).close(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tiny)], check=True, timeout=60)
