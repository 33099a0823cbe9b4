"""A store that was restored from before an erasure is told so, by who knows it, and never skips another one."""

from typing import Any

import pytest

from letopis import ConversationStore, Held, History, Message
from letopis.ops.new_origin import assign_new_origin
from letopis.outbox.history.erasing import repeat_erasures
from tests.conformance.tables import on_sqlite
from tests.support.sayings import Bots, back_up, drain, dump, present, restore

WORDS = "gheldrimmer"


async def missing(history: History) -> list[tuple[int, str]]:
    status = await history.status()
    assert {case.kind for case in status.incidents} == ({"erasures_missing"} if status.missing_erasures else set())
    return [(erasure["number"], erasure["subject"]) for erasure in status.missing_erasures]


async def say(history: History, *chats: str, owner: str = "42", words: str = WORDS) -> None:
    for chat in chats:
        await history.append(chat, Message.user(f"{words} said"), owner=owner)
    await drain(history)


async def erase(history: History, owner: str, how: Any = "reset") -> None:
    await history.erase(owner=owner, how=how, reason="asked")
    await drain(history)


async def shown(store: ConversationStore, chat: str) -> list[str]:
    return [message.text for message in await store.messages(chat)]


async def test_a_restored_store_is_told_what_it_has_forgotten(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await say(one, "chat")
    await say(two, "other", owner="43", words="stays")
    backup = await back_up(store)
    await erase(one, "42")
    await drain(two)
    assert (await missing(one), await missing(two)) == ([], [])
    await restore(store, backup)
    await say(one, "chat", words="new")
    await drain(two)
    assert (await missing(one), await missing(two)) == ([(1, "42")], [(1, "42")])
    status = await one.status()
    assert not status.healthy and "restored from before erasure 1" in status.verdict
    assert "new said" in await shown(store, "chat")


@pytest.mark.parametrize("how", ["reset", "delete"])
async def test_what_was_forgotten_is_repeated_and_spares_what_was_said_since(
    store: ConversationStore, bots: Bots, how: Any
) -> None:
    one, two = bots
    await say(one, "one", owner="45", words="stays")
    await say(two, "chat", "group")
    await two.append("shared", Message.user(f"{WORDS} in a group", author="42"), owner="43")
    await say(two, "held", owner="44", words="held")
    await drain(one, two)
    backup = await back_up(store)
    await erase(one, "44", how)
    await one.erase(person="42", how=how, reason="asked")
    await one.records(owner="42").put(("notes",), "key", "new")
    await drain(one, two)
    await restore(store, backup)
    await store.erasures.hold("owner", "44", reason="a court asked")
    await one.close()
    await assign_new_origin(one.outbox.path)  # what it delivered is not sent again
    async with History(one.outbox.path, store=store, relay=False, watch=False) as again:
        await say(two, "later", words="new")
        if how == "reset":
            await say(two, "chat", words="new")
        await two.append("shared", Message.user("new in a group", author="42"))
        await two.records(owner="42").put(("notes",), "key", "new")
        await drain(again, two)
        assert await missing(again) == await missing(two) == [(1, "44"), (2, "42")]
        assert WORDS in await dump(store)  # nothing is repeated by itself
        held: list[Held] = []
        assert [erasure.subject for erasure in await repeat_erasures(again, held=held.append)] == ["42"]
        assert [error.subject for error in held] == ["44"]
        await drain(again, two)
        assert await missing(again) == await missing(two) == [(1, "44")]
    assert WORDS not in await dump(store)
    assert await shown(store, "held") == ["held said"]
    assert await shown(store, "later") == ["new said"]
    assert await shown(store, "chat") == (["new said"] if how == "reset" else [])
    assert await shown(store, "shared") == ["", "new in a group"]
    assert present(await two.records(owner="42").get(("notes",), "key")).value == "new"
    assert [erasure.number for erasure in await store.erasures.after(0)] == [3]


async def test_a_number_that_is_given_out_again_is_carried_out(store: ConversationStore, bots: Bots) -> None:
    """The outbox that asks has not heard of the erasure that the store forgot, so it cannot spare its number."""
    one, two = bots
    await say(one, "chat")
    await say(two, "other", owner="43", words="stays")
    backup = await back_up(store)
    await erase(one, "42")
    await restore(store, backup)
    await one.append("mine", Message.user(f"{WORDS} pending"), owner="43")
    await erase(two, "43")
    assert [erasure.number for erasure in await store.erasures.after(0)] == [1]
    await drain(one)
    assert await missing(one) == [(1, "42")]
    assert f"{WORDS} pending" not in await dump(store)


@on_sqlite
async def test_an_outbox_does_not_carry_out_again_what_it_knows_or_was_recorded_before_it(
    store: ConversationStore, bots: Bots
) -> None:
    one, two = bots
    await say(one, "chat")
    await erase(one, "42")
    backup = await back_up(store)
    await say(two, "fresh", words="new")  # it begins after the first erasure
    await erase(one, "43")
    await drain(two)
    await say(two, "fresh", words="newer")
    await restore(store, backup)
    await drain(one, two)
    assert await missing(two) == [(2, "43")]
    assert [message.text for message in await two.messages("fresh")] == ["new said", "newer said"]
