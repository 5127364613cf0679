"""Fine-tuning without torch: formats, refusals by line, splits, labels, the plan and the order of rows."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo.errors import DeviceMemoryError, InvalidRequestError, OctavoError, UnsupportedDeviceError
from octavo.finetune.data import Example, duplicates_removed, read_examples, split_by_prompt
from octavo.finetune.encode import NOT_A_TARGET, Row, cut, encode, p99_length
from octavo.finetune.launch import run_workers
from octavo.finetune.order import row_order
from octavo.finetune.plan import DataFacts, ModelFacts, learning_rate, make_plan, model_facts
from octavo.finetune.probe import best_of, measure, sizes_of
from octavo.finetune.run_folder import RunFolder
from octavo.finetune.serve import check_address, load_into_server
from octavo.hub import embedded_model

MODEL = ModelFacts(2_700_000, [(192, 192)] * 24, 192, 6, 2048, 2560)
MACHINE = {"device": "cpu", "devices": 1, "memory_bytes": 8 << 30, "bfloat16": False, "threads": 2}


def facts(rows: int, replay: int = 100) -> DataFacts:
    return DataFacts("messages", rows, 0, replay, 0, 0, 64, 0, 0, rows * 20, rows * 10)


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("kind", "row", "answer"),
    [
        ("messages", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "b"),
        ("prompt", {"prompt": "a", "completion": " b"}, " b"),
        ("instruction", {"instruction": "a", "output": "b"}, "b"),
        ("instruction", {"instruction": "a", "input": "c", "output": "b"}, "b"),
        ("text", {"text": "b"}, "b"),
    ],
)
def test_formats_are_found_from_the_keys(tmp_path: Path, kind: str, row: Any, answer: str) -> None:
    found, (example,) = read_examples(written(tmp_path / "d.jsonl", row))
    assert found == kind
    assert (example.messages[-1]["content"] if example.messages else example.answer) == answer


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "line 2"),
        ("[]", "line 2: a JSON object"),
        ({"text": "a", "label": 1}, "line 2: unknown key 'label'"),
        ({"prompt": "a"}, "line 2: prompt needs completion"),
        ({"question": "a"}, "line 2: messages, or"),
        ({"text": 3}, "line 2: text is 3"),
        ({"text": " "}, "line 2: the text to learn is empty"),
        ({"prompt": "a", "completion": "b"}, "line 2: format prompt, but"),
    ],
)
def test_bad_lines_are_named_by_number(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says.replace("[", r"\[")):
        read_examples(written(tmp_path / "d.jsonl", {"text": "fine"}, row))


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "a list"),
        ([{"role": "user", "content": "a"}], "the last message is of user"),
        ([{"role": "tool", "content": "a"}], "role 'tool'"),
        ([{"role": "assistant", "content": ""}], "empty"),
        ([{"role": "assistant", "content": "a", "tool_calls": []}], "exactly role and content"),
    ],
)
def test_bad_conversations(tmp_path: Path, messages: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"line 1: .*{says}"):
        read_examples(written(tmp_path / "d.jsonl", {"messages": messages}))


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no row"):
        read_examples(written(tmp_path / "d.jsonl", ""))
    with pytest.raises(InvalidRequestError, match=r"absent\.jsonl"):
        read_examples(tmp_path / "absent.jsonl")


def test_duplicates_are_counted() -> None:
    rows = [Example(i, None, "p", f" {i % 7}") for i in range(20)]
    kept, copies = duplicates_removed(rows)
    assert ([e.answer for e in kept], copies) == ([f" {i}" for i in range(7)], 13)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=900), st.randoms())
def test_the_split_depends_on_prompts_alone(prompts: list[int], rng: random.Random) -> None:
    rows = [Example(i, None, f"prompt {p}", " x") for i, p in enumerate(prompts)]
    train, held = split_by_prompt(rows)
    assert len(train) + len(held) == len(rows)
    assert not {e.prompt for e in train} & {e.prompt for e in held}
    assert len(held) <= len(rows) * 0.05
    mixed = list(rows)
    rng.shuffle(mixed)
    assert {e.line for e in split_by_prompt(mixed)[1]} == {e.line for e in held}


class Letters:
    """A tokenizer with a token for each letter."""

    eos_token_id = 0

    def __init__(self, template: str = "", strip: bool = False) -> None:
        self.chat_template, self._strip = template, strip

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        # A template that drops earlier answers, as some reasoning models' do.
        shown = [
            m for i, m in enumerate(messages) if not self._strip or m["role"] != "assistant" or i >= len(messages) - 1
        ]
        return "".join(f"<{m['role'][0]}>{m['content']};" for m in shown) + ("<a>" if add_generation_prompt else "")


def chat(*texts: str) -> Example:
    roles = ("user", "assistant") * len(texts)
    return Example(3, tuple({"role": r, "content": t} for r, t in zip(roles, texts, strict=False)))


def test_only_answers_are_targets() -> None:
    (row,) = encode(Letters("x"), [chat("hi", "yo", "so", "ok")])
    assert "".join(chr(i) for i in row.ids) == "<u>hi;<a>yo;<u>so;<a>ok;"
    assert "".join(chr(i) for i in row.labels if i != NOT_A_TARGET) == "yo;ok;"


def test_a_template_without_prefixes_is_refused_by_line() -> None:
    assert encode(Letters("x", strip=True), [chat("hi", "yo")])
    with pytest.raises(InvalidRequestError, match="line 3: message 2"):
        encode(Letters("x", strip=True), [chat("hi", "yo", "so", "ok")])


def test_plain_rows_end_with_the_end_token() -> None:
    pair, text = encode(Letters(), [Example(1, None, "ab", " c"), Example(2, None, "", "de")])
    assert pair.ids == [97, 98, 32, 99, 0]
    assert pair.labels == [NOT_A_TARGET, NOT_A_TARGET, 32, 99, 0]
    assert text.labels == text.ids == [100, 101, 0]


def test_no_template_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no chat template"):
        encode(Letters(), [chat("hi", "yo")])


def test_lengths_and_cuts() -> None:
    rows = [Row([1] * n, [NOT_A_TARGET] * (n - 2) + [1, 1]) for n in [10] * 198 + [100, 300]]
    assert p99_length(rows, 4096) == 64
    assert p99_length(rows, 32) == 32
    kept, shortened, gone = cut(rows, 99)
    assert (len(kept), shortened, gone) == (199, 1, 1)


@given(st.integers(1, 40), st.integers(0, 20), st.integers(1, 30), st.integers(2, 16), st.integers(0, 9))
def test_steps_hold_their_share_of_replay(rows: int, replay: int, steps: int, batch: int, seed: int) -> None:
    replayed = batch // 4 if replay else 0
    lengths = [(7 * i) % 11 for i in range(rows + replay)]
    order = row_order(lengths[:rows], lengths[rows:], steps, batch, replayed, seed)
    assert len(order) == steps * batch
    for start in range(0, len(order), batch):
        step = order[start : start + batch]
        assert sum(i >= rows for i in step) == replayed
        assert [lengths[i] for i in step] == sorted((lengths[i] for i in step), reverse=True)
    own = [sum(i == row for i in order) for row in range(rows)]
    assert max(own) - min(own) <= 1


def test_the_batch_is_the_datas_and_not_the_machines() -> None:
    plans = [
        make_plan(Path("m"), MODEL, facts(48), MACHINE | change)
        for change in ({}, {"device": "cuda", "devices": 4, "bfloat16": True, "memory_bytes": 80 << 30})
    ]
    assert [(p.batch_rows, p.steps, p.rate, p.replay_rows) for p in plans] == [(16, 160, 3e-3, 4)] * 2
    assert (plans[0].dtype, plans[1].dtype, plans[1].processes) == ("float32", "bfloat16", 4)
    assert {"method", "dtype", "batch_rows", "steps", "rate", "length", "replay_rows"} <= plans[0].why.keys()


def test_rates_fall_with_the_size() -> None:
    rates = [learning_rate(n, "lora") for n in (2_700_000, 270_000_000, 8_000_000_000, 10**13)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == (3e-3, 1e-4)
    assert learning_rate(2_700_000, "full") == 3e-4


def test_refusals_of_the_plan() -> None:
    with pytest.raises(UnsupportedDeviceError, match="qlora needs CUDA"):
        make_plan(Path("m"), MODEL, facts(48), MACHINE, method="qlora")
    with pytest.raises(InvalidRequestError, match="'dora'"):
        make_plan(Path("m"), MODEL, facts(48), MACHINE, method="dora")
    with pytest.raises(DeviceMemoryError, match=r"optimizer [0-9,]+ \(two moments.*--method lora"):
        make_plan(Path("m"), MODEL, facts(48), MACHINE | {"memory_bytes": 20 << 20}, method="full")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_memory_has_a_reason_a_line(method: str) -> None:
    lines = make_plan(Path("m"), MODEL, facts(48), MACHINE, method=method).memory
    assert all(line["bytes"] > 0 and line["why"] for line in lines)
    found = {line["what"]: line["bytes"] for line in lines}
    if method == "full":
        assert sum(found.values()) == 16 * MODEL.weights
        return
    adapter = 16 * sum(out + in_ for out, in_ in MODEL.linear)
    assert found == {
        "frozen weights": 4 * MODEL.weights,
        "adapter: weights": 4 * adapter,
        "adapter: gradients": 4 * adapter,
        "adapter: optimizer": 8 * adapter,
    }


def test_facts_of_the_embedded_model() -> None:
    found = model_facts(embedded_model())
    assert (found.layers, found.width, found.vocabulary) == (6, 192, 2048)
    assert len(found.linear) == 6 * 7
    assert 2_600_000 < found.weights < 2_900_000


def test_the_probe_takes_the_fastest() -> None:
    times = {1: 9.0, 2: 5.0, 4: 4.0, 8: 3.99, 16: 4.2}
    measured = measure(sizes_of(16), times.__getitem__, lambda: 1, 100)
    assert [m["micro_rows"] for m in measured] == [1, 2, 4, 8, 16]
    assert best_of(measured) == 4
    assert [m["micro_rows"] for m in measure(sizes_of(16), times.__getitem__, lambda: 60, 100)] == [1]
    assert sizes_of(12) == [1, 2, 4]


def test_out_of_memory_halves_the_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    codes = iter([75, -9, 0])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=next(codes)))
    plan = dataclasses.replace(make_plan(Path("m"), MODEL, facts(48), MACHINE), micro_rows=8)
    notes: list[str] = []
    with run.lock() as lock:
        assert run_workers(plan, run, tmp_path, lock, notes.append).micro_rows == 2
        assert run.plan() == dataclasses.replace(plan, micro_rows=2)
        assert notes == [f"out of memory with {n} rows at a time: goes on with {n // 2}" for n in (8, 4)]
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=75))
        with pytest.raises(DeviceMemoryError, match="one row at a time"):
            run_workers(plan, run, tmp_path, lock, notes.append)


def test_serving_is_checked_before_the_training() -> None:
    for url, name, method in (("localhost:8000", "a", "lora"), ("http://h", None, "lora"), ("http://h", "a", "full")):
        with pytest.raises(InvalidRequestError, match="serve"):
            check_address(url, name, method)
    check_address("http://localhost:8000", "law", "auto")


def test_the_adapter_is_posted_to_the_server(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers["Authorization"], body))
            self.send_response(200 if body["lora_name"] == "law" else 400)
            self.end_headers()
            self.wfile.write(b"the reason")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        assert load_into_server(url, "law", tmp_path, "key") == "the reason"
        with pytest.raises(OctavoError, match=r"refuses the adapter \(400\): the reason"):
            load_into_server(url, "tax", tmp_path)
        server.shutdown()
    body = {"lora_name": "law", "lora_path": str(tmp_path), "load_inplace": True}
    assert seen[0] == ("/v1/load_lora_adapter", "Bearer key", body)
