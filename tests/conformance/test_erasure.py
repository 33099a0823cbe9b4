"""What is redacted or deleted is gone from the store's rows, whenever it arrives; its place in the log stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.concurrency.clock import Clock, RetryTimers
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.effects import erase_content
from letopis.outbox.event_log.lanes import next_batch
from letopis.store import (
    ConversationGone,
    ConversationStore,
    Event,
    EventIdReused,
    InvalidInput,
    Message,
    Reuse,
    Seen,
)
from letopis.store.model.event_types import (
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    MessageEdited,
    MessageRedacted,
    ReactionAdded,
)
from letopis.store.testing.outbox import Outbox, assert_no_gaps
from letopis.store.testing.redaction import CHAT, SECRET, RedactionConformance, assert_is_the_fold, said, whole
from tests.campaigns.invariants import check
from tests.conformance.tables import TABLES, LooksIntoTables, rows
from tests.support.relays import deliver_all


async def log(url: str) -> list[Mapping[str, Any]]:
    return sorted(await rows(url), key=lambda row: (row["conversation_id"], row["version"]))


async def assert_gone(url: str, secret: str = SECRET) -> None:
    for table in TABLES:
        for row in await rows(url, table):
            assert secret not in repr(dict(row)), table


async def assert_there(url: str, secret: str = SECRET) -> None:
    assert secret in repr(await rows(url))


class TestRedaction(LooksIntoTables, RedactionConformance):
    """The published contract."""


async def test_the_rows_of_redacted_events_hold_no_metadata(store: ConversationStore, store_url: str) -> None:
    """The published contract cannot see whether a column is empty."""
    outbox = Outbox()
    said(outbox)
    outbox.append(CHAT, MessageRedacted(message_id="m"))
    await outbox.deliver(store)

    stripped = [row for row in await log(store_url) if row["salt"] is None]
    assert [(row["version"], row["metadata"]) for row in stripped] == [(3, None), (4, None), (5, None), (6, None)]


async def test_the_rows_of_a_deleted_conversation_are_empty(store: ConversationStore, store_url: str) -> None:
    outbox, other = Outbox("one"), Outbox("two")
    whole(outbox)
    await outbox.deliver(store)
    outbox.append(CHAT, ConversationDeleted())
    await outbox.deliver(store)
    other.append(CHAT, Message.user(SECRET, id="late", tokens=3))
    await other.deliver(store)

    assert all(row["salt"] is row["metadata"] is None for row in (await log(store_url))[:-2])
    [late] = [row for row in await rows(store_url, "letopis_messages") if row["message_id"] == "late"]
    assert late["left_at"] == late["version"] == late["redacted_at"]


async def test_a_late_edit_that_loses_arrives_without_content_too(store: ConversationStore, store_url: str) -> None:
    one, two = Outbox("one"), Outbox("two")
    one.append(CHAT, Message.user("what?", id="m"))
    await one.deliver(store)
    two.append(CHAT, MessageRedacted(message_id="m"))
    await two.deliver(store)
    one.append_encoded(
        CHAT, prepare(CHAT, [MessageEdited(message_id="m", content=SECRET)], after=Seen(sequence=1, version=1)).events
    )
    [applied] = (await one.deliver(store)).applied

    assert set(applied.superseded) == {2}
    await assert_gone(store_url)
    await assert_is_the_fold(store)


@pytest.mark.parametrize("end", [ConversationDeleted(), ConversationRewound(erase=True)])
async def test_what_is_redacted_is_not_kept_for_a_fork_though_all_is_erased_in_the_same_delivery(
    store: ConversationStore, store_url: str, end: ConversationDeleted | ConversationRewound
) -> None:
    outbox = Outbox()
    outbox.append(CHAT, Message.user("shared", id="s"), Message.user(SECRET, id="m"))
    outbox.append("fork", ConversationStarted(forked_from={"conversation_id": CHAT, "version": 2}))
    await outbox.deliver(store)
    outbox.append(CHAT, MessageRedacted(message_id="m"))
    outbox.append(CHAT, end)
    await outbox.deliver(store)

    await assert_gone(store_url)
    assert [one.text for one in await store.messages("fork")] == ["shared", ""]


@pytest.mark.parametrize("end", [ConversationDeleted(), ConversationRewound(erase=True)])
async def test_the_rows_of_messages_off_the_path_are_erased_too(
    store: ConversationStore, store_url: str, end: ConversationDeleted | ConversationRewound
) -> None:
    """They are not loaded, as those on the path are."""
    outbox = Outbox()
    outbox.append(CHAT, Message.user("stays", id="s"), Message.user("popped", id="m"))
    outbox.append(CHAT, ReactionAdded(message_id="m", key="like", value=SECRET))
    outbox.append(CHAT, ConversationRewound(to_message_id="s"))
    await outbox.deliver(store)
    assert SECRET in repr(await rows(store_url, "letopis_messages"))
    outbox.append(CHAT, end)
    await outbox.deliver(store)

    await assert_gone(store_url)
    async for rebuilt in store.rebuild(check=True):
        assert rebuilt.differences == ()


async def test_what_a_fork_reads_is_kept_until_it_is_gone_too(store: ConversationStore, store_url: str) -> None:
    outbox = Outbox()
    outbox.append(CHAT, Message.user("shared", id="s"), Message.user(SECRET, id="m"))
    await outbox.deliver(store)
    outbox.append("fork", ConversationStarted(forked_from={"conversation_id": CHAT, "version": 1}))
    await outbox.deliver(store)
    outbox.append(CHAT, ConversationDeleted())
    await outbox.deliver(store)

    await assert_gone(store_url)
    await assert_there(store_url, "shared")
    outbox.append("fork", ConversationDeleted())
    await outbox.deliver(store)
    await assert_gone(store_url, "shared")
    await assert_no_gaps(store)


async def test_what_is_redacted_while_it_is_under_way_is_taken_and_then_emptied(
    bot: History, store: ConversationStore, store_url: str
) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="m"))
    due = await bot.outbox.read(lambda connection: next_batch(connection, waits=RetryTimers(Clock(), longest=1.0)))
    await bot.append(CHAT, MessageRedacted(message_id="m"))
    await store.apply(bot.outbox.origin, due.batches)  # as it was read before
    await assert_there(store_url)

    await deliver_all(bot, batch=1)  # the acknowledgement was lost: all of it again, in its present form

    await assert_gone(store_url)
    assert list(await bot.messages(CHAT)) == list(await store.messages(CHAT))
    await store.apply(bot.outbox.origin, due.batches)  # and a relay that hung
    await assert_gone(store_url)
    verdict = await check([bot.outbox.path], store_url, drained=True)
    assert verdict.ok, verdict


@pytest.mark.parametrize("batch", [1, 500])
async def test_what_is_redacted_while_it_is_pending_never_leaves(
    bot: History, store: ConversationStore, store_url: str, batch: int
) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="m", tokens=3), Message.user("stays", id="s"))
    await bot.chat(CHAT).edit("m", SECRET)
    await bot.append(CHAT, MessageRedacted(message_id="m"))
    with pytest.raises(InvalidInput, match="erased"):
        await bot.chat(CHAT).edit("m", SECRET)
    await bot.chat(CHAT).sent("m", platform_ids={"n": 1}, file_path=SECRET)
    await bot.chat(CHAT).failed("s", reason="no")
    before = [(one.id, one.content, one.redacted, one.message.tokens) for one in await bot.messages(CHAT)]
    kept = await bot.outbox.read(
        lambda connection: connection.exec_driver_sql("SELECT data, metadata FROM letopis_outbox_events").all()
    )
    assert SECRET not in repr(kept)

    await deliver_all(bot, batch=batch)

    assert before == [("m", "", True, 3), ("s", "stays", False, None)]
    assert list(await bot.messages(CHAT)) == list(await store.messages(CHAT))
    await assert_gone(store_url)
    verdict = await check([bot.outbox.path], store_url, drained=True)
    assert verdict.ok, verdict


async def test_an_append_that_is_tried_again_after_the_redaction_is_refused(bot: History, store_url: str) -> None:
    message = Message.user(SECRET, id="m")
    await bot.append(CHAT, message)
    await bot.append(CHAT, MessageRedacted(message_id="m"))

    for _ in range(2):
        with pytest.raises(EventIdReused) as refused:
            await bot.append(CHAT, message)
        assert refused.value.reason is Reuse.ERASED
        await deliver_all(bot)
    await assert_gone(store_url)


async def test_a_deletion_leaves_the_outbox_once_it_is_delivered(
    bot: History, store: ConversationStore, store_url: str
) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="m"), owner="42")
    await deliver_all(bot)
    await bot.append(CHAT, ConversationDeleted(reason="asked"))
    assert (await bot.messages(CHAT)).items == ()
    with pytest.raises(ConversationGone):
        await bot.append(CHAT, Message.user("still there?"))

    await deliver_all(bot)

    kept = await bot.outbox.read(
        lambda connection: connection.exec_driver_sql("SELECT data, redacted FROM letopis_outbox_events").all()
    )
    assert SECRET not in repr(kept)
    assert [row[1] for row in kept] == [1, 1, 0]
    await assert_gone(store_url)
    found = await bot.chat(CHAT).conversation()
    assert found is not None and found.state == "deleted"
    verdict = await check([bot.outbox.path], store_url, drained=True)
    assert verdict.ok, verdict


async def test_the_receipt_tells_the_other_bot_that_the_conversation_was_deleted(
    bot: History, store: ConversationStore
) -> None:
    await bot.append(CHAT, Message.user("here", id="a"))
    await deliver_all(bot)
    other = Outbox("other")
    other.append(CHAT, ConversationDeleted())
    await other.deliver(store)
    late = await bot.append(CHAT, Message.user("and here", id="b"))
    await deliver_all(bot)

    assert await late.superseded(timeout=60)
    assert (await bot.messages(CHAT)).items == ()
    assert (await bot.chat(CHAT).conversation()) is not None


async def test_a_damaged_event_does_not_keep_the_others_from_being_erased(bot: History) -> None:
    await bot.append(CHAT, Message.user("damaged", id="d"), Message.user(SECRET, id="m"))

    def damage(connection: sa.Connection) -> int:
        connection.exec_driver_sql("UPDATE letopis_outbox_events SET data = '{' WHERE sequence = 2")
        cursor = connection.connection.cursor()
        return erase_content(cursor, "nowhere", "m") + erase_content(cursor, "nowhere", None)

    assert await bot.outbox.write(damage) == 0
    await bot.append(CHAT, MessageRedacted(message_id="m"))
    kept = await bot.outbox.read(
        lambda connection: connection.exec_driver_sql("SELECT data FROM letopis_outbox_events").all()
    )
    assert SECRET not in repr(kept)


@pytest.mark.parametrize(
    "kind", ["message.edited", "message.sent", "message.failed", "message.redacted", "conversation.deleted"]
)
async def test_what_only_a_later_release_understands_does_nothing_to_the_file(bot: History, kind: str) -> None:
    await bot.append(CHAT, Message.user("stays", id="m"))

    await bot.append(CHAT, Event(type=kind, schema_version=2, data={"other": 1}))
    await bot.append(CHAT, Message.user("goes on", id="n"))
    await deliver_all(bot)

    assert [message.text for message in await bot.messages(CHAT)] == ["stays", "goes on"]
