"""Make one OpenTelemetry span per append and per delivery, by its conventions for generative AI."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

MAX_LINKS: Final = 128  # links of one span, as many as OpenTelemetry keeps by default
_STORED: Final = re.compile(r'"traceparent":"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})"')


def current_traceparent() -> str | None:
    """Return the W3C trace context of the current span; ``None`` if there is none."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


_NO_SPAN: Final = nullcontext()


def appending(conversation_id: str, what: Sequence[Any]) -> AbstractContextManager[None]:
    """Return a context in which messages are appended: a span ``create letopis`` without their content."""
    # Many frameworks import OpenTelemetry, and few bots configure a provider: a span would be made for nobody.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return _NO_SPAN
    return _append_span(conversation_id, what)


@contextmanager
def _append_span(conversation_id: str, what: Sequence[Any]) -> Iterator[None]:
    trace = sys.modules["opentelemetry.trace"]
    with trace.get_tracer("letopis").start_as_current_span(
        "create letopis", kind=trace.SpanKind.PRODUCER, record_exception=False, set_status_on_exception=False
    ) as span:
        if span.is_recording():
            span.set_attributes(
                {
                    "messaging.system": "letopis",
                    "messaging.operation.type": "create",
                    "messaging.operation.name": "append",
                    **({"messaging.batch.message_count": len(what)} if len(what) > 1 else {}),
                    **({CONVERSATION_ID: conversation_id} if isinstance(conversation_id, str) else {}),
                    **usage_attributes(_usages(what)),
                }
            )
        try:
            yield
        except BaseException as error:
            # Only its class: the text may quote an id, and that of its cause a payload.
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.Status(trace.StatusCode.ERROR))
            raise


def _usages(what: Sequence[Any]) -> Iterator[Any]:
    for appended in what:
        message = getattr(appended, "message", appended)
        usage = getattr(message, "usage", None)
        data = getattr(appended, "data", None)
        if usage is None and isinstance(data, Mapping):
            usage = data.get("usage")
        if isinstance(usage, Mapping):
            yield usage


class Spans:
    """Makes spans of deliveries, without content, linked to the spans in which their events were appended."""

    def __init__(self, provider: Any = None, *, conversations: bool = False) -> None:
        self._trace: Any = None
        self._conversations = conversations
        try:
            from opentelemetry import trace
        except ImportError:
            return
        self._trace = trace
        self._tracer = trace.get_tracer("letopis", tracer_provider=provider)

    @contextmanager
    def delivery(
        self, *, events: int, conversations: Sequence[str], metadata: Iterable[tuple[str, str | None]] = ()
    ) -> Iterator[Callable[[str], None]]:
        """Span the ``with`` block. If it ends in a fault, call the yielded function with its class."""
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
                "letopis.conversations": len(conversations),
                **({CONVERSATION_ID: conversations[0]} if self._conversations and len(conversations) == 1 else {}),
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            def failed(fault_class: str) -> None:
                span.set_attribute("error.type", fault_class)
                span.set_status(trace.Status(trace.StatusCode.ERROR))

            yield failed

    def _links(self, metadata: Iterable[tuple[str, str | None]]) -> list[Any]:
        """Return one link to each span in which an event was appended."""
        linked: dict[tuple[str, ...], str] = {}
        for conversation_id, text in metadata:
            if text is not None and (stored := _STORED.search(text)) is not None:
                linked.setdefault(stored.groups(), conversation_id)
                if len(linked) == MAX_LINKS:
                    break
        trace = self._trace
        return [
            trace.Link(
                trace.SpanContext(
                    trace_id=int(trace_id, 16),
                    span_id=int(span_id, 16),
                    is_remote=True,
                    trace_flags=trace.TraceFlags(int(flags, 16)),
                ),
                {CONVERSATION_ID: conversation_id} if self._conversations else None,
            )
            for (trace_id, span_id, flags), conversation_id in linked.items()
        ]


CONVERSATION_ID: Final = "gen_ai.conversation.id"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"

# By attribute: where providers put the number in the object `usage` of their answers, and the short names of ours.
_PLACES: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    INPUT_TOKENS: (("input_tokens",), ("prompt_tokens",), ("promptTokenCount",), ("prompt_token_count",), ("input",)),
    OUTPUT_TOKENS: (
        ("output_tokens",),
        ("completion_tokens",),
        ("candidatesTokenCount",),
        ("candidates_token_count",),
        ("output",),
    ),
    "gen_ai.usage.cache_read.input_tokens": (
        ("cache_read_input_tokens",),
        ("prompt_tokens_details", "cached_tokens"),
        ("input_tokens_details", "cached_tokens"),
        ("cachedContentTokenCount",),
        ("cached_content_token_count",),
    ),
    "gen_ai.usage.cache_creation.input_tokens": (("cache_creation_input_tokens",),),
    "gen_ai.usage.reasoning.output_tokens": (
        ("completion_tokens_details", "reasoning_tokens"),
        ("output_tokens_details", "reasoning_tokens"),
        ("thoughtsTokenCount",),
        ("thoughts_token_count",),
    ),
}
_OUTSIDE_INPUT: Final = ("cache_read_input_tokens", "cache_creation_input_tokens")
"""Anthropic counts these beside ``input_tokens``; the conventions count them as a part of it."""
_OUTSIDE_OUTPUT: Final = ("thoughtsTokenCount", "thoughts_token_count")
"""Gemini counts these beside the tokens of the answer; the conventions count them as a part of it."""


def usage_attributes(usages: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the tokens that messages used, added up, by attribute; what no message names is left out."""
    total: dict[str, int] = {}
    for usage in usages:
        for name, places in _PLACES.items():
            if (count := _first(usage, places)) is not None:
                total[name] = total.get(name, 0) + count
        for name, beside in ((INPUT_TOKENS, _OUTSIDE_INPUT), (OUTPUT_TOKENS, _OUTSIDE_OUTPUT)):
            if name in total:
                total[name] += sum(_count(usage.get(key)) or 0 for key in beside)
    return total


def _first(usage: Mapping[str, Any], places: Iterable[tuple[str, ...]]) -> int | None:
    for path in places:
        value: Any = usage
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if (count := _count(value)) is not None:
            return count
    return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
