"""``replace`` makes given messages the whole path, whatever is pending, pruned or written by another outbox."""

import pytest

from letopis import ConversationStore, EventIdReused, History, InvalidInput, Message, VersionConflict
from tests.conformance.talk import deliver, prune_all
from tests.support.sayings import Bots, present

CHAT = "chat-1"


async def path(history: History, conversation: str = CHAT) -> list[tuple[str, str]]:
    return [(one.id, one.text) for one in await history.messages(conversation)]


def said(*names: str) -> list[Message]:
    return [Message.user(f"words {name}", id=name, tokens=1) for name in names]


def shown(*names: str) -> list[tuple[str, str]]:
    return [(name, f"words {name}") for name in names]


@pytest.mark.parametrize("delivered", [False, True])
async def test_it_becomes_the_whole_path(bots: Bots, store: ConversationStore, *, delivered: bool) -> None:
    bot, other = bots

    async def settle() -> None:
        if delivered:
            await deliver(bot)

    await bot.append(CHAT, *said("a", "b", "c", "d"))
    await settle()
    # What is the same at the beginning stays, the rest comes in the new order.
    receipt = present(await bot.chat(CHAT).replace(said("a", "c", "b", "new")))
    assert receipt.message_ids == ("c", "b", "new")
    assert await path(bot) == shown("a", "c", "b", "new")
    await settle()
    assert await bot.chat(CHAT).replace(said("a", "c", "b", "new")) is None
    assert await bot.chat(CHAT).replace(said("a")) is not None
    await settle()
    assert await path(bot) == shown("a")
    assert await bot.chat(CHAT).replace([]) is not None and await path(bot) == []
    await settle()
    last = present(await bot.chat(CHAT).replace([Message.system("summary", id="s"), *said("d")], owner=42))
    await deliver(bot)
    assert await last.saved(60)
    assert await path(bot) == await path(other) == [("s", "summary"), *shown("d")]
    found = present(await store.conversation(CHAT))
    assert (found.message_count, found.tokens, found.owner_id) == (2, 5, "42")
    assert [found.differences async for found in store.rebuild(check=True)] == [()]


async def test_a_conversation_that_is_new_or_empty(bot: History) -> None:
    assert await bot.chat(CHAT).replace([]) is None
    assert await bot.chat(CHAT).replace(said("a", "b")) is not None
    assert await path(bot) == shown("a", "b")


async def test_what_only_the_store_holds_is_kept_in_its_new_place(bots: Bots) -> None:
    bot, other = bots
    await other.append(CHAT, *said("x", "y"))
    await deliver(other)
    await bot.append(CHAT, *said("z"))
    await deliver(bot)
    await bot.outbox.write(prune_all)
    for names in (("z", "x", "y"), ("x", "z"), ("z", "x"), ("new", "y", "z"), ()):
        receipt = present(await bot.chat(CHAT).replace(said(*names)))
        assert await path(bot) == shown(*names)
        await deliver(bot)
        assert await receipt.saved(60)
        assert await path(bot) == await path(other) == shown(*names)
        await bot.outbox.write(prune_all)
    await other.chat(CHAT).redact("x")
    await deliver(other)
    for refused in (Message.user("other words", id="y"), *said("x")):
        with pytest.raises(EventIdReused):
            await bot.chat(CHAT).replace([Message.user("n"), refused])


async def test_edited_messages_come_as_they_are_shown(bot: History) -> None:
    await bot.append(CHAT, *said("a", "b"))
    await bot.chat(CHAT).edit("b", "edited")
    messages = [one.message for one in await bot.messages(CHAT)]
    await bot.chat(CHAT).replace(messages[::-1])
    assert await path(bot) == [("b", "edited"), *shown("a")]
    await deliver(bot)
    assert await path(bot) == [("b", "edited"), *shown("a")]
    with pytest.raises(EventIdReused):
        await bot.chat(CHAT).replace([Message.user("third", id="b")])


async def test_refusals_write_nothing(bot: History) -> None:
    await bot.append(CHAT, *said("a", "b"))
    await bot.chat(CHAT).redact("a")
    before = await bot.chat(CHAT).events()
    for messages in (
        said("n", "n"),
        "text",
        Message.user("one"),
        [Message.user("x"), "y"],
        [Message.user("\0", id="x")],
    ):
        with pytest.raises(InvalidInput):
            await bot.chat(CHAT).replace(messages)  # type: ignore[arg-type]
    for messages in (said("new", "a"), [Message.user("other", id="b")]):
        with pytest.raises(EventIdReused):
            await bot.chat(CHAT).replace(messages)
    assert await bot.chat(CHAT).events() == before


async def test_of_two_outboxes_one_wins_whole(one: History, two: History) -> None:
    await one.append(CHAT, *said("a", "b"))
    await deliver(one)
    assert await path(two) == shown("a", "b")
    first = present(await one.chat(CHAT).replace(said("b", "x1", "x2")))
    second = present(await two.chat(CHAT).replace(said("y1", "b", "y2")))
    await deliver(two, one)
    assert (await second.saved(5), await first.superseded(5)) == (True, True)
    assert await path(one) == await path(two) == shown("y1", "b", "y2")
    # Whoever lost reads again and may replace what is there now.
    again = present(await one.chat(CHAT).replace(said("b", "x3")))
    await deliver(one)
    assert await again.saved(60)
    assert await path(two) == shown("b", "x3")


async def test_an_append_in_between_is_not_lost(bot: History, monkeypatch: pytest.MonkeyPatch) -> None:
    await bot.append(CHAT, *said("a"))
    reader = bot._parts.reader
    real = reader.messages
    rounds = iter(range(100))

    async def messages(*args: object, **options: object) -> object:
        page = await real(*args, **options)  # type: ignore[arg-type]
        if next(rounds) < limit:
            await bot.append(CHAT, Message.user("between"))
        return page

    monkeypatch.setattr(reader, "messages", messages)
    limit = 1
    assert await bot.chat(CHAT).replace(said("b")) is not None
    limit = 100
    with pytest.raises(VersionConflict):
        await bot.chat(CHAT).replace(said("c"))
    monkeypatch.undo()
    assert (await path(bot))[0] == ("b", "words b")
