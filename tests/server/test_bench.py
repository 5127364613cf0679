"""`octavo bench`: its arithmetic against numpy, its times against a server whose times are known, its commands."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from octavo.bench import (
    Job,
    Lengths,
    Load,
    Outcome,
    Spread,
    Target,
    parse_goodput,
    random_jobs,
    read_jobs,
    run_load,
    summarise,
)
from octavo.bench.http import HttpError
from octavo.cli import app
from octavo.errors import InvalidRequestError, OctavoError
from servers import KEY, Process
from typer.testing import CliRunner, Result


def bench(*arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments], **more)


def outcome(ttft: float, latency: float, tokens: int, error: str | None = None) -> Outcome:
    return Outcome(0.0, 0.0, ttft, [0.1], latency, 7, tokens, error)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_spreads_are_numpys() -> None:
    values = np.random.default_rng(3).exponential(size=257).tolist()
    spread = Spread.of(values)
    assert spread is not None
    want = np.percentile(np.asarray(values) * 1e3, [50, 90, 99, 100])
    assert [spread.p50, spread.p90, spread.p99, spread.max] == pytest.approx(want.tolist())
    assert spread.mean == pytest.approx(np.mean(values) * 1e3)
    assert Spread.of([]) is None
    one = Spread.of([0.25])
    assert one is not None
    assert (one.p50, one.p99, one.count) == (250.0, 250.0, 1)


def test_summary_and_goodput() -> None:
    outcomes = [outcome(0.1, 1.1, 11), outcome(0.3, 0.8, 6), outcome(0.1, 0.1, 1), outcome(0, 5, 3, "HTTP 500: no")]
    report = summarise(outcomes, 2.0, {"ttft": 200, "tpot": 100.001})
    assert (report.requests, report.completed, report.errors) == (4, 3, {"HTTP 500: no": 1})
    assert (report.prompt_tokens, report.output_tokens) == (21, 18)
    assert (report.requests_per_second, report.output_tokens_per_second, report.total_tokens_per_second) == (
        1.5,
        9,
        19.5,
    )
    assert report.tpot is not None
    assert report.tpot.count == 2, "a single token has no time per token"
    assert report.tpot.mean == pytest.approx(100)
    assert report.goodput == 1.0, "the second one is too slow to its first token"
    assert report.as_dict()["ttft_ms"]["max"] == pytest.approx(300)
    assert summarise(outcomes, 2.0).goodput is None


def test_goodput_words() -> None:
    assert parse_goodput(["ttft:200 tpot:50", "e2el:1e3"]) == {"ttft": 200, "tpot": 50, "e2el": 1000}
    for bad in ("ttft", "itl:5", "ttft:x", "ttft:-1", "ttft:nan"):
        with pytest.raises(InvalidRequestError, match="--goodput"):
            parse_goodput([bad])


def test_arrivals() -> None:
    """A Poisson process: gaps of the right mean, as spread as an exponential; less spread with a higher burstiness."""
    for burstiness in (0.25, 1.0, 4.0):
        starts = list(Load(request_rate=50, burstiness=burstiness, seed=5).starts(20_000))
        gaps = np.diff(starts)
        assert starts[0] == 0
        assert gaps.mean() == pytest.approx(0.02, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)
    assert list(Load(request_rate=9, seed=1).starts(9)) == list(Load(request_rate=9, seed=1).starts(9))
    assert set(Load().starts(5)) == {0.0}


@pytest.mark.parametrize("bad", [{"request_rate": 0}, {"request_rate": math.nan}, {"burstiness": 0}])
@pytest.mark.parametrize("more", [{}, {"max_concurrency": 0}, {"max_seconds": math.inf}])
def test_loads_that_are_none(bad: dict[str, Any], more: dict[str, Any]) -> None:
    for fields in (bad, {**bad, **more}):
        with pytest.raises(InvalidRequestError):
            Load(**fields)


def test_random_jobs() -> None:
    def split(text: str) -> list[int]:
        return [hash(word) % 1000 for word in text.split() for _ in "ab"]

    inputs, outputs = Lengths(40, 0.5), Lengths(16)
    jobs = random_jobs(200, inputs, outputs, prefix_tokens=5, seed=1, tokenize=split)
    assert jobs == random_jobs(200, inputs, outputs, prefix_tokens=5, seed=1, tokenize=split)
    assert jobs != random_jobs(200, inputs, outputs, prefix_tokens=5, seed=2, tokenize=split)
    lengths = [len(j.prompt) - 5 for j in jobs]
    assert min(lengths) >= 20
    assert max(lengths) <= 60
    assert len(set(lengths)) > 20
    assert {j.output_tokens for j in jobs} == {16}
    assert len({tuple(j.prompt[:5]) for j in jobs}) == 1, "a common prefix"  # type: ignore[arg-type]
    assert len({str(j.prompt) for j in jobs}) == 200
    texts = random_jobs(3, Lengths(100), outputs)
    assert all(isinstance(j.prompt, str) and 80 <= len(j.prompt.split()) <= 100 for j in texts)
    spread = [random_jobs(1, Lengths(100, 1.0, "lognormal"), outputs, seed=s, tokenize=split)[0] for s in range(300)]
    assert np.median([len(j.prompt) for j in spread]) == pytest.approx(100, rel=0.25)
    with pytest.raises(InvalidRequestError, match="--num-prompts"):
        random_jobs(0, inputs, outputs)


def test_datasets(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "a", "output_tokens": 3}\n\n"b"\n{"messages": [{"role": "user", "content": "c"}]}\n')
    jobs = read_jobs(file, 4, 9, shuffle=False)
    assert [(j.prompt, j.output_tokens) for j in jobs] == [
        ("a", 3),
        ("b", 9),
        ([{"role": "user", "content": "c"}], 9),
        ("a", 3),
    ]
    shuffled = read_jobs(file, 3, 9, seed=1)
    assert sorted(map(str, shuffled)) == sorted(map(str, jobs[:3]))
    for line in ("{", "5", '{"prompt": ""}', '{"messages": ["x"]}', '{"prompt": "x", "output_tokens": 0}', "[]"):
        file.write_text(f'"fine"\n{line}\n')
        with pytest.raises(InvalidRequestError, match="line 2"):
            read_jobs(file, 1, None)
    file.write_text("")
    with pytest.raises(InvalidRequestError, match="no line"):
        read_jobs(file, 1, None)


# --- a server whose times are known -----------------------------------------------------------------------------------

Handler = Callable[[asyncio.StreamWriter, dict[str, Any]], Any]


@asynccontextmanager
async def scripted(handler: Handler) -> AsyncIterator[str]:
    """A server of sockets that answers each POST by `handler`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                await handler(writer, json.loads(await reader.readexactly(size) or b"{}"))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 5}}\n\n'


