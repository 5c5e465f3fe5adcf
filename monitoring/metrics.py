"""The program's metrics in Prometheus' text format, from a registry of their own.

Consumes the flat statistics of all parts when scraped, and events as they pass, produces the exposition.
What the statistics do not have (delays, answers by action) is counted from the events.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from domain.events import Alert, ConnectionEvent, GapEvent, Signal, WindowEvent
from domain.flow import Origin
from event_bus import Envelope
from monitoring.health import Readings, Report, State
from monitoring.metric_names import METRICS, PREFIX

_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_DELAY_BUCKETS = (0.05, 0.1, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
_ANSWER_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 30.0)


class _Statistics(Collector):
    """Turns one reading of all parts into samples, when scraped."""

    def __init__(self, read: Callable[[], Readings]) -> None:
        self._read = read
        self._found: dict[str, list[tuple[int, tuple[str, ...]]]] = {}  # by statistic: its metrics

    def describe(self) -> Iterable[Metric]:
        return []  # the names are those of the table; nothing is read to register

    def collect(self) -> Iterator[Metric]:
        families: dict[int, CounterMetricFamily | GaugeMetricFamily] = {}
        seen = set()
        for key, value in self._read().items():
            if value is None:
                continue
            for index, groups in self._metrics_of(key):
                metric = METRICS[index]
                if metric.state_label is not None:
                    labels, number = (*groups, str(value)), 1.0
                elif isinstance(value, str):
                    continue
                else:
                    labels, number = groups, float(value) * metric.scale
                if (index, labels) in seen:  # two patterns' alternatives in one process
                    continue
                seen.add((index, labels))
                if index not in families:
                    families[index] = self._family(index)
                families[index].add_metric(list(labels), number)
        yield from families.values()

    def _metrics_of(self, key: str) -> list[tuple[int, tuple[str, ...]]]:
        if key not in self._found:
            matches = ((i, metric.pattern.fullmatch(key)) for i, metric in enumerate(METRICS))
            self._found[key] = [(i, match.groups()) for i, match in matches if match is not None]
        return self._found[key]

    def _family(self, index: int) -> CounterMetricFamily | GaugeMetricFamily:
        metric = METRICS[index]
        labels = list(metric.pattern.groupindex)
        if metric.state_label is not None:
            labels.append(metric.state_label)
        kind = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
        return kind(PREFIX + metric.name, metric.about, labels=labels)


class Metrics:
    """All metrics of one process.

    Args:
        read: Statistics of all parts, flat; empty while starting.
        version: Of the program.
        labels: What kind of process it is, such as verb and market.
    """

    def __init__(
        self, read: Callable[[], Readings], *, version: str, labels: Mapping[str, str]
    ) -> None:
        # A gauge beside each counter, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.clock_offset_ms: float | None = None  # receipt minus the exchange's time, once known
        for standard in (ProcessCollector, PlatformCollector, GCCollector):
            standard(registry=self.registry)
        self.registry.register(_Statistics(read))
        build = {"version": version, "python": platform.python_version(), **labels}
        Info(PREFIX + "build", "Version and kind of the process.", registry=self.registry).info(
            build
        )
        self._gauge("start_time_seconds", "When the process started.").set(time.time())
        self._lag = self._histogram(
            "loop_lag_seconds", "Delay of the event loop.", (), _LAG_BUCKETS
        )
        self._worst_lag = self._gauge(
            "loop_worst_lag_seconds", "Worst delay since the last scrape."
        )
        self._worst = 0.0
        self._last = self._gauge(
            "last_event_timestamp_seconds", "Of a topic's last event.", ("topic",)
        )
        self._window_end = self._gauge(
            "last_window_end_timestamp_seconds", "End of the newest closed window."
        )
        self._delay = self._histogram(
            "window_close_delay_seconds",
            "From a live window's end, by the exchange's clock, to its close.",
            (),
            _DELAY_BUCKETS,
        )
        self._windows = self._counter(
            "window_events_total", "Closed windows.", ("origin", "complete")
        )
        self._signals = self._counter("signals_total", "Signals.", ("source", "action"))
        self._answers = self._histogram(
            "ai_answer_seconds",
            "Latency of signals that a model gave.",
            ("source",),
            _ANSWER_BUCKETS,
        )
        self._tokens = self._counter(
            "ai_signal_tokens_total", "Tokens of signals.", ("source", "kind")
        )
        self._cost = self._counter(
            "ai_signal_cost_dollars_total", "Known cost of signals.", ("source",)
        )
        self._states = self._counter(
            "connection_events_total", "State changes.", ("route", "state")
        )
        self._gaps = self._counter("gap_events_total", "Gaps by state.", ("kind", "state"))
        self._alerts = self._counter("alerts_total", "Alerts.", ("severity",))
        self._check = self._gauge("check_state", "0 ok, 1 degraded, 2 failing.", ("check",))
        self._ready = self._gauge("ready", "1 while the program is ready.")

    def on_event(self, envelope: Envelope) -> None:
        """Count one event."""
        self._last.labels(envelope.topic.value).set(time.time())
        match envelope.payload:
            case WindowEvent() as event:
                self._on_window(event)
            case Signal() as signal:
                self._on_signal(signal)
            case ConnectionEvent() as event:
                self._states.labels(event.route, event.state.value).inc()
            case GapEvent() as event:
                self._gaps.labels(event.kind, event.state.value).inc()
            case Alert() as alert:
                self._alerts.labels(alert.severity).inc()

    def _on_window(self, event: WindowEvent) -> None:
        metrics = event.metrics
        complete = "true" if metrics.complete else "false"
        self._windows.labels(event.origin.value, complete).inc()
        self._window_end.set(metrics.window_end_ms / 1_000)
        if event.origin is Origin.LIVE and self.clock_offset_ms is not None:
            delay_ms = event.closed_at_ns / 1e6 - metrics.window_end_ms - self.clock_offset_ms
            self._delay.observe(max(delay_ms / 1_000, 0.0))

    def _on_signal(self, signal: Signal) -> None:
        self._signals.labels(signal.source, signal.action.value).inc()
        if signal.source.partition(":")[0] == "rules":
            return
        self._answers.labels(signal.source).observe(signal.latency_ms / 1_000)
        self._tokens.labels(signal.source, "prompt").inc(signal.prompt_tokens or 0)
        self._tokens.labels(signal.source, "completion").inc(signal.completion_tokens or 0)
        self._cost.labels(signal.source).inc(float(signal.cost_usd or 0))

    def on_lag(self, seconds: float) -> None:
        """Count one measured delay of the event loop."""
        self._lag.observe(seconds)
        self._worst = max(self._worst, seconds)

    def exposition(self, report: Report) -> tuple[bytes, str]:
        """What a scrape gets, and its content type."""
        rank = {State.OK: 0, State.DEGRADED: 1, State.FAILING: 2}
        self._check.clear()
        for name, check in report.checks.items():
            self._check.labels(name).set(rank[check.state])
        self._ready.set(report.is_ready)
        self._worst_lag.set(self._worst)
        self._worst = 0.0
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _counter(self, name: str, about: str, labels: tuple[str, ...]) -> Counter:
        return Counter(PREFIX + name, about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(PREFIX + name, about, labels, registry=self.registry)

    def _histogram(
        self, name: str, about: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(PREFIX + name, about, labels, buckets=buckets, registry=self.registry)
