"""All words of an owner, through every outbox: also through one that was offline when they were erased."""

from __future__ import annotations

from typing import Literal

import pytest

from letopis.outbox import History
from letopis.outbox.history.erasing import erase_owner, register
from letopis.store import ConversationGone, ConversationStore, Message
from tests.support.erased import assert_nowhere, deliver, dump, occurs
from tests.support.relays import until

WORDS = "gheldrimmer"


async def texts(store: ConversationStore, chat: str) -> list[str]:
    return [message.text for message in await store.messages(chat, every=True)]


async def speak(history: History, chat: str, *, owner: str | None = None, words: str = WORDS) -> None:
    await history.append(chat, Message.user(f"{words} said"), owner=owner, metadata={"about": words})
    await history.append(chat, Message.assistant(f"{words} answered"))
    await history.chat(chat).annotate({"note": words})
    await history.records(conversation=chat).put(("notes",), "key", {"value": words}, tags={"tag": words})


@pytest.mark.parametrize("how", ["reset", "delete"])
async def test_what_an_offline_outbox_held_pending_never_becomes_readable(
    store: ConversationStore, bots: tuple[History, History], how: str
) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await deliver(one)
    await speak(two, "shared")  # it was never told whose the conversation is
    await deliver(two)
    await speak(two, "shared")
    await speak(two, "new", owner="42")
    await two.records(owner="42").put(("profile",), "name", WORDS)
    await speak(two, "other", owner="43", words="stays")

    await erase(one, "42", how)
    await deliver(one)
    assert [behind.name for behind in await store.erasures.unacknowledged()] == ["two.outbox.db"]
    await deliver(two)

    assert await store.erasures.unacknowledged() == []
    await assert_nowhere(WORDS, store, one, two)
    assert "stays said" in await texts(store, "other")
    for chat in ("shared", "new"):
        conversation = await store.conversation(chat)
        assert conversation is not None
        assert conversation.state == ("deleted" if how == "delete" else "active")
    new = await store.conversation("new")
    assert new is not None and new.message_count == 0


async def greet(history: History) -> None:
    """Have an outbox known to the store: a new one begins at the present number."""
    await history.append("hello", Message.user("hello"), owner="41")


async def erase(history: History, owner: str, how: str) -> None:
    await erase_owner(history, owner, how=how, reason="asked")  # type: ignore[arg-type]


