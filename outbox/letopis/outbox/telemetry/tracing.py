"""Make one OpenTelemetry span per delivery, where the extra ``letopis[otel]`` is installed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

MAX_LINKS: Final = 128
"""Links of one span, as many as OpenTelemetry keeps by default."""
_STORED: Final = re.compile(r'"traceparent":"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})"')


def current_traceparent() -> str | None:
    """Return the W3C trace context of the current span; ``None`` if there is none.

    Costs one dictionary look-up if OpenTelemetry was never imported: no span can have begun then.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


class Spans:
    """Makes spans with the tracer provider that the process has configured; the library configures none.

    A span holds the number of events and conversations delivered and the class of a fault, never an id, a payload or
    the text of an error. It is linked to the spans in which its events were appended, whose context travels in the
    events' metadata (``traceparent``).

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
    def delivery(
        self, *, events: int, conversations: int, metadata: Iterable[str | None] = ()
    ) -> Iterator[Callable[[str], None]]:
        """Span the ``with`` block. If it ends in a fault, call the yielded function with its class.

        :param metadata: the events' metadata as stored; read only where spans are made.
        """
        if self._trace is None:
            yield lambda _: None
            return
        trace = self._trace
        # The exception is not recorded: its chain has the driver's text, which may quote a payload.
        with self._tracer.start_as_current_span(
            "send letopis",
            kind=trace.SpanKind.CLIENT,
            links=self._links(metadata),
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

    def _links(self, metadata: Iterable[str | None]) -> list[Any]:
        """Return one link to each span in which an event was appended."""
        found: dict[tuple[str, ...], None] = {}
        for text in metadata:
            if text is not None and (stored := _STORED.search(text)) is not None:
                found[stored.groups()] = None
                if len(found) == MAX_LINKS:
                    break
        trace = self._trace
        return [
            trace.Link(
                trace.SpanContext(
                    trace_id=int(trace_id, 16),
                    span_id=int(span_id, 16),
                    is_remote=True,
                    trace_flags=trace.TraceFlags(int(flags, 16)),
                )
            )
            for trace_id, span_id, flags in found
        ]
