"""/metrics says what happened, and the dashboard asks only for what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from octavo import LLM
from octavo.server import ServerConfig, create_app
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana-dashboard.json"


def samples(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = client.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain")
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(found.text)
        for s in family.samples
    }


def test_metrics_count_what_happens() -> None:
    with LLM(max_num_seqs=2) as llm:
        client = TestClient(create_app(llm, ServerConfig(served_model_names=("m",), metrics_compat="vllm")))
        model = ("model_name", "m")
        before = samples(client)
        assert before["octavo:generation_tokens_total", (model,)] == 0
        body = {"prompt": "Once upon a time", "max_tokens": 5, "ignore_eos": True}
        for _ in range(3):
            client.post("/v1/completions", json=body)
        client.post("/v1/completions", json={})
        client.get("/elsewhere/x")
        after = samples(client)
        for prefix in ("octavo:", "vllm:"):
            assert after[f"{prefix}generation_tokens_total", (model,)] == 15
            assert after[f"{prefix}prompt_tokens_total", (model,)] == 12
            assert after[f"{prefix}request_success_total", (("finished_reason", "length"), model)] == 3
            assert after[f"{prefix}num_requests_running", (model,)] == 0
            assert after[f"{prefix}kv_cache_usage_perc", (model,)] == 0
            assert after[f"{prefix}time_to_first_token_seconds_count", (model,)] == 3
            assert after[f"{prefix}inter_token_latency_seconds_count", (model,)] == 12
            assert after[f"{prefix}e2e_request_latency_seconds_bucket", (("le", "+Inf"), model)] == 3
            assert after[f"{prefix}request_generation_tokens_sum", (model,)] == 15
            assert after[f"{prefix}iteration_tokens_total_sum", (model,)] == 12 + 3 * 4
        route = ("path", "/v1/completions")
        assert after["octavo:http_requests_total", (("method", "POST"), route, ("status", "200"))] == 3
        assert after["octavo:http_requests_total", (("method", "POST"), route, ("status", "400"))] == 1
        assert after["octavo:http_requests_total", (("method", "GET"), ("path", "other"), ("status", "404"))] == 1


def test_strangers_make_no_series(llm: LLM) -> None:
    client = TestClient(create_app(llm))
    for i in range(50):
        client.request(f"M{i}", f"/path/{i}")
        client.get(f"/v1/models/{i}")
    series = [key for key in samples(client) if key[0] == "octavo:http_requests_total"]
    assert len(series) <= 4, series


def test_dashboard(llm: LLM) -> None:
    """Every metric in every panel is one that the server has."""
    client = TestClient(create_app(llm))
    client.get("/health")
    names = {name for name, _ in samples(client)}
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [p for p in dashboard["panels"] if p["type"] != "row"]
    assert len(panels) >= 8
    for panel in panels:
        assert panel["title"]
        for target in panel["targets"]:
            asked = re.findall(r"octavo:[a-z0-9_]+", target["expr"])
            assert asked, panel["title"]
            assert set(asked) <= names, set(asked) - names