async def slow(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    """First text after 60 ms, four more pieces 30 ms apart."""
    writer.write(HEAD + chunk(b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'))
    await asyncio.sleep(0.06)
    for i in range(5):
        if i:
            await asyncio.sleep(0.03)
        event = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
        # Cut where no event ends.
        writer.write(chunk(event[:9]) + chunk(event[9:]))
        await writer.drain()
    writer.write(chunk(USAGE) + chunk(b"data: [DONE]\n\n") + chunk(b""))


def send(url_of: Handler, jobs: list[Job], load: Load) -> tuple[list[Outcome], float]:
    async def run() -> tuple[list[Outcome], float]:
        async with scripted(url_of) as url:
            target = Target(f"{url}/v1", "openai-chat", model="m")
            try:
                return await run_load(target, jobs, load)
            finally:
                await target.close()

    return asyncio.run(run())


def test_times_are_those_of_the_server() -> None:
    outcomes, seconds = send(slow, [Job("hi", 5)] * 6, Load(max_concurrency=3))
    assert not [o.error for o in outcomes if o.error]
    for o in outcomes:
        # Timers never fire early (but by the clock's resolution); how late they fire is the machine's affair.
        assert o.ttft > 0.058, "the empty first piece is no token"
        assert len(o.itl) == 4
        assert sum(o.itl) > 0.118
        assert o.latency > 0.178
        assert o.tpot == pytest.approx((o.latency - o.ttft) / 4)
        assert (o.prompt_tokens, o.output_tokens) == (4, 5)
    assert seconds > 0.355, "two rounds of three"
    ends = sorted([(o.start, 1) for o in outcomes] + [(o.start + o.latency, -1) for o in outcomes])
    assert max(itertools.accumulate(step for _, step in ends)) == 3


async def cut(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    writer.write(HEAD + chunk(b'data: {"choices": [{"text": "x"}]}\n\n'))
    await writer.drain()
    writer.close()


async def unfinished(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    writer.write(HEAD + chunk(b'data: {"choices": [{"text": "x"}]}\n\n') + chunk(b""))


async def fails(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    writer.write(HEAD + chunk(b'data: {"error": {"message": "a step failed"}}\n\n') + chunk(b""))


async def full(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nfull")


async def hangs(_writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    await asyncio.sleep(3600)


async def nonsense(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    writer.write(HEAD + chunk(b"data: nonsense\n\n") + chunk(b""))


async def no_http(writer: asyncio.StreamWriter, _body: dict[str, Any]) -> None:
    writer.write(b"SSH-2.0-x\r\n\r\n")


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (cut, "cut off"),
        (unfinished, r"without \[DONE\]"),
        (fails, "a step failed"),
        (full, "HTTP 429: full"),
        (hangs, "not ended within 0.3 s"),
        (nonsense, "no chunk"),
        (no_http, "no HTTP"),
    ],
)
def test_what_goes_wrong_is_counted(handler: Handler, words: str) -> None:
    outcomes, _ = send(handler, [Job("hi", 5)] * 3, Load(max_seconds=0.3))
    report = summarise(outcomes, 1.0)
    assert (report.requests, report.completed) == (3, 0)
    (message,) = report.errors
    assert re.search(words, message)


def test_nobody_there() -> None:
    target = Target("http://127.0.0.1:9", model="m")
    trace = asyncio.run(target.send(target.body(Job("x", 1))))
    assert trace.error
    with pytest.raises(OctavoError, match="lists no models"):
        asyncio.run(Target("http://127.0.0.1:9").find_model())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:99999", "http://x?y=1"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="URL"):
        Target(url)


def test_headers_cannot_be_smuggled() -> None:
    with pytest.raises(InvalidRequestError, match="header"):
        Target("http://127.0.0.1", api_key="x\r\nHost: y")
    assert issubclass(HttpError, Exception)


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_serve(server: Process, tmp_path: Path, backend: str) -> None:
    file, picture = tmp_path / "deep" / "result.json", tmp_path / "run.png"
    matplotlib = importlib.util.find_spec("matplotlib")
    result = bench(
        "serve", "--base-url", server.url, "--api-key", KEY, "--backend", backend, "--num-prompts", "12",
        "--request-rate", "200", "--max-concurrency", "4", "--random-input-len", "20", "--random-output-len", "6",
        "--random-prefix-len", "8", "--goodput", "ttft:60000 tpot:60000", "--temperature", "0",
        "--result-filename", str(file), "--save-detailed", "--json", *(["--plot", str(picture)] if matplotlib else []),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["requests"], shown["completed"], shown["output_tokens"]) == (12, 12, 12 * 6)
    if backend == "openai":
        assert shown["prompt_tokens"] == 12 * 28, "token ids of exactly the lengths asked for"
    assert shown["goodput"] == pytest.approx(shown["requests_per_second"])
    # Answers this short may come in one piece: then there is no time between pieces.
    measured = [name for name in ("ttft", "tpot", "itl", "e2el") if name != "itl" or shown["itl_ms"] is not None]
    assert all(shown[f"{name}_ms"]["p50"] <= shown[f"{name}_ms"]["p99"] for name in measured)
    assert KEY not in result.output
    kept = json.loads(file.read_text())
    assert len(kept.pop("outcomes")) == 12
    assert kept == shown
    if matplotlib:
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_serve_table_and_faults(server: Process, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    data.write_text('{"prompt": "Once", "output_tokens": 3}\n{"prompt": "Two", "output_tokens": 4}\n')
    base = ["serve", "--base-url", f"{server.url}/v1", "--num-prompts", "2", "--num-warmups", "0"]
    result = bench(*base, "--dataset-path", str(data), "--ignore-eos", env={"OCTAVO_API_KEY": KEY})
    assert result.exit_code == 0, result.output
    assert "time to first token" in result.stdout
    assert "7" in result.stdout
    result = bench(*base, "--api-key", "wrong")
    assert result.exit_code == 1
    assert "401" in result.stderr
    result = bench(*base, "--api-key", KEY, "--model", "absent", "--json")
    assert result.exit_code == 1
    assert "404" in result.stderr
    assert json.loads(result.stdout)["completed"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["folder", "--base-url", "http://127.0.0.1:9"], "--model"),
        (["--dataset-name", "sonnets"], "--dataset-name"),
        (["--dataset-name", "custom"], "--dataset-path"),
        (["--goodput", "x:1"], "--goodput"),
        (["--extra-body", "[]"], "--extra-body"),
        (["--header", "x"], "--header"),
        (["--backend", "other", "--base-url", "http://127.0.0.1:9"], "--backend"),
        (["--num-prompts", "0", "--base-url", "http://127.0.0.1:9", "--model", "m"], "--num-prompts"),
        (["--request-rate", "0"], "--request-rate"),
        (["--random-range-ratio", "2"], "spread"),
    ],
)
def test_serve_refuses(arguments: list[str], words: str) -> None:
    result = bench("serve", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_serve_starts_its_own_server() -> None:
    result = bench("serve", "--num-prompts", "3", "--random-output-len", "4", "--random-input-len", "5", "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["completed"], shown["model"]) == (3, "octavo-embedded")
    result = bench("serve", "/nowhere", "--num-prompts", "3")
    assert result.exit_code == 1
    assert "/nowhere" in result.stderr


def test_in_process(tmp_path: Path) -> None:
    small = ["--input-len", "6", "--output-len", "4", "--json"]
    result = bench("latency", *small, "--batch-size", "2", "--num-iters", "3", "--num-iters-warmup", "1", "--n", "2")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["iterations"], shown["latency_ms"]["count"]) == (3, 3)
    mean = shown["latency_ms"]["mean"]
    assert shown["output_tokens_per_second"] == pytest.approx(2 * 2 * 4 / (mean / 1e3))
    file = tmp_path / "t.json"
    result = bench("throughput", *small, "--num-prompts", "9", "--output-json", str(file))
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["completed"], shown["prompt_tokens"], shown["output_tokens"]) == (9, 54, 36)
    assert json.loads(file.read_text()) == shown
    assert "all tokens/s" in bench("throughput", "--num-prompts", "2", "--output-len", "2").stdout
    assert "one batch" in bench("latency", "--num-iters", "1", "--num-iters-warmup", "0", "--output-len", "2").stdout
    data = tmp_path / "own.jsonl"
    data.write_text('{"messages": [{"role": "user", "content": "Hello"}], "output_tokens": 1}\n')
    result = bench("throughput", "--num-prompts", "2", "--dataset-path", str(data), "--json")
    assert json.loads(result.stdout)["output_tokens"] == 2
