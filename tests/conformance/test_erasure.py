"""What is redacted, deleted or reset is gone from the store's rows, whenever it arrives; its place in the log stays."""

from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.concurrency.clock import Clock, RetryTimers
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.erasing import carry_out, erase_messages
from letopis.outbox.event_log.lanes import next_batch
from letopis.store import ConversationStore, Event, IdReused, InvalidInput, Message, Reuse, Seen
from letopis.store.model.event_types import (
    ConversationDeleted,
    ConversationRewound,
    MessageEdited,
    MessageRedacted,
    ReactionAdded,
)
from letopis.store.rules.erasure_plan import Cause, ErasurePlan
from letopis.store.testing.outbox import Outbox, assert_no_gaps
from letopis.store.testing.redaction import CHAT, SECRET, RedactionConformance, assert_is_the_fold, said, whole
from tests.conformance.tables import LooksIntoTables, on_sqlite, rows, stored_text
from tests.support.relays import deliver_all, sql
from tests.support.sayings import differences, present, send
from tests.support.verdicts import assert_whole


async def log(store: ConversationStore) -> list[Mapping[str, Any]]:
    return sorted(await rows(store), key=lambda row: (row["conversation_id"], row["version"]))


End = ConversationDeleted | ConversationRewound
ENDS = pytest.mark.parametrize("end", [ConversationDeleted(), ConversationRewound(erase=True)])


async def assert_gone(store: ConversationStore) -> None:
    assert SECRET not in await stored_text(store)


class TestRedaction(LooksIntoTables, RedactionConformance):
    """The published contract."""


async def test_the_rows_of_redacted_events_hold_no_metadata(store: ConversationStore) -> None:
    """The published contract cannot see whether a column is empty."""
    outbox = Outbox()
    said(outbox)
    await send(store, outbox, CHAT, MessageRedacted(message_id="m"))
    stripped = [row for row in await log(store) if row["salt"] is None]
    assert [(row["version"], row["metadata"]) for row in stripped] == [(3, None), (4, None), (5, None), (6, None)]


async def test_the_rows_of_a_deleted_conversation_are_empty(store: ConversationStore) -> None:
    outbox, other = Outbox("one"), Outbox("two")
    whole(outbox)
    await outbox.deliver(store)
    await send(store, outbox, CHAT, ConversationDeleted())
    await send(store, other, CHAT, Message.user(SECRET, id="late", tokens=3))
    assert all(row["salt"] is row["metadata"] is None for row in (await log(store))[:-2])
    [late] = [row for row in await rows(store, "letopis_messages") if row["message_id"] == "late"]
    assert late["left_at"] == late["version"] == late["redacted_at"]


async def test_a_late_edit_that_loses_arrives_without_content_too(store: ConversationStore) -> None:
    one, two = Outbox("one"), Outbox("two")
    await send(store, one, CHAT, Message.user("what?", id="m"))
    await send(store, two, CHAT, MessageRedacted(message_id="m"))
    one.append_encoded(
        CHAT, prepare(CHAT, [MessageEdited(message_id="m", content=SECRET)], after=Seen(sequence=1, version=1)).events
    )
    [applied] = (await one.deliver(store)).applied
    assert set(applied.superseded) == {2}
    await assert_gone(store)
    await assert_is_the_fold(store)


@ENDS
async def test_rows_of_messages_off_the_path_are_erased(store: ConversationStore, end: End) -> None:
    """They are not loaded, as those on the path are."""
    outbox = Outbox()
    outbox.append(CHAT, Message.user("stays", id="s"), Message.user("popped", id="m"))
    outbox.append(CHAT, ReactionAdded(message_id="m", key="like", value=SECRET))
    await send(store, outbox, CHAT, ConversationRewound(to_message_id="s"))
    assert SECRET in repr(await rows(store, "letopis_messages"))
    await send(store, outbox, CHAT, end)
    await assert_gone(store)
    assert await differences(store) == set()


@on_sqlite
async def test_redaction_of_what_is_under_way_empties_it(
    bot: History, store: ConversationStore, store_url: str
) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="m"))
    due = await bot.outbox.read(lambda connection: next_batch(connection, waits=RetryTimers(Clock(), longest=1.0)))
    await bot.append(CHAT, MessageRedacted(message_id="m"))
    await store.apply(bot.outbox.origin, due.batches)  # as it was read before
    assert SECRET in await stored_text(store, CHAT)
    await deliver_all(bot, batch=1)  # the acknowledgement was lost: all of it again, in its present form
    await assert_gone(store)
    assert list(await bot.messages(CHAT)) == list(await store.messages(CHAT))
    await store.apply(bot.outbox.origin, due.batches)  # and a relay that hung
    await assert_gone(store)
    await assert_whole(bot.outbox, store_url)


