"""Messages that left the path are put back, turns are undone, and receipts say what is saved and for which messages."""

from collections.abc import Awaitable, Callable

import pytest

from letopis.outbox import Chat, History
from letopis.store import (
    ConversationStore,
    EventIdReused,
    InvalidInput,
    Message,
    MessageAppended,
    ReactionAdded,
    Reuse,
    Saved,
)
from letopis.store.model.event_types import ConversationRewound
from letopis.store.read.paging import Window
from letopis.store.read.reader import ViewQuery
from letopis.store.rules.decoding import PUT_BACK_KEY
from letopis.store.rules.fold import fold
from tests.conformance.tables import on_sqlite
from tests.conformance.talk import deliver, lose_acknowledgements, path, prune_all
from tests.support.relays import sql
from tests.support.sayings import Bots, present

pytestmark = on_sqlite

CHAT = "chat-1"


TAKE_BACK: dict[str, Callable[[Chat], Awaitable[object]]] = {
    "pop": Chat.pop,
    "undo": Chat.undo,
    "clear": lambda chat: chat.rewind(to=None),
    "rewind": lambda chat: chat.rewind(to="first"),
}


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("how", TAKE_BACK)
async def test_the_same_content_is_put_back(bots: Bots, store: ConversationStore, how: str, *, delivered: bool) -> None:
    bot, reader = bots
    message = Message.user("the words", id="m", tokens=7)
    await bot.append(CHAT, Message.assistant("before", id="first"), message)
    assert (await bot.append(CHAT, message)).sequence == 3  # while it is read, to say it again does nothing
    if delivered:
        await deliver(bot)
    await TAKE_BACK[how](bot.chat(CHAT))
    if delivered:
        await deliver(bot)
    with pytest.raises(EventIdReused) as other:
        await bot.append(CHAT, Message.user("other words", id="m"))
    assert other.value.reason is Reuse.OTHER_CONTENT

    again = await bot.append(CHAT, message)
    await bot.append(CHAT, message)  # a retry of it has no effect
    await bot.append(CHAT, Message.user("after", id="after"))
    expected = ["m", "after"] if how == "clear" else ["first", "m", "after"]
    assert await path(bot) == expected

    await deliver(bot)
    assert (await again.saved(60), await again.superseded(5)) == (True, False)
    assert (await bot.messages(CHAT))[-2].text == "the words"
    assert await path(bot) == await path(reader) == expected
    found = present(await bot.chat(CHAT).conversation())
    assert (found.message_count, found.tokens) == (len(expected), 7)
    counted = await bot.statistics()
    assert (counted.messages, counted.tokens) == (3, 7)
    # Each put-back is an event of its own, and whoever folds the log sees the same.
    events = await store.events(CHAT)
    put_back = [one for one in events if PUT_BACK_KEY in one.metadata]
    assert [one.event_id for one in put_back] == list(again.event_ids)
    assert [one.id for one in fold(events).path] == expected
    assert [hit.message.id for hit in await bot.search("words", conversation=CHAT)] == ["m"]
    assert [one.on_path for one in await bot.messages(CHAT, every=True) if one.id == "m"] == [False, True]


async def test_a_lost_acknowledgement_puts_nothing_back_twice(bot: History, store: ConversationStore) -> None:
    message = Message.user("words", id="m")
    said = await bot.append(CHAT, Message.user("first", id="first"), Message.user("popped", id="p"), message)
    await bot.chat(CHAT).rewind(to="first")
    await bot.chat(CHAT).redact("first")
    again = await bot.append(CHAT, message)
    await deliver(bot)
    await lose_acknowledgements(bot)
    await deliver(bot)
    for receipt in (said, again):
        assert (await receipt.saved(60), await receipt.superseded(5)) == (True, False)
        assert await receipt.state() is Saved.SAVED
    assert [event.type for event in await store.events(CHAT)].count(MessageAppended.type) == 4
    assert await path(bot) == ["first", "m"]


async def test_a_pending_reset_lets_nothing_come_back(bot: History) -> None:
    await bot.append(CHAT, Message.user("secret", id="m"), Message.user("popped", id="p"))
    await bot.chat(CHAT).pop()
    await bot.chat(CHAT).reset()
    for message in (Message.user("secret", id="m"), Message.user("popped", id="p")):
        with pytest.raises(EventIdReused) as refused:
            await bot.append(CHAT, message)
        assert refused.value.reason is Reuse.ERASED
    with pytest.raises(EventIdReused):
        await bot.chat(CHAT).replace([Message.user("new", id="n"), Message.user("popped", id="p")])
    assert await path(bot) == []
    await bot.append(CHAT, Message.user("new", id="n"))
    await bot.chat(CHAT).rewind(to=None)
    await bot.append(CHAT, Message.user("new", id="n"))
    await deliver(bot)
    assert await path(bot) == ["n"]


