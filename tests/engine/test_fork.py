"""A fork of the process has no engine thread: it says so at once and never hangs."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os
from octavo import LLM, SamplingParams
from octavo.errors import EngineDeadError

llm = LLM()
params = SamplingParams(max_tokens=3, temperature=0)
open_stream = llm.stream("One day", params)
child = os.fork()
if child == 0:
    code = 1
    try:
        llm.generate("One day", params)
    except EngineDeadError as error:
        code = 0 if "fork" in str(error) else 2
    try:
        list(open_stream)
        code = 3
    except EngineDeadError:
        pass
    llm.close()
    os._exit(code)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert len(llm.generate("One day", params)[0].outputs[0].token_ids) == 3
assert len(list(open_stream)) > 0
print("fine")
"""


def test_a_forked_child_gets_a_typed_error() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "fine", done.stderr
