"""An item that is kept as text is reached by all that reaches a message: erasure, forks, moves, salvage, exports."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from letopis.adapters._envelope import to_text
from letopis.adapters.formats import openai_responses
from letopis.ops.salvage.salvage import salvage
from letopis.outbox import History
from letopis.store import ConversationStore, Data, InvalidInput, Message, RecordedMessage, ToolCall, ToolResult
from letopis.store.ops.move import move
from tests.integration.test_erasure_bytes import assert_gone_soon, holding
from tests.support.sayings import NewStore
from tests.support.servers.store_pool import migrate
from tests.support.values.items import TOKEN, VALUES

CHAT = "c1"
KINDS = {kind.name: kind for kind in VALUES}
NUL = KINDS["nul"]
SOME = [KINDS[name].output for name in ("nul", "nan", "64-bits", "depth-300", "1.1-mb")]


def _items(messages: Sequence[RecordedMessage]) -> list[str]:
    return [to_text(one) for one in openai_responses.from_messages(messages)]


WANTED = [to_text(one) for one in SOME]


async def _append(history: History, items: Sequence[Any]) -> list[str]:
    messages = openai_responses.to_messages(items)
    await history.append(CHAT, *messages, owner="42")
    return [one.id for one in messages]


def test_the_content_is_readable() -> None:
    for kind in VALUES:
        (message,) = openai_responses.to_messages([kind.output])
        assert message.role == "tool"
        assert isinstance(message.content, tuple)
        (part,) = message.content
        assert isinstance(part, ToolResult) and part.call_id == f"call-{kind.name}"
        assert len(json.dumps(message.to_data())) < 9_000_000
    (message,) = openai_responses.to_messages([NUL.output])
    assert message.content == (ToolResult("call-nul", f"a\ufffdb {TOKEN}"),)
    (message,) = openai_responses.to_messages([KINDS["1.1-mb"].output])  # no longer odd: it is kept apart
    assert message.content == (ToolResult("call-1.1-mb", KINDS["1.1-mb"].output["output"]),)


def test_a_call_keeps_its_result_when_both_ids_are_odd() -> None:
    items = [
        {"type": "function_call", "call_id": "a\0", "name": "look\ud800", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a\0", "output": "x"},
    ]
    call, result = openai_responses.to_messages(items)
    assert call.content == (ToolCall("a\ufffd", "look\ufffd", "{}"),)
    assert result.content == (ToolResult("a\ufffd", "x"),)
    assert openai_responses.from_messages([call, result]) == items


async def test_an_append_by_hand_is_refused_as_before(history: History) -> None:
    for wrong in ("a\0b", "\ud800", ["x" * 1_000] * 1_100):
        with pytest.raises(InvalidInput):
            await history.append(CHAT, Message.user(wrong if isinstance(wrong, str) else [Data(wrong)]))
        with pytest.raises(InvalidInput):
            await history.append(CHAT, Message.user("x", metadata={"format": {"item": wrong}}))
    assert len(await history.messages(CHAT)) == 0


@pytest.mark.parametrize("how", ["redact", "delete", "reset"])
async def test_no_byte_of_it_is_left(tmp_path: Path, how: str) -> None:
    path, store = tmp_path / "bot.outbox.db", tmp_path / "bot.history.db"
    async with History(path) as history:
        [message_id] = await _append(history, [NUL.output])
        assert await history.drained(timeout=30)
        # The control: it is where it is looked for, in both files.
        assert {name.partition(".db")[0] for name in holding(path, store)} == {"bot.outbox", "bot.history"}
        await getattr(history.chat(CHAT), how)(*([message_id] if how == "redact" else []))
        assert await history.drained(timeout=30)
        await assert_gone_soon(path, store)


async def test_no_byte_of_it_is_left_after_it_was_redacted_while_pending(tmp_path: Path) -> None:
    path = tmp_path / "bot.outbox.db"
    async with History(path, relay=False) as history:
        [message_id] = await _append(history, [NUL.output])
        await history.chat(CHAT).redact(message_id)
        await assert_gone_soon(path)


async def test_a_fork_gives_it_back(bot: History) -> None:
    await _append(bot, SOME)
    await bot.chat(CHAT).fork("c2")
    assert _items(await bot.messages("c2")) == WANTED


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_a_move_gives_it_back(kind: str, tmp_path: Path, new_store_url: NewStore) -> None:
    source, target = new_store_url("sqlite"), new_store_url(kind)
    items = [*SOME, KINDS["3-mb"].output]
    async with History(tmp_path / "a.outbox.db", store=source) as history:
        await _append(history, items)
        assert await history.drained(timeout=60)
    await migrate(target)
    await move(source, target)
    async with ConversationStore.open(target) as store:
        assert _items(await store.messages(CHAT, last=None)) == [to_text(one) for one in items]


async def test_salvage_gives_it_back(tmp_path: Path) -> None:
    await _recorded(tmp_path / "bot.outbox.db", SOME)
    done = await salvage(tmp_path / "bot.outbox.db", tmp_path / "new.outbox.db")
    assert (done.lost, done.refused) == ({}, 0)
    async with History(tmp_path / "new.outbox.db", relay=False) as history:
        assert _items(await history.messages(CHAT)) == WANTED


@pytest.mark.usefixtures("elsewhere")
def test_exported_and_imported_it_is_the_same(letopis: Any, tmp_path: Path) -> None:
    items = [*SOME, KINDS["3-mb"].output]
    asyncio.run(_recorded(tmp_path / "bot.outbox.db", items))

    def run(*command: str) -> None:
        code, _, told = letopis(*command)
        assert code == 0, told

    run("relay", "--once")
    run("history", "export", "jsonl", "out.jsonl")
    for name in ("bot.outbox.db", "bot.history.db"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    run("history", "import", "jsonl", "out.jsonl")

    async def read() -> list[str]:
        async with History(tmp_path / "bot.outbox.db", relay=False) as history:
            return _items(await history.messages(CHAT))

    assert asyncio.run(read()) == [to_text(one) for one in items]


async def test_the_sdks_encrypted_session_wraps_ours(history: History) -> None:
    pytest.importorskip("agents", reason="needs openai-agents")
    pytest.importorskip("cryptography", reason="needs cryptography")
    from agents.extensions.memory import EncryptedSession

    from letopis.adapters.openai_agents import LetopisSession

    ours = LetopisSession(CHAT, history)
    session = EncryptedSession(CHAT, ours, "a key of the test")
    items: Any = [{"role": "user", "content": "What is tea?"}, *SOME[:3]]
    await session.add_items(items)
    assert [to_text(one) for one in await session.get_items()] == [to_text(one) for one in items]
    assert {"__enc__", "v", "kid", "payload"} <= (await ours.get_items())[0].keys()
    assert to_text(await session.pop_item()) == to_text(items[-1])


async def _recorded(path: Path, items: Sequence[Any]) -> None:
    async with History(path, relay=False) as history:
        await _append(history, items)
