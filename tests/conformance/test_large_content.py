"""Large content of messages: stored once a conversation, read as it was given, erased with the last message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.diagnostics.integrity import content_problems
from letopis.outbox.event_log.lanes import count_lanes
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.relay.relay import Relay
from letopis.store import (
    ConversationStore,
    Data,
    Event,
    File,
    InvalidInput,
    Message,
    OutboxFull,
    Scope,
    Text,
    ToolResult,
)
from letopis.store.database.engines import create_store_engine
from letopis.store.maintenance.integrity import find_problems as store_problems
from letopis.store.model.large_content import LARGE_BYTES, references_in
from tests.conformance.tables import TABLES, rows
from tests.support.relays import deliver_all

CHAT = "chat-1"
TOKEN = "PLANTED-TOKEN"
ODD = "\x01letopis:content:" + "a" * 64 + ":300000"


def large(label: str = "") -> str:
    """A string that is kept apart, of characters of all lengths."""
    return f"{TOKEN} {label} " + 'я€😀\n"\\' * (LARGE_BYTES // 10)


@pytest.fixture
async def bot(tmp_path: Path, store: ConversationStore) -> AsyncIterator[History]:
    async with History(tmp_path / "bot.outbox.db", store=store, relay=False, watch=False) as opened:
        yield opened


@pytest.fixture
async def other(tmp_path: Path, store: ConversationStore) -> AsyncIterator[History]:
    async with History(tmp_path / "other.outbox.db", store=store, relay=False, watch=False) as opened:
        yield opened


async def deliver(history: History) -> None:
    await deliver_all(history)


async def kept(history: History) -> int:
    """How many large strings the outbox file holds."""
    statement = "SELECT count(*) FROM letopis_outbox_contents"
    return int(await history.outbox.read(lambda connection: connection.exec_driver_sql(statement).scalar_one()))


async def stored(url: str) -> int:
    """How many large strings the store holds."""
    return len([row for row in await rows(url, "letopis_records") if row["scope"].startswith("\x01m:")])


async def texts(source: History | ConversationStore, name: str = CHAT) -> list[Any]:
    page = await source.messages(name)
    assert page.complete
    return [message.content for message in page]


async def outbox_problems(history: History) -> list[str]:
    return await history.outbox.read(lambda connection: list(content_problems(connection)))


async def assert_sound(history: History, url: str) -> None:
    assert await outbox_problems(history) == []
    engine = create_store_engine(url)
    try:
        assert [problem async for problem in store_problems(engine)] == []
    finally:
        await engine.dispose()


async def assert_erased(history: History, url: str, secret: str = TOKEN) -> None:
    for table in TABLES:
        for row in await rows(url, table):
            assert secret not in repr(dict(row)), table
    await history.outbox.maintain()
    for path in history.outbox.path.parent.iterdir():
        assert secret.encode() not in path.read_bytes(), path.name


CONTENTS: list[Any] = [
    large(),
    (Text("look"), File(uri="data:image/png;base64," + "QUJD" * LARGE_BYTES, media_type="image/png")),
    (ToolResult(call_id="c", output={"deep": [large("a"), {"b": large("b")}, 1, None]}),),
    (Data(value=[ODD, "\x01letopis:text:x", "\x01letopis:", "\x01"]),),
    ODD,
    f'{ODD}\n"{ODD}"',
]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
@pytest.mark.parametrize("delivered", [False, True])
async def test_content_is_read_as_it_was_given(
    bot: History, store: ConversationStore, store_url: str, content: Any, *, delivered: bool
) -> None:
    metadata = {"note": large("metadata"), "key": ODD}
    await bot.append(CHAT, Message.user(content, id="m", metadata=metadata))
    await bot.append(CHAT, Message.assistant("ok"))
    if delivered:
        await deliver(bot)
        assert await texts(store) == [content, "ok"]
    [message, _] = await bot.messages(CHAT)
    assert (message.content, message.message.metadata) == (content, metadata)
    assert (await bot.message("m")).content == content  # type: ignore[union-attr]
    if not isinstance(content[0], ToolResult):  # which a context leaves out without its call
        assert [m.content for m in (await bot.context(CHAT, last=5)).messages] == [content, "ok"]
    for row in await rows(store_url, "letopis_events"):
        assert len(row["data"]) < 10_000
    await assert_sound(bot, store_url)


async def test_sixteen_pictures_over_twenty_turns_cost_sixteen(
    bot: History, other: History, store: ConversationStore, store_url: str
) -> None:
    pictures = tuple(File(uri=f"data:image/png;base64,{number:06}" + "A" * LARGE_BYTES) for number in range(16))
    for turn in range(20):
        await bot.append(CHAT, Message.user((*pictures, Text(f"turn {turn}"))))
    assert await kept(bot) == 16
    await deliver(bot)
    await other.append(CHAT, Message.user(pictures, id="again"))
    await bot.chat(CHAT).edit((await bot.messages(CHAT))[0].id, pictures)
    await deliver(other)
    await deliver(bot)

    assert await stored(store_url) == 16
    content = await texts(store)
    assert content[1] == (*pictures, Text("turn 1")) and content[0] == content[-1] == pictures
    assert max(len(row["data"]) for row in await rows(store_url, "letopis_events")) < 10_000
    await assert_sound(bot, store_url)


async def test_equal_content_has_another_name_in_each_conversation(bot: History, store_url: str) -> None:
    await bot.append(CHAT, Message.user(large()))
    await bot.append("chat-2", Message.user(large()))
    await deliver(bot)
    named = [set(references_in(row["type"], row["data"])) for row in await rows(store_url, "letopis_events")]
    [one, two] = [names for names in named if names]
    assert len(one) == len(two) == 1 and one != two
    assert await stored(store_url) == 2


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("how", ["redact", "reset", "delete"])
async def test_content_is_erased_with_the_last_message_that_shows_it(
    bot: History, store_url: str, how: str, *, delivered: bool
) -> None:
    chat = bot.chat(CHAT)
    await bot.append(CHAT, Message.user(large(), id="first"))
    await bot.append(CHAT, Message.user(large(), id="second"))
    await bot.append(CHAT, Message.user(large("other"), id="edited"))
    await chat.edit("edited", large())
    if delivered:
        await deliver(bot)
    await chat.redact("first")
    await chat.redact("edited")
    assert (await texts(bot))[1] == large()
    assert await kept(bot) == 1
    await deliver(bot)
    assert (await texts(bot))[1] == large()
    assert await stored(store_url) == 1
    await assert_sound(bot, store_url)

    if how == "redact":
        await chat.redact("second")
    elif how == "reset":
        await chat.reset()
    else:
        await chat.delete()
    await deliver(bot)
    while await bot.store.run_pending_tasks():
        pass
    await deliver(bot)
    await assert_sound(bot, store_url)
    assert (await kept(bot), await stored(store_url)) == (0, 0)
    await assert_erased(bot, store_url)


async def test_content_that_is_appended_again_after_its_redaction_is_there(bot: History, store_url: str) -> None:
    await bot.append(CHAT, Message.user(large(), id="first"))
    await bot.chat(CHAT).redact("first")
    await bot.append(CHAT, Message.user(large(), id="second"))
    await deliver(bot)
    assert await texts(bot) == ["", large()]
    await bot.append(CHAT, Message.user(large(), id="third"))
    await bot.chat(CHAT).redact("second")  # in one batch with the event that needs the content
    await deliver(bot)
    assert (await texts(bot))[2] == large()
    assert await stored(store_url) == 1
    await assert_sound(bot, store_url)


async def test_content_that_another_outbox_erased_meanwhile_is_sent_again(
    bot: History, other: History, store_url: str
) -> None:
    await bot.append(CHAT, Message.user(large(), id="first"))
    await deliver(bot)
    await bot.append(CHAT, Message.user(large(), id="second"))
    await other.chat(CHAT).redact("first")
    await deliver(other)
    assert await stored(store_url) == 0
    await deliver(bot)
    assert (await texts(bot))[1] == large()
    await assert_sound(bot, store_url)


async def test_an_edit_that_arrives_after_the_redaction_leaves_nothing(
    bot: History, other: History, store: ConversationStore, store_url: str
) -> None:
    await bot.append(CHAT, Message.user("small", id="m"))
    await deliver(bot)
    await other.chat(CHAT).edit("m", large())
    await bot.chat(CHAT).redact("m")
    await deliver(bot)
    await deliver(other)
    assert await texts(store) == [""]
    assert (await kept(other), await stored(store_url)) == (0, 0)
    await assert_sound(other, store_url)
    await assert_erased(other, store_url)


async def test_a_fork_reads_its_parents_content_until_neither_shows_it(
    bot: History, store: ConversationStore, store_url: str
) -> None:
    await bot.append(CHAT, Message.user(large(), id="m"), Message.user("end", id="e"))
    await deliver(bot)
    await bot.chat(CHAT).fork("fork", at="e")
    assert (await texts(bot, "fork"))[0] == large()
    await deliver(bot)
    await bot.chat(CHAT).delete()
    await deliver(bot)
    assert (await texts(bot, "fork"))[0] == large() == (await texts(store, "fork"))[0]
    assert await stored(store_url) == 1
    await assert_sound(bot, store_url)
    await bot.chat("fork").delete()
    await deliver(bot)
    await deliver(bot)
    assert await stored(store_url) == 0
    await assert_sound(bot, store_url)
    await assert_erased(bot, store_url)


async def test_what_is_pruned_is_read_from_the_store_and_put_again(
    bot: History, store: ConversationStore, store_url: str
) -> None:
    await bot.append(CHAT, Message.user(large(), id="first"))
    await deliver(bot)
    await bot.append("another", Message.user("hello"))
    pruner = Pruner(Retention(keep_last=0, keep_for=timedelta(0)), bot.outbox.now_us)
    await bot.outbox.write(pruner)
    assert await kept(bot) == 0
    assert await texts(bot) == [large()]
    await bot.append(CHAT, Message.user(large(), id="second"))
    assert await texts(bot) == [large()] * 2
    await bot.outbox.write(pruner)
    assert await kept(bot) == 1  # a pending event needs it
    await deliver(bot)
    assert await stored(store_url) == 1
    await assert_sound(bot, store_url)


async def test_search_finds_a_message_by_its_other_words(bot: History) -> None:
    await bot.append(CHAT, Message.user((Text("a heron"), Text(large())), id="m"))
    for _ in range(2):
        [hit] = await bot.search("heron")
        assert hit.message.content == (Text("a heron"), Text(large())) and "letopis" not in hit.snippet
        assert not await bot.search("letopis")
        await deliver(bot)


async def test_the_past_is_read_with_its_content(bot: History) -> None:
    await bot.append(CHAT, Message.user(large("a"), id="m"))
    await bot.chat(CHAT).edit("m", large("b"))
    await deliver(bot)
    assert [m.content for m in await bot.messages(CHAT, as_of=2)] == [large("a")]
    assert await texts(bot) == [large("b")]


async def test_records_do_not_show_it(bot: History) -> None:
    await bot.append(CHAT, Message.user(large()))
    await deliver(bot)
    assert not (await bot.records(conversation=CHAT).list()).items
    assert not (await bot.records.scopes()).items
    with pytest.raises(InvalidInput):
        bot.records(Scope.content(CHAT))


async def test_content_counts_in_the_bounds_and_the_measures_of_the_file(tmp_path: Path) -> None:
    nowhere = "postgresql://127.0.0.1:1/none"
    async with History(tmp_path / "b.outbox.db", store=nowhere, relay=False, watch=False, max_bytes=1_200_000) as bot:
        for number in range(4):
            await bot.append(CHAT, Message.user(large(str(number)), id=str(number)))
        bot.outbox.gate.files.size = None  # it is looked at once a second
        with pytest.raises(OutboxFull):
            await bot.append(CHAT, Message.user("small"))
        page = await bot.messages(CHAT)
        assert page and all(message.content == large(message.id) for message in page) and not page.complete
        counts = await bot.outbox.read(count_lanes)
        assert counts.pending_bytes > len(page) * LARGE_BYTES


async def damage(url: str, statement: str) -> None:
    engine = create_store_engine(url)
    async with engine.begin() as connection:
        await connection.execute(sa.text(statement))
    await engine.dispose()


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE letopis_events SET data = '{}' WHERE version = 2", "belong to no event"),
        ("DELETE FROM letopis_records", "are missing"),
    ],
)
async def test_verification_finds_what_is_missing_or_left(
    bot: History, store_url: str, statement: str, expected: str
) -> None:
    """The control of the checks above."""
    await bot.append(CHAT, Message.user(large()))
    await deliver(bot)
    await assert_sound(bot, store_url)
    await damage(store_url, statement)
    engine = create_store_engine(store_url)
    found = [problem async for problem in store_problems(engine)]
    await engine.dispose()
    assert any("large content" in problem and expected in problem for problem in found), found
    if "DELETE" in statement:
        [page] = [await bot.store.messages(CHAT)]
        assert not page.complete and "cannot be read" in page[0].content


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM letopis_outbox_contents", "is missing"),
        ("UPDATE letopis_outbox_contents SET body = zeroblob(size)", "not what was appended"),
        ("UPDATE letopis_outbox_events SET data = '{}'", "belong to no event"),
    ],
)
async def test_verification_of_the_outbox_does_too(history: History, statement: str, expected: str) -> None:
    await history.append(CHAT, Message.user(large()))
    assert await outbox_problems(history) == []
    await history.outbox.write(lambda connection: connection.exec_driver_sql(statement))
    assert any(expected in problem for problem in await outbox_problems(history))


async def test_an_event_whose_content_is_lost_blocks_its_conversation_alone(bot: History) -> None:
    await bot.append(CHAT, Message.user(large()))
    await bot.outbox.write(lambda connection: connection.exec_driver_sql("DELETE FROM letopis_outbox_contents"))
    await bot.append("chat-2", Message.user(large()))
    page = await bot.messages(CHAT)
    assert not page.complete and "cannot be read" in page[0].content
    await Relay(bot.outbox, bot.store).drain_once()
    assert await texts(bot, "chat-2") == [large()]
    [message] = await bot.messages(CHAT)
    assert message.saved != "saved"


async def test_an_event_of_another_type_refers_to_nothing(bot: History, store_url: str) -> None:
    await bot.append(CHAT, Event(type="custom.feed", data={"copied": ODD}), Message.user("after"))
    await deliver(bot)
    [event] = [event for event in await bot.chat(CHAT).events() if event.type == "custom.feed"]
    assert event.data == {"copied": ODD}
    await assert_sound(bot, store_url)


async def test_too_much_is_refused_and_nothing_is_written(history: History) -> None:
    with pytest.raises(InvalidInput, match="64 MiB"):
        await history.append(CHAT, Message.user("x" * (66 * 1024 * 1024)))
    with pytest.raises(InvalidInput, match="Letopis"):
        await history.append(CHAT, Message.user("x", external_ids={"a": ODD}))
    assert not await history.messages(CHAT)


@pytest.mark.slow
async def test_one_string_of_64_mib_goes_through_whole(bot: History, store: ConversationStore, store_url: str) -> None:
    content = "0123456789abcdef" * (4 * 1024 * 1024)
    await bot.append(CHAT, Message.user(content))
    await deliver(bot)
    [message] = await store.messages(CHAT)
    assert message.content == content
    await assert_sound(bot, store_url)
