"""Reads of one message, of some by a filter, of the newest events and of the log: pending and stored alike."""

import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from letopis import History, Page, RecordedMessage
from letopis.store import ConversationStore, Filter, InvalidInput, Message, StoreUnavailable
from letopis.store.model.parts import File, Text, ToolCall, ToolResult, UnknownPart
from tests.conformance.tables import on_sqlite
from tests.conformance.talk import deliver
from tests.support.sayings import Bots, all_pages, present

CHAT = "chat-1"
FILTERS = (
    Filter(),
    Filter(roles=["user"]),
    Filter(roles={"assistant", "tool"}),
    Filter(roles=()),
    Filter(metadata={"n": True}),
    Filter(metadata={"n": {"x": [1, {"y": False}]}}),
    *(Filter(id_prefix=prefix) for prefix in ("m1", "M1", "%", "é_")),
    Filter(roles=["user"], id_prefix="m", metadata={"agent": "a"}),
    *(Filter(parts=parts) for parts in ({"tool_call", "tool_result"}, ("file", "audio"), [])),
)
PARTS: dict[str, Any] = {
    "user": (Text("look"), File("https://example.org/a.png")),
    "assistant": (Text("I look"), ToolCall("c1", "look", {})),
    "tool": (ToolResult("c1", "found"),),
    "system": (UnknownPart({"type": "audio", "seconds": 3}),),
}


def some(count: int, *, first: int = 0) -> list[Message]:
    draw = random.Random(first)
    made = (Message.user, Message.assistant, Message.tool, Message.system)
    values: tuple[Any, ...] = (1, True, "1", 1.0, None, {"x": [1, {"y": False}]}, {"x": [1, {"y": 0}]})
    found = []
    for number in range(first, first + count):
        metadata: dict[str, Any] = {}
        if draw.random() < 0.5:
            metadata["agent"] = draw.choice("ab")
        if draw.random() < 0.5:
            metadata["n"] = draw.choice(values)
        name = draw.choice([f"m{number}", f"M{number}", f"é_{number}", f"%{number}"])
        message = draw.choice(made)(f"text {number}", id=name, metadata=metadata)
        found.append(replace(message, content=PARTS[message.role]) if number % 4 == 3 else message)
    return found


async def everything(history: History, **options: Any) -> list[RecordedMessage]:
    return list(await history.messages(CHAT, last=None, **options))


@pytest.mark.parametrize("stage", ["stored", "changed", "fork"])
async def test_a_filter_wants_the_same_of_pending_and_stored_messages(bot: History, stage: str) -> None:
    messages = some(90)
    await bot.append(CHAT, *messages[:60])
    await deliver(bot)
    if stage != "stored":
        await bot.append(CHAT, *messages[60:])
    if stage == "changed":
        await bot.chat(CHAT).rewind(to=messages[70].id)
        await bot.chat(CHAT).redact(*(one.id for one in messages[5:70:7]))
        await bot.append(CHAT, *messages[80:85], *some(9, first=200))
    if stage == "fork":
        await bot.chat(CHAT).fork("child", at=messages[75].id)
        await bot.append("child", *some(20, first=300))
    whole = await everything(bot)
    assert list(await bot.messages(CHAT, last=2**63)) == whole == list(await bot.messages(CHAT, first=10**30))
    for where in FILTERS:
        wanted = [one.id for one in whole if where.matches(one)]
        assert [one.id for one in await everything(bot, where=where)] == wanted
        assert await bot.chat(CHAT).count(where=where) == len(wanted)
        assert [one.id for one in await bot.messages(CHAT, first=3, offset=2, where=where)] == wanted[2:5]
        kept = wanted[:-2] if len(wanted) > 2 else []
        assert [one.id for one in await bot.messages(CHAT, last=3, offset=2, where=where)] == kept[-3:]
    for where in FILTERS[::4]:
        wanted = [one.id for one in whole if where.matches(one)]
        for found in (
            await all_pages(partial(bot.messages, CHAT, where=where, last=7), by="before", most=7),
            await all_pages(partial(bot.messages, CHAT, where=where, first=7), most=7),
        ):
            assert [one.id for one in found] == wanted
    assert await bot.chat(CHAT).count() == len(whole)
    assert [one.id for one in await bot.messages(CHAT, first=10, offset=5)] == [one.id for one in whole[5:15]]
    assert [one.id for one in await bot.messages(CHAT, last=10, offset=5)] == [one.id for one in whole[-15:-5]]
    if stage == "fork":
        child = list(await bot.messages("child", last=None))
        assert await bot.chat("child").count() == len(child) == 96
        where = Filter(roles=["user"])
        assert list(await bot.messages("child", last=None, where=where)) == where.of(child)
        assert list(await bot.messages("child", last=5, where=where)) == where.of(child)[-5:]


