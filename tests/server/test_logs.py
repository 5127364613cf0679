"""The log of a real server: JSON lines with request ids, and nothing that a client or a model said."""

from __future__ import annotations

import httpx
from servers import KEY, Process, served

SECRET = "xylophone-prompt-7391"


def row_of(process: Process, request_id: str) -> dict[str, object]:
    rows = [row for row in process.log if row.get("request_id") == request_id]
    assert len(rows) == 1, f"one line per request: {rows}"
    return rows[0]


def test_log_lines_name_the_request_and_hold_no_prompt_answer_or_key() -> None:
    with served("--api-key", KEY, "--log-level", "debug", "--metrics-compat", "vllm") as process:
        headers = {"Authorization": f"Bearer {KEY}"}
        body = {"prompt": f"{SECRET} once upon a time", "max_tokens": 24, "temperature": 0}
        ids = []
        with httpx.Client(base_url=process.url) as client:
            done = client.post("/v1/completions", json=body, headers=headers)
            answer = done.json()["choices"][0]["text"]
            ids.append((done.headers["x-request-id"], "/v1/completions", 200))
            chat = {"messages": [{"role": "user", "content": SECRET}], "stream": True, "max_tokens": 8}
            named = {**headers, "x-request-id": "mine-7"}
            assert client.post("/v1/chat/completions", json=chat, headers=named).headers["x-request-id"] == "mine-7"
            ids.append(("mine-7", "/v1/chat/completions", 200))
            embedded = client.post("/v1/embeddings", json={"input": SECRET}, headers=headers)
            ids.append((embedded.headers["x-request-id"], "/v1/embeddings", 200))
            for wrong in ({"prompt": SECRET, "temperature": 9}, {"prompt": [SECRET, 3]}, {SECRET: 1}):
                bad = client.post("/v1/completions", json=wrong, headers=headers)
                assert bad.status_code == 400
                ids.append((bad.headers["x-request-id"], "/v1/completions", 400))
            closed = client.get("/v1/models", headers={"Authorization": f"Bearer {SECRET}"})
            ids.append((closed.headers["x-request-id"], "/v1/models", 401))
            # A path with a line break and JSON in it makes no line of its own.
            odd = client.get('/v1/models/x%0A{"level":"error"}', headers=headers)
            ids.append((odd.headers["x-request-id"], None, 404))
            metrics = client.get("/metrics", headers=headers).text
        assert len(answer.strip()) > 10
    for request_id, path, status in ids:
        row = row_of(process, request_id)
        assert row["status"] == status
        assert path is None or row["path"] == path
        assert {"time", "level", "logger", "message", "method", "ms"} <= set(row)
    text = "\n".join(map(repr, process.log))
    assert KEY not in text
    assert answer.strip() not in text
    # The name of a field that is not known is said; what stands in known fields never is.
    assert text.count(SECRET) == sum("not known" in str(row["message"]) for row in process.log)
    assert {row["level"] for row in process.log} <= {"debug", "info", "warning"}
    for prefix in ("octavo:", "vllm:"):
        assert f'{prefix}prompt_tokens_total{{model_name="octavo-embedded"}}' in metrics
