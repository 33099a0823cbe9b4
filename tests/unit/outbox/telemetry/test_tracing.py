"""Spans hold how much was delivered and the class of a fault, and no personal data."""

import sqlite3
import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace as opentelemetry_trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from letopis.ops.daemon.store_pool import InstrumentedStore
from letopis.outbox import History
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.outbox.telemetry.tracing import Spans, appending, usage_attributes
from letopis.store import Message
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.timeouts import Timeouts
from letopis.store.errors import InvalidInput
from tests.support.relays import say, until
from tests.unit.ops.daemon.test_daemon import nothing_pending, running


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def spans(provider: TracerProvider) -> Spans:
    return Spans(provider)


async def test_a_fault_is_its_class_without_the_drivers_words(
    outbox: OutboxFile, tmp_path: Path, spans: Spans, exporter: InMemorySpanExporter
) -> None:
    await say(outbox, "telegram:alice", 1)
    where = tmp_path / "history.db"
    store = InstrumentedStore(ConversationStore(where, timeouts=Timeouts(lock=0.2)), spans=spans)
    relay = Relay(outbox, store.store, apply=store.apply)
    await relay.drain()
    exporter.clear()
    await say(outbox, "telegram:alice", 1)
    with closing(sqlite3.connect(where, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await relay.drain()

    shown = exporter.get_finished_spans()
    assert shown
    for span in shown:
        assert (span.status.status_code, span.events) == (StatusCode.ERROR, ())
        assert span.attributes["error.type"] == "unavailable"
        assert "database is locked" not in span.to_json() and "alice" not in span.to_json()
    await store.store.close()


@pytest.fixture
def process_exporter(
    exporter: InMemorySpanExporter, provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> InMemorySpanExporter:
    """The spans of the provider that the process has configured, as a bot does."""
    monkeypatch.setattr(opentelemetry_trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(opentelemetry_trace, "_TRACER_PROVIDER", provider)
    return exporter


def test_an_append_makes_no_span_where_no_provider_is_configured(process_exporter: InMemorySpanExporter) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opentelemetry_trace, "get_tracer_provider", opentelemetry_trace.ProxyTracerProvider)
        assert isinstance(appending("chat-1", ()), nullcontext)
    with appending("chat-1", ()):
        pass
    assert len(process_exporter.get_finished_spans()) == 1


async def test_an_append_is_one_span_with_the_conversation_and_the_tokens(
    tmp_path: Path, process_exporter: InMemorySpanExporter
) -> None:
    answer = Message.assistant("A leaf, said Alice.", usage={"prompt_tokens": 12, "completion_tokens": 40})
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("telegram:4711", Message.user("What is tea?"), answer)
        async with history.transaction() as tx:
            await tx.append("telegram:4711", Message.assistant("And more.", usage={"input": 1, "output": 2}))
        async with history.reply("telegram:4711") as reply:
            await reply.add("streamed")
            await reply.finish(usage={"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 6})

    spans = process_exporter.get_finished_spans()
    assert [(one.name, one.kind) for one in spans] == [("create letopis", SpanKind.PRODUCER)] * 3
    assert dict(spans[0].attributes or {}) == {
        "messaging.system": "letopis",
        "messaging.operation.type": "create",
        "messaging.operation.name": "append",
        "messaging.batch.message_count": 2,
        "gen_ai.conversation.id": "telegram:4711",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 40,
    }
    tokens = [{key: value for key, value in (one.attributes or {}).items() if "usage" in key} for one in spans[1:]]
    assert tokens == [
        {"gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 2},
        {"gen_ai.usage.input_tokens": 8, "gen_ai.usage.output_tokens": 6, "gen_ai.usage.cache_read.input_tokens": 3},
    ]
    assert all("Alice" not in one.to_json() for one in spans)


async def test_an_append_that_is_refused_is_an_error_without_its_text(
    tmp_path: Path, process_exporter: InMemorySpanExporter
) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        with pytest.raises(InvalidInput):
            await history.append("c1", Message.user("a\x00b"))
    (span,) = process_exporter.get_finished_spans()
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "InvalidInput")
    assert (span.events, span.status.description) == ((), None)


async def test_a_daemon_names_conversations_if_it_is_told_to(
    tmp_path: Path, process_exporter: InMemorySpanExporter
) -> None:
    path = tmp_path / "loud.outbox.db"
    async with History(path, relay=False) as history:
        await history.append("telegram:4711", Message.user("hi"))
    async with running(path, trace_conversations=True) as daemon:
        await until(nothing_pending(daemon))

    loud = process_exporter.get_finished_spans()[-1]
    assert (loud.name, (loud.attributes or {})["gen_ai.conversation.id"]) == ("send letopis", "telegram:4711")
    assert [dict(one.attributes or {}) for one in loud.links] == [{"gen_ai.conversation.id": "telegram:4711"}]


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({}, {}),
        ({"input_tokens": True, "output_tokens": -1, "completion_tokens": "7"}, {}),
        # OpenAI Chat Completions: the parts are counted in the whole.
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 80},
                "completion_tokens_details": {"reasoning_tokens": 30},
            },
            {"input_tokens": 100, "output_tokens": 50, "cache_read.input_tokens": 80, "reasoning.output_tokens": 30},
        ),
        # Anthropic: the cache is counted beside.
        (
            {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 20},
            {"input_tokens": 110, "output_tokens": 5, "cache_read.input_tokens": 80, "cache_creation.input_tokens": 20},
        ),
        # Gemini: the thoughts are counted beside.
        (
            {"promptTokenCount": 9, "candidatesTokenCount": 4, "thoughtsTokenCount": 6},
            {"input_tokens": 9, "output_tokens": 10, "reasoning.output_tokens": 6},
        ),
    ],
)
def test_the_tokens_of_providers_are_counted_as_the_conventions_do(
    usage: dict[str, Any], tokens: dict[str, int]
) -> None:
    assert usage_attributes([usage, usage]) == {f"gen_ai.usage.{name}": 2 * count for name, count in tokens.items()}


async def test_a_delivery_is_one_client_span_linked_to_the_one_in_which_its_events_were_appended(
    tmp_path: Path, spans: Spans, exporter: InMemorySpanExporter
) -> None:
    store = InstrumentedStore(ConversationStore(tmp_path / "history.db"), spans=spans)
    tracer = TracerProvider().get_tracer("bot")
    async with History(tmp_path / "bot.outbox.db", store=store.store, relay=False) as history:
        with tracer.start_as_current_span("answer") as answer:
            await history.append("c1", Message.assistant("hello"), Message.assistant("again"))
        await history.append("c2", Message.user("outside of any trace"))
        await Relay(history.outbox, store.store, apply=store.apply).drain()

        appended = answer.get_span_context()
        (span,) = exporter.get_finished_spans()
        assert (span.name, span.kind, span.status.status_code) == ("send letopis", SpanKind.CLIENT, StatusCode.UNSET)
        assert (span.attributes["messaging.batch.message_count"], span.attributes["letopis.conversations"]) == (5, 2)
        assert "gen_ai" not in span.to_json()
        (link,) = span.links
        assert (link.context.trace_id, link.context.span_id) == (appended.trace_id, appended.span_id)
        recorded = (await store.store.events("c1")).items[-1]
        assert f"{appended.trace_id:032x}" in recorded.metadata["traceparent"]
    await store.store.close()


def test_without_the_extra_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with Spans().delivery(events=1, conversations=["c1"]) as failed:
        failed("poison")
    assert Spans()._trace is None
