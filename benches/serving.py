"""What the server costs: its throughput against the engine's own, and its time to the first byte.

    python benches/serving.py            # writes benches/results/serving.json

The embedded model, 32 at a time. Clients, server and engine share the machine, and its cores. Rounds of the engine
alone, the server with whole answers and the server with streams take turns; a share is the median over the rounds of
what the server made to what the engine made just before and after. The clients are one process that waits for its
sockets and looks only for the end of an answer; what it takes of the cores counts against the server, and is told.
Where something else runs on the machine the shares mean little: then look at the CPU seconds, which say what a token
costs whoever else runs.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams, build_info

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "serving.json"
CLIENTS, REQUESTS, TOKENS = 32, 128, 256
RUNS = 11
FIRST_BYTES = 300
FIELDS = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
PARAMS = SamplingParams(**FIELDS)


def prompt(i: int) -> str:
    return f"Story number {i}."


def engine_throughput(llm: LLM) -> float:
    """Tokens per second of the engine itself, of one batch of which CLIENTS run at once."""
    begin = time.perf_counter()
    llm.generate([prompt(i) for i in range(REQUESTS)], PARAMS, use_tqdm=False)
    return REQUESTS * TOKENS / (time.perf_counter() - begin)


def server_throughput(url: str, pid: int, *, stream: bool) -> tuple[float, dict[str, float]]:
    """The same through the server, by CLIENTS connections of one client process; and the CPU seconds per 1,000 tokens
    of the engine's threads, of the rest of the server, and of the client."""
    code = f"""
import sys, time; sys.path.insert(0, {str(ROOT / "benches")!r})
import serving; begin = time.process_time(); print(serving.crowd({url!r}, {stream}), time.process_time() - begin)
"""
    before = cpu_seconds(pid)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    after = cpu_seconds(pid)
    spent = {name: after[name] - before[name] for name in after} | {"client": float(done[1])}
    return float(done[0]), {name: round(1e3 * s / (REQUESTS * TOKENS), 4) for name, s in spent.items()}


def cpu_seconds(pid: int) -> dict[str, float]:
    """CPU time of a server's process so far, by the names of its threads."""
    spent = {"engine": 0.0, "server": 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        fields = rest.split()
        kind = "engine" if name.startswith("octavo-") and name != "octavo-asyncio" else "server"
        spent[kind] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


class Client:
    """A bare connection that looks only for the end of its answer: a client library, or an event loop, would take more
    of the shared cores than the server does."""

    _buffer = memoryview(bytearray(1 << 16))

    def __init__(self, url: str, stream: bool) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = stream

    def ask(self, text: str, **fields: Any) -> None:
        body = json.dumps({"prompt": text, "stream": self._stream, **FIELDS, **fields}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._tail, self._missing = b"", -1
        self.socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def read(self) -> bool:
        """Takes what has come; True at the end of the answer."""
        data = self._buffer[: self.socket.recv_into(self._buffer)].tobytes()
        if not self._tail:
            assert data.startswith(b"HTTP/1.1 200"), data
        if self._stream:
            self._tail = data[-32:] if len(data) >= 32 else (self._tail + data)[-32:]
            ended = self._tail.endswith(b"\r\n0\r\n\r\n")
            assert not ended or self._tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), self._tail
            return ended
        self._tail += data
        if self._missing < 0 and b"\r\n\r\n" in self._tail:
            found, _, _ = self._tail.partition(b"\r\n\r\n")
            length = int(found.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self._missing = len(found) + 4 + length
        return len(self._tail) == self._missing


def crowd(url: str, stream: bool) -> float:
    """Tokens per second of CLIENTS clients, each of which asks again as soon as it is answered."""
    left = iter(range(REQUESTS))
    poll = select.epoll()
    clients = {}
    begin = time.perf_counter()
    for _ in range(CLIENTS):
        client = Client(url, stream)
        clients[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
        client.ask(prompt(next(left)))
    while clients:
        for number, _ in poll.poll():
            if clients[number].read():
                i = next(left, None)
                if i is None:
                    poll.unregister(number)
                    clients.pop(number).socket.close()
                else:
                    clients[number].ask(prompt(i))
    return REQUESTS * TOKENS / (time.perf_counter() - begin)


def first_byte(url: str, llm: LLM) -> tuple[list[float], list[float]]:
    """Milliseconds from the request to the first byte of a stream, and to the engine's own first token, in turns."""
    served, alone = [], []
    client = Client(url, True)
    for i in range(FIRST_BYTES):
        begin = time.perf_counter()
        client.ask(f"Once {i}", max_tokens=2)
        ended = client.read()
        served.append((time.perf_counter() - begin) * 1e3)
        while not ended:
            ended = client.read()
        begin = time.perf_counter()
        next(llm.stream(f"Once {i}", SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)))
        alone.append((time.perf_counter() - begin) * 1e3)
    client.socket.close()
    return served, alone


def main() -> None:
    load = round(os.getloadavg()[0], 1)
    serve = [sys.executable, "-m", "octavo", "serve", "--port", "0", "--log-level", "info"]
    process = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = json.loads(process.stderr.readline())["address"]
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        with LLM(max_num_seqs=CLIENTS) as llm:
            engine_throughput(llm)
            engine: list[float] = []
            whole: list[tuple[float, dict[str, float]]] = []
            streamed: list[tuple[float, dict[str, float]]] = []
            # One after the other, in turns, so that what else the machine does falls on all alike.
            for _ in range(RUNS):
                engine.append(engine_throughput(llm))
                whole.append(server_throughput(url, process.pid, stream=False))
                streamed.append(server_throughput(url, process.pid, stream=True))
            engine.append(engine_throughput(llm))
            served_ms, alone_ms = map(statistics.median, first_byte(url, llm))
    finally:
        process.terminate()
        process.wait(60)

    def share(rounds: list[tuple[float, dict[str, float]]]) -> float:
        around = [statistics.mean(pair) for pair in itertools.pairwise(engine)]
        return round(statistics.median(r[0] / alone for r, alone in zip(rounds, around, strict=True)), 3)

    def cost(rounds: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
        return {name: statistics.median(r[1][name] for r in rounds) for name in rounds[0][1]}

    result = {
        "date": datetime.date.today().isoformat(),
        "command": "python benches/serving.py",
        "machine": build_info(),
        "load_average_before": load,
        "clients": CLIENTS,
        "requests": REQUESTS,
        "tokens_per_request": TOKENS,
        "engine_tokens_per_second": [round(x) for x in engine],
        "server_tokens_per_second": [round(x[0]) for x in whole],
        "server_streaming_tokens_per_second": [round(x[0]) for x in streamed],
        "server_share_of_engine": share(whole),
        "server_streaming_share_of_engine": share(streamed),
        "cpu_seconds_per_1000_tokens": cost(whole),
        "streaming_cpu_seconds_per_1000_tokens": cost(streamed),
        "first_byte_ms": round(served_ms, 2),
        "engine_first_token_ms": round(alone_ms, 2),
        "first_byte_overhead_ms": round(served_ms - alone_ms, 2),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
