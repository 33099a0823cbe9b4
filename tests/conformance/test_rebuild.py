"""The rows of conversations and messages can be made anew from the log, while the store is written to."""

import asyncio
import random
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store import (
    ApplyResult,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    Event,
    InvalidInput,
    Message,
    MessageEdited,
    MessageRedacted,
    StoreFault,
)
from letopis.store.database.engines import create_store_engine
from letopis.store.database.schema import conversations, events, messages, owners
from letopis.store.ops.rebuild import MAX_NAMED_DIFFERENCES, rebuild
from letopis.store.rules.reducer import PROJECTION_RULES
from letopis.store.testing.outbox import Outbox
from tests.campaigns.rebuild import Operations, damage, differences, digests, fold_of, mismatches, names
from tests.conformance.tables import on_sqlite
from tests.support.sayings import change, new_outbox, rows_of, send


async def row(store: ConversationStore, name: str) -> Any:
    [found] = await rows_of(store, sa.select(conversations).where(conversations.c.conversation_id == name))
    return found


async def three(store: ConversationStore) -> Outbox:
    outbox = Outbox()
    for name in ("a", "b", "c"):
        outbox.append(name, ConversationStarted(owner_id="42"), Message.user("1", id="1"), Message.user("2", id="2"))
    await outbox.deliver(store)
    return outbox


async def done(store: ConversationStore, **options: Any) -> dict[str, tuple[str, ...]]:
    return {one.conversation_id: one.differences async for one in rebuild(store, **options)}


async def test_what_is_as_it_should_be_is_left_alone(store: ConversationStore) -> None:
    await three(store)
    assert await done(store) == {}
    assert await done(store, check=True) == {"a": (), "b": (), "c": ()}
    found = [one async for one in rebuild(store, every=True)]
    assert [(one.conversation_id, one.events, one.messages, one.written) for one in found] == [
        (name, 3, 2, False) for name in ("a", "b", "c")
    ]


async def test_rows_of_older_rules_are_found_also_when_they_were_written_to_since(store: ConversationStore) -> None:
    """What is applied under new rules does not make the rest of the row new."""
    outbox = await three(store)
    await change(store, sa.update(conversations).values(rules=PROJECTION_RULES - 1), sa.delete(messages))
    await send(store, outbox, "b", Message.user("3"))
    assert (await row(store, "b")).rules == PROJECTION_RULES - 1
    async for rebuilt in rebuild(store):
        assert rebuilt.conversation_id == "a"
        break  # cut off: what is done stays done
    assert await done(store) == {
        "b": ("messages[2] missing", "messages[3] missing"),
        "c": ("messages[2] missing", "messages[3] missing"),
    }
    assert await done(store) == {}
    assert await done(store, check=True) == {"a": (), "b": (), "c": ()}
    assert len(await store.messages("b")) == 3


async def test_rows_of_a_newer_release_are_left_alone(store: ConversationStore) -> None:
    await three(store)
    newer = sa.update(conversations).where(conversations.c.conversation_id == "b")
    await change(store, newer.values(rules=PROJECTION_RULES + 1, title="of another age"))
    assert await done(store, every=True) == {"a": (), "c": ()}
    assert await done(store, conversation="b") == {}
    assert (await row(store, "b")).title == "of another age"


async def test_a_check_names_what_differs_and_writes_nothing(store: ConversationStore, engine: AsyncEngine) -> None:
    outbox = await three(store)
    await send(store, outbox, "a", ConversationRenamed(title="secret title"))
    await change(
        store,
        sa.update(conversations).where(conversations.c.conversation_id == "a").values(title="forged", tokens=9),
        sa.update(messages).where(messages.c.conversation_id == "b", messages.c.version == 2).values(left_at=3),
        sa.update(messages).where(messages.c.conversation_id == "b", messages.c.version == 3).values(reactions="[1"),
        sa.update(messages).where(messages.c.conversation_id == "c", messages.c.version == 3).values(version=7),
    )
    expected = {
        "a": ("title", "tokens"),
        "b": ("messages[2].left_at", "messages[3].reactions"),
        "c": ("messages[7] too many", "messages[3] missing"),
    }
    before = await digests(engine)
    assert await done(store, check=True) == expected
    assert await digests(engine) == before
    assert await done(store, conversation="b") == {"b": expected["b"]}
    assert await done(store, every=True) == expected | {"b": ()}
    assert await done(store, check=True) == {"a": (), "b": (), "c": ()}


