"""GET /metrics: the engine's counters and distributions, read at each request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo import __version__
from octavo.server.context import Context
from octavo.server.http import Call, Reply
from octavo.server.routes import Route

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Distributions of the engine -> help text.
_HISTOGRAMS = {
    "time_to_first_token_seconds": "Time from submission to the first token",
    "inter_token_latency_seconds": "Time from a token to the next one of the same sample",
    "request_time_per_output_token_seconds": "Mean time per token after the first, by request",
    "e2e_request_latency_seconds": "Time from submission to the end",
    "request_queue_time_seconds": "Time from submission to the first step",
    "request_prefill_time_seconds": "Time from the first step to the first token",
    "request_decode_time_seconds": "Time from the first token to the end",
    "request_prompt_tokens": "Tokens of prompts",
    "request_generation_tokens": "Tokens generated, by request",
    "iteration_tokens_total": "Tokens of an engine step",
}


def metrics(context: Context, _call: Call) -> Reply:
    """Prometheus text."""
    prefixes = ["octavo:"] + (["vllm:"] if context.config.metrics_compat == "vllm" else [])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot(context, prefixes))
    return Reply(body=generate_latest(registry), content_type=_TYPE)


class Snapshot(Collector):
    """The state of a server at one moment."""

    def __init__(self, context: Context, prefixes: list[str]) -> None:
        self._context = context
        self._prefixes = prefixes

    def collect(self) -> Iterator[Metric]:
        """All metrics; the engine's only when the model is loaded."""
        info = GaugeMetricFamily("octavo:build_info", "The version of octavo", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        served = CounterMetricFamily("octavo:http_requests", "Requests answered", labels=["method", "path", "status"])
        for (method, path, status), count in sorted(self._context.http_requests.items()):
            served.add_metric([method, path, str(status)], count)
        yield served
        labels = ["plugin", "operation", "status"]
        called = CounterMetricFamily("octavo:plugin_calls", "Calls of plugins by how they ended", labels=labels)
        for names, count in sorted(self._context.plugin_calls.items()):
            called.add_metric(names, count)
        yield called
        text = "Calls of operations that their plugins mark as deprecated"
        ending = CounterMetricFamily("octavo:plugin_deprecated_calls", text, labels=labels[:2])
        for operation, count in sorted(self._context.deprecated_calls.items()):
            ending.add_metric(operation, count)
        yield ending
        if self._context.lazy_llm.state == "ready":
            for prefix in self._prefixes:
                yield from self._engine(prefix)

    def _engine(self, prefix: str) -> Iterator[Metric]:
        llm = self._context.llm
        stats: dict[str, Any] = llm.stats()
        labels, model = ["model_name"], [self._context.name]
        blocks = stats["blocks"]

        def gauge(name: str, help_text: str, value: float) -> Metric:
            family = GaugeMetricFamily(prefix + name, help_text, labels=labels)
            family.add_metric(model, value)
            return family

        def counter(name: str, help_text: str, value: float) -> Metric:
            family = CounterMetricFamily(prefix + name, help_text, labels=labels)
            family.add_metric(model, value)
            return family

        yield gauge("num_requests_running", "Sequences that hold memory", stats["requests"]["running"])
        yield gauge("num_requests_waiting", "Requests that wait", stats["requests"]["waiting"])
        yield gauge(
            "kv_cache_usage_perc",
            "Share of the KV cache in use",
            (blocks["live"] + blocks["pinned"]) / max(blocks["total"], 1),
        )
        yield counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats["prompt_tokens"])
        yield counter("prefix_cache_hits", "Prompt tokens found there", stats["cached_prompt_tokens"])
        yield counter("prompt_tokens", "Prompt tokens of all started requests", stats["prompt_tokens"])
        yield counter("generation_tokens", "Tokens generated", stats["generated_tokens"])
        yield counter("num_preemptions", "Sequences that had to give up their memory", stats["preemptions"])
        success = CounterMetricFamily(prefix + "request_success", "Samples ended", labels=[*labels, "finished_reason"])
        for reason, count in stats["finished"].items():
            success.add_metric([*model, reason], count)
        yield success
        yield self._adapters(prefix, stats["adapters"])
        found = llm.histograms()
        for name, help_text in _HISTOGRAMS.items():
            h = found[name]
            edges = [*map(repr, h["bounds"]), "+Inf"]
            family = HistogramMetricFamily(prefix + name, help_text, labels=labels)
            family.add_metric(model, list(zip(edges, h["counts"], strict=True)), h["sum"])
            yield family

    @staticmethod
    def _adapters(prefix: str, adapters: dict[str, Any]) -> Metric:
        """As vLLM has it, for routers that send a request to where its adapter runs: names in labels, and the time."""
        labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
        family = GaugeMetricFamily(prefix + "lora_requests_info", "Adapters of requests", labels=labels)
        names = [",".join(sorted(adapters[state])) for state in ("running", "waiting")]
        family.add_metric([str(adapters["max"]), *names], time.time())
        return family


ROUTES = [Route("GET", "/metrics", metrics, "Metrics for Prometheus")]
