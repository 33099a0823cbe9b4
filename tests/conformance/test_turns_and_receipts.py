"""Turns are counted alike everywhere, receipts name what they are for, and many messages are redacted at once."""

import pytest

from letopis.outbox import History
from letopis.store import ConversationStore, InvalidInput, Message, ReactionAdded
from letopis.store.read.paging import Window
from letopis.store.read.reader import ViewQuery
from tests.conformance.talk import deliver, prune_all
from tests.support.sayings import present

pytestmark = pytest.mark.same_sql

CHAT = "chat-1"


async def talk(history: History, roles: str) -> None:
    made = {"s": Message.system, "u": Message.user, "a": Message.assistant, "t": Message.tool}
    await history.append(CHAT, *(made[role](f"{role}{place}", id=f"{role}{place}") for place, role in enumerate(roles)))


async def path(history: History) -> str:
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
    assert await path(bot) == "s0 u1 u2 a3 u4 u5 u6 a7"
    assert [one.id for one in await bot.chat(CHAT).regenerate()] == ["u4", "u5", "u6"]
    await bot.chat(CHAT).undo()
    assert await path(bot) == "s0 u1 u2 a3"
    await bot.chat(CHAT).undo(7)
    assert await path(bot) == "s0"
    assert await bot.chat(CHAT).undo() is None


async def test_a_long_question_is_read_to_its_beginning(bot: History) -> None:
    await talk(bot, "ua" + "u" * 150 + "a")
    await bot.chat(CHAT).undo()
    assert await path(bot) == "u0 a1"
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
