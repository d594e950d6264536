"""The service's statistics for Prometheus, read when they are asked for: counting costs a request nothing extra.

Models that nobody has asked have counters but no histograms, whose text would take the server 2 ms each to write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from runtime_server.http_message import Response
from runtime_server.service import NO_MODEL, Service
from runtime_server.statistics import BOUNDS_NS, Histogram, Snapshot

_BOUNDS = [*(f"{bound / 1e9:g}" for bound in BOUNDS_NS), "+Inf"]


def page(service: Service) -> Response:
    """What ``GET /metrics`` answers."""
    registry = CollectorRegistry()
    registry.register(_ServiceCollector(service))
    headers = f"Content-Type: {CONTENT_TYPE_PLAIN_0_0_4}\r\n".encode()
    return Response(200, headers, [generate_latest(registry)])


@dataclass(frozen=True)
class _ServiceCollector(Collector):
    service: Service

    def collect(self) -> Iterator[Metric]:
        found = {name: self.service.statistics(name) for name in self.service.models}
        waiting = GaugeMetricFamily("splitboard_queue_depth", "Requests that wait for a worker.")
        waiting.add_metric([], self.service.n_waiting)
        limit = GaugeMetricFamily("splitboard_queue_limit", "Requests that may wait; more are refused.")
        limit.add_metric([], self.service.queue_limit)
        ready = GaugeMetricFamily("splitboard_ready", "1 while new requests are taken.")
        ready.add_metric([], int(self.service.ready))
        yield from (waiting, limit, ready)
        yield _requests(found)
        yield _failures({**found, NO_MODEL: self.service.statistics(NO_MODEL)})
        asked = {name: one for name, one in found.items() if one.inference_count}
        for stage in ("queue", "decode", "compute"):
            yield _durations(stage, {name: getattr(one, stage) for name, one in asked.items()})
        yield _batches(asked)


def _requests(found: dict[str, Snapshot]) -> Metric:
    family = CounterMetricFamily("splitboard_requests", "Requests that were answered.", labels=["model"])
    for name, one in found.items():
        family.add_metric([name], one.inference_count)
    return family


def _failures(found: dict[str, Snapshot]) -> Metric:
    family = CounterMetricFamily(
        "splitboard_failures",
        "Requests that were refused, by reason; without a model where none of ours was asked.",
        labels=["model", "reason"],
    )
    for name, one in found.items():
        for reason, count in one.failures.items():
            family.add_metric([name, reason], count)
    return family


def _durations(stage: str, found: dict[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(
        f"splitboard_{stage}_seconds", f"Time that answered requests spent in this stage: {stage}.", labels=["model"]
    )
    for name, one in found.items():
        family.add_metric([name], _cumulative(_BOUNDS, one.counts), one.sum_ns / 1e9)
    return family


def _batches(found: dict[str, Snapshot]) -> Metric:
    family = HistogramMetricFamily(
        "splitboard_batch_size", "Requests that one run of a graph answered.", labels=["model"]
    )
    for name, one in found.items():
        sizes = sorted(one.batches)
        counts = [*(one.batches[size][0] for size in sizes), 0]
        family.add_metric([name], _cumulative([*map(str, sizes), "+Inf"], counts), one.inference_count)
    return family


def _cumulative(bounds: list[str], counts: tuple[int, ...] | list[int]) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
