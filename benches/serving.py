"""What the server costs: its throughput against the engine's own, and its time to the first byte.

    python benches/serving.py            # writes benches/results/serving.json

The embedded model, 32 at a time. Clients, server and engine share the machine, and its cores.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
from octavo import LLM, SamplingParams, build_info

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "serving.json"
CLIENTS, REQUESTS, TOKENS = 32, 256, 256
RUNS = 3
FIELDS = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
PARAMS = SamplingParams(**FIELDS)


def prompt(i: int) -> str:
    return f"Story number {i}."


def engine_throughput(llm: LLM) -> float:
    """Tokens per second of the engine itself, of one batch of which CLIENTS run at once."""
    begin = time.perf_counter()
    llm.generate([prompt(i) for i in range(REQUESTS)], PARAMS, use_tqdm=False)
    return REQUESTS * TOKENS / (time.perf_counter() - begin)


def server_throughput(url: str, *, stream: bool) -> float:
    """The same through the server, by CLIENTS connections of one client process."""
    code = f"""
import asyncio, sys; sys.path.insert(0, {str(ROOT / "benches")!r})
import serving; print(asyncio.run(serving.crowd({url!r}, {stream})))
"""
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


async def crowd(url: str, stream: bool) -> float:
    left = iter(range(REQUESTS))

    host, port = url.removeprefix("http://").split(":")

    async def client() -> None:
        # Bare connections: a client library would take more of the shared cores than the server does.
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
        for i in left:
            body = json.dumps({"prompt": prompt(i), "stream": stream, **FIELDS}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            found = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert found.startswith(b"http/1.1 200"), found
            if stream:
                assert (await reader.readuntil(b"\r\n0\r\n\r\n")).endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
            else:
                await reader.readexactly(int(found.split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return REQUESTS * TOKENS / (time.perf_counter() - begin)


def first_byte(url: str, llm: LLM) -> tuple[float, float]:
    """Median ms from the request to the first byte of a stream, and to the first token of the engine itself."""
    served, alone = [], []
    with httpx.Client() as http:
        for i in range(200):
            body = {"prompt": f"Once {i}", "stream": True, "max_tokens": 2, "temperature": 0}
            begin = time.perf_counter()
            with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
                pieces = answer.iter_raw()
                next(pieces)
                served.append(time.perf_counter() - begin)
                for _ in pieces:
                    pass
            begin = time.perf_counter()
            next(llm.stream(f"Once {i}", SamplingParams(max_tokens=2, temperature=0)))
            alone.append(time.perf_counter() - begin)
    return statistics.median(served) * 1e3, statistics.median(alone) * 1e3


def main() -> None:
    serve = [sys.executable, "-m", "octavo", "serve", "--port", "0", "--log-level", "info"]
    process = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = json.loads(process.stderr.readline())["address"]
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        with LLM(max_num_seqs=CLIENTS) as llm:
            engine_throughput(llm)
            engine, whole, streamed = [], [], []
            # One after the other, in turns, so that what else the machine does falls on all alike.
            for _ in range(RUNS):
                engine.append(engine_throughput(llm))
                whole.append(server_throughput(url, stream=False))
                streamed.append(server_throughput(url, stream=True))
            served_ms, alone_ms = first_byte(url, llm)
    finally:
        process.terminate()
        process.wait(60)
    best = max(engine)
    result = {
        "date": datetime.date.today().isoformat(),
        "command": "python benches/serving.py",
        "machine": build_info(),
        "clients": CLIENTS,
        "requests": REQUESTS,
        "tokens_per_request": TOKENS,
        "engine_tokens_per_second": [round(x) for x in engine],
        "server_tokens_per_second": [round(x) for x in whole],
        "server_streaming_tokens_per_second": [round(x) for x in streamed],
        "server_share_of_engine": round(max(whole) / best, 3),
        "server_streaming_share_of_engine": round(max(streamed) / best, 3),
        "first_byte_ms": round(served_ms, 2),
        "engine_first_token_ms": round(alone_ms, 2),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
