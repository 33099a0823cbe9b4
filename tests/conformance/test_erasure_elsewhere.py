"""What only one outbox knows of an erased conversation, and what is on hold there."""

from functools import partial
from typing import Any

import pytest

from letopis import Closed, ConversationStore, History, Message
from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.statements import on_cursor
from letopis.outbox.history.erasing import register
from letopis.store.model.identifiers import derived_event_id
from tests.conformance.tables import on_sqlite
from tests.support.relays import until
from tests.support.sayings import Bots, assert_nowhere, drain, occurs

WORDS = "gheldrimmer"


async def abandon_draft(history: History, chat: str, *, owner: str | None = None) -> None:
    """Leave the draft of a reply whose writer has ended, in a conversation without an event here."""
    draft = drafts.Draft(
        conversation_id=chat,
        message_id="m",
        event_id=derived_event_id(chat, "m"),
        owner_id=owner,
        data=f'{{"message_id":"m","role":"assistant","content":"{WORDS} drafted","status":"interrupted"}}',
        writer="0" * 32,
        started_at=1,
        updated_at=1,
    )
    for work in (drafts.begin, drafts.save):
        assert await history.outbox.write(partial(on_cursor, work=lambda cursor, work=work: work(cursor, draft)))


async def said(history: History, chat: str, *, owner: str | None = None) -> None:
    await history.append(chat, Message.user(f"{WORDS} said"), owner=owner)


