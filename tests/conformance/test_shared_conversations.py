"""What two outboxes that share conversations read and are told, over every store."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from letopis.outbox import History
from letopis.store import (
    ConversationGone,
    ConversationStore,
    IdReused,
    Message,
    MessageEdited,
    StoreUnavailable,
)
from tests.conformance.tables import on_sqlite
from tests.conformance.talk import count, deliver, lose_acknowledgements, path
from tests.support.outboxes import open_apart
from tests.support.relays import sql
from tests.support.sayings import Bots, all_pages, present

pytestmark = on_sqlite

CHAT = "chat-1"
NOWHERE = "postgresql://127.0.0.1:1/none"
QUESTION, ANSWER = Message.user("what?", id="q"), Message.assistant("the words", id="m", tokens=7)

REMOVALS: dict[str, Callable[[History], Awaitable[object]]] = {
    "pop": lambda bot: bot.chat(CHAT).pop(),
    "undo": lambda bot: bot.chat(CHAT).undo(),
    "clear": lambda bot: bot.chat(CHAT).rewind(to=None),
    "replace": lambda bot: bot.chat(CHAT).replace([QUESTION]),
}
ERASURES: dict[str, Callable[[History], Awaitable[object]]] = {
    "redact": lambda bot: bot.chat(CHAT).redact("m"),
    "reset": lambda bot: bot.chat(CHAT).reset(),
    "delete": lambda bot: bot.chat(CHAT).delete(),
}


@pytest.mark.parametrize("how", REMOVALS)
async def test_what_another_outbox_took_off_the_path_stays_off(bots: Bots, store: ConversationStore, how: str) -> None:
    one, two = bots
    first = await two.append(CHAT, QUESTION, ANSWER)
    await deliver(two)
    await REMOVALS[how](one)
    await deliver(one)
    events = len(await store.events(CHAT))

    again = await two.append(CHAT, ANSWER)
    assert again.event_ids == first.event_ids[1:]
    await deliver(two)
    assert (await again.saved(60), await again.superseded(60), await first.superseded(60)) == (True, True, True)
    expected = [] if how in ("undo", "clear") else ["q"]
    assert (await path(one), await path(two)) == (expected, expected)
    assert len(await store.events(CHAT)) == events


async def test_a_message_that_is_shown_is_not_written_again(bots: Bots, store: ConversationStore) -> None:
    one, two = bots
    await two.append(CHAT, QUESTION, ANSWER)
    await deliver(two)
    events = len(await store.events(CHAT))
    async with two.transaction() as transaction:
        late = await transaction.append(CHAT, ANSWER)
    for _ in range(2):
        again = await two.append(CHAT, ANSWER)
        await deliver(two)
        for receipt in (late, again):
            assert (await receipt.saved(60), await receipt.superseded(5)) == (True, False)
        assert (await path(one), len(await store.events(CHAT))) == (["q", "m"], events)
        await lose_acknowledgements(two)


@pytest.mark.parametrize("how", ERASURES)
async def test_an_erasure_through_another_outbox_is_told_by_an_edit_and_obeyed(
    one: History, two: History, how: str
) -> None:
    first = await two.append(CHAT, QUESTION, ANSWER)
    await deliver(two)
    await ERASURES[how](one)
    await deliver(one)
    assert await two.append(CHAT, QUESTION, ANSWER) == first  # which the store is not asked about
    assert await first.superseded(60) is (how != "redact")
    late = await two.append(CHAT, MessageEdited(message_id="m", content="the words, edited"))
    await deliver(two)
    assert (await late.saved(5), await late.superseded(60)) == (False, True)
    assert await path(one) == await path(two) == (["q", "m"] if how == "redact" else [])
    assert "the words" not in repr(await sql(two.outbox, _TEXTS))
    for again in (two.append(CHAT, ANSWER), two.append(CHAT, Message.assistant("other words", id="m"))):
        with pytest.raises(ConversationGone if how == "delete" else IdReused):
            await again


_TEXTS = "SELECT data, metadata FROM letopis_outbox_events"


async def test_a_deletion_through_another_outbox_is_obeyed_while_the_store_is_away(bots: Bots, tmp_path: Path) -> None:
    one, two = bots
    await two.append(CHAT, QUESTION, ANSWER, owner="42")
    await two.records(conversation=CHAT).put(("notes",), "a", "the words of a record")
    await two.append("other", QUESTION, owner="42")
    await deliver(two)
    await one.chat(CHAT).delete()
    await deliver(one)
    await two.append(CHAT, Message.user("anybody?"))
    await deliver(two, two)

    async with open_apart(tmp_path / "two.outbox.db", store=NOWHERE, relay=False, watch=False) as cut_off:
        page = await cut_off.messages(CHAT)
        assert (page.items, page.complete) == ((), False)
        assert (await cut_off.messages(CHAT, every=True)).items == ()
        found = present(await cut_off.chat(CHAT).conversation())
        assert (found.state, found.message_count) == ("deleted", 0)
        assert [one.conversation_id for one in await cut_off.conversations(owner="42")] == ["other"]
        with pytest.raises(StoreUnavailable):
            await cut_off.records(conversation=CHAT).get(("notes",), "a")
        with pytest.raises(ConversationGone):
            await cut_off.append(CHAT, QUESTION)
    assert "the words" not in repr(await sql(two.outbox, _TEXTS))
    assert await count(two, "letopis_outbox_record_bodies") == 0


@pytest.mark.parametrize("newest", ["two", "one"])
@pytest.mark.parametrize("oldest_first", [False, True])
async def test_a_conversation_is_on_one_page_of_its_owners_list_while_it_is_delivered(
    bots: Bots, newest: str, *, oldest_first: bool
) -> None:
    """The second outbox does not know the owner; what moves it in the list is pending there, or comes from the first.

    Before, its place was that of the history store until the delivery, and then before all pages that were read.
    """
    one, two = bots
    now = datetime.now(UTC)
    for number in range(7):
        await one.append(f"c{number}", Message.user("q"), owner="42", occurred_at=now + timedelta(seconds=number))
    await deliver(one)
    moved, older = now + timedelta(seconds=60), now - timedelta(seconds=60)
    await two.append("c0", Message.user("more"), occurred_at=moved if newest == "two" else older)
    if newest == "one":
        await one.append("c0", Message.user("and more"), occurred_at=moved)
        await deliver(one)

    found: list[str] = []
    after = None
    while True:
        page = await two.conversations(owner="42", after=after, limit=2, oldest_first=oldest_first)
        found += [conversation.conversation_id for conversation in page]
        assert page.complete
        if (after := page.next) is None:
            break
        await deliver(two)

    expected = ["c0", "c6", "c5", "c4", "c3", "c2", "c1"]
    assert found == (expected[::-1] if oldest_first else expected)


@pytest.mark.parametrize("delivered", ["at once", "in between", "late"])
async def test_the_active_conversation_does_not_depend_on_when_the_relay_delivers(bots: Bots, delivered: str) -> None:
    one, _ = bots
    active: list[str | None] = []

    async def step(what: Awaitable[object]) -> None:
        await what
        if delivered == "at once" or (delivered == "in between" and len(active) % 3 == 1):
            await deliver(one)
        found = await one.active("42", create=False)
        active.append(None if found is None else found.conversation_id)

    for name in ("a", "b", "c", "d"):
        await one.start("42", conversation_id=name, activate=name == "d")
    await deliver(one)
    await step(one.append("b", Message.user("newest")))
    await step(one.chat("d").archive())  # b had the newest activity then
    await step(one.append("a", Message.user("too late")))
    await step(one.append("c", Message.user("the newest now")))
    await step(one.chat("b").delete())
    await step(one.append("a", Message.user("too late again")))
    await step(one.chat("c").archive())
    assert active == ["d", "b", "b", "b", "c", "c", "a"]
    await deliver(one)
    for reader in bots:
        assert present(await reader.active("42", create=False)).conversation_id == "a"


@pytest.mark.parametrize("how", ERASURES)
@pytest.mark.parametrize("delivered", [False, True])
async def test_what_a_pending_event_erases_is_in_no_group(
    one: History, two: History, tmp_path: Path, how: str, *, delivered: bool
) -> None:
    await two.append(CHAT, Message.user("what?", id="other", metadata={"model": "y"}), owner="42")
    await deliver(two)
    await one.append(CHAT, Message.assistant("the words", id="m", tokens=7, metadata={"model": "x"}), owner="42")
    if delivered:
        await deliver(one)
    await ERASURES[how](one)
    if how == "reset":
        await one.append(CHAT, Message.user("anew", metadata={"model": "z"}))
    before = await one.statistics(by="model")
    async with open_apart(tmp_path / "one.outbox.db", store=NOWHERE, relay=False, watch=False) as cut_off:
        alone = await cut_off.statistics(by="model")
    await deliver(one)
    assert before == await one.statistics(by="model") == await one.statistics(by="model", owner="42")
    groups = {"redact": {None, "y"}, "reset": {None, "z"}, "delete": {None}}[how]
    assert (set(before.by), set(alone.by)) == (groups, groups - {"y"})
    assert before.by[None].tokens == 7


async def test_a_message_that_another_outbox_delivered_is_shown_once_while_it_is_pending(bots: Bots) -> None:
    one, two = bots
    messages = [Message.user(f"words {number}", id=f"m{number}", tokens=3) for number in range(4)]
    await one.append(CHAT, *messages, owner="42")
    await deliver(one)
    late = await two.append(CHAT, messages[0], owner="42")

    for _ in range(2):
        assert [message.id for message in await two.messages(CHAT, last=2)] == ["m2", "m3"]
        pages = await all_pages(partial(two.messages, CHAT, last=2), by="before")
        assert [message.id for message in pages] == ["m0", "m1", "m2", "m3"]
        forward = await two.messages(CHAT, first=4)
        assert (list(forward), forward.next) == (pages, None)
        found = present(await two.chat(CHAT).conversation())
        assert (found.message_count, found.tokens, await two.chat(CHAT).count()) == (4, 12, 4)
        statistics = await two.statistics(owner="42")
        assert (statistics.messages, statistics.tokens, statistics.conversations) == (4, 12, 1)
        assert [hit.message.id for hit in await two.search("words", owner="42")].count("m0") == 1
        await deliver(two)
    assert await late.saved(60)


async def test_a_message_under_a_made_id_is_shown_once_while_it_is_pending(bots: Bots) -> None:
    one, two = bots
    message = Message.user("the same object")
    await one.append(CHAT, message)
    await deliver(one)
    await two.append(CHAT, message)
    for _ in range(2):
        assert await path(two) == [message.id]
        await deliver(two)


async def test_a_rewind_to_a_message_that_is_pending_and_stored_keeps_what_is_before_it(bots: Bots) -> None:
    one, two = bots
    messages = [Message.user(f"{number}", id=f"m{number}") for number in range(5)]
    await one.append(CHAT, *messages)
    await deliver(one)
    await two.append(CHAT, messages[1])
    await two.chat(CHAT).rewind(to="m1")
    for _ in range(2):
        assert [message.id for message in await two.messages(CHAT, last=2)] == ["m0", "m1"]
        assert await two.chat(CHAT).count() == 2
        await deliver(two)


async def test_message_of_a_conversation_deleted_elsewhere_counts_as_when_delivered(bots: Bots) -> None:
    one, two = bots
    await one.append(CHAT, QUESTION, owner="42")
    await one.chat(CHAT).delete()
    await deliver(one)
    await two.append(CHAT, ANSWER, owner="42")
    before = await two.statistics(owner="42")
    await deliver(two)
    assert (before.messages, before.tokens) == (1, 7)
    assert before == await two.statistics(owner="42")


@pytest.mark.parametrize("how", ERASURES)
async def test_what_forks_retain_of_an_erased_message_is_in_no_group(one: History, how: str) -> None:
    await one.append(CHAT, Message.assistant("the words", id="m", tokens=7, metadata={"model": "x"}), owner="42")
    await one.chat(CHAT).fork("fork")
    await deliver(one)
    await ERASURES[how](one)
    for _ in range(2):
        assert list((await one.statistics(by="model", owner="42")).by) == [None]
        await deliver(one)


async def test_redaction_off_the_path_takes_the_reactions(one: History, store: ConversationStore) -> None:
    await one.append(CHAT, QUESTION, ANSWER)
    await one.chat(CHAT).rewind(to="q")
    await one.chat(CHAT).react("m", "like")
    await deliver(one)
    await one.chat(CHAT).redact("m")
    assert [len(message.reactions) for message in await one.messages(CHAT, every=True)] == [0, 0]
    await deliver(one)
    assert [len(message.reactions) for message in await store.messages(CHAT, every=True)] == [0, 0]