async def test_a_put_back_in_the_append_that_takes_it_away(bot: History) -> None:
    old, new = Message.user("old", id="old"), Message.user("new", id="new")
    await bot.append(CHAT, old)
    await bot.append(CHAT, ConversationRewound(), old, new, ConversationRewound(), new, old)
    for _ in range(2):
        assert await path(bot) == ["new", "old"]
        await deliver(bot)


async def test_the_words_of_a_second_outbox_are_never_saved_and_nowhere(bots: Bots, store: ConversationStore) -> None:
    one, two = bots
    message = Message.user("the words", id="m")
    await one.append(CHAT, Message.user("before", id="first"), message)
    await deliver(one)
    twin = await two.append(CHAT, message)
    await deliver(two)
    assert await twin.saved(60)  # it is there, and read
    assert not await twin.superseded(5)
    await one.append("other", Message.user("x", id="x"), message)
    await one.chat("other").pop()
    await deliver(one)
    late = await two.append("other", message)
    after = await two.append("other", Message.user("and then", id="after"))
    await deliver(two)
    assert (await late.saved(5), await late.superseded(60)) == (False, True)
    assert await late.state() is Saved.SAVED
    assert await after.saved(60)  # the lane continues
    assert [found.id for found in await two.messages("other")] == ["x", "after"]
    assert [found.id for found in await two.messages("other", every=True)] == ["x", "m", "after"]
    assert [found.id for found in await store.messages("other")] == ["x", "after"]


async def test_a_redacted_id_from_a_second_outbox_waits_for_a_person(bots: Bots, store: ConversationStore) -> None:
    one, two = bots
    await one.append(CHAT, Message.user("secret", id="m"))
    await one.chat(CHAT).redact("m")
    await deliver(one)
    late = await two.append(CHAT, Message.user("secret", id="m"))
    await deliver(two)
    assert (await late.saved(5), await late.superseded(5)) == (False, False)
    assert await late.state() is Saved.BLOCKED
    [(state, fault)] = await sql(two.outbox, "SELECT state, fault FROM letopis_outbox_lanes")
    assert state == "blocked"
    assert "erased" in fault and "secret" not in fault
    assert [found.text for found in await store.messages(CHAT)] == [""]


async def test_an_id_that_the_outbox_has_pruned_is_seen_to_by_the_store(bot: History) -> None:
    message = Message.user("the words", id="m")
    await bot.append(CHAT, Message.user("before", id="first"), message)
    await bot.chat(CHAT).pop()
    await deliver(bot)
    await bot.outbox.write(prune_all)
    late = await bot.append(CHAT, message)
    await deliver(bot)
    assert (await late.saved(5), await late.superseded(60)) == (False, True)
    await bot.chat(CHAT).redact("first")
    await deliver(bot)
    await bot.outbox.write(prune_all)
    erased = await bot.append(CHAT, Message.user("before", id="first"))
    await deliver(bot)
    assert (await erased.saved(5), await erased.state()) == (False, Saved.BLOCKED)


async def test_sent_and_failed_of_an_unknown_message_are_refused(bot: History) -> None:
    await bot.append(CHAT, Message.user("first", id="first"))
    for call in (bot.chat(CHAT).sent("nowhere"), bot.chat(CHAT).failed("nowhere")):
        with pytest.raises(InvalidInput, match="no message of this conversation"):
            await call
    await bot.chat(CHAT).sent("first")


# --- Turns, receipts, and many redactions at once ---


async def talk(history: History, roles: str) -> None:
    made = {"s": Message.system, "u": Message.user, "a": Message.assistant, "t": Message.tool}
    await history.append(CHAT, *(made[role](f"{role}{place}", id=f"{role}{place}") for place, role in enumerate(roles)))


async def shown(history: History) -> str:
    return " ".join(one.id for one in await history.messages(CHAT))


