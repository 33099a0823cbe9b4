"""Large content goes the ways that messages go: sessions of frameworks, export and import, move and salvage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from letopis.adapters.openai_agents import LetopisSession
from letopis.outbox import History
from letopis.outbox.diagnostics.integrity import content_problems
from letopis.outbox.diagnostics.salvage import salvage
from letopis.store import ConversationStore, InvalidInput, Message, move
from letopis.store.model.large_content import LARGE_BYTES
from tests.conformance.tables import assert_sound, large_contents, rows
from tests.support.relays import deliver_all, sql
from tests.support.sayings import problems
from tests.support.transfers import exported, imported

CHAT = "chat-1"
NOWHERE = "postgresql://127.0.0.1:1/none"
PICTURE = "data:image/png;base64," + "QUJD" * (LARGE_BYTES // 2)
TEXT = "ж\x01" * LARGE_BYTES


async def test_a_session_of_the_agents_sdk_keeps_a_picture_once(bot: History, store_url: str) -> None:
    session = LetopisSession(CHAT, bot)
    question = {
        "role": "user",
        "content": [{"type": "input_image", "image_url": PICTURE}, {"type": "input_text", "text": "?"}],
    }
    odd = {"role": "user", "content": f"\0{PICTURE}{'y' * 9_000_000}"}
    items: list[Any] = [dict(question) for _ in range(5)]
    for item in items:
        await session.add_items([item])
    assert await session.get_items() == items
    await deliver_all(bot)
    assert await large_contents(bot.store) == 1
    await session.add_items([odd])  # type: ignore[list-item]
    await deliver_all(bot)
    assert await session.get_items() == [*items, odd]
    assert max(len(row["data"]) for row in await rows(store_url, "letopis_events")) < 1_000_000
    await session.clear_session()
    await deliver_all(bot)
    await assert_sound(bot)


async def test_a_history_of_langchain_keeps_a_picture_once(bot: History) -> None:
    langchain = pytest.importorskip(
        "langchain_core.messages", reason="needs langchain-core: pip install 'letopis[langchain]'"
    )
    from letopis.adapters.langchain import LetopisChatMessageHistory

    chat = LetopisChatMessageHistory(CHAT, bot)
    said = [
        langchain.HumanMessage(
            [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "?"}], id="1"
        ),
        langchain.AIMessage("a cat", id="2"),
        langchain.HumanMessage([{"type": "image_url", "image_url": {"url": PICTURE}}], id="3"),
        langchain.HumanMessage(TEXT, id="4"),
    ]
    await chat.aadd_messages(said)
    for _ in range(2):
        assert langchain.messages_to_dict(await chat.aget_messages()) == langchain.messages_to_dict(said)
        await deliver_all(bot)
    assert await large_contents(bot.store) == 2
    await assert_sound(bot)


async def test_export_has_it_in_place_and_import_once(bot: History, store: ConversationStore, tmp_path: Path) -> None:
    await bot.append(CHAT, Message.user(TEXT, id="m"), Message.user(TEXT, id="n"))
    pending = await exported(bot)
    await deliver_all(bot)
    assert await exported(bot) == await exported(store) == pending
    async with History(tmp_path / "second.outbox.db", store=store, relay=False, watch=False) as second:
        for _ in range(2):
            assert (await imported(second.outbox, store, pending))[1] == []
        await deliver_all(second)
        assert [message.content for message in await second.messages(CHAT)] == [TEXT, TEXT]
        await assert_sound(second)
    async with History(tmp_path / "third.outbox.db", store=NOWHERE, relay=False, watch=False) as third:
        taken, refused = await imported(third.outbox, third.store, pending)
        assert (taken.imported, refused) == (2, [])
        assert [message.content for message in await third.messages(CHAT)] == [TEXT, TEXT]


async def test_a_move_takes_it_along(bot: History, store_url: str, tmp_path: Path) -> None:
    await bot.append(CHAT, Message.user(TEXT, id="m"))
    await deliver_all(bot)
    target = f"sqlite:///{tmp_path}/target.db"
    await move(store_url, target)
    async with ConversationStore.open(target) as moved:
        assert [message.content for message in await moved.messages(CHAT)] == [TEXT]
        assert await problems(moved) == []


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


async def test_a_transaction_writes_it_with_the_bots_rows(bot: History) -> None:
    async with bot.transaction() as tx:
        await tx.append(CHAT, Message.user(TEXT, id="m"))
    with pytest.raises(InvalidInput):
        async with bot.transaction() as tx:
            await tx.append(CHAT, Message.user(PICTURE, id="n"), Message.user("\0"))
    assert [message.content for message in await bot.messages(CHAT)] == [TEXT]
    await deliver_all(bot)
    assert await large_contents(bot.store) == 1
    await assert_sound(bot)
