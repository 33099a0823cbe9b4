"""The JSON of a bot keeps the order of its keys on every way that it takes, on the three stores."""

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson
import pytest

from letopis import NULL, ConversationStore, History, IdReused, Message, RecordedMessage, ToolCall, ToolResult
from letopis.outbox.drafts.completion import recover
from letopis.store import ConversationActivated
from letopis.store.ops.rebuild import rebuild
from letopis.store.rules.fold import fold
from tests.conformance.tables import on_sqlite
from tests.support.outboxes import exported, imported
from tests.support.relays import sql
from tests.support.sayings import change, present
from tests.support.sqlite_rows import rows

pytestmark = [on_sqlite, pytest.mark.usefixtures("store_url")]

CHAT = "chat"
DRAFTS = "SELECT data FROM letopis_outbox_drafts"
GIVEN: dict[str, Any] = {
    "type": "object",
    "properties": {"unit": {"enum": ["c", "f"]}, "city": {"type": "string", "default": None}},
    "additionalProperties": False,
    "Ёж": [{"b": 1.0, "a": 2}],
}


def turned(value: Any) -> Any:
    """The same value with the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(item) for key, item in reversed(value.items())}
    return [turned(item) for item in value] if isinstance(value, list) else value


def said(json: dict[str, Any], text: str = "it rains", **fields: Any) -> list[Message]:
    return [
        Message.assistant([ToolCall("c", "weather", json)], id="call", metadata=json, **fields),
        Message.tool(ToolResult("c", json), id="result", usage={"output": 3, "input": 2}),
        Message.assistant(text, id="answer", external_ids=json),
    ]


def prefix(messages: Any) -> bytes:
    """The bytes that a model's cache compares."""
    plain = [one.message if isinstance(one, RecordedMessage) else one for one in messages]
    return orjson.dumps([one.to_data() for one in plain])


async def test_reads_give_the_same_bytes_before_and_after_delivery(store_url: str, tmp_path: Path) -> None:
    expected = prefix(said(GIVEN))
    assert expected != prefix(said(turned(GIVEN)))
    path = tmp_path / "bot.outbox.db"
    async with History(path, store=store_url, relay=False) as history:
        await history.append(CHAT, *said(GIVEN), ConversationActivated(), owner="42", metadata=GIVEN)
        assert prefix(await history.messages(CHAT)) == expected
    texts = rows(path, "SELECT data FROM letopis_outbox_events WHERE type = 'message.appended'")
    assert [orjson.dumps(orjson.loads(text)).decode() for (text,) in texts] == [text for (text,) in texts]

    async with History(path, store=store_url) as history:
        assert await history.drained(60)
        assert prefix(await history.messages(CHAT)) == expected
        assert prefix((await history.context(CHAT, last=3)).messages) == expected
        [hit] = await history.search("rains", owner="42")
        assert prefix([hit.message]) == prefix(said(GIVEN)[2:])
    async with ConversationStore.open(store_url) as store:
        assert prefix(await store.messages(CHAT)) == expected
        events = await store.events(CHAT)
        assert prefix(fold(events).path) == expected
        about = [{key: item for key, item in one.metadata.items() if key in GIVEN} for one in events if one.metadata]
        assert [orjson.dumps(one) for one in about] == [orjson.dumps(GIVEN)] * 4


async def test_an_export_keeps_the_order_and_so_does_its_import(store_url: str, tmp_path: Path) -> None:
    async with History(tmp_path / "a.outbox.db") as history:
        await history.append(CHAT, *said(GIVEN), Message.assistant(None, id="silent"), Message.developer("Be brief."))
        assert await history.drained(60)
        expected = prefix(await history.messages(CHAT))
        lines = await exported(history)
    async with History(tmp_path / "b.outbox.db", store=store_url) as history:
        counts, refused = await imported(history.outbox, history.store, lines)
        assert (counts.imported, refused) == (5, [])
        assert await history.drained(60)
        assert prefix(await history.messages(CHAT)) == expected
        assert await exported(history) == lines


async def test_a_rebuild_keeps_the_order(store_url: str, tmp_path: Path) -> None:
    annotated = {"z": GIVEN, "reviewer": NULL, "a": 1}
    async with History(tmp_path / "bot.outbox.db", store=store_url) as history:
        await history.append(CHAT, *said(GIVEN))
        await history.chat(CHAT).annotate(annotated)
        pending = present(await history.chat(CHAT).conversation())
        await history.chat(CHAT).annotate({"a": None})
        assert await history.drained(60)
    assert orjson.dumps(dict(pending.metadata)) == orjson.dumps({"z": GIVEN, "reviewer": None, "a": 1})
    async with ConversationStore.open(store_url) as store:
        assert [one.differences async for one in rebuild(store, check=True)] == [()]
        await change(store, "UPDATE letopis_conversations SET metadata = NULL", "DELETE FROM letopis_messages")
        assert [one.written async for one in rebuild(store, every=True)] == [True]
        assert prefix(await store.messages(CHAT)) == prefix(said(GIVEN))
        conversation = present(await store.conversation(CHAT))
    assert orjson.dumps(dict(conversation.metadata)) == orjson.dumps({"z": GIVEN, "reviewer": None})


class Key(StrEnum):
    Z = "z"


async def test_a_draft_keeps_the_order_and_so_does_the_message_that_it_becomes(tmp_path: Path) -> None:
    """What the bot's process leaves behind when it dies, and what the next one recovers."""
    given = {Key.Z: 1, **GIVEN}
    plain = orjson.dumps({"z": 1, **GIVEN})
    path = tmp_path / "bot.outbox.db"
    async with History(path, relay=False) as history, History(path, relay=False) as next_one:
        block = history.reply(CHAT, metadata=given, every=0)
        reply = await block.__aenter__()
        await reply.add(ToolCall("c", "weather", given))
        async with asyncio.timeout(10):
            while not (drafts := await sql(history.outbox, DRAFTS)) or "tool_call" not in drafts[0][0]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        history._parts.replies.writer_lock.release()
        assert await recover(next_one.outbox, next_one._parts.replies.writer_lock) == 1
        [found] = await next_one.messages(CHAT)
        with pytest.raises(IdReused):
            await block.__aexit__(None, None, None)

    draft = orjson.loads(drafts[0][0])
    assert orjson.dumps(draft["metadata"]) == orjson.dumps(draft["content"][0]["arguments"]) == plain
    assert found.interrupted and isinstance(found.content, tuple)
    [call] = found.content
    assert isinstance(call, ToolCall)
    assert orjson.dumps(found.message.metadata) == orjson.dumps(call.arguments) == plain
