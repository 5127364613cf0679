"""The threads: as many as asked for or as the process may use, none of them busy while nothing is to be done."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from octavo import LLM, SamplingParams

# Prints the number of threads with and without a wish, and counts the pool's threads by their names.
_PROGRAM = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pathlib import Path
from octavo import LLM
names = lambda: [p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm")]
workers = lambda: sum(n.startswith("octavo-") and n != "octavo-engine" for n in names())
with LLM(max_model_len=64) as llm:
    print(llm.info()["kernels"]["threads"], workers())
with LLM(max_model_len=64, threads=3) as llm:
    print(llm.info()["kernels"]["threads"], workers())
print(workers())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_affinity_mask_and_the_argument_are_obeyed() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True)
    # The engine's thread is one of the threads that compute; closing ends the others.
    assert done.stdout.split("\n")[:3] == ["1 0", "3 2", "0"]


def test_an_idle_engine_takes_no_time() -> None:
    with LLM(max_model_len=128, threads=2) as llm:
        llm.generate(["Once upon a time"] * 4, SamplingParams(max_tokens=32, ignore_eos=True), use_tqdm=False)
        # Workers spin for less than 0.1 ms before they sleep.
        time.sleep(0.1)
        begin, busy = time.monotonic(), time.process_time()
        time.sleep(1.0)
        busy, wall = time.process_time() - busy, time.monotonic() - begin
    # Other threads of the test process may do something; one that spins would take all of the second.
    assert busy < 0.1 * wall, f"{busy:.3f} s of processor time in {wall:.2f} s of nothing to do"