@on_sqlite
@pytest.mark.parametrize("batch", [1, 500])
async def test_redacted_pending_stays_here(bot: History, store: ConversationStore, store_url: str, batch: int) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="m", tokens=3), Message.user("stays", id="s"))
    await bot.chat(CHAT).edit("m", SECRET)
    await bot.append(CHAT, MessageRedacted(message_id="m"))
    with pytest.raises(InvalidInput, match="erased"):
        await bot.chat(CHAT).edit("m", SECRET)
    await bot.chat(CHAT).sent("m", platform_ids={"n": 1}, file_path=SECRET)
    await bot.chat(CHAT).failed("s", reason="no")
    before = [(one.id, one.content, one.redacted, one.message.tokens) for one in await bot.messages(CHAT)]
    kept = await sql(bot.outbox, "SELECT data, metadata FROM letopis_outbox_events")
    assert SECRET not in repr(kept)
    await deliver_all(bot, batch=batch)
    assert before == [("m", "", True, 3), ("s", "stays", False, None)]
    assert list(await bot.messages(CHAT)) == list(await store.messages(CHAT))
    await assert_gone(store)
    await assert_whole(bot.outbox, store_url)


@on_sqlite
async def test_a_damaged_event_does_not_keep_the_others_from_being_erased(bot: History) -> None:
    await bot.append(CHAT, Message.user("damaged", id="d"), Message.user(SECRET, id="m"))

    def damage(connection: sa.Connection) -> int:
        connection.exec_driver_sql("UPDATE letopis_outbox_events SET data = '{' WHERE sequence = 2")
        cursor = connection.connection.cursor()
        return erase_messages(cursor, "nowhere", "m") + carry_out(
            cursor, ErasurePlan(lane="nowhere", cause=Cause.RESET)
        )

    assert await bot.outbox.write(damage) == 0
    await bot.append(CHAT, MessageRedacted(message_id="m"))
    kept = await sql(bot.outbox, "SELECT data FROM letopis_outbox_events")
    assert SECRET not in repr(kept)


@on_sqlite
@pytest.mark.parametrize(
    "kind", ["message.edited", "message.sent", "message.failed", "message.redacted", "conversation.deleted"]
)
async def test_what_only_a_later_release_understands_does_nothing_to_the_file(bot: History, kind: str) -> None:
    await bot.append(CHAT, Message.user("stays", id="m"))
    await bot.append(CHAT, Event(type=kind, schema_version=2, data={"other": 1}))
    await bot.append(CHAT, Message.user("goes on", id="n"))
    await deliver_all(bot)
    assert [message.text for message in await bot.messages(CHAT)] == ["stays", "goes on"]


# --- A reset: as a deletion, and the conversation goes on under its id ---


@pytest.mark.parametrize("together", [True, False])
async def test_reset_erases_all(bot: History, store: ConversationStore, store_url: str, *, together: bool) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="a"), Message.assistant(SECRET, id="b", tokens=7), owner="42")
    await bot.append(CHAT, Message.user(SECRET, id="popped"))
    await bot.chat(CHAT).rewind(to="b", reason=SECRET)
    await bot.chat(CHAT).rename(SECRET)
    await bot.chat(CHAT).annotate({"note": SECRET})
    await bot.chat(CHAT).react("a", "like", value=SECRET)
    if not together:
        await deliver_all(bot)
        assert SECRET in await stored_text(store, CHAT)
    reset = await bot.chat(CHAT).reset(reason="asked")
    anew = await bot.append(CHAT, Message.user("hello again", id="c"))

    async def expect() -> None:
        assert [one.text for one in await bot.messages(CHAT)] == ["hello again"]
        assert SECRET not in repr(await bot.messages(CHAT, every=True))
        found = present(await bot.chat(CHAT).conversation())
        assert (found.state, found.title, dict(found.metadata)) == ("active", None, {})
        assert (found.owner_id, found.message_count, found.tokens) == ("42", 1, 7)

    await expect()
    await deliver_all(bot)

    assert await reset.saved(60) and await anew.saved(60)
    await expect()
    await assert_gone(store)
    assert SECRET not in repr(await sql(bot.outbox, "SELECT * FROM letopis_outbox_events"))
    for message_id in ("a", "b", "popped"):
        with pytest.raises(IdReused) as erased:
            await bot.append(CHAT, Message.user(SECRET, id=message_id))
        assert erased.value.reuse is Reuse.ERASED
    assert [one.text for one in await store.messages(CHAT)] == ["hello again"]
    [there] = await bot.conversations(owner="42")
    assert there.number == 1
    await assert_no_gaps(store)
    await assert_is_the_fold(store)
    await assert_whole(bot.outbox, store_url)
    assert await differences(store) == set()
