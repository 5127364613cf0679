"""Whole servers: mounts, clients that leave, a full queue, the end."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import octavo
import openai
import pytest
from fastapi import FastAPI
from flask import Flask
from octavo import LLM
from octavo.cli.serve import listen
from octavo.server import ServerConfig, create_app, create_wsgi_app
from octavo.server.protocol import http_protocol
from servers import KEY, served, uvicorn_in_thread, wait_until, werkzeug_in_thread
from starlette.testclient import TestClient
from werkzeug.middleware.dispatcher import DispatcherMiddleware

LONG = {"prompt": "Once", "max_tokens": 2500, "ignore_eos": True}


@pytest.fixture(params=["fastapi", "flask"])
def mounted(request: pytest.FixtureRequest, llm: LLM) -> Any:
    """The URL of the server as a part of another application."""
    if request.param == "fastapi":
        host = FastAPI()

        @host.get("/own")
        def own() -> str:
            return "own"

        host.mount("/llm", create_app(llm))
        with uvicorn_in_thread(host) as url:
            yield url
    else:
        flask = Flask("host")

        @flask.get("/own")
        def flask_own() -> str:
            return '"own"'

        flask.wsgi_app = DispatcherMiddleware(flask.wsgi_app, {"/llm": create_wsgi_app(llm)})  # type: ignore[method-assign]
        with werkzeug_in_thread(flask) as url:
            yield url


def test_mounted(mounted: str) -> None:
    assert httpx.get(f"{mounted}/own").json() == "own"
    with openai.OpenAI(base_url=f"{mounted}/llm/v1", api_key="none", max_retries=0) as client:
        turns: Any = [{"role": "user", "content": "Hello"}]
        whole = client.chat.completions.create(model="octavo-embedded", messages=turns, temperature=0)
        stream = client.chat.completions.create(model="octavo-embedded", messages=turns, temperature=0, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in stream) == whole.choices[0].message.content
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="octavo-embedded", prompt="a", temperature=3)


def raw_post(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    data = json.dumps(body).encode()
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port))
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
    ]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(mounted: str, llm: LLM, stream: bool) -> None:
    before, ended = llm.stats()["finished"]["abort"], llm.stats()["finished"]["length"]
    connection = raw_post(mounted, "/llm/v1/completions", {**LONG, "stream": stream, "n": 8})
    wait_until(lambda: llm.stats()["requests"]["running"] > 0, "it runs")
    if stream:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    connection.close()
    wait_until(lambda: llm.stats()["requests"]["running"] == 0, "it is cancelled")
    assert llm.stats()["finished"]["length"] == ended, "no sample ran to its end meanwhile"
    assert llm.stats()["finished"]["abort"] == before + 8, "cancelled, not run to its end"
    assert llm.stats()["blocks"]["live"] == 0


def test_a_queued_request_leaves_with_its_client() -> None:
    with LLM(max_num_seqs=1) as llm, uvicorn_in_thread(create_app(llm)) as url:
        first = raw_post(url, "/v1/completions", LONG)
        wait_until(lambda: llm.stats()["requests"]["running"] == 1, "the first runs")
        second = raw_post(url, "/v1/completions", LONG)
        wait_until(lambda: llm.stats()["requests"]["waiting"] == 1, "the second waits")
        second.close()
        wait_until(lambda: llm.stats()["requests"]["waiting"] == 0, "the second is gone")
        first.close()
        wait_until(lambda: llm.stats()["requests"]["running"] == 0, "the first is gone")


def test_a_full_queue_is_429_with_retry_after() -> None:
    with LLM(max_num_seqs=1, max_queue=1) as llm, uvicorn_in_thread(create_app(llm)) as url:
        held = [raw_post(url, "/v1/completions", LONG)]
        wait_until(lambda: llm.stats()["requests"]["running"] == 1, "the first runs")
        held.append(raw_post(url, "/v1/completions", LONG))
        wait_until(lambda: llm.stats()["requests"]["waiting"] == 1, "the second waits")
        found = httpx.post(f"{url}/v1/completions", json=LONG)
        assert found.status_code == 429
        assert found.headers["retry-after"] == "1"
        assert found.json()["error"]["code"] == "queue_full"
        for connection in held:
            connection.close()
        wait_until(lambda: llm.stats()["requests"]["running"] == 0, "all are gone")


def test_the_engine_is_loaded_by_the_first_request() -> None:
    made = []

    def make() -> LLM:
        made.append(LLM(max_num_seqs=2))
        return made[-1]

    with uvicorn_in_thread(create_app(make)) as url:
        assert not made, "before anything was asked"
        assert httpx.get(f"{url}/health").json() == {"status": "new"}
        assert not made
        answers = []

        def ask() -> None:
            answers.append(httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 8
        assert len(made) == 1
        assert httpx.get(f"{url}/ready").status_code == 200
    made[0].close()


@pytest.mark.parametrize("source", ["/no/such/folder", lambda: 3])
def test_a_model_that_cannot_be_loaded_is_said(source: Any) -> None:
    client = TestClient(create_app(source))
    found = client.post("/v1/completions", json={"prompt": "a"})
    assert found.status_code == 503
    assert found.headers["x-should-retry"] == "false"
    assert "could not be loaded" in found.json()["error"]["message"]
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 503


def test_health_tells_of_a_closed_engine() -> None:
    llm = LLM(max_num_seqs=1)
    client = TestClient(create_app(llm))
    assert client.get("/health").json() == {"status": "ready"}
    llm.close()
    assert client.get("/health").status_code == 503
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 503
    assert client.get("/version").json() == {"version": octavo.__version__}


def test_sigterm_drains() -> None:
    """What runs is answered to its end; nobody new is let in; the process ends by itself, cleanly."""
    with served() as process:
        lines: list[str] = []

        def read() -> None:
            with httpx.stream("POST", f"{process.url}/v1/completions", json={**LONG, "stream": True}) as answer:
                lines.extend(answer.iter_lines())

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: len(lines) > 2, "it streams")
        process.terminate()
        reader.join(60)
        assert process.process.wait(30) == 0
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert [e["choices"][0]["finish_reason"] for e in events].count("length") == 1
        assert lines[-2] == "data: [DONE]" or lines[-1] == "data: [DONE]"


def test_kill_9_of_a_client_costs_nothing(llm: LLM) -> None:
    import subprocess
    import sys

    code = (
        "import sys, urllib.request as u;"
        "r = u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode(), {'Content-Type': 'application/json'}));"
        "print(r.readline(), flush=True); r.read()"
    )
    with uvicorn_in_thread(create_app(llm)) as url:
        body = json.dumps({**LONG, "stream": True, "n": 4})
        client = subprocess.Popen([sys.executable, "-c", code, f"{url}/v1/completions", body], stdout=subprocess.PIPE)
        assert client.stdout is not None
        assert client.stdout.readline()
        client.kill()
        client.wait()
        client.stdout.close()
        wait_until(lambda: llm.stats()["requests"]["running"] == 0, "it is cancelled")


@pytest.mark.parametrize("name", ["vllm", None])
def test_served_names(llm: LLM, name: str | None) -> None:
    client = TestClient(create_app(llm, ServerConfig(served_model_names=("a", "b"), metrics_compat=name)))
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["a", "b"]
    for asked, want in (("a", 200), ("b", 200), ("octavo-embedded", 404)):
        assert client.post("/v1/completions", json={"prompt": "x", "model": asked, "max_tokens": 1}).status_code == want


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_small_answer_is_not_held_back(loop: str) -> None:
    """Head and body leave at once, though the client has not acknowledged the head: Nagle's algorithm is off."""
    found: list[int] = []

    async def accepted(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        found.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def main() -> None:
        with listen("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(accepted, sock=listener):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                assert await reader.read() == b""
                writer.close()

    kinds = {"asyncio": asyncio.new_event_loop}
    if loop == "uvloop":
        kinds["uvloop"] = pytest.importorskip("uvloop", reason="uvloop: pip install '.[server]'").new_event_loop
    with asyncio.Runner(loop_factory=kinds[loop]) as runner:
        runner.run(main())
    assert len(found) == 1
    assert found[0] != 0


def test_serve_refuses_to_be_open_to_all() -> None:
    from octavo.cli import app
    from typer.testing import CliRunner

    for host in ("0.0.0.0", "::", "192.168.0.1"):
        done = CliRunner().invoke(app, ["serve", "--host", host])
        assert (done.exit_code, "--insecure" in done.stderr) == (2, True), done.stderr


def test_serve_reads_a_file_and_the_environment(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("served-model-name: [from-file]\nmax-model-len: 128\nlog-level: debug\n")
    monkeypatch.setenv("OCTAVO_MAX_NUM_SEQS", "3")
    with served("--config", str(config), "--max-model-len", "256") as process:
        (model,) = httpx.get(f"{process.url}/v1/models").json()["data"]
        assert (model["id"], model["max_model_len"]) == ("from-file", 256), "the command line wins"
    from octavo.cli import app
    from typer.testing import CliRunner

    config.write_text("no-such-option: 1\n")
    assert CliRunner().invoke(app, ["serve", "--config", str(config)]).exit_code == 2


def test_flags_that_vllm_has_mean_the_same() -> None:
    folder = Path(octavo.__file__).parent / "embedded"
    flags = "--host 127.0.0.1 --served-model-name one --served-model-name two --max-model-len 256 --max-num-seqs 3"
    flags += " --max-num-batched-tokens 64 --dtype float32 --quantization int8 --kv-cache-dtype bfloat16 --seed 7"
    flags += f" --no-enable-prefix-caching --tokenizer {folder} --api-key {KEY}"
    with served(*flags.split()) as process:
        keyed = {"Authorization": f"Bearer {KEY}"}
        models = httpx.get(f"{process.url}/v1/models", headers=keyed).json()["data"]
        assert [(m["id"], m["max_model_len"]) for m in models] == [("one", 256), ("two", 256)]
        body = {"model": "two", "prompt": "a long beginning " * 10, "max_tokens": 2}
        for _ in range(2):
            found = httpx.post(f"{process.url}/v1/completions", json=body, headers=keyed, timeout=60).json()
            assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "the cache is turned off"


@pytest.mark.parametrize("missing", [True, False])
def test_http_is_read_by_what_there_is(missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, "httptools", None)
        monkeypatch.delitem(sys.modules, "uvicorn.protocols.http.httptools_impl", raising=False)
        assert http_protocol() == "h11"
    else:
        pytest.importorskip("httptools", reason="httptools: pip install '.[server]'")
        assert issubclass(http_protocol(), asyncio.Protocol)  # type: ignore[arg-type]
