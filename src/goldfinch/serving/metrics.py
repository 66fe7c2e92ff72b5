"""`/metrics` for Prometheus: what the engine counts, and how long requests take."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from goldfinch.serving.context_store import ContextStore
from goldfinch.serving.statistics import EngineStatus

REQUEST_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS")


Statuses = Callable[[], Mapping[str, EngineStatus]]
"""What engines say of themselves, by the name of their replica; one alone has the name ""."""


class Metrics:
    """The metrics of one server, in a registry of its own.

    Args:
        statuses: of its engines.
        contexts: where contexts are stored.
    """

    def __init__(self, statuses: Statuses, contexts: ContextStore) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(statuses))
        self.registry.register(ContextCollector(contexts))
        ProcessCollector(registry=self.registry)
        self.request_seconds = Histogram(
            "goldfinch_request_duration_seconds",
            "Seconds from the head of a request to the end of its answer",
            ["method", "route", "status"],
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )


class EngineCollector(Collector):
    """What engines say of themselves when they are asked.

    Args:
        statuses: of the engines.
    """

    def __init__(self, statuses: Statuses) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        """The metrics of each, those of replicas labelled with their names."""
        families = dict[str, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]()
        for name, status in self._statuses().items():
            replica = {"replica": name} if name else {}
            for kind, metric, help, own_labels, value in (*_counters(status), *_gauges(status), *_histograms(status)):
                labels = own_labels | replica
                if metric not in families:
                    families[metric] = kind(f"goldfinch_{metric}", help, labels=[*labels])
                families[metric].add_metric([*labels.values()], **value)
        yield from families.values()


class ContextCollector(Collector):
    """What the folder of contexts says of itself when it is asked.

    Args:
        contexts: the folder.
    """

    def __init__(self, contexts: ContextStore) -> None:
        self._contexts = contexts

    def collect(self) -> Iterator[Metric]:
        """Number and size of the files."""
        contexts = self._contexts
        for name, help, value in (
            ("stored_contexts", "Contexts in the folder", len(contexts)),
            ("stored_context_bytes", "Size of their files", contexts.nbytes),
            ("stored_context_limit_bytes", "Size that their files may have", contexts.max_bytes),
        ):
            yield GaugeMetricFamily(f"goldfinch_{name}", help, value=value)


# Kind, name, description, labels, and what `add_metric` takes.
_Sample = tuple[Any, str, str, dict[str, str], dict[str, Any]]


def _counters(status: EngineStatus) -> Iterator[_Sample]:
    statistics = status.statistics
    for name, help, label, counts in (
        ("prompt_tokens", "Tokens of prompts; replayed ones are some of those cached", "kind", "prompt_tokens"),
        ("prompt_cache_misses", "Prompts of which nothing was in memory", "reason", "misses"),
    ):
        for key, count in getattr(statistics, counts).items():
            yield CounterMetricFamily, name, help, {label: key}, {"value": count}
    worked = sum(statistics.tokens_by_owner.values())
    for name, help, count in (
        ("generated_tokens", "Tokens of answers that are finished", statistics.generated_tokens),
        ("computed_tokens", "Tokens read or generated, for prompts, contexts and answers, finished or not", worked),
        ("decode_steps", "Passes over the weights for all answers together", statistics.steps),
        ("memory_reclaims", "Times that memory was taken from contexts that were kept", statistics.num_reclaimed),
        ("paused_answers", "Times that an answer was put aside for want of memory", statistics.num_paused),
    ):
        yield CounterMetricFamily, name, help, {}, {"value": count}


def _gauges(status: EngineStatus) -> Iterator[_Sample]:
    for name, help, value in (
        ("requests_running", "Requests that are being read or answered", status.num_running),
        ("requests_waiting", "Requests that have not begun", status.num_waiting),
        ("contexts_in_memory", "Contexts that are kept for prompts that begin like them", status.num_kept),
        ("context_memory_bytes", "Memory of all contexts, when it was last measured", status.statistics.nbytes),
        ("context_memory_limit_bytes", "Memory that all contexts may take", status.max_bytes),
        ("context_bytes_per_token", "Ids and latents of a token in a new context", status.bytes_per_token),
    ):
        yield GaugeMetricFamily, name, help, {}, {"value": value}


def _histograms(status: EngineStatus) -> Iterator[_Sample]:
    statistics = status.statistics
    for name, help, values in (
        (
            "time_to_first_token_seconds",
            "Seconds from a request until an answer begins",
            statistics.seconds_to_first_token,
        ),
        (
            "time_per_output_token_seconds",
            "Mean seconds per token of an answer, after its first",
            statistics.seconds_per_token,
        ),
    ):
        bounds = [*(str(bound) for bound in values.bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, itertools.accumulate(values.counts)), strict=True))
        yield HistogramMetricFamily, name, help, {}, {"buckets": buckets, "sum_value": values.sum}


def add_metrics_route(app: FastAPI, metrics: Metrics) -> None:
    """Let an application answer to Prometheus."""

    @app.get("/metrics", response_class=PlainTextResponse)
    def show() -> Response:  # not a coroutine: the sizes of files are looked up
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class RequestMetrics:
    """ASGI middleware: measures every request.

    Args:
        app: what it stands before.
        metrics: where to.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._seconds = metrics.request_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and count it when it is over."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_watched)
        finally:
            # Paths and methods that clients make up must not become labels: each would be kept for ever.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._seconds.labels(method, route, str(status)).observe(time.perf_counter() - started)
