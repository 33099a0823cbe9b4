"""All words of an owner, through every outbox: also through one that was offline when they were erased."""

from __future__ import annotations

from typing import Literal

import pytest

from letopis.outbox import History
from letopis.outbox.history.erasing import erase_owner, register
from letopis.store import ConversationGone, ConversationStore, Message
from tests.conformance.nowhere import assert_nowhere, occurs
from tests.support.relays import until
from tests.support.sayings import Bots, drain, present

WORDS = "gheldrimmer"


async def texts(store: ConversationStore, chat: str) -> list[str]:
    return [message.text for message in await store.messages(chat, every=True)]


async def speak(history: History, chat: str, *, owner: str | None = None, words: str = WORDS) -> None:
    await history.append(chat, Message.user(f"{words} said"), owner=owner, metadata={"about": words})
    await history.append(chat, Message.assistant(f"{words} answered"))
    await history.chat(chat).annotate({"note": words})
    await history.records(conversation=chat).put(("notes",), "key", {"value": words}, tags={"tag": words})


@pytest.mark.parametrize("how", ["reset", "delete"])
async def test_what_an_offline_outbox_held_stays_unreadable(store: ConversationStore, bots: Bots, how: str) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await drain(one)
    await speak(two, "shared")  # it was never told whose the conversation is
    await drain(two)
    await speak(two, "shared")
    await speak(two, "new", owner="42")
    await two.records(owner="42").put(("profile",), "name", WORDS)
    await speak(two, "other", owner="43", words="stays")

    await erase(one, "42", how)
    await drain(one)
    assert [behind.name for behind in await store.erasures.unacknowledged()] == ["two.outbox.db"]
    await drain(two)

    assert await store.erasures.unacknowledged() == []
    await assert_nowhere(WORDS, store, one, two)
    assert "stays said" in await texts(store, "other")
    for chat in ("shared", "new"):
        conversation = present(await store.conversation(chat))
        assert conversation.state == ("deleted" if how == "delete" else "active")
    new = await store.conversation("new")
    assert new is not None and new.message_count == 0


async def greet(history: History) -> None:
    """Have an outbox known to the store: a new one begins at the present number."""
    await history.append("hello", Message.user("hello"), owner="41")


async def erase(history: History, owner: str, how: str) -> None:
    await erase_owner(history, owner, how=how, reason="asked")  # type: ignore[arg-type]


async def test_new_words_after_the_erasure_survive(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await greet(two)
    await drain(one, two)
    await speak(two, "shared")
    await speak(two, "new", owner="42")

    await erase(one, "42", "reset")
    await drain(one)
    await one.append("shared", Message.user("new words through one"))
    await drain(one)
    await drain(two)
    await two.append("shared", Message.user("new words through two"))
    await two.append("new", Message.user("new words in the other chat"))
    await drain(two)

    shown = [message.text for message in await one.messages("shared")]
    assert [text for text in shown if text] == ["new words through one", "new words through two"]
    assert [message.text for message in await store.messages("new")] == ["new words in the other chat"]
    await assert_nowhere(WORDS, store, one, two)


async def test_reset_of_a_chat_that_two_outboxes_began_spares_what_came_since(
    store: ConversationStore, bots: Bots
) -> None:
    one, two = bots
    await greet(two)
    await drain(two)
    await speak(two, "shared", owner="42")  # pending: the store does not know it

    await erase(one, "42", "reset")
    await drain(one)
    await one.append("shared", Message.user("new words"), owner="42")
    await drain(one)
    await drain(two)

    assert [message.text for message in await store.messages("shared") if message.text] == ["new words"]
    await assert_nowhere(WORDS, store, one, two)


async def test_a_deletion_ends_the_chat_here_too(bots: Bots) -> None:
    one, two = bots
    await speak(two, "new", owner="42")
    await drain(two)
    await speak(two, "new")

    await erase(one, "42", "delete")
    await drain(one, two)

    with pytest.raises(ConversationGone):
        await two.append("new", Message.user("too late"))


async def test_an_idle_outbox_carries_out_and_acknowledges(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await speak(two, "shared")
    await drain(one, two)

    await erase(one, "42", "reset")
    await drain(one)
    await drain(two)

    assert await store.erasures.unacknowledged() == []
    await assert_nowhere(WORDS, store, one, two)


async def test_a_new_outbox_begins_at_the_present_number(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await drain(one)
    await erase(one, "42", "reset")
    await drain(one)

    await two.append("shared", Message.user("words of a new outbox"))
    await drain(two)

    assert "words of a new outbox" in await texts(store, "shared")


async def test_drafts_and_unconfirmed_replies_go(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await speak(two, "shared", owner="42")
    await drain(one, two)
    async with two.reply("chat", owner="42", every=0) as reply:
        await reply.add(f"{WORDS} half")
        await until(lambda: reply.kept > 0)
        assert occurs(WORDS, two.outbox.path)
        await erase(one, "42", "reset")
        await drain(one, two)
        await until(lambda: not occurs(WORDS, two.outbox.path))
    await assert_nowhere(WORDS, store, one)


@pytest.mark.parametrize("held", ["owner", "conversation"])
async def test_later_hold_spares_what_an_outbox_holds(store: ConversationStore, bots: Bots, held: str) -> None:
    one, two = bots
    await greet(two)
    await drain(two)
    await speak(two, "new", owner="42")

    await erase(one, "42", "reset")
    await store.erasures.hold(held, "42" if held == "owner" else "new", reason="a court asked")  # type: ignore[arg-type]
    await drain(one, two)

    assert await texts(store, "new") == [f"{WORDS} said", f"{WORDS} answered"]
    assert await store.erasures.unacknowledged() == []


@pytest.mark.parametrize("how", ["reset", "delete"])
async def test_erased_in_every_outbox(store: ConversationStore, bots: Bots, how: Literal["reset", "delete"]) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await speak(two, "shared")
    await speak(two, "other", owner="42", words="stays")
    await drain(one, two)
    await speak(two, "shared")

    await register(one, "conversation", "shared", how=how, reason="asked")
    await (one.chat("shared").delete if how == "delete" else one.chat("shared").reset)()
    await drain(one)
    await one.append("other", Message.user("later"))
    await drain(two, one)

    assert "stays said" in await texts(store, "other")
    assert await store.erasures.unacknowledged() == []
    await assert_nowhere(WORDS, store, one, two)
