"""``replace`` makes given messages the whole path; an append with one condition is one change, with one verdict."""

from collections.abc import Sequence

import pytest

from letopis import ConversationStore, History, IdReused, InvalidInput, Message, Receipt, VersionConflict
from letopis.outbox.relay.relay import Relay
from letopis.store.ops.rebuild import rebuild
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin
from tests.conformance.tables import on_sqlite
from tests.conformance.talk import deliver, lose_acknowledgements, path, prune_all
from tests.support.defects import IN_PARTS, planted
from tests.support.sayings import Bots, drain, present

pytestmark = on_sqlite

CHAT = "chat-1"


async def content(history: History) -> list[tuple[str, str]]:
    return [(one.id, one.text) for one in await history.messages(CHAT)]


def said(*names: str) -> list[Message]:
    return [Message.user(f"words {name}", id=name, tokens=1) for name in names]


def shown(*names: str) -> list[tuple[str, str]]:
    return [(name, f"words {name}") for name in names]


def copies(receipt: Receipt, *names: str) -> list[tuple[str, str]]:
    """Return what is shown of messages that a replacement appended first, under new ids."""
    return [(new, f"words {name}") for new, name in zip(receipt.message_ids, names, strict=False)]


@pytest.mark.parametrize("delivered", [False, True])
async def test_it_becomes_the_whole_path(bots: Bots, store: ConversationStore, *, delivered: bool) -> None:
    bot, other = bots

    async def settle() -> None:
        if delivered:
            await deliver(bot)

    await bot.append(CHAT, *said("a", "b", "c", "d"))
    await settle()
    # What is the same at the beginning stays, the rest comes in the new order, under new ids where they are used.
    receipt = present(await bot.chat(CHAT).replace(said("a", "c", "b", "new")))
    assert receipt.message_ids[2] == "new" and {"b", "c"}.isdisjoint(receipt.message_ids)
    assert await content(bot) == [*shown("a"), *copies(receipt, "c", "b"), *shown("new")]
    await settle()
    assert await bot.chat(CHAT).replace(said("a", "c", "b", "new")) is None
    assert await bot.chat(CHAT).replace(said("a")) is not None
    await settle()
    assert await content(bot) == shown("a")
    assert await bot.chat(CHAT).replace([]) is not None and await content(bot) == []
    await settle()
    last = present(await bot.chat(CHAT).replace([Message.system("summary", id="s"), *said("d")], owner=42))
    await deliver(bot)
    assert (await last.saved(60), await last.superseded(5)) == (True, False)
    assert await content(bot) == await content(other) == [("s", "summary"), (last.message_id, "words d")]
    found = present(await store.conversation(CHAT))
    assert (found.message_count, found.tokens, found.owner_id) == (2, 8, "42")
    assert [found.differences async for found in rebuild(store, check=True)] == [()]


async def test_a_conversation_that_is_new_or_empty(bot: History) -> None:
    assert await bot.chat(CHAT).replace([]) is None
    assert await bot.chat(CHAT).replace(said("a", "b")) is not None
    assert await content(bot) == shown("a", "b")


async def test_what_only_the_store_holds_comes_in_its_new_place(bots: Bots) -> None:
    bot, other = bots
    await other.append(CHAT, *said("x", "y"))
    await deliver(other)
    await bot.append(CHAT, *said("z"))
    await deliver(bot)
    await bot.outbox.write(prune_all)
    for names in (("z", "x", "y"), ("x", "z"), ("z", "x"), ("new", "y", "z"), ()):
        expected = [f"words {name}" for name in names]
        receipt = present(await bot.chat(CHAT).replace(said(*names)))
        assert [text for _, text in await content(bot)] == expected
        await deliver(bot)
        assert (await receipt.saved(60), await receipt.superseded(5)) == (True, False)
        assert await content(bot) == await content(other)
        assert [text for _, text in await content(bot)] == expected
        assert await bot.chat(CHAT).replace(said(*names)) is None
        await bot.outbox.write(prune_all)
    await other.chat(CHAT).redact("x")
    await deliver(other)
    for refused in (Message.user("other words", id="y"), *said("x")):
        with pytest.raises(IdReused):
            await bot.chat(CHAT).replace([Message.user("n"), refused])