@pytest.mark.parametrize("delivered", [False, True])
async def test_consecutive_user_messages_are_one_turn(bot: History, *, delivered: bool) -> None:
    await talk(bot, "suuauuuau")
    if delivered:
        await deliver(bot)
    # A window that ends inside a question does not begin in the middle of it, if a later turn fits.
    for options, expected in (
        ({"turns": 1}, "s0 u8"),
        ({"turns": 2}, "s0 u4 u5 u6 a7 u8"),
        ({"last": 4, "keep_system": False}, "u8"),
    ):
        assert " ".join(one.id for one in (await bot.context(CHAT, **options)).messages) == expected
    assert (await bot.context(CHAT, turns=3)).complete
    await bot.chat(CHAT).undo()
    assert await shown(bot) == "s0 u1 u2 a3 u4 u5 u6 a7"
    assert [one.id for one in await bot.chat(CHAT).regenerate()] == ["u4", "u5", "u6"]
    await bot.chat(CHAT).undo()
    assert await shown(bot) == "s0 u1 u2 a3"
    await bot.chat(CHAT).undo(7)
    assert await shown(bot) == "s0"
    assert await bot.chat(CHAT).undo() is None


async def test_a_long_question_is_read_to_its_beginning(bot: History) -> None:
    await talk(bot, "ua" + "u" * 150 + "a")
    await bot.chat(CHAT).undo()
    assert await shown(bot) == "u0 a1"
    await bot.append(CHAT, *(Message.user("more") for _ in range(150)))
    assert len((await bot.context(CHAT, turns=1)).messages) == 150


async def test_receipts_name_all_messages(bot: History) -> None:
    receipt = await bot.append(
        CHAT, Message.user("1", id="1"), ReactionAdded(message_id="1", key="like"), Message.assistant("2", id="2")
    )
    assert (receipt.message_ids, receipt.message_id) == (("1", "2"), "2")
    again = await bot.append(CHAT, Message.user("1", id="1"))
    assert again.message_ids == ("1",)
    renamed = await bot.chat(CHAT).rename("title")
    assert (renamed.message_ids, renamed.message_id) == ((), None)
    made = Message.user("x")
    assert (await bot.append(CHAT, made)).message_ids == (made.id,)


async def test_without_a_wait_a_receipt_tells_what_is_known(bot: History) -> None:
    receipt = await bot.append(CHAT, Message.user("hello", id="m"))
    assert (await receipt.saved(0), await receipt.superseded(0)) == (False, False)
    await deliver(bot)
    assert (await receipt.saved(0), await receipt.superseded(0)) == (True, False)
    await bot.chat(CHAT).rewind(to=None)
    await deliver(bot)
    await bot.outbox.write(prune_all)
    again = await bot.append(CHAT, Message.user("hello", id="m"))
    assert not await again.superseded(0)
    await deliver(bot)
    assert (await again.saved(0), await again.superseded(0)) == (False, True)


@pytest.mark.parametrize("delivered", [False, True])
async def test_many_messages_are_redacted_at_once(bot: History, store: ConversationStore, *, delivered: bool) -> None:
    await talk(bot, "uauaua")
    if delivered:
        await deliver(bot)
    before = await bot.chat(CHAT).events()
    with pytest.raises(InvalidInput):
        await bot.chat(CHAT).redact("u0", ["a1"])  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="'nowhere'"):
        await bot.chat(CHAT).redact("u0", "nowhere", "a1")
    assert [one.text for one in await bot.messages(CHAT)] == ["u0", "a1", "u2", "a3", "u4", "a5"]
    assert len(await bot.chat(CHAT).events()) == len(before)
    receipt = await bot.chat(CHAT).redact("u0", "a3", "u0", "a5", by="42")
    assert len(receipt.event_ids) == 3
    expected = [("u0", ""), ("a1", "a1"), ("u2", "u2"), ("a3", ""), ("u4", "u4"), ("a5", "")]
    assert [(one.id, one.text) for one in await bot.messages(CHAT)] == expected
    await deliver(bot)
    assert await receipt.saved(60)
    assert [(one.id, one.text) for one in await store.messages(CHAT)] == expected


async def test_pop_reads_two_messages_and_counts_nothing(bot: History, store: ConversationStore) -> None:
    await talk(bot, "ua" * 20)
    await deliver(bot)
    for place in range(39, 30, -1):
        assert present(await bot.chat(CHAT).pop()).id == f"{'ua'[place % 2]}{place}"
    assert len(await bot.messages(CHAT)) == present(await bot.chat(CHAT).conversation()).message_count == 31
    # The positions that pending rewinds ask for cost a look-up each: counting would read the whole conversation.
    query = ViewQuery(
        conversation_id=CHAT, origin_id=bot.outbox.origin.origin_id, window=Window(last=2), names=("u30",)
    )
    view = await store.outbox_access.view(query)
    assert (view.places["u30"].version, view.places["u30"].count) == (32, 0)
