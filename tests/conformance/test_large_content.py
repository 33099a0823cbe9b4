"""Large content of messages: stored once a conversation, read as it was given, erased with the last message."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from letopis.ops.salvage.salvage import salvage
from letopis.ops.verify import content_problems
from letopis.outbox import Bounds, History
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
    Text,
    ToolResult,
)
from letopis.store.model.large_content import LARGE_BYTES
from tests.conformance.tables import assert_sound, large_contents, on_sqlite, rows, stored_text
from tests.conformance.talk import count
from tests.support.outboxes import exported, imported
from tests.support.relays import deliver_all, sql
from tests.support.sayings import change, finish_tasks, present, problems

CHAT = "chat-1"
NOWHERE = "postgresql://127.0.0.1:1/none"
TOKEN = "PLANTED-TOKEN"
ODD = "\x01letopis:content:" + "a" * 64 + ":300000"


CONTENT_ROWS = "letopis_outbox_contents"
PICTURE = "data:image/png;base64," + "QUJD" * (LARGE_BYTES // 2)
TEXT = "ж\x01" * LARGE_BYTES


def large(label: str = "") -> str:
    """A string that is kept apart, of characters of all lengths."""
    return f"{TOKEN} {label} " + 'я€😀\n"\\' * (LARGE_BYTES // 10)


@pytest.fixture
async def other(tmp_path: Path, store: ConversationStore) -> AsyncIterator[History]:
    async with History(tmp_path / "other.outbox.db", store=store, relay=False, watch=False) as opened:
        yield opened


async def texts(source: History | ConversationStore, name: str = CHAT) -> list[Any]:
    page = await source.messages(name)
    assert page.complete
    return [message.content for message in page]


async def assert_erased(history: History) -> None:
    assert TOKEN not in await stored_text(history.store)
    await history.outbox.maintain()
    for path in history.outbox.path.parent.iterdir():
        assert TOKEN.encode() not in path.read_bytes(), path.name


CONTENTS: list[Any] = [
    large(),
    (Text("look"), File(uri="data:image/png;base64," + "QUJD" * LARGE_BYTES, media_type="image/png")),
    (ToolResult(call_id="c", output={"deep": [large("a"), {"b": large("b")}, 1, None]}),),
    (Data(value=[ODD, "\x01letopis:text:x", "\x01letopis:", "\x01"]),),
    ODD,
    f'{ODD}\n"{ODD}"',
]


async def test_content_is_read_as_it_was_given(bot: History) -> None:
    metadata = {"note": large("metadata"), "key": ODD}
    for number, content in enumerate(CONTENTS):
        await bot.append(CHAT, Message.user(content, id=f"m{number}", metadata=metadata))
    for _ in range(2):
        assert await texts(bot) == CONTENTS
        assert [one.message.metadata for one in await bot.messages(CHAT)] == [metadata] * len(CONTENTS)
        assert present(await bot.message("m0")).content == CONTENTS[0]
        assert (await bot.context(CHAT, last=1)).messages[0].content == CONTENTS[-1]
        await deliver_all(bot)
    assert await texts(bot.store) == CONTENTS
    for row in await rows(bot.store):
        assert len(row["data"]) < 10_000
    await assert_sound(bot)


async def test_pictures_are_kept_once(bot: History, other: History, store: ConversationStore) -> None:
    pictures = tuple(File(uri=f"data:image/png;base64,{number:06}" + "A" * LARGE_BYTES) for number in range(4))
    for turn in range(3):
        await bot.append(CHAT, Message.user((*pictures, Text(f"turn {turn}"))))
    assert await count(bot, CONTENT_ROWS) == 4
    await deliver_all(bot)
    await other.append(CHAT, Message.user(pictures, id="again"))
    await bot.chat(CHAT).edit((await bot.messages(CHAT))[0].id, pictures)
    await deliver_all(other)
    await deliver_all(bot)
    assert await large_contents(bot.store) == 4
    content = await texts(store)
    assert content[1] == (*pictures, Text("turn 1")) and content[0] == content[-1] == pictures
    assert max(len(row["data"]) for row in await rows(bot.store)) < 10_000
    await assert_sound(bot)


@on_sqlite
@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("how", ["redact", "reset", "delete"])
async def test_content_goes_with_its_last_message(bot: History, how: str, *, delivered: bool) -> None:
    chat = bot.chat(CHAT)
    await bot.append(CHAT, Message.user(large(), id="first"))
    await bot.append(CHAT, Message.user(large(), id="second"))
    await bot.append(CHAT, Message.user(large("other"), id="edited"))
    await chat.edit("edited", large())
    if delivered:
        await deliver_all(bot)
    await chat.redact("first")
    await chat.redact("edited")
    assert (await texts(bot))[1] == large() and await count(bot, CONTENT_ROWS) == 1
    await deliver_all(bot)
    assert (await texts(bot))[1] == large() and await large_contents(bot.store) == 1
    await assert_sound(bot)

    await {"redact": lambda: chat.redact("second"), "reset": chat.reset, "delete": chat.delete}[how]()
    await deliver_all(bot)
    await finish_tasks(bot.store)
    await deliver_all(bot)
    await assert_sound(bot)
    assert (await count(bot, CONTENT_ROWS), await large_contents(bot.store)) == (0, 0)
    await assert_erased(bot)


async def test_content_that_another_outbox_erased_meanwhile_is_sent_again(bot: History, other: History) -> None:
    await bot.append(CHAT, Message.user(large(), id="first"))
    await deliver_all(bot)
    await bot.append(CHAT, Message.user(large(), id="second"))
    await other.chat(CHAT).redact("first")
    await deliver_all(other)
    assert await large_contents(bot.store) == 0
    await deliver_all(bot)
    assert (await texts(bot))[1] == large()
    await assert_sound(bot)


async def test_fork_reads_its_parents_content(bot: History, store: ConversationStore) -> None:
    await bot.append(CHAT, Message.user(large(), id="m"), Message.user("end", id="e"))
    await deliver_all(bot)
    await bot.chat(CHAT).fork("fork", at="e")
    assert (await texts(bot, "fork"))[0] == large()
    await deliver_all(bot)
    await bot.chat(CHAT).delete()
    await deliver_all(bot)
    assert (await texts(bot, "fork"))[0] == large() == (await texts(store, "fork"))[0]
    assert await large_contents(bot.store) == 1
    await assert_sound(bot)
    await bot.chat("fork").delete()
    await deliver_all(bot)
    await deliver_all(bot)
    assert await large_contents(bot.store) == 0
    await assert_sound(bot)
    await assert_erased(bot)


@on_sqlite
async def test_what_is_pruned_is_read_from_the_store_and_put_again(bot: History) -> None:
    await bot.append(CHAT, Message.user(large(), id="first"))
    await deliver_all(bot)
    await bot.append("another", Message.user("hello"))
    pruner = Pruner(Retention(keep_last=0, keep_for=timedelta(0)), bot.outbox.now_us)
    await bot.outbox.write(pruner)
    assert await count(bot, CONTENT_ROWS) == 0 and await texts(bot) == [large()]
    await bot.append(CHAT, Message.user(large(), id="second"))
    assert await texts(bot) == [large()] * 2
    await bot.outbox.write(pruner)
    assert await count(bot, CONTENT_ROWS) == 1  # a pending event needs it
    await deliver_all(bot)
    assert await large_contents(bot.store) == 1
    await assert_sound(bot)


@on_sqlite
async def test_search_finds_a_message_by_its_other_words(bot: History) -> None:
    await bot.append(CHAT, Message.user((Text("a heron"), Text(large())), id="m"))
    for _ in range(2):
        [hit] = await bot.search("heron")
        assert hit.message.content == (Text("a heron"), Text(large())) and "letopis" not in hit.snippet
        assert not await bot.search("letopis")
        await deliver_all(bot)


async def test_content_counts_in_the_bounds_and_the_measures_of_the_file(tmp_path: Path) -> None:
    async with History(
        tmp_path / "b.outbox.db", store=NOWHERE, relay=False, watch=False, bounds=Bounds(max_bytes=1_200_000)
    ) as bot:
        for number in range(4):
            await bot.append(CHAT, Message.user(large(str(number)), id=str(number)))
        bot.outbox.gate.files.size = None  # it is looked at once a second
        with pytest.raises(OutboxFull):
            await bot.append(CHAT, Message.user("small"))
        page = await bot.messages(CHAT)
        assert page and all(message.content == large(message.id) for message in page) and not page.complete
        counts = await bot.outbox.read(count_lanes)
        assert 1 < counts.pending_bytes / len(page) / LARGE_BYTES < 2, "each is counted once"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE letopis_events SET data = '{}' WHERE version = 2", "belong to no event"),
        ("DELETE FROM letopis_records", "are missing"),
    ],
)
async def test_verification_finds_what_is_missing_or_left(bot: History, statement: str, expected: str) -> None:
    """The control of the checks above."""
    await bot.append(CHAT, Message.user(large()))
    await deliver_all(bot)
    await assert_sound(bot)
    await change(bot.store, statement)
    found = await problems(bot.store)
    assert any("large content" in problem and expected in problem for problem in found), found
    if "DELETE" in statement:
        [page] = [await bot.store.messages(CHAT)]
        assert not page.complete and "cannot be read" in page[0].content


@on_sqlite
async def test_an_event_whose_content_is_lost_blocks_its_conversation_alone(bot: History) -> None:
    await bot.append(CHAT, Message.user(large()))
    await sql(bot.outbox, "DELETE FROM letopis_outbox_contents")
    await bot.append("chat-2", Message.user(large()))
    page = await bot.messages(CHAT)
    assert not page.complete and "cannot be read" in page[0].content
    await Relay(bot.outbox, bot.store).drain_once()
    assert await texts(bot, "chat-2") == [large()]
    [message] = await bot.messages(CHAT)
    assert message.saved != "saved"


@on_sqlite
async def test_an_event_of_another_type_refers_to_nothing(bot: History) -> None:
    await bot.append(CHAT, Event(type="custom.feed", data={"copied": ODD}), Message.user("after"))
    await deliver_all(bot)
    [event] = [event for event in await bot.chat(CHAT).events() if event.type == "custom.feed"]
    assert event.data == {"copied": ODD}
    await assert_sound(bot)


async def test_too_much_is_refused_and_nothing_is_written(history: History) -> None:
    with pytest.raises(InvalidInput, match="64 MiB"):
        await history.append(CHAT, Message.user("x" * (66 * 1024 * 1024)))
    with pytest.raises(InvalidInput, match="Letopis"):
        await history.append(CHAT, Message.user("x", external_ids={"a": ODD}))
    assert not await history.messages(CHAT)


@pytest.mark.slow
async def test_one_string_of_64_mib_goes_through_whole(bot: History, store: ConversationStore) -> None:
    content = "0123456789abcdef" * (4 * 1024 * 1024)
    await bot.append(CHAT, Message.user(content))
    await deliver_all(bot)
    [message] = await store.messages(CHAT)
    assert message.content == content
    await assert_sound(bot)


# --- The ways that messages go: sessions of frameworks, export and import, move and salvage ---


async def test_export_has_it_in_place_and_import_once(bot: History, store: ConversationStore, tmp_path: Path) -> None:
    await bot.append(CHAT, Message.user(TEXT, id="m"), Message.user(TEXT, id="n"))
    pending = await exported(bot)
    await deliver_all(bot)
    assert await exported(bot) == await exported(store) == pending
    async with History(tmp_path / "second.outbox.db", store=store, relay=False, watch=False) as second:
        for _ in range(2):
            assert (await imported(second.outbox, store, pending))[1] == []
        await deliver_all(second)
        assert await texts(second) == [TEXT, TEXT]
        await assert_sound(second)
    async with History(tmp_path / "third.outbox.db", store=NOWHERE, relay=False, watch=False) as third:
        taken, refused = await imported(third.outbox, third.store, pending)
        assert (taken.imported, refused) == (2, [])
        assert [message.content for message in await third.messages(CHAT)] == [TEXT, TEXT]


@pytest.mark.parametrize("lost", [False, True])
async def test_a_salvage_keeps_the_events_whose_content_is_whole(tmp_path: Path, *, lost: bool) -> None:
    path = tmp_path / "bot.outbox.db"
    async with History(path, store=NOWHERE, relay=False, watch=False) as bot:
        await bot.append(CHAT, Message.user(TEXT, id="m"))
        await bot.append("chat-2", Message.user(PICTURE, id="n"))
        if lost:
            await sql(bot.outbox, "DELETE FROM letopis_outbox_contents WHERE lane = 1")
    done = await salvage(path, tmp_path / "new.db")
    assert dict(done.lost) == ({CHAT: (2,)} if lost else {})
    async with History(tmp_path / "new.db", store=NOWHERE, relay=False, watch=False) as salvaged:
        assert [message.content for message in await salvaged.messages("chat-2")] == [PICTURE]
        assert [message.content for message in await salvaged.messages(CHAT)] == ([] if lost else [TEXT])
        assert await salvaged.outbox.read(lambda connection: list(content_problems(connection))) == []
