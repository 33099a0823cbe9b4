"""A reset erases as a deletion does, and the conversation continues under its id."""

from __future__ import annotations

import pytest

from letopis.outbox import History
from letopis.store import (
    ConversationDeleted,
    ConversationGone,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    EventIdReused,
    InvalidInput,
    Message,
    MessageEdited,
    Reuse,
)
from letopis.store.testing.outbox import Outbox, assert_no_gaps
from tests.campaigns.invariants import check
from tests.conformance.talk import deliver
from tests.conformance.test_erasure import CHAT, SECRET, assert_gone, assert_is_the_fold, assert_there, rows, said


@pytest.mark.parametrize("together", [True, False])
async def test_all_is_erased_and_the_name_stays_usable(
    bot: History, store: ConversationStore, store_url: str, *, together: bool
) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="a"), Message.assistant(SECRET, id="b", tokens=7), owner="42")
    await bot.append(CHAT, Message.user(SECRET, id="popped"))
    await bot.chat(CHAT).pop()
    await bot.chat(CHAT).rename(SECRET)
    await bot.chat(CHAT).annotate({"note": SECRET})
    await bot.chat(CHAT).react("a", "like", value=SECRET)
    if not together:
        await deliver(bot)
        await assert_there(store_url)
    reset = await bot.chat(CHAT).reset(reason="asked")
    anew = await bot.append(CHAT, Message.user("hello again", id="c"))

    async def expect() -> None:
        assert [one.text for one in await bot.messages(CHAT)] == ["hello again"]
        assert SECRET not in repr(await bot.messages(CHAT, every=True))
        found = await bot.chat(CHAT).conversation()
        assert found is not None
        assert (found.state, found.title, dict(found.metadata)) == ("active", None, {})
        assert (found.owner_id, found.message_count, found.tokens) == ("42", 1, 7)

    await expect()
    for message_id in ("a", "b", "popped"):
        with pytest.raises(EventIdReused):
            await bot.append(CHAT, Message.user(SECRET, id=message_id))
    await deliver(bot)

    assert await reset.saved(60) and await anew.saved(60)
    await expect()
    await assert_gone(store_url)
    kept = await bot.outbox.read(
        lambda connection: connection.exec_driver_sql("SELECT * FROM letopis_outbox_events").all()
    )
    assert SECRET not in repr(kept)
    with pytest.raises(EventIdReused) as erased:
        await bot.append(CHAT, Message.user(SECRET, id="a"))
    assert erased.value.reason is Reuse.ERASED
    assert [one.text for one in await store.messages(CHAT)] == ["hello again"]
    [there] = await bot.conversations(owner="42")
    assert there.number == 1
    await assert_no_gaps(store)
    await assert_is_the_fold(store)
    verdict = await check([bot.outbox.path], store_url, drained=True)
    assert verdict.ok, verdict
    async for rebuilt in store.rebuild(check=True):
        assert rebuilt.differences == ()


async def test_a_second_outbox_goes_on_and_its_late_edits_are_nobodys(
    bot: History, store: ConversationStore, store_url: str
) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="a"))
    await deliver(bot)
    await bot.chat(CHAT).reset()
    await deliver(bot)
    other = Outbox("other")
    other.append(CHAT, MessageEdited(message_id="a", content=SECRET), Message.user("from another", id="o"))
    [applied] = (await other.deliver(store)).applied

    assert list(applied.superseded) == [1]
    assert [one.text for one in await bot.messages(CHAT)] == ["from another"]
    await assert_gone(store_url)
    await assert_is_the_fold(store)


async def test_a_fork_keeps_what_it_reads_until_it_is_gone(store: ConversationStore, store_url: str) -> None:
    outbox = Outbox()
    said(outbox)
    await outbox.deliver(store)
    parent = await store.conversation(CHAT)
    assert parent is not None
    outbox.append("fork", ConversationStarted(forked_from={"conversation_id": CHAT, "version": parent.version}))
    await outbox.deliver(store)
    before = [one.content for one in await store.messages("fork")]
    assert SECRET in repr(before)
    outbox.append(CHAT, ConversationRewound(erase=True), Message.user("anew", id="n"))
    await outbox.deliver(store)

    assert [one.content for one in await store.messages("fork")] == before
    assert [one.content for one in await store.messages(CHAT)] == ["anew"]
    assert SECRET not in repr(await store.messages(CHAT, every=True))
    assert SECRET not in repr(await store.messages(CHAT, as_of=parent.version))
    await assert_is_the_fold(store)
    outbox.append("fork", ConversationDeleted())
    await outbox.deliver(store)
    await assert_gone(store_url)
    assert [one.content for one in await store.messages(CHAT)] == ["anew"]


async def test_twice_and_then_deleted(bot: History, store: ConversationStore, store_url: str) -> None:
    for round_ in range(2):
        await bot.append(CHAT, Message.user(SECRET, id=f"m-{round_}"))
        await bot.chat(CHAT).reset()
    await bot.append(CHAT, Message.user("last", id="last"))
    await deliver(bot)
    await assert_gone(store_url)
    await assert_is_the_fold(store)
    await bot.chat(CHAT).delete()
    await deliver(bot)
    with pytest.raises(ConversationGone):
        await bot.chat(CHAT).reset()
    with pytest.raises(ConversationGone):
        await bot.append(CHAT, Message.user("x"))
    assert not await store.messages(CHAT, every=True)


async def test_the_rows_are_remade_as_they_are(bot: History, store: ConversationStore, store_url: str) -> None:
    await bot.append(CHAT, Message.user(SECRET, id="a"), Message.user(SECRET, id="b"))
    await bot.chat(CHAT).redact("b")
    await deliver(bot)
    await bot.chat(CHAT).pop()
    await bot.chat(CHAT).reset()
    await bot.append(CHAT, Message.user("anew", id="c"))
    await bot.chat(CHAT).react("c", "like")
    await deliver(bot)
    before = {table: await rows(store_url, table) for table in ("letopis_messages", "letopis_conversations")}
    async for rebuilt in store.rebuild(check=True):
        assert rebuilt.differences == ()
    assert before == {table: await rows(store_url, table) for table in before}


async def test_what_is_wrong_is_refused(bot: History) -> None:
    with pytest.raises(InvalidInput, match="no such conversation"):
        await bot.chat("nowhere").reset()
    with pytest.raises(InvalidInput, match="to_message_id cannot be given"):
        ConversationRewound(to_message_id="a", erase=True)
