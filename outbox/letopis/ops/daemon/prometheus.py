"""Expose the daemon's health as Prometheus metrics (extra ``letopis[daemon]``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import accumulate
from typing import Any, Final, NamedTuple

from letopis.ops.daemon.health import HealthSnapshot
from letopis.ops.daemon.store_pool import BUCKET_BOUNDS_SECONDS
from letopis.store.database.faults import FaultClass


class Metric(NamedTuple):
    name: str
    kind: str
    label: str
    read: Callable[[HealthSnapshot], Any]
    help: str


# fmt: off
METRICS: Final = (
    Metric("letopis_build_info", "gauge", "version", lambda _: {version("letopis"): 1},
           "1, with the installed version as its label."),
    Metric("letopis_outbox_files", "gauge", "state", lambda f: f.files,
           "Outbox files by how they are served."),
    Metric("letopis_outbox_pending_events", "gauge", "", lambda f: f.pending,
           "Events that the history store does not hold yet."),
    Metric("letopis_outbox_pending_bytes", "gauge", "", lambda f: f.pending_bytes,
           "Their data and metadata; extrapolated beyond 10,000 events."),
    Metric("letopis_outbox_oldest_pending_seconds", "gauge", "", lambda f: f.oldest_pending_seconds,
           "Age of the oldest of them; 0 if there is none."),
    Metric("letopis_outbox_lanes", "gauge", "state", lambda f: f.lanes,
           "Conversations with pending events, by state."),
    Metric("letopis_outbox_wal_bytes", "gauge", "", lambda f: f.wal_bytes,
           "Size of the write-ahead logs of the outbox files."),
    Metric("letopis_store_tasks", "gauge", "", lambda f: f.store_tasks,
           "Long rewinds and deletions that the history store has not finished; what they remove is hidden already."),
    Metric("letopis_store_task_rows", "gauge", "", lambda f: f.store_rows,
           "Rows left of them, at most."),
    Metric("letopis_retention_trimmed_conversations_total", "counter", "", lambda f: f.relay.trimmed,
           "Conversations that the retention of content took content of."),
    Metric("letopis_retention_deleted_checkpoints_total", "counter", "", lambda f: f.relay.checkpoints,
           "Checkpoints of LangGraph that the retention of content deleted."),
    Metric("letopis_follower_lag_events", "gauge", "name", lambda f: f.lags,
           "Events of the history that a projection, a follower or the search index has not read yet, by its name."),
    Metric("letopis_incidents_open", "gauge", "kind", lambda f: f.incidents,
           "Open incidents, by kind."),
    Metric("letopis_alerts_total", "counter", "outcome", lambda f: f.alerts,
           "Notifications of operators by this process: sent, or a failed call."),
    Metric("letopis_relay_delivered_events_total", "counter", "", lambda f: f.relay.delivered,
           "Events that the history store accepted and that were acknowledged."),
    Metric("letopis_relay_duplicates_absorbed_total", "counter", "", lambda f: f.relay.duplicates,
           "Events that the history store already held: sent again after a lost acknowledgement. No cause for alarm."),
    Metric("letopis_relay_batches_total", "counter", "", lambda f: f.relay.batches,
           "Batches sent."),
    # Each class from the start: a series that only appears with the first fault cannot raise an alert.
    Metric("letopis_relay_faults_total", "counter", "class",
           lambda f: dict.fromkeys(map(str, FaultClass), 0) | dict(f.relay.faults),
           "Faults of deliveries by class, including those that a retry overcame."),
    Metric("letopis_relay_blocked_total", "counter", "", lambda f: f.relay.blocked,
           "Times that a conversation was blocked."),
    Metric("letopis_relay_rewound_events_total", "counter", "", lambda f: f.relay.rewound,
           "Events sent again because the history store had lost them."),
    Metric("letopis_relay_acks_fenced_total", "counter", "", lambda f: f.relay.acks_fenced,
           "Results not written back because another relay had taken over."),
    Metric("letopis_relay_acks_lost_total", "counter", "", lambda f: f.relay.acks_lost,
           "Results not written back because the outbox file could not be written."),
    Metric("letopis_relay_loop_errors_total", "counter", "", lambda f: f.relay.loop_errors,
           "Times that a relay continued after an unexpected error."),
    Metric("letopis_relay_last_progress_timestamp_seconds", "gauge", "", lambda f: (f.progress_us or 0) / 1_000_000,
           "Last progress of the relay that lags most, Unix time; 0 if there was none."),
    Metric("letopis_relay_breaker_state", "gauge", "state", lambda f: f.breakers,
           "History stores by the state of their breaker; 0 or 1 with one store."),
    Metric("letopis_relay_breaker_open_seconds", "gauge", "", lambda f: f.open_seconds,
           "How long a history store has been unavailable; 0 if none is."),
    Metric("letopis_relay_breaker_trips_total", "counter", "", lambda f: f.trips,
           "Times that a history store became unavailable."),
    Metric("letopis_relay_delivery_duration_seconds", "histogram", "outcome", lambda f: f.deliveries,
           "Duration of deliveries to the history store, by outcome: ok, a fault class, given_up or error."),
)
# fmt: on
"""The metrics of Letopis, in the order of the reference; those of the process (``process_*``) follow."""


def exposition(snapshot: HealthSnapshot, accept: str = "") -> tuple[bytes, str]:
    """Return the metrics and their content type, in the format that the ``Accept`` header requests."""
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(snapshot))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Families:
    """A collector of prometheus-client."""

    def __init__(self, snapshot: HealthSnapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        bounds = (*map(str, BUCKET_BOUNDS_SECONDS), "+Inf")
        for metric in METRICS:
            labels = [metric.label] if metric.label else None
            value = metric.read(self._snapshot)
            if metric.kind == "histogram":
                family: Any = HistogramMetricFamily(metric.name, metric.help, labels=labels)
                for name, durations in value.items():
                    buckets = zip(bounds, map(float, accumulate(durations.buckets)), strict=True)
                    family.add_metric([name], list(buckets), durations.total)
            else:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = kind(metric.name, metric.help, labels=labels)
                for name, number in value.items() if labels else [("", value)]:
                    family.add_metric([name] if labels else [], number)
            yield family