async def test_the_differences_that_are_named_are_bounded(store: ConversationStore) -> None:
    await new_outbox(store, "c", *(Message.user("x") for _ in range(50)))
    await change(store, sa.update(messages).values(role="tool"))
    (found,) = [one async for one in rebuild(store, conversation="c")]
    assert (len(found.differences), found.difference_count, found.written) == (MAX_NAMED_DIFFERENCES, 50, True)


async def test_a_lost_row_is_made_anew_with_the_next_number(store: ConversationStore) -> None:
    await three(store)
    await change(store, sa.delete(conversations).where(conversations.c.conversation_id == "b"))
    assert await done(store) == {"b": ("row missing",)}
    assert (await row(store, "b")).number == 4
    assert (await store.messages("b")).items[-1].text == "2"
    await new_outbox(store, "d", ConversationStarted(owner_id="42"))
    assert (await row(store, "d")).number == 5
    assert await done(store, check=True) == dict.fromkeys("abcd", ())


async def test_the_number_does_not_repeat_where_the_owner_was_lost_too(store: ConversationStore) -> None:
    await three(store)
    await change(store, sa.delete(conversations).where(conversations.c.conversation_id == "b"), sa.delete(owners))
    await done(store)
    assert sorted([(await row(store, name)).number for name in "abc"]) == [1, 3, 4]


async def test_a_redaction_that_met_damaged_rows_is_carried_out(store: ConversationStore) -> None:
    """What the row hid from the redaction would be read again once the row is mended."""
    outbox = await three(store)
    outbox.append("a", MessageEdited(message_id="1", content="edited"), Message.user("kept", id="3"))
    await send(store, outbox, "b", MessageEdited(message_id="2", content="edited"))
    await store.catch_up_search()
    await change(
        store,
        sa.update(messages).where(messages.c.conversation_id == "a", messages.c.version == 2).values(message_id="x"),
        sa.delete(messages).where(messages.c.conversation_id == "b", messages.c.version == 3),
    )
    outbox.append("a", MessageRedacted(message_id="1"))
    again = Event(type="message.appended", data=Message.user("said again", id="2").to_data())
    await send(store, outbox, "b", MessageRedacted(message_id="2"), again)
    assert {"events[2] not erased", "events[4] not erased"} <= set((await done(store, check=True))["a"])
    mended = await done(store, every=True)
    assert {"events[2] not erased", "events[4] not erased", "messages[2].redacted_at"} <= set(mended["a"])
    assert {"events[3] not erased", "events[4] not erased", "messages[3] missing"} <= set(mended["b"])
    assert [event.data.get("content") for event in await store.events("a")] == [None, "", "2", "", "kept", None]
    assert (await store.messages("b")).items[-1].text == "said again"
    assert list((await store.search("edited")).items) == []
    assert await done(store, check=True) == dict.fromkeys("abc", ())
    assert await wrong(store) == {}


async def test_what_came_after_a_deletion_that_met_damaged_rows_is_emptied(store: ConversationStore) -> None:
    outbox = await three(store)
    await send(store, outbox, "a", ConversationDeleted())
    await change(store, sa.update(conversations).where(conversations.c.conversation_id == "a").values(state="active"))
    await send(store, outbox, "a", Message.user("late"))
    assert "events[5] not erased" in (await done(store, every=True))["a"]
    assert [event.data.get("content") for event in await store.events("a")][1:] == ["", "", None, ""]
    assert await done(store, check=True) == dict.fromkeys("abc", ())


async def test_a_row_without_events_is_told_and_kept(store: ConversationStore) -> None:
    await three(store)
    await change(store, sa.delete(events).where(events.c.conversation_id == "b"))
    assert await done(store, every=True) == {"a": (), "b": ("events missing",), "c": ()}
    assert (await row(store, "b")).version == 3


