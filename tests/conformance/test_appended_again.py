"""A message appended again is the same event; turns are undone; receipts say what is saved, and which messages."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from letopis.outbox import Chat, History
from letopis.store import (
    ConversationStore,
    IdReused,
    InvalidInput,
    Message,
    MessageAppended,
    ReactionAdded,
    Reuse,
    Saved,
)
from letopis.store.model.event_types import ConversationRewound
from letopis.store.ops.rebuild import rebuild
from letopis.store.read.paging import Window
from letopis.store.read.reader import ViewQuery
from letopis.store.rules.fold import fold
from tests.conformance.tables import on_sqlite
from tests.conformance.talk import deliver, path, prune_all
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
async def test_a_message_that_left_the_path_is_the_same_event_still(
    bots: Bots, store: ConversationStore, how: str, *, delivered: bool
) -> None:
    bot, reader = bots
    message = Message.user("the words", id="m", tokens=7)
    await bot.append(CHAT, Message.assistant("before", id="first"))
    first = await bot.append(CHAT, message)
    assert await bot.append(CHAT, message) == first and not await first.superseded(0)
    if delivered:
        await deliver(bot)
    await TAKE_BACK[how](bot.chat(CHAT))
    if delivered:
        await deliver(bot)
    with pytest.raises(IdReused) as other:
        await bot.append(CHAT, Message.user("other words", id="m"))
    assert other.value.reuse is Reuse.OTHER_CONTENT

    again = await bot.append(CHAT, message)
    async with bot.transaction() as transaction:
        assert (await transaction.append(CHAT, message)).event_ids == first.event_ids
    expected = [] if how == "clear" else ["first"]
    assert (again, await path(bot)) == (first, expected)
    assert await again.superseded(0)  # as this outbox knows before the delivery
    copy = await bot.append(CHAT, replace(message, id=""))
    expected.append(present(copy.message_id))
    assert await path(bot) == expected and not await copy.superseded(0)

    await deliver(bot)
    assert (await again.saved(60), await again.superseded(5)) == (True, True)
    assert (await copy.saved(60), await copy.superseded(5)) == (True, False)
    assert await path(bot) == await path(reader) == expected
    events = await store.events(CHAT)
    assert [event.type for event in events].count(MessageAppended.type) == 3
    assert [one.id for one in fold(events).path] == expected
    assert [found.differences async for found in rebuild(store, check=True)] == [()]


async def test_a_message_that_another_program_edited_is_the_same_event_still(bot: History) -> None:
    first = await bot.append(CHAT, Message.user("words", id="m"), Message.assistant("answer"))
    await bot.chat(CHAT).edit("m", "edited")
    await bot.chat(CHAT).pop()
    read = (await bot.messages(CHAT))[0].message
    assert (await bot.append(CHAT, Message.user("words", id="m"))).event_ids == first.event_ids[:1]
    with pytest.raises(IdReused):
        await bot.append(CHAT, read)
    # A message that was read is known by the id that Letopis made for it.
    made = present(await bot.append("other", Message.user("made")))
    popped = present(await bot.chat("other").pop())
    assert await bot.append("other", popped.message) == made


async def test_a_reset_refuses_what_it_has_erased(bot: History) -> None:
    secret, popped = Message.user("secret", id="m"), Message.user("popped", id="p")
    first = await bot.append(CHAT, secret, popped)
    await bot.chat(CHAT).pop()
    await bot.chat(CHAT).reset()
    assert await bot.append(CHAT, secret, popped) == first and await first.superseded(0)
    await deliver(bot)
    for message in (secret, popped):
        with pytest.raises(IdReused) as refused:
            await bot.append(CHAT, message)
        assert refused.value.reuse is Reuse.ERASED
    with pytest.raises(IdReused):
        await bot.chat(CHAT).replace([Message.user("new", id="n"), popped])
    assert await path(bot) == []


async def test_the_same_message_twice_in_one_append_is_one_event(bot: History) -> None:
    old, new = Message.user("old", id="old"), Message.user("new", id="new")
    first = await bot.append(CHAT, old, ConversationRewound(), old, new, new)
    assert first.event_ids[0] == first.event_ids[2]
    for _ in range(2):
        assert await path(bot) == ["new"]
        await deliver(bot)
    with pytest.raises(IdReused):
        await bot.append(CHAT, Message.user("x", id="x"), Message.user("y", id="x"))


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
    assert (await again.saved(0), await again.superseded(0)) == (False, True)
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
    view = await store.runtime.view(query)
    assert (view.places["u30"].version, view.places["u30"].count) == (32, 0)
