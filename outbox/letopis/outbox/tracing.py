"""Tracing: one OpenTelemetry span a delivery, where the extra ``letopis[otel]`` is installed; else nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Spans:
    """Makes spans with the tracer provider that the process has set up, if any; the library sets up none.

    A span says how many events and conversations were delivered and what class of fault came back. It never holds an
    id, a payload or the text of an error, and it is a root of its own: events carry no trace context, so it is not
    linked to the append.

    :param provider: an OpenTelemetry ``TracerProvider``; by default the process's.
    """

    def __init__(self, provider: Any = None) -> None:
        self._trace: Any = None
        try:
            from opentelemetry import trace
        except ImportError:
            return
        self._trace = trace
        self._tracer = trace.get_tracer("letopis", tracer_provider=provider)

    @contextmanager
    def delivery(self, *, events: int, conversations: int) -> Iterator[Callable[[str], None]]:
        """Span the ``with`` block; call what is yielded with the class of the fault, if it ends in one."""
        if self._trace is None:
            yield lambda _: None
            return
        trace = self._trace
        # Not recorded: the exception's chain has the driver's words, and these may quote a payload.
        with self._tracer.start_as_current_span(
            "send letopis",
            kind=trace.SpanKind.CLIENT,
            attributes={
                "messaging.system": "letopis",
                "messaging.operation.type": "send",
                "messaging.operation.name": "apply",
                "messaging.batch.message_count": events,
                "letopis.conversations": conversations,
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            def failed(fault_class: str) -> None:
                span.set_attribute("error.type", fault_class)
                span.set_status(trace.Status(trace.StatusCode.ERROR))

            yield failed
