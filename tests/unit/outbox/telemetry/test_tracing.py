"""Spans hold how much was delivered and the class of a fault, and no personal data."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from letopis.outbox import History
from letopis.outbox.daemon.instrumented_store import InstrumentedStore
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.outbox.telemetry.tracing import Spans
from letopis.store import Message
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.timeouts import Timeouts
from tests.support.relays import say


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Spans(provider)


async def test_a_delivery_is_one_client_span(tmp_path: Path, spans: Spans, exporter: InMemorySpanExporter) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    await say(outbox, "c1", 2)
    await say(outbox, "c2", 2)
    store = InstrumentedStore(ConversationStore(tmp_path / "history.db"), spans=spans)

    await Relay(outbox, store.store, apply=store.apply).drain()

    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind, span.status.status_code) == ("send letopis", SpanKind.CLIENT, StatusCode.UNSET)
    assert span.attributes is not None
    assert (span.attributes["messaging.batch.message_count"], span.attributes["letopis.conversations"]) == (6, 2)
    await store.store.close()
    await outbox.close()


async def test_a_fault_is_its_class_without_the_drivers_words(
    tmp_path: Path, spans: Spans, exporter: InMemorySpanExporter
) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
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
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] == "unavailable"
        assert span.events == ()
        assert "database is locked" not in span.to_json()
        assert "alice" not in span.to_json()
    await store.store.close()
    await outbox.close()


async def test_a_delivery_is_linked_to_the_span_in_which_its_events_were_appended(
    tmp_path: Path, spans: Spans, exporter: InMemorySpanExporter
) -> None:
    store = InstrumentedStore(ConversationStore(tmp_path / "history.db"), spans=spans)
    tracer = TracerProvider().get_tracer("bot")
    async with History.open(tmp_path / "bot.outbox.db", store=store.store, relay=False) as history:
        with tracer.start_as_current_span("answer") as answer:
            await history.append("c1", Message.assistant("hello"), Message.assistant("again"))
        await history.append("c2", Message.user("outside of any trace"))
        await Relay(history.outbox, store.store, apply=store.apply).drain()

        appended = answer.get_span_context()
        (span,) = exporter.get_finished_spans()
        assert [(one.context.trace_id, one.context.span_id) for one in span.links] == [
            (appended.trace_id, appended.span_id)
        ]
        recorded = (await store.store.events("c1")).items[-1]
        assert f"{appended.trace_id:032x}" in recorded.metadata["traceparent"]
    await store.store.close()


async def test_a_message_said_again_in_another_trace_is_the_same_message(tmp_path: Path) -> None:
    tracer = TracerProvider().get_tracer("bot")
    async with History.open(tmp_path / "bot.outbox.db") as history:
        receipts = []
        for _ in range(2):
            with tracer.start_as_current_span("answer"):
                receipts.append(await history.append("c1", Message.assistant("hello", id="m1"), metadata={"a": 1}))

        assert receipts[0].sequence == receipts[1].sequence
        assert await receipts[1].saved(timeout=20)
        assert [message.text for message in await history.messages("c1")] == ["hello"]


def test_without_the_extra_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    with Spans().delivery(events=1, conversations=1) as failed:
        failed("poison")

    assert Spans()._trace is None