@on_sqlite
@pytest.mark.parametrize("delivered", [False, True])
async def test_one_message_by_its_id(bots: Bots, *, delivered: bool) -> None:
    bot, other = bots
    made = Message.user("made")
    await bot.append(CHAT, Message.user("one", id="1"), Message.assistant("two", id="2"), made)
    await bot.append("chat-2", Message.user("elsewhere", id="x"), Message.user("twice", id="2"))
    if delivered:
        await deliver(bot)
    await bot.chat(CHAT).edit("1", "edited")
    await bot.chat(CHAT).rewind(to="1")
    for where in (bot.chat(CHAT), bot):
        found = present(await where.message("1"))
        assert (found.text, found.on_path, found.conversation_id) == ("edited", True, CHAT)
        gone = present(await where.message(made.id))
        assert (gone.text, gone.on_path) == ("made", False)
    assert await bot.message("nowhere") is await bot.chat(CHAT).message("x") is None
    with pytest.raises(InvalidInput, match="several conversations"):
        await bot.message("2")
    assert present(await bot.chat("chat-2").message("2")).text == "twice"
    assert not present(await bot.chat(CHAT).message("2")).on_path

    if delivered:
        await deliver(bot)
        assert present(await other.message("1")).text == "edited"
        await bot.chat("chat-2").delete()
        assert await bot.message("x") is None
        assert (await bot.message("2")) is not None  # no longer ambiguous
        await deliver(bot)
        assert await other.message("x") is None


async def test_while_the_store_is_away_what_cannot_be_known_is_not_answered(alone: History) -> None:
    await alone.append(CHAT, Message.user("one", id="1"), Message.assistant("two", id="2"))
    for where in (alone.chat(CHAT), alone):
        assert present(await where.message("1")).text == "one"
        with pytest.raises(StoreUnavailable):
            await where.message("nowhere")
    with pytest.raises(StoreUnavailable):
        await alone.chat(CHAT).count()
    with pytest.raises(StoreUnavailable):
        await alone.chat(CHAT).count(where=Filter(roles=["user"]))
    page = await alone.messages(CHAT, where=Filter(roles=["user"]))
    assert ([one.id for one in page], page.complete) == (["1"], False)


@pytest.mark.parametrize("stage", ["pending", "stored", "both"])
async def test_the_newest_events_come_in_pages(bot: History, stage: str) -> None:
    await bot.append(CHAT, *some(12))
    if stage != "pending":
        await deliver(bot)
    if stage != "stored":
        await bot.chat(CHAT).rename("title")
        await bot.append(CHAT, *some(5, first=50))
        await bot.chat(CHAT).rename("other")
    whole = [one.event_id for one in await bot.chat(CHAT).events()]
    renamed = {"conversation.renamed", "conversation.started"}
    chosen = [one.event_id for one in await bot.chat(CHAT).events() if one.type in renamed]
    for types, expected in ((None, whole), (renamed, chosen), ({"custom.none"}, [])):
        read = partial(bot.chat(CHAT).events, types=types)
        for found in (
            await all_pages(partial(read, last=4), by="before", most=4),
            await all_pages(partial(read, first=4), most=4),
        ):
            assert [one.event_id for one in found] == expected, types


async def test_conversations_come_oldest_first(bot: History) -> None:
    for number in range(9):
        await bot.append(f"c{number}", Message.user("x"), owner=42 if number % 2 else 7)
        if number == 4:
            await deliver(bot)
    await bot.append("c1", Message.user("again"))

    async def listed(**options: Any) -> list[str]:
        found = await all_pages(partial(bot.conversations, limit=2, **options), most=2)
        return [one.conversation_id for one in found]

    oldest = ["c0", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c1"]
    assert await listed(oldest_first=True) == (await listed())[::-1] == oldest
    assert await listed(owner=42, oldest_first=True) == ["c3", "c5", "c7", "c1"]
    await deliver(bot)
    assert await listed(oldest_first=True) == oldest
    assert await listed(owner=7, oldest_first=True) == ["c0", "c2", "c4", "c6", "c8"]


async def test_the_log_is_read_from_a_position(one: History, two: History, store: ConversationStore) -> None:
    assert await store.log() == Page(())
    for number in range(5):
        await one.append(f"c{number}", Message.user("x"))
        await two.append(f"c{number}", Message.user("y"))
        await deliver(one, two)
    events = await all_pages(partial(store.log, limit=3), most=3)
    assert [event.position for event in events] == list(range(1, await store.head() + 1))
    assert await store.log(after=await store.head()) == Page(())
    assert [event.position for event in await store.log(after=4, limit=2)] == [5, 6]
