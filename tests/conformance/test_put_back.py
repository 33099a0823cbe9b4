"""Ids that were used before: what left the path is put back by appending it again, and what is `saved` can be read."""

from collections.abc import Awaitable, Callable

import pytest

from letopis.outbox import Chat, History
from letopis.store import (
    ConversationStore,
    EventIdReused,
    InvalidInput,
    Message,
    MessageAppended,
    MessageEdited,
    Reuse,
    Saved,
)
from letopis.store.model.event_types import ConversationRewound
from letopis.store.rules.decoding import PUT_BACK_KEY
from letopis.store.rules.fold import fold
from tests.conformance.talk import deliver, lose_acknowledgements, path, prune_all
from tests.support.relays import sql
from tests.support.sayings import Bots, differences, present

pytestmark = pytest.mark.same_sql

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


async def test_a_message_that_was_read_is_put_back_under_the_id_that_was_made_for_it(bot: History) -> None:
    await bot.append(CHAT, Message.user("one"), Message.assistant("two"))
    popped = present(await bot.chat(CHAT).pop())
    again = await bot.append(CHAT, popped.message)
    await bot.append(CHAT, popped.message)
    assert [one.text for one in await bot.messages(CHAT)] == ["one", "two"]
    assert again.message_id == popped.id
    await deliver(bot)
    assert [one.text for one in await bot.messages(CHAT)] == ["one", "two"]
    # In another conversation it is another message.
    await bot.append("other", popped.message)
    assert [one.text for one in await bot.messages("other")] == ["two"]


@pytest.mark.parametrize("first", ["rewind", "put back"])
async def test_put_back_that_races_with_a_rewind_elsewhere(bots: Bots, first: str, store: ConversationStore) -> None:
    one, two = bots
    message = Message.user("words", id="m")
    await one.append(CHAT, Message.user("before", id="first"), message)
    await one.chat(CHAT).pop()
    await deliver(one)
    again = await one.append(CHAT, message)
    await two.chat(CHAT).rewind(to=None)
    await deliver(*((two, one) if first == "rewind" else (one, two)))
    assert await again.saved(60)
    expected = ["m"] if first == "rewind" else []
    assert (await path(one), await path(two)) == (expected, expected)
    assert present(await store.conversation(CHAT)).message_count == len(expected)
    # Whoever says it again has it on the path again, or still.
    await one.append(CHAT, Message.user("next", id="next"))
    await deliver(one)
    assert await path(two) == [*expected, "next"]


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_message_that_left_by_a_rewind_which_the_file_cannot_follow(bots: Bots, *, delivered: bool) -> None:
    """Its outbox rewound to a message of another one, which has left the path meanwhile: that had no effect."""
    bot, other = bots
    message = Message.user("words", id="m")
    await bot.append(CHAT, Message.user("before", id="first"))
    await deliver(bot)
    await other.append(CHAT, Message.user("theirs", id="theirs"))
    await deliver(other)
    await bot.chat(CHAT).rewind(to="theirs")
    await other.chat(CHAT).rewind(to="first")
    await deliver(other)
    await bot.append(CHAT, message)
    if delivered:
        await deliver(bot)
    await bot.chat(CHAT).rewind(to="first")
    assert await path(bot) == ["first"]
    await bot.append(CHAT, message)
    assert await path(bot) == ["first", "m"]
    await deliver(bot)
    assert await path(bot) == await path(other) == ["first", "m"]


async def test_two_put_backs_show_it_once(bots: Bots, store: ConversationStore) -> None:
    one, two = bots
    message = Message.user("words", id="m", tokens=3)
    twins = [await bot.append(CHAT, message) for bot in bots]
    await deliver(one, two)
    await one.chat(CHAT).rewind(to=None)
    await deliver(one)
    await two.chat(CHAT).rewind(to=None)
    await deliver(two)
    again = [await bot.append(CHAT, message) for bot in bots]
    await deliver(one, two)
    assert all([await receipt.saved(60) for receipt in (*twins, *again)])
    assert await path(one) == await path(two) == ["m"]
    found = present(await store.conversation(CHAT))
    assert (found.message_count, found.tokens) == (1, 3)
    assert [one.id for one in fold(await store.events(CHAT)).path] == ["m"]
    await two.chat(CHAT).redact("m")
    await deliver(two)
    assert await differences(store) == set()


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


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_put_back_can_be_rewound_to(bot: History, *, delivered: bool) -> None:
    """Also while it is pending, and the history store still has the message off the path."""
    first, second = Message.user("1", id="1"), Message.assistant("2", id="2")
    await bot.append(CHAT, first, second)
    await bot.chat(CHAT).rewind(to=None)
    if delivered:
        await deliver(bot)
    await bot.append(CHAT, second, first, Message.user("3", id="3"))
    await bot.chat(CHAT).rewind(to="2")
    for _ in range(2):
        assert await path(bot) == ["2"]
        await deliver(bot)


async def test_a_put_back_in_the_append_that_takes_it_away(bot: History) -> None:
    old, new = Message.user("old", id="old"), Message.user("new", id="new")
    await bot.append(CHAT, old)
    await bot.append(CHAT, ConversationRewound(), old, new, ConversationRewound(), new, old)
    for _ in range(2):
        assert await path(bot) == ["new", "old"]
        await deliver(bot)


async def test_a_redacted_id_is_refused(bot: History) -> None:
    await bot.append(CHAT, Message.user("secret", id="m"))
    await bot.chat(CHAT).redact("m")
    for _ in range(2):
        for text in ("secret", "other"):
            with pytest.raises(EventIdReused, match="erased") as refused:
                await bot.append(CHAT, Message.user(text, id="m"))
            assert refused.value.reason is Reuse.ERASED
        await deliver(bot)
    for edit in (bot.chat(CHAT).edit("m", "new"), bot.append(CHAT, MessageEdited(message_id="m", content="new"))):
        with pytest.raises(InvalidInput, match="erased"):
            await edit


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


async def test_what_was_put_back_where_it_still_stood_takes_off_what_follows_it(bots: Bots) -> None:
    bot, other = bots
    before, after = Message.user("before", id="x"), Message.user("after", id="a")
    await bot.append(CHAT, before)
    await deliver(bot)
    await other.append(CHAT, Message.user("theirs", id="theirs"))
    await deliver(other)
    await bot.chat(CHAT).rewind(to="theirs")  # takes nothing off: the file knows neither that, nor their message
    await bot.append(CHAT, after)
    await bot.append(CHAT, before)
    await bot.chat(CHAT).rewind(to="a")
    await bot.chat(CHAT).rewind(to="x")
    await bot.append(CHAT, after)
    await deliver(bot)
    assert await path(bot) == ["x", "a"]


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
