"""Metrics: a daemon's figures in the text formats of Prometheus (extra ``letopis[daemon]``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from letopis.outbox.figures import BREAKERS, Figures
from letopis.outbox.measured import BOUNDS
from letopis.store.faults import FaultClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: what it is called, what it says, and where its value comes from.

    :ivar name: as it is shown, ``_total`` included.
    :ivar label: the name of its one label; its values are few and known beforehand. Empty for none.
    :ivar read: from figures to the value, or to a value for each value of the label.
    """

    name: str
    kind: str
    says: str
    read: Callable[[Figures], Any]
    label: str = ""


def _filled(names: Iterable[str], counted: Mapping[str, int]) -> dict[str, int]:
    """Return a value for each name: a series that only appears with the first fault cannot be alerted on."""
    return {name: counted.get(name, 0) for name in names} | dict(counted)


METRICS: Final = (
    Metric(
        name="letopis_build_info",
        kind="gauge",
        says="1, with the installed version as its label.",
        read=lambda _: {version("letopis"): 1},
        label="version",
    ),
    Metric(
        name="letopis_outbox_files",
        kind="gauge",
        says="Outbox files that are served, by how.",
        read=lambda f: f.files,
        label="state",
    ),
    Metric(
        name="letopis_outbox_pending_events",
        kind="gauge",
        says="Events that the history store does not hold yet.",
        read=lambda f: f.pending,
    ),
    Metric(
        name="letopis_outbox_pending_bytes",
        kind="gauge",
        says="Their data and metadata; extrapolated beyond 10,000 events.",
        read=lambda f: f.pending_bytes,
    ),
    Metric(
        name="letopis_outbox_oldest_owed_seconds",
        kind="gauge",
        says="How long the oldest of them waits; 0 where none does.",
        read=lambda f: f.oldest_owed_seconds,
    ),
    Metric(
        name="letopis_outbox_lanes",
        kind="gauge",
        says="Conversations that owe something, by state.",
        read=lambda f: f.lanes,
        label="state",
    ),
    Metric(
        name="letopis_outbox_wal_bytes",
        kind="gauge",
        says="Size of the write-ahead logs of the outbox files.",
        read=lambda f: f.wal_bytes,
    ),
    Metric(
        name="letopis_incidents_open",
        kind="gauge",
        says="Incidents that are not over, by kind.",
        read=lambda f: f.incidents,
        label="kind",
    ),
    Metric(
        name="letopis_alerts_total",
        kind="counter",
        says="Notices of this process to operators: told, or a call that failed.",
        read=lambda f: f.alerts,
        label="outcome",
    ),
    Metric(
        name="letopis_relay_delivered_events_total",
        kind="counter",
        says="Events that the history store took and that were acknowledged.",
        read=lambda f: f.relay.delivered,
    ),
    Metric(
        name="letopis_relay_duplicates_absorbed_total",
        kind="counter",
        says="Events that the history store held already: sent again after a lost acknowledgement. No cause for alarm.",
        read=lambda f: f.relay.duplicates,
    ),
    Metric(
        name="letopis_relay_batches_total",
        kind="counter",
        says="Batches that were sent.",
        read=lambda f: f.relay.batches,
    ),
    Metric(
        name="letopis_relay_faults_total",
        kind="counter",
        says="Faults of deliveries by class, those that passed by themselves included.",
        read=lambda f: _filled((str(one) for one in FaultClass), f.relay.faults),
        label="class",
    ),
    Metric(
        name="letopis_relay_blocked_total",
        kind="counter",
        says="Times that a conversation was blocked.",
        read=lambda f: f.relay.blocked,
    ),
    Metric(
        name="letopis_relay_rewound_events_total",
        kind="counter",
        says="Events sent again because the history store had lost them.",
        read=lambda f: f.relay.rewound,
    ),
    Metric(
        name="letopis_relay_acks_fenced_total",
        kind="counter",
        says="Results not written back because another relay had taken over.",
        read=lambda f: f.relay.acks_fenced,
    ),
    Metric(
        name="letopis_relay_acks_lost_total",
        kind="counter",
        says="Results not written back because the outbox file could not be written.",
        read=lambda f: f.relay.acks_lost,
    ),
    Metric(
        name="letopis_relay_loop_errors_total",
        kind="counter",
        says="Times that a relay went on after an error it did not expect.",
        read=lambda f: f.relay.loop_errors,
    ),
    Metric(
        name="letopis_relay_last_progress_timestamp_seconds",
        kind="gauge",
        says="When the relay of the file that lags most last got anywhere, Unix time; 0 where none ever did.",
        read=lambda f: (f.progress_us or 0) / 1_000_000,
    ),
    Metric(
        name="letopis_relay_breaker_state",
        kind="gauge",
        says="History stores by the state of their breaker; with one store 0 or 1.",
        read=lambda f: {state: f.breakers.get(state, 0) for state in BREAKERS},
        label="state",
    ),
    Metric(
        name="letopis_relay_breaker_open_seconds",
        kind="gauge",
        says="How long a history store has been away; 0 where none is.",
        read=lambda f: f.open_seconds,
    ),
    Metric(
        name="letopis_relay_breaker_trips_total",
        kind="counter",
        says="Times that a history store went away.",
        read=lambda f: f.trips,
    ),
    Metric(
        name="letopis_relay_delivery_duration_seconds",
        kind="histogram",
        says="How long the history store took for a delivery, by outcome: ok, a fault class, given_up or error.",
        read=lambda f: f.deliveries,
        label="outcome",
    ),
)
"""All of ours, in the order in which they are shown; the process's own (``process_*``) follow."""


def exposition(figures: Figures, accept: str = "") -> tuple[bytes, str]:
    """Return the metrics and their content type, in the format that an ``Accept`` header asks for.

    :raises ImportError: the extra ``letopis[daemon]`` is not installed.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(figures))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Families:
    """What prometheus-client wants to ask for metrics."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Any]:
        """Yield a family a metric."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for one in METRICS:
            labels = [one.label] if one.label else None
            value = one.read(self._figures)
            if one.kind == "histogram":
                family: Any = HistogramMetricFamily(one.name, one.says, labels=labels)
                for name, durations in value.items():
                    family.add_metric([name], _cumulated(durations.buckets), durations.total)
            else:
                kind = CounterMetricFamily if one.kind == "counter" else GaugeMetricFamily
                family = kind(one.name, one.says, labels=labels)
                for name, number in value.items() if labels else [("", value)]:
                    family.add_metric([name] if labels else [], number)
            yield family


def _cumulated(buckets: Iterable[int]) -> list[tuple[str, float]]:
    total, shown = 0, []
    for bound, count in zip((*(str(one) for one in BOUNDS), "+Inf"), buckets, strict=True):
        total += count
        shown.append((bound, float(total)))
    return shown