async def test_a_log_with_a_hole_is_not_built_upon(store: ConversationStore) -> None:
    await three(store)
    await change(store, sa.delete(events).where(events.c.conversation_id == "b", events.c.version == 2))
    with pytest.raises(StoreFault, match="event 2 of a conversation is missing") as raised:
        await done(store, conversation="b")
    assert raised.value.code == "damaged"
    assert (await row(store, "b")).version == 3


async def test_one_that_is_not_there_or_cannot_be(store: ConversationStore) -> None:
    assert await done(store, conversation="nowhere") == {}
    with pytest.raises(InvalidInput, match="conversation"):
        await done(store, conversation="")


@on_sqlite
async def test_pages_are_alike(store: ConversationStore, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits, rewinds and redactions reach back over pages that were taken in long before."""
    await Operations(7).run(store, 600)
    before = await digests(engine)
    await change(store, sa.delete(messages), sa.update(conversations).values(rules=0))
    monkeypatch.setattr("letopis.store.ops.rebuild.PAGE_ROWS", 7)
    found = [one async for one in rebuild(store)]
    assert max(one.events for one in found) > 100
    assert await digests(engine) == before and await mismatches(store) == []


async def test_it_goes_on_while_the_store_is_written_to(store: ConversationStore, engine: AsyncEngine) -> None:
    """Rows are damaged and repaired repeatedly, and no apply is lost, refused or undone by it."""
    operations, chance, applying = Operations(11), random.Random(1), asyncio.Lock()
    apply = store.apply

    async def apply_alone(*given: Any) -> ApplyResult:
        # A row that goes between an apply's read and its write is a fault of that apply, not of the rebuild.
        async with applying:
            return await apply(*given)

    store.apply = apply_alone  # type: ignore[method-assign]
    await operations.run(store, 400)
    writing = asyncio.create_task(operations.run(store, 200, at_once=25))
    rounds = mended = 0
    while not writing.done() or rounds < 3:
        async with applying, engine.begin() as connection:
            await damage(connection, chance, count=3)
        mended += sum([one.written async for one in rebuild(store, every=True)])
        rounds += 1
    await writing
    await done(store, every=True)
    assert mended >= rounds and (await mismatches(store), await wrong(store)) == ([], {})


async def wrong(store: ConversationStore) -> dict[str, list[str]]:
    found = {}
    async for name in names(store.runtime.callers_engine):
        folded, _ = await fold_of(store, name)
        if different := await differences(store, name, folded):
            found[name] = different
    return found


async def test_an_apply_to_another_conversation_does_not_wait(new_store_url: Any) -> None:
    """On a server, the lock is one conversation's."""
    for kind in ("postgresql", "mariadb"):
        url = new_store_url(kind)
        holder = create_store_engine(url)
        async with ConversationStore.open(url, migrate=True) as store, holder.connect() as connection:
            outbox = await three(store)
            of_a = sa.select(conversations).where(conversations.c.conversation_id == "a").with_for_update()
            await connection.execute(of_a)
            rebuilding = asyncio.create_task(done(store, every=True))
            outbox.append("b", Message.user("3"))
            async with asyncio.timeout(60):
                await outbox.deliver(store)
            assert not rebuilding.done()
            await connection.rollback()
            assert await rebuilding == {"a": (), "b": (), "c": ()}
        await holder.dispose()


async def test_a_fork_s_rewind_into_its_parent_is_rebuilt(store: ConversationStore, engine: AsyncEngine) -> None:
    outbox = await three(store)
    started = ConversationStarted(owner_id="42", forked_from={"conversation_id": "a", "version": 3})
    outbox.append("fork", started, Message.user("own", id="own"), ConversationRewound(to_message_id="1"))
    outbox.append("fork", Message.user("other", id="other"), MessageEdited(message_id="other", content="edited"))
    await outbox.deliver(store)
    before = await digests(engine)
    cut = {"inherits": 0, "inherited_to": None, "forked_from_id": None, "forked_from_version": None}
    await change(store, sa.update(conversations).values(**cut), sa.delete(messages))
    found = await done(store, every=True)
    assert {"forked_from_id", "forked_from_version", "inherits", "inherited_to"} <= set(found["fork"])
    assert await digests(engine) == before
