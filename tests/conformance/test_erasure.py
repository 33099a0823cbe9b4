"""What is redacted or deleted is gone from the store's rows, whenever it arrives; its place in the log stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.append import condition, prepare
from letopis.outbox.clock import Clock, Waits
from letopis.outbox.effects import erase
from letopis.outbox.lanes import next_batch
from letopis.outbox.relay import Relay
from letopis.store import ConversationGone, ConversationStore, Event, Message, Seen
from letopis.store.codec import decode
from letopis.store.conversation import Delivery
from letopis.store.fold import SUPERSEDED, fold
from letopis.store.vocabulary import (
    ConversationActivated,
    ConversationAnnotated,
    ConversationDeleted,
    ConversationRenamed,
    ConversationStarted,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
)
from tests.campaigns.invariants import check, open_engine
from tests.conformance.outboxes import Outbox, assert_no_gaps, whole_log

CHAT = "chat-1"
SECRET = "s3cret-t0ken"


async def rows(url: str, table: str = "letopis_events") -> list[Mapping[str, Any]]:
    engine = open_engine(url)
    try:
        async with engine.connect() as connection:
            found = (await connection.execute(sa.text(f"SELECT * FROM {table}"))).mappings().all()
            return [dict(row) for row in found]
    finally:
        await engine.dispose()


async def log(url: str) -> list[Mapping[str, Any]]:
    return sorted(await rows(url), key=lambda row: (row["conversation_id"], row["version"]))


TABLES = ("letopis_events", "letopis_messages", "letopis_conversations", "letopis_owners", "letopis_search")


async def assert_gone(url: str, secret: str = SECRET) -> None:
    for table in TABLES:
        for row in await rows(url, table):
            assert secret not in repr(dict(row)), table


async def assert_there(url: str, secret: str = SECRET) -> None:
    assert secret in repr(await rows(url))


async def assert_is_the_fold(store: ConversationStore, conversation_id: str = CHAT) -> None:
    folded = fold(await store.events(conversation_id, limit=1000))
    assert (await store.messages(conversation_id, every=True)).items == folded.messages
    assert (await store.messages(conversation_id)).items == folded.path
    found = await store.conversation(conversation_id)
    assert found is not None and folded.conversation is not None
    assert found.with_changes(number=None, active=False) == folded.conversation.with_changes(active=False)


def said(outbox: Outbox) -> None:
    """A message whose content is in every kind of event that can hold it, between two that stay."""
    outbox.append(
        CHAT,
        ConversationStarted(owner_id="42"),
        Message.user("before", id="a"),
        Message.user(SECRET, id="m", name=SECRET, metadata={"k": SECRET}, external_ids={"t": SECRET}, tokens=7),
        MessageEdited(message_id="m", content=f"{SECRET}!", reason=SECRET),
        MessageSent(message_id="m", platform_ids={"telegram": 5}, sent_as="file", file_path=f"/tmp/{SECRET}"),  # noqa: S108
        MessageFailed(message_id="m", reason=SECRET),
        ReactionAdded(message_id="m", key="like", actor="1"),
        Message.user("after", id="z"),
    )


async def test_a_redacted_message_is_gone_from_every_row_and_its_place_stays(
    store: ConversationStore, store_url: str
) -> None:
    outbox = Outbox()
    said(outbox)
    await outbox.deliver(store)
    await assert_there(store_url)
    before, places = await log(store_url), await whole_log(store)
    outbox.append(CHAT, MessageRedacted(message_id="m", by="1", reason="asked"))
    await outbox.deliver(store)

    await assert_gone(store_url)
    after = await log(store_url)
    assert (await whole_log(store))[:-1] == places
    stripped = [row["version"] for row in after if row["digest"] is None]
    assert stripped == [3, 4, 5, 6]
    for old, new in zip(before, after, strict=False):
        kept = {"partition", "position", "event_id", "type", "occurred_at", "recorded_at", "sequence"}
        assert {key: old[key] for key in kept} == {key: new[key] for key in kept}
        if new["version"] not in stripped:
            assert old == new
        else:
            assert new["metadata"] is None
    _, message, _ = await store.messages(CHAT)
    assert (message.id, message.role, message.content, message.message.tokens) == ("m", "user", "", 7)
    assert (message.redacted, message.on_path, message.edited) == (True, True, False)
    assert (message.delivery, message.delivery_data) == (Delivery.FAILED, {})
    assert [one.key for one in message.reactions] == ["like"]
    await assert_is_the_fold(store)
    await assert_no_gaps(store)


async def test_what_was_redacted_is_recognised_when_it_is_delivered_again(
    store: ConversationStore, store_url: str
) -> None:
    outbox = Outbox()
    said(outbox)
    await outbox.deliver(store)
    outbox.append(CHAT, MessageRedacted(message_id="m"))
    await outbox.deliver(store)

    for first, last in ((1, None), (3, 3), (2, 6)):
        [applied] = (await store.apply(outbox.origin, [outbox.batch(CHAT, first, last)])).applied
        assert applied.inserted == 0
    other = Outbox("a copy that never heard of it")
    other.append_encoded(CHAT, outbox.lanes[CHAT][:8])
    assert [one.inserted for one in (await other.deliver(store)).applied] == [0]
    await assert_gone(store_url)


LATE = [
    MessageEdited(message_id="m", content=SECRET, reason=SECRET),
    MessageSent(message_id="m", platform_ids={"telegram": 5}, file_path=SECRET),
    MessageFailed(message_id="m", reason=SECRET),
]


@pytest.mark.parametrize("late", LATE, ids=lambda body: body.type)
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("elsewhere", [True, False])
async def test_what_comes_after_the_redaction_arrives_without_content(
    store: ConversationStore, store_url: str, late: Any, together: bool, elsewhere: bool
) -> None:
    outbox = Outbox()
    outbox.append(CHAT, Message.user("what?", id="m"))
    await outbox.deliver(store)
    outbox.append(CHAT, MessageRedacted(message_id="m"))
    if not together:
        await outbox.deliver(store)
    speaker = Outbox("other") if elsewhere else outbox
    if elsewhere:
        await outbox.deliver(store)
    speaker.append(CHAT, late)
    await speaker.deliver(store)

    await assert_gone(store_url)
    [message] = await store.messages(CHAT)
    assert (message.content, message.redacted, message.edited) == ("", True, False)
    await assert_is_the_fold(store)
    assert [one.inserted for one in (await store.apply(speaker.origin, [speaker.batch(CHAT)])).applied] == [0]


async def test_an_edit_that_came_before_its_message_goes_too(store: ConversationStore, store_url: str) -> None:
    """Through two outboxes an edit can overtake what it edits: it has no effect, but it has content."""
    one, two = Outbox("one"), Outbox("two")
    two.append(CHAT, MessageEdited(message_id="m", content=SECRET))
    await two.deliver(store)
    one.append(CHAT, Message.user("what?", id="m"))
    await one.deliver(store)
    one.append(CHAT, MessageRedacted(message_id="m"))
    await one.deliver(store)

    await assert_gone(store_url)
    await assert_is_the_fold(store)


async def test_so_it_does_where_message_and_redaction_come_together(store: ConversationStore, store_url: str) -> None:
    one, two = Outbox("one"), Outbox("two")
    two.append(CHAT, MessageEdited(message_id="m", content=SECRET))
    await two.deliver(store)
    one.append(CHAT, Message.user("what?", id="m"), MessageRedacted(message_id="m"))
    await one.deliver(store)

    await assert_gone(store_url)
    await assert_is_the_fold(store)


@pytest.mark.parametrize("when", ["before", "with", "after"])
async def test_an_edit_of_a_later_release_goes_too(store: ConversationStore, store_url: str, when: str) -> None:
    """Its shape is not known here, but what it is about is."""
    newer = Event(type="message.edited", schema_version=2, data={"message_id": "m", "words": SECRET})
    outbox = Outbox()
    outbox.append(CHAT, Message.user("what?", id="m"))
    if when == "before":
        outbox.append(CHAT, newer)
    await outbox.deliver(store)
    if when == "with":
        outbox.append(CHAT, newer)
    outbox.append(CHAT, MessageRedacted(message_id="m"))
    await outbox.deliver(store)
    if when == "after":
        outbox.append(CHAT, newer)
        await outbox.deliver(store)

    await assert_gone(store_url)
    await assert_is_the_fold(store)


async def test_a_late_edit_that_loses_arrives_without_content_too(store: ConversationStore, store_url: str) -> None:
    one, two = Outbox("one"), Outbox("two")
    one.append(CHAT, Message.user("what?", id="m"))
    await one.deliver(store)
    two.append(CHAT, MessageRedacted(message_id="m"))
    await two.deliver(store)
    expects = condition(expected=None, after=Seen(sequence=1, version=1), fail_if_types=None)
    one.append_encoded(CHAT, prepare(CHAT, [MessageEdited(message_id="m", content=SECRET)], expects=expects).events)
    [applied] = (await one.deliver(store)).applied

    assert set(applied.superseded) == {2}
    await assert_gone(store_url)
    await assert_is_the_fold(store)


async def test_said_and_redacted_in_one_delivery(store: ConversationStore, store_url: str) -> None:
    outbox = Outbox()
    said(outbox)
    outbox.append(CHAT, MessageRedacted(message_id="m"))
    await outbox.deliver(store)

    await assert_gone(store_url)
    await assert_is_the_fold(store)


async def test_redacted_twice_and_redacted_in_vain(store: ConversationStore, store_url: str) -> None:
    outbox = Outbox()
    said(outbox)
    outbox.append(CHAT, MessageRedacted(message_id="m"), MessageRedacted(message_id="nobody"))
    await outbox.deliver(store)
    before = await log(store_url)
    outbox.append(CHAT, MessageRedacted(message_id="m"), MessageRedacted(message_id="nobody"))
    await outbox.deliver(store)

    assert (await log(store_url))[:-2] == before
    assert [message.text for message in await store.messages(CHAT)] == ["before", "", "after"]
    await assert_is_the_fold(store)


async def test_other_messages_of_many_stay_as_they_are(store: ConversationStore, store_url: str) -> None:
    """More events than are read at a time, and ids that are alike."""
    outbox = Outbox()
    ids = ["m", "M", "m ", 'm"', "m%", "_", "п"]
    for number in range(80):
        for name in ids:
            outbox.append(CHAT, MessageEdited(message_id=name, content=f"edit {number}"))
            if number == 0:
                outbox.append(CHAT, Message.user("x", id=name))
    await outbox.deliver(store)
    outbox.append(CHAT, MessageRedacted(message_id="m"), MessageRedacted(message_id="m%"))
    await outbox.deliver(store)

    gone = {"m", "m%"}
    for row in await log(store_url):
        data = decode(row["data"])
        if row["type"] in ("message.appended", "message.edited"):
            assert (row["digest"] is None) == (data["message_id"] in gone)
            assert (data["content"] == "") == (data["message_id"] in gone)
    assert {message.id for message in await store.messages(CHAT) if message.redacted} == gone
    await assert_is_the_fold(store)


# --- Deletion --------------------------------------------------------------------------------------------------------


def whole(outbox: Outbox) -> None:
    outbox.append(
        CHAT,
        ConversationStarted(owner_id="42", title=SECRET),
        ConversationRenamed(title=f"{SECRET} II"),
        ConversationAnnotated(metadata={"note": SECRET}),
        ConversationActivated(),
        Message.user(SECRET, id="m", tokens=5),
        MessageEdited(message_id="m", content=SECRET),
        ReactionAdded(message_id="m", key=SECRET, actor=SECRET),
        Event(type="custom.note", data={"text": SECRET}, metadata={"by": SECRET}),
        Event(type="weather.changed", data={"text": SECRET}),
    )


async def test_of_a_deleted_conversation_nothing_is_left_but_its_place(
    store: ConversationStore, store_url: str
) -> None:
    outbox = Outbox()
    whole(outbox)
    await outbox.deliver(store)
    outbox.append("other", ConversationStarted(owner_id="42"), Message.user("stays"))
    outbox.append(CHAT, ConversationDeleted(reason="asked for it"))
    await outbox.deliver(store)

    await assert_gone(store_url)
    found = await store.conversation(CHAT)
    assert found is not None
    assert (found.state, found.owner_id, found.number, found.title) == ("deleted", "42", 1, None)
    assert (found.metadata, found.message_count, found.tokens, found.active) == ({}, 0, 5, False)
    *stripped, deletion = [row for row in await log(store_url) if row["conversation_id"] == CHAT]
    assert all(row["digest"] is None and row["metadata"] is None for row in stripped)
    assert decode(deletion["data"]) == {"reason": "asked for it"}
    assert deletion["digest"] is not None
    assert (await store.messages(CHAT)).items == ()
    assert [one.conversation_id for one in await store.conversations(owner="42")] == ["other"]
    assert [message.text for message in await store.messages("other")] == ["stays"]
    active = await store.active("42")
    assert active is not None and active.conversation_id == "other"
    await assert_is_the_fold(store)
    await assert_no_gaps(store)


async def test_what_comes_after_the_deletion_is_kept_without_content_and_put_aside(
    store: ConversationStore, store_url: str
) -> None:
    one, two = Outbox("one"), Outbox("two")
    whole(one)
    one.append(CHAT, ConversationDeleted())
    await one.deliver(store)
    two.append(
        CHAT,
        ConversationStarted(owner_id="7", title=SECRET),
        ConversationActivated(),
        Message.user(SECRET, id="late", tokens=3),
        ConversationRenamed(title=SECRET),
        ReactionAdded(message_id="m", key=SECRET),
        ConversationDeleted(reason=SECRET),
        Event(type="custom.note", data={"text": SECRET}, metadata={"by": SECRET}),
    )
    [applied] = (await two.deliver(store)).applied

    assert set(applied.superseded) == set(range(1, 8))
    await assert_gone(store_url)
    found = await store.conversation(CHAT)
    assert found is not None
    assert (found.state, found.owner_id, found.number, found.message_count) == ("deleted", "42", 1, 0)
    for row in (await log(store_url))[10:]:
        assert row["digest"] is None
        assert list(decode(row["metadata"])) == [SUPERSEDED]
    assert (await store.messages(CHAT)).items == ()
    [late] = [row for row in await rows(store_url, "letopis_messages") if row["message_id"] == "late"]
    assert late["left_at"] == late["version"] == late["redacted_at"]
    assert await store.active("42") is None and await store.active("7") is None
    [again] = (await store.apply(two.origin, [two.batch(CHAT)])).applied
    assert (again.inserted, again.superseded) == (0, applied.superseded)
    await assert_is_the_fold(store)
    await assert_no_gaps(store)


async def test_deleted_and_spoken_to_in_one_delivery(store: ConversationStore, store_url: str) -> None:
    outbox = Outbox()
    whole(outbox)
    outbox.append(CHAT, ConversationDeleted(), Message.user(SECRET, id="late"))
    [applied] = (await outbox.deliver(store)).applied

    assert set(applied.superseded) == {11}
    await assert_gone(store_url)
    await assert_is_the_fold(store)


async def test_a_number_is_never_used_again(store: ConversationStore) -> None:
    outbox = Outbox()
    for number, name in enumerate(("a", "b", "c"), 1):
        outbox.append(name, ConversationStarted(owner_id="42"), Message.user(name))
        outbox.append(name, ConversationDeleted())
        await outbox.deliver(store)
        found = await store.conversation(name)
        assert found is not None and found.number == number


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


# --- Through an outbox file ------------------------------------------------------------------------------------------


@pytest.fixture
async def bot(tmp_path: Path, store: ConversationStore) -> AsyncIterator[History]:
    """A history that delivers nothing by itself."""
    async with History.open(tmp_path / "bot.outbox.db", store=store, relay=False) as opened:
        yield opened


async def deliver(history: History, events: int = 500) -> None:
    while not await history.drained(0):
        await Relay(history.outbox, history.store, batch=events).drain_once()


async def test_what_is_redacted_while_it_is_under_way_is_taken_and_then_emptied(
    bot: History, store: ConversationStore, store_url: str
) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="m"))
    due = await bot.outbox.read(lambda connection: next_batch(connection, waits=Waits(Clock(), longest=1.0)))
    await bot.append(CHAT, MessageRedacted(message_id="m"))
    await store.apply(bot.outbox.origin, due.batches)  # as it was read before
    await assert_there(store_url)

    await deliver(bot, 1)  # the acknowledgement was lost: all of it again, as it is now

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
    await bot.edit(CHAT, "m", SECRET)
    await bot.append(CHAT, MessageRedacted(message_id="m"))
    await bot.edit(CHAT, "m", SECRET)
    await bot.sent(CHAT, "m", platform_ids={"n": 1}, file_path=SECRET)
    await bot.failed(CHAT, "s", reason="no")
    before = [(one.id, one.content, one.redacted, one.message.tokens) for one in await bot.messages(CHAT)]
    kept = await bot.outbox.read(
        lambda connection: connection.exec_driver_sql("SELECT data, metadata FROM letopis_outbox_events").all()
    )
    assert SECRET not in repr(kept)

    await deliver(bot, batch)

    assert before == [("m", "", True, 3), ("s", "stays", False, None)]
    assert list(await bot.messages(CHAT)) == list(await store.messages(CHAT))
    await assert_gone(store_url)
    verdict = await check([bot.outbox.path], store_url, drained=True)
    assert verdict.ok, verdict


async def test_an_append_that_is_tried_again_after_the_redaction_is_known(bot: History, store_url: str) -> None:
    message = Message.user(SECRET, id="m")
    first = await bot.append(CHAT, message)
    await bot.append(CHAT, MessageRedacted(message_id="m"))

    assert await bot.append(CHAT, message) == first
    await deliver(bot)
    assert await bot.append(CHAT, message) == first
    await deliver(bot)
    await assert_gone(store_url)


async def test_a_deletion_leaves_the_outbox_once_it_is_delivered(
    bot: History, store: ConversationStore, store_url: str
) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="m"), owner="42")
    await deliver(bot)
    await bot.append(CHAT, ConversationDeleted(reason="asked"))
    assert (await bot.messages(CHAT)).items == ()
    with pytest.raises(ConversationGone):
        await bot.append(CHAT, Message.user("still there?"))

    await deliver(bot)

    kept = await bot.outbox.read(
        lambda connection: connection.exec_driver_sql("SELECT data, redacted FROM letopis_outbox_events").all()
    )
    assert SECRET not in repr(kept)
    assert [row[1] for row in kept] == [1, 1, 0]
    await assert_gone(store_url)
    found = await bot.conversation(CHAT)
    assert found is not None and found.state == "deleted"
    verdict = await check([bot.outbox.path], store_url, drained=True)
    assert verdict.ok, verdict


async def test_the_receipt_tells_the_other_bot_that_the_conversation_was_deleted(
    bot: History, store: ConversationStore
) -> None:
    await bot.append(CHAT, Message.user("here", id="a"))
    await deliver(bot)
    other = Outbox("other")
    other.append(CHAT, ConversationDeleted())
    await other.deliver(store)
    late = await bot.append(CHAT, Message.user("and here", id="b"))
    await deliver(bot)

    assert await late.superseded(timeout=5)
    assert (await bot.messages(CHAT)).items == ()
    assert (await bot.conversation(CHAT)) is not None


async def test_a_damaged_event_does_not_keep_the_others_from_being_erased(bot: History) -> None:
    await bot.append(CHAT, Message.user("damaged", id="d"), Message.user(SECRET, id="m"))

    def damage(connection: sa.Connection) -> int:
        connection.exec_driver_sql("UPDATE letopis_outbox_events SET data = '{' WHERE sequence = 2")
        cursor = connection.connection.cursor()
        return erase(cursor, "nowhere", "m") + erase(cursor, "nowhere", None)

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
    await deliver(bot)

    assert [message.text for message in await bot.messages(CHAT)] == ["stays", "goes on"]
