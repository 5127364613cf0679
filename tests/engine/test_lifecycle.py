"""Closing, interrupting, timing out, filling the queue: nothing hangs and nothing is held."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from octavo import LLM, SamplingParams
from octavo.errors import EngineDeadError, OctavoError, QueueFullError, RequestTimeoutError

PROMPT = "In the morning"
ENDLESS = SamplingParams(max_tokens=2000, ignore_eos=True)


def test_context_manager_closes() -> None:
    with LLM(max_model_len=64) as made:
        assert made.generate(PROMPT, SamplingParams(max_tokens=2))[0].outputs[0].finish_reason == "length"
    for call in (
        lambda: made.generate(PROMPT),
        lambda: next(made.stream(PROMPT)),
        lambda: made.chat([{"role": "user", "content": "x"}]),
    ):
        with pytest.raises(EngineDeadError, match="closed"):
            call()
    made.close()


def test_closing_ends_other_threads() -> None:
    made = LLM()
    results: list[object] = []
    # Several samples: none ends before all threads have begun.
    four = SamplingParams(max_tokens=2000, ignore_eos=True, n=4)

    def work() -> None:
        try:
            results.append(made.generate(PROMPT, four)[0].outputs[0].finish_reason)
        except OctavoError as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while made.stats()["requests"]["running"] < 16:
        time.sleep(0.001)
    made.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "generate hangs after close"
    assert all(r == "abort" or isinstance(r, EngineDeadError) for r in results), results


def test_timeout_of_a_single_prompt_raises(llm: LLM) -> None:
    before = llm.stats()
    with pytest.raises(RequestTimeoutError, match="timeout"):
        llm.generate(PROMPT, SamplingParams(max_tokens=2000, ignore_eos=True, timeout=0.03))
    # It has ended at its timeout, and not after its last token.
    after = llm.stats()
    assert after["generated_tokens"] - before["generated_tokens"] < 2000
    assert after["finished"]["error"] == before["finished"]["error"] + 1
    with pytest.raises(TimeoutError):
        list(llm.stream(PROMPT, SamplingParams(max_tokens=2000, ignore_eos=True, timeout=0.03)))


def test_timeout_in_a_batch_spares_the_others(llm: LLM) -> None:
    short = SamplingParams(max_tokens=8, temperature=0)
    late = SamplingParams(max_tokens=2000, ignore_eos=True, timeout=0.05)
    outputs = llm.generate([PROMPT] * 3, [short, late, short])
    assert outputs[1].outputs[0].finish_reason == "error"
    assert isinstance(outputs[1].error, RequestTimeoutError)
    assert outputs[0].error is None
    assert outputs[0].outputs == outputs[2].outputs == llm.generate(PROMPT, short)[0].outputs


def test_full_queue_is_said() -> None:
    with LLM(max_num_seqs=1, max_queue=2) as one:
        running = one.stream(PROMPT, ENDLESS)
        next(running)
        waiting = [one.stream(PROMPT, SamplingParams(max_tokens=2)) for _ in range(2)]
        with pytest.raises(QueueFullError, match="max_queue"):
            one.stream(PROMPT)
        running.close()
        assert [list(w)[-1].finished for w in waiting] == [True, True]


def test_generate_waits_for_places() -> None:
    """More prompts than the queue takes: `generate` feeds them as places come free."""
    with LLM(max_num_seqs=2, max_queue=3) as small:
        outputs = small.generate([PROMPT] * 30, SamplingParams(max_tokens=3, temperature=0, ignore_eos=True))
        assert small.stats()["max_batch"] == 2
    assert len(outputs) == 30
    assert len({o.text for o in outputs}) == 1


# Whoever started the tests may have ignored SIGINT (shells do for background jobs): children would inherit that.
HEAR_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def run_python(code: str, interrupt_at: str | None = None) -> tuple[int, str, str]:
    """Runs `code`; sends Ctrl-C as soon as it prints `interrupt_at`."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", HEAR_CTRL_C + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    out = ""
    if interrupt_at is not None:
        assert process.stdout is not None
        while interrupt_at not in (line := process.stdout.readline()):
            assert line, f"ended early: {process.communicate()[1]}"
        process.send_signal(signal.SIGINT)
    try:
        rest, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out + rest, err


@pytest.mark.parametrize("many", [1, 40])
def test_ctrl_c_stops_and_leaves_the_llm_usable(many: int) -> None:
    code = f"""
        import threading, time
        from octavo import LLM, SamplingParams
        llm = LLM(max_num_seqs=8)
        def watch():
            while llm.stats()["requests"]["running"] == 0:
                time.sleep(0.001)
            print("running")
        threading.Thread(target=watch).start()
        try:
            for _ in range(1000):
                llm.generate(["Once"] * {many}, SamplingParams(max_tokens=2000, ignore_eos=True), use_tqdm=False)
        except KeyboardInterrupt:
            output = llm.generate("Once", SamplingParams(max_tokens=3, ignore_eos=True))[0]
            blocks = llm.stats()["blocks"]
            print("after", len(output.outputs[0].token_ids), blocks["live"])
    """
    status, out, err = run_python(code, interrupt_at="running")
    assert status == 0, err
    assert "after 3 0" in out


def test_exit_while_requests_run() -> None:
    """A program that ends with requests open ends at once, quietly."""
    code = """
        from octavo import LLM, SamplingParams
        llm = LLM()
        streams = [llm.stream("Once", SamplingParams(max_tokens=2000, ignore_eos=True)) for _ in range(5)]
        next(streams[0])
        print("bye")
    """
    status, out, err = run_python(code)
    assert (status, out.strip(), err) == (0, "bye", "")


def test_repr_names_the_model(llm: LLM) -> None:
    assert "Qwen3ForCausalLM" in repr(llm)


def test_info(llm: LLM) -> None:
    info = llm.info()
    assert {"model", "memory", "machine", "kernels", "limits", "defaults", "spec"} <= set(info)
    assert info["spec"] == llm.spec
    assert info["model"]["quantization"] == "int8"
    assert all(part["bytes"] > 0 and part["reason"] for part in info["memory"])
    assert info["machine"]["isa"] in info["machine"]["isa_available"]
    assert info["limits"]["num_blocks"] == llm.stats()["blocks"]["total"]


def test_progress_bar(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    params = SamplingParams(max_tokens=3)
    llm.generate([PROMPT] * 4, params)
    assert "4/4" in capsys.readouterr().err
    llm.generate([PROMPT] * 4, params, use_tqdm=False)
    llm.generate(PROMPT, params)
    assert capsys.readouterr().err == ""