async def test_more_events_than_one_step_takes(
    store: ConversationStore, bots: tuple[History, History], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.outbox.event_log.erasures.MAX_ERASED_PER_TRANSACTION", 2)
    one, two = bots
    await two.append("shared", Message.user("hello"), owner="42")
    await deliver(two)
    for number in range(2):
        await speak(two, "shared")
        await two.records(owner="42").put(("profile",), f"{number}", "value", tags={"tag": WORDS})

    await erase(one, "42", "reset")
    await deliver(one, two)

    await assert_nowhere(WORDS, store, one, two)


async def test_new_words_after_the_erasure_survive(store: ConversationStore, bots: tuple[History, History]) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await greet(two)
    await deliver(one, two)
    await speak(two, "shared")
    await speak(two, "new", owner="42")

    await erase(one, "42", "reset")
    await deliver(one)
    await one.append("shared", Message.user("new words through one"))
    await deliver(one)
    await deliver(two)
    await two.append("shared", Message.user("new words through two"))
    await two.append("new", Message.user("new words in the other chat"))
    await deliver(two)

    shown = [message.text for message in await one.messages("shared")]
    assert [text for text in shown if text] == ["new words through one", "new words through two"]
    assert [message.text for message in await store.messages("new")] == ["new words in the other chat"]
    await assert_nowhere(WORDS, store, one, two)


async def test_a_reset_of_a_chat_that_two_outboxes_began_spares_what_was_said_since(
    store: ConversationStore, bots: tuple[History, History]
) -> None:
    one, two = bots
    await greet(two)
    await deliver(two)
    await speak(two, "shared", owner="42")  # pending: the store does not know it

    await erase(one, "42", "reset")
    await deliver(one)
    await one.append("shared", Message.user("new words"), owner="42")
    await deliver(one)
    await deliver(two)

    assert [message.text for message in await store.messages("shared") if message.text] == ["new words"]
    await assert_nowhere(WORDS, store, one, two)


async def test_a_deletion_ends_the_chat_here_too(store: ConversationStore, bots: tuple[History, History]) -> None:
    one, two = bots
    await speak(two, "new", owner="42")
    await deliver(two)
    await speak(two, "new")

    await erase(one, "42", "delete")
    await deliver(one, two)

    with pytest.raises(ConversationGone):
        await two.append("new", Message.user("too late"))


async def test_an_idle_outbox_carries_out_and_acknowledges(
    store: ConversationStore, bots: tuple[History, History]
) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await speak(two, "shared")
    await deliver(one, two)

    await erase(one, "42", "reset")
    await deliver(one)
    await deliver(two)

    assert await store.erasures.unacknowledged() == []
    await assert_nowhere(WORDS, store, one, two)


async def test_a_new_outbox_begins_at_the_present_number(
    store: ConversationStore, bots: tuple[History, History]
) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await deliver(one)
    await erase(one, "42", "reset")
    await deliver(one)

    await two.append("shared", Message.user("words of a new outbox"))
    await deliver(two)

    assert "words of a new outbox" in await texts(store, "shared")


async def test_drafts_and_unconfirmed_replies_go(store: ConversationStore, bots: tuple[History, History]) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await speak(two, "shared", owner="42")
    await deliver(one, two)
    async with two.reply("chat", owner="42", every=0) as reply:
        await reply.add(f"{WORDS} half")
        await until(lambda: reply.kept > 0)
        assert occurs(WORDS, two.outbox.path)
        await erase(one, "42", "reset")
        await deliver(one, two)
        await until(lambda: not occurs(WORDS, two.outbox.path))
    await assert_nowhere(WORDS, store, one)


@pytest.mark.parametrize("held", ["owner", "conversation"])
async def test_a_hold_that_came_later_spares_what_an_outbox_holds(
    store: ConversationStore, bots: tuple[History, History], held: str
) -> None:
    one, two = bots
    await greet(two)
    await deliver(two)
    await speak(two, "new", owner="42")

    await erase(one, "42", "reset")
    await store.erasures.hold(held, "42" if held == "owner" else "new", reason="a court asked")  # type: ignore[arg-type]
    await deliver(one, two)

    assert await texts(store, "new") == [f"{WORDS} said", f"{WORDS} answered"]
    assert await store.erasures.unacknowledged() == []


@pytest.mark.parametrize("how", ["reset", "delete"])
async def test_a_conversation_is_erased_in_every_outbox(
    store: ConversationStore, bots: tuple[History, History], how: Literal["reset", "delete"]
) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await speak(two, "shared")
    await speak(two, "other", owner="42", words="stays")
    await deliver(one, two)
    await speak(two, "shared")

    await register(one.outbox, one.store, "conversation", "shared", how=how, reason="asked")
    await (one.chat("shared").delete if how == "delete" else one.chat("shared").reset)()
    await deliver(one)
    await one.append("other", Message.user("later"))
    await deliver(two, one)

    assert "stays said" in await texts(store, "other")
    assert await store.erasures.unacknowledged() == []
    await assert_nowhere(WORDS, store, one, two)


async def pending_in_two(one: History, two: History) -> None:
    """Have one conversation in both outboxes, and sixty words pending in the second, which is offline from then on."""
    await speak(one, "shared", owner="42")
    await speak(two, "shared")
    await deliver(one, two)
    await two.append("shared", *(Message.user(f"{WORDS} {number}") for number in range(60)))


@pytest.mark.parametrize("everywhere", [True, False], ids=["everywhere", "here"])
async def test_a_reset_everywhere_reaches_what_an_offline_outbox_held_pending(
    store: ConversationStore, bots: tuple[History, History], everywhere: bool
) -> None:
    one, two = bots
    await pending_in_two(one, two)

    await one.chat("shared").reset(reason="asked", everywhere=everywhere)
    await deliver(one)
    assert WORDS not in await dump(store)
    await deliver(two)

    if everywhere:
        assert [(erasure.kind, erasure.how) for erasure in await store.erasures.after(0)] == [("conversation", "reset")]
        assert await store.erasures.unacknowledged() == []
        await assert_nowhere(WORDS, store, one, two)
    else:
        assert len([text for text in await texts(store, "shared") if WORDS in text]) == 60
        assert await store.erasures.after(0) == []


async def test_a_reset_everywhere_spares_what_its_outbox_appends_after_it(
    store: ConversationStore, bots: tuple[History, History]
) -> None:
    one, two = bots
    await pending_in_two(one, two)
    await one.append("shared", Message.user(f"{WORDS} pending here"))

    await one.chat("shared").reset(everywhere=True)
    await one.append("shared", Message.user("new words"))
    await one.records(conversation="shared").put(("notes",), "key", "a new note")
    async with one.reply("shared", every=0) as reply:
        await reply.add("a new reply")
        await until(lambda: reply.kept > 0)
        await deliver(one)
        assert occurs("a new reply", one.outbox.path)
    await deliver(one, two)

    assert [text for text in await texts(store, "shared") if text] == ["new words", "a new reply"]
    record = await one.records(conversation="shared").get(("notes",), "key")
    assert record is not None and record.value == "a new note"
    await assert_nowhere(WORDS, store, one, two)


async def test_a_reset_everywhere_that_was_cut_off_erases_nothing_less_when_repeated(
    store: ConversationStore, bots: tuple[History, History]
) -> None:
    one, two = bots
    await pending_in_two(one, two)
    await one.chat("shared").reset()
    await deliver(one)
    await one.append("shared", Message.user(f"{WORDS} pending here"))
    await register(one.outbox, one.store, "conversation", "shared", how="reset", reason=None)  # and is killed
    await deliver(one, two)
    assert WORDS not in await dump(store)

    await one.append("shared", Message.user(f"{WORDS} again"))
    await one.chat("shared").reset(everywhere=True)
    await deliver(one, two)

    await assert_nowhere(WORDS, store, one, two)


async def test_a_deletion_lets_nothing_that_another_outbox_held_arrive_readable(
    store: ConversationStore, bots: tuple[History, History]
) -> None:
    one, two = bots
    await pending_in_two(one, two)
    await speak(two, "shared")
    await two.append("shared", Message.user(WORDS * 40_000, id="large"))
    await two.chat("shared").edit("large", f"{WORDS} edited")
    await two.chat("shared").rename(WORDS)
    await two.chat("shared").fork("fork", owner="42")

    await one.chat("shared").delete(reason="asked")
    await deliver(one)
    await deliver(two)

    assert WORDS not in await dump(store)
    assert await two.records(conversation="shared").get(("notes",), "key") is None