async def test_a_draft_goes_whose_owner_only_the_store_knows(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await said(one, "chat", owner="42")
    await two.append("hello", Message.user("hello"), owner="41")
    await drain(one, two)
    await abandon_draft(two, "chat")
    await one.erase(owner="42", how="reset")
    await drain(one, two)
    await two._parts.replies.begin()  # as the next opening does
    await drain(two)

    assert await two.unconfirmed() == ()
    await assert_nowhere(WORDS, store, one, two)


@pytest.mark.parametrize("asker", [0, 1])
async def test_records_go_of_a_conversation_whose_owner_only_a_draft_names(
    store: ConversationStore, bots: Bots, asker: int
) -> None:
    """And those of a conversation without an owner stay."""
    one, two = bots
    await one.append("chat", Message.user("said by nobody"))
    await two.append("hello", Message.user("hello"))
    await drain(one, two)
    await two.records(conversation="chat").put(("notes",), "key", {"value": WORDS})
    await two.records(conversation="hello").put(("notes",), "key", {"value": "spared"})
    await abandon_draft(two, "chat", owner="42")
    await bots[asker].erase(owner="42", how="reset")
    await drain(one, two)

    assert await two.records(conversation="hello").get(("notes",), "key") is not None
    await assert_nowhere(WORDS, store, one, two)


@pytest.mark.parametrize("every", [0, None])
async def test_a_reply_ends_whose_owner_only_the_store_knows(
    store: ConversationStore, bots: Bots, every: float | None
) -> None:
    """Whether anything of it was saved or not."""
    one, two = bots
    await said(one, "chat", owner="42")
    await two.append("hello", Message.user("hello"), owner="41")
    await drain(one, two)
    async with two.reply("hello", every=every) as spared:
        await spared.add("goes on")
        with pytest.raises(Closed, match="erased"):  # noqa: PT012 - the block of the reply raises
            async with two.reply("chat", every=every) as reply:
                await reply.add(f"{WORDS} half")
                await until(lambda: every is None or reply.kept > 0)
                await one.erase(owner="42", how="reset")
                await drain(one, two)
    await drain(two)

    assert [message.text for message in await store.messages("hello")] == ["hello", "goes on"]
    await assert_nowhere(WORDS, store, one, two)


@pytest.mark.parametrize("asker", [0, 1])
@pytest.mark.parametrize("how", ["reset", "delete"])
async def test_what_was_delivered_before_a_draft_named_its_owner_is_erased_with_the_owner(
    store: ConversationStore, bots: Bots, asker: int, how: Any
) -> None:
    """Whether the outbox that holds the draft asks, or another one."""
    one, two = bots
    await one.append("hello", Message.user("hello"), owner="41")
    await said(two, "chat")
    await drain(one, two)
    await abandon_draft(two, "chat", owner="42")
    await bots[asker].erase(owner="42", how=how)
    await drain(one, two)
    if how == "reset":
        await two.append("chat", Message.user("said later"), owner="42")
        await drain(two)

    assert [message.text for message in await store.messages("chat")] == ["said later"] * (how == "reset")
    assert [message.text for message in await store.messages("hello")] == ["hello"]
    await assert_nowhere(WORDS, store, one, two)


@pytest.mark.parametrize("pending", [[], ["pending here"]])
@pytest.mark.parametrize("how", ["reset", "delete"])
async def test_a_draft_that_names_another_owner_erases_nothing_of_theirs(
    store: ConversationStore, bots: Bots, how: Any, pending: list[str]
) -> None:
    one, two = bots
    await one.append("chat", Message.user("of 41"), owner="41")
    await two.append("chat", Message.user("said here"))
    await drain(one, two)
    for words in pending:
        await two.append("chat", Message.user(words))
    await abandon_draft(two, "chat", owner="42")
    await two.erase(owner="42", how=how)
    await drain(one, two)

    assert [message.text for message in await store.messages("chat")] == ["of 41", "said here", *pending]
    await assert_nowhere(WORDS, store, one, two)


@on_sqlite
async def test_a_reply_goes_on_in_a_conversation_on_hold(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await two.append("hello", Message.user("hello"), owner="41")
    await drain(two)
    await two.append("chat", Message.user("on hold"), owner="42")
    await two.append("other", Message.user(WORDS), owner="42")
    await one.erase(owner="42", how="reset")
    await store.erasures.hold("conversation", "chat", reason="a court asked")
    async with two.reply("chat", owner="42", every=0) as reply:
        await reply.add("half")
        await until(lambda: reply.kept > 0)
        await drain(one, two)
        await reply.add(" and whole")
    await drain(two)

    assert [message.text for message in await store.messages("chat")] == ["on hold", "half and whole"]
    await assert_nowhere(WORDS, store, one, two)


@pytest.mark.parametrize("named", ["here", "in the store"])
async def test_a_hold_on_an_owner_spares_drafts_of_a_conversation_that_is_erased(
    store: ConversationStore, bots: Bots, named: str
) -> None:
    one, two = bots
    await said(one, "chat", owner="42")
    await two.append("hello", Message.user("hello"), owner="41")
    await drain(one, two)
    await abandon_draft(two, "chat", owner="42" if named == "here" else None)
    await register(one.outbox, one.store, "conversation", "chat", how="reset", reason="asked")
    await store.erasures.hold("owner", "42", reason="a court asked")
    await drain(two)

    assert occurs(f"{WORDS} drafted", two.outbox.path)


@pytest.mark.parametrize("since", [[], ["said since"]])
async def test_what_was_delivered_before_its_owner_was_named_is_erased_with_the_owner(
    store: ConversationStore, bots: Bots, since: list[str]
) -> None:
    """Also if the history store has learned the owner by then, from words that were said after the erasure."""
    one, two = bots
    await said(two, "chat")
    await drain(one, two)
    await said(two, "chat", owner="42")
    await one.erase(owner="42", how="reset")
    for words in since:
        await one.append("chat", Message.user(words), owner="42")
    await drain(one)
    await drain(two)
    await two.append("chat", Message.user("said later"))
    await drain(two)

    assert [message.text for message in await store.messages("chat")] == [*since, "said later"]
    await assert_nowhere(WORDS, store, one, two)


@on_sqlite
@pytest.mark.parametrize("every", [0, None])
async def test_a_reply_ends_with_its_conversation(store: ConversationStore, one: History, every: Any) -> None:
    await said(one, "chat")
    await drain(one)
    with pytest.raises(Closed, match="erased"):  # noqa: PT012 - the block of the reply raises
        async with one.reply("chat", every=every) as reply:
            await reply.add(f"{WORDS} half")
            if every is not None:
                await until(lambda: reply.kept > 0)
            await one.chat("chat").reset()
            if every is not None:
                await reply.add("and the other half")
                await until(lambda: reply._erased)
                await reply.add("and more")
    async with one.reply("chat", every=0) as reply:
        await reply.add("another reply")
    await drain(one)

    assert [message.text for message in await store.messages("chat")] == ["another reply"]
    await assert_nowhere(WORDS, store, one)


@pytest.mark.parametrize("how", ["redact", "reset", "delete"])
async def test_a_reply_erased_through_another_outbox_is_told_without_its_text(
    store: ConversationStore, bots: Bots, how: str
) -> None:
    one, two = bots
    async with one.reply("chat") as reply:
        await reply.add(WORDS)
    await drain(one)
    await (two.chat("chat").redact(reply.message_id) if how == "redact" else getattr(two.chat("chat"), how)())
    await drain(two)

    assert [(told.message_id, told.message) for told in await one.unconfirmed()] == [(reply.message_id, None)]


@on_sqlite
async def test_a_reply_redacted_elsewhere_is_not_to_be_confirmed_once_an_edit_of_it_is_delivered(
    store: ConversationStore, bots: Bots
) -> None:
    one, two = bots
    async with one.reply("chat") as reply:
        await reply.add(WORDS)
    await drain(one)
    await one.chat("chat").edit(reply.message_id, f"{WORDS} edited")
    await two.chat("chat").redact(reply.message_id)
    await drain(two, one)

    assert await one.unconfirmed() == ()
    await assert_nowhere(WORDS, store, one, two)