async def test_edited_messages_come_as_they_are_shown(bot: History) -> None:
    await bot.append(CHAT, *said("a", "b"))
    await bot.chat(CHAT).edit("b", "edited")
    messages = [one.message for one in await bot.messages(CHAT)]
    receipt = present(await bot.chat(CHAT).replace(messages[::-1]))
    for _ in range(2):
        assert await content(bot) == [(receipt.message_ids[0], "edited"), (receipt.message_ids[1], "words a")]
        await deliver(bot)
    with pytest.raises(IdReused):
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
        with pytest.raises(IdReused):
            await bot.chat(CHAT).replace(messages)
    assert await bot.chat(CHAT).events() == before


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
    assert (await content(bot))[0] == ("b", "words b")


# --- Appends with one condition ---


MANY = 520
"""More than one batch holds, and than a lane's share beside others."""


def numbered(prefix: str, count: int) -> list[Message]:
    return [Message.user(f"words {number}", id=f"{prefix}-{number}") for number in range(count)]


async def seen_by_another(bots: Bots, many: int) -> list[list[str]]:
    """Replace many messages by many, deliver that beside others, and return each path that the other outbox read."""
    one, two = bots
    await one.append(CHAT, *numbered("old", many))
    await drain(one)
    await one.append("beside-1", *numbered("m", many // 4))
    await one.chat(CHAT).replace([*numbered("old", 1), *numbered("new", many)])
    await one.append("beside-2", *numbered("n", many // 4))
    seen = [await path(two)]

    async def apply(origin: Origin, batches: Sequence[LaneBatch]) -> ApplyResult:
        result = await one.store.apply(origin, batches)
        if (found := await path(two)) != seen[-1]:
            seen.append(found)
        return result

    await Relay(one.outbox, one.store, apply=apply).drain()
    return seen


async def test_another_outbox_reads_the_old_path_or_the_new_one(bots: Bots) -> None:
    old, new = [[one.id for one in numbered(prefix, MANY)] for prefix in ("old", "new")]
    assert await seen_by_another(bots, MANY) == [old, ["old-0", *new]]
    assert await path(bots[0]) == ["old-0", *new]


async def test_a_relay_that_cuts_it_in_parts_is_noticed(bots: Bots) -> None:
    with planted(IN_PARTS):
        assert len(await seen_by_another(bots, 8)) > 2


async def test_the_first_new_message_decides_for_the_rest(bots: Bots) -> None:
    one, two = bots
    first, *rest = numbered("m", 3)
    await one.append(CHAT, first)
    await drain(one)
    page = await one.messages(CHAT)
    await two.append(CHAT, Message.user("the other's", id="x"))
    await drain(two)
    late = await one.append(CHAT, first, *rest, after=page)
    await drain(one)
    assert await late.superseded(60)
    assert await path(one) == await path(two) == ["m-0", "x"]


@pytest.mark.parametrize("together", [True, False])
async def test_nothing_is_saved_from_behind_a_rewind(bots: Bots, store: ConversationStore, *, together: bool) -> None:
    """The outbox does not know the message, so the store decides: at its place, behind the rewind, it is not shown."""
    one, two = bots
    [message] = numbered("m", 1)
    await two.append(CHAT, message)
    await drain(two)
    await one.append(CHAT, Message.user("before", id="before"))
    await one.chat(CHAT).rewind(to=None)
    if not together:
        await drain(one)
    again = await one.append(CHAT, message)
    after = await one.append(CHAT, Message.user("after", id="after"))
    await drain(one)
    assert await after.saved(60)
    assert (await again.saved(5), await again.superseded(5)) == (False, True)
    assert await path(one) == await path(two) == ["after"]
    # The answer is the same when the acknowledgement was lost.
    await lose_acknowledgements(one)
    await drain(one)
    assert await again.superseded(60)
    assert [found.differences async for found in rebuild(store, check=True)] == [()]
