"""A client of Kurigram without a network: its own dispatcher and methods, with a server of ours behind ``invoke``."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyrogram", reason="needs Kurigram: pip install 'letopis[pyrogram]'")

from pyrogram import Client, filters, raw, types
from pyrogram.errors import FloodWait, UserIsBlocked
from pyrogram.handlers import MessageHandler

from letopis.adapters.pyrogram import LetopisRecorder, unrecorded
from letopis.outbox import History
from letopis.store import Delivery, InvalidInput
from tests.support.bot_api import BOT_ID

ADA = 1001
CHAT = f"tg:{BOT_ID}:{ADA}"


class Offline(Client):
    """A client whose Telegram is this class."""

    def __init__(self) -> None:
        super().__init__("test", api_id=1, api_hash="x", in_memory=True, no_updates=False, workers=1)
        self.calls: list[Any] = []
        self.troubles: list[BaseException] = []
        self._numbers = itertools.count(501)
        self.me = types.User(id=BOT_ID, is_bot=True, first_name="Bot")

    async def resolve_peer(self, peer_id: Any) -> Any:
        return raw.types.InputPeerUser(user_id=peer_id, access_hash=0)

    async def invoke(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(query)
        if self.troubles:
            raise self.troubles.pop(0)
        if isinstance(query, raw.functions.messages.DeleteMessages):
            return raw.types.messages.AffectedMessages(pts=1, pts_count=1)
        if isinstance(query, raw.functions.messages.EditMessage):
            return self._updates(raw.types.UpdateEditMessage, query.id, query.message)
        if isinstance(query, raw.functions.messages.SendMessage):
            return self._updates(raw.types.UpdateNewMessage, next(self._numbers), query.message)
        if isinstance(query, raw.functions.upload.SaveFilePart):
            return True
        if isinstance(query, raw.functions.messages.SendMedia):
            return self._updates(raw.types.UpdateNewMessage, next(self._numbers), query.message)
        raise AssertionError(f"nobody has thought of {type(query).__name__}")

    async def save_file(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        return raw.types.InputFile(id=1, parts=1, name=Path(str(path)).name, md5_checksum="")

    def _updates(self, kind: Any, number: int, text: str) -> Any:
        return raw.types.Updates(
            updates=[kind(message=self.message(number, text, out=True), pts=1, pts_count=1)],
            users=[_user(ADA), _user(BOT_ID, bot=True)],
            chats=[],
            date=0,
            seq=0,
        )

    def message(self, number: int, text: str, *, out: bool = False, edited: int | None = None) -> Any:
        """A message as MTProto has it, in the chat with Ada."""
        return raw.types.Message(
            id=number,
            peer_id=raw.types.PeerUser(user_id=ADA),
            from_id=raw.types.PeerUser(user_id=BOT_ID if out else ADA),
            date=int(time.time()),
            message=text,
            out=out,
            edit_date=edited,
            entities=[],
            restriction_reason=[],
        )

    def receive(self, update: Any) -> None:
        """Dispatch an update, as the client does when one has come."""
        users = {ADA: _user(ADA), BOT_ID: _user(BOT_ID, bot=True)}
        self.dispatcher.updates_queue.put_nowait((update, users, {}))

    def say(self, number: int, text: str) -> None:
        """Receive a message of Ada."""
        self.receive(raw.types.UpdateNewMessage(message=self.message(number, text), pts=1, pts_count=1))


def _user(number: int, **fields: Any) -> Any:
    return raw.types.User(id=number, first_name="Ada", access_hash=0, lang_code="ru", restriction_reason=[], usernames=[], **fields)


@asynccontextmanager
async def dispatching(client: Offline) -> AsyncIterator[None]:
    """Run the client's own dispatcher."""
    client.loop = asyncio.get_running_loop()
    client.skip_updates = True
    await client.dispatcher.start()
    try:
        yield
    finally:
        await client.dispatcher.stop()


@pytest.fixture
async def base(tmp_path: Path) -> AsyncIterator[History]:
    """A history that delivers nothing."""
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as opened:
        yield opened


@pytest.fixture
def recorder(base: History, tmp_path: Path) -> LetopisRecorder:
    """A recorder on that history."""
    return LetopisRecorder(base, files=tmp_path / "files")


async def eventually(condition: Any) -> None:
    """Wait until a condition holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come to that")


async def said(history: History) -> list[tuple[str, str]]:
    """What the conversation with Ada holds."""
    return [(one.role, one.text) for one in await history.messages(CHAT)]


async def test_both_sides_are_recorded(base: History, recorder: LetopisRecorder) -> None:
    client, seen = Offline(), list[str]()
    client.loop = asyncio.get_running_loop()

    async def answer(_: Client, message: Any) -> None:
        history = await recorder.chat(message)
        seen.append((await history.messages())[-1].text)
        await message.reply(f"answer to {message.text}")

    recorder.attach(client)
    client.add_handler(MessageHandler(answer, filters.text))
    async with dispatching(client):
        client.say(7, "What is tea?")
        await eventually(lambda: len(client.calls) == 1)
        client.say(7, "What is tea?")  # the same again
        await eventually(lambda: len(client.calls) == 2)

    assert seen == ["What is tea?", "answer to What is tea?"]
    question, answered, repeated = await base.messages(CHAT)
    assert (question.id, question.message.external_ids) == ("tg:1001:7", {"telegram": 7})
    assert (answered.text, answered.delivery) == ("answer to What is tea?", Delivery.SENT)
    assert answered.delivery_data["platform_ids"] == {"telegram": 501}
    assert repeated.text == answered.text  # the bot has answered twice, to one question


async def test_edits_and_deletions_are_followed(base: History, recorder: LetopisRecorder) -> None:
    client = Offline()
    client.loop = asyncio.get_running_loop()
    recorder.attach(client)
    async with dispatching(client):
        client.say(7, "What is te?")
        client.receive(
            raw.types.UpdateEditMessage(message=client.message(7, "What is tea?", edited=9), pts=1, pts_count=1)
        )
        await eventually(client.dispatcher.updates_queue.empty)
        sent = await client.send_message(ADA, "draft")
        await client.edit_message_text(ADA, sent.id, "final")
        gone = await client.send_message(ADA, "wrong")
        await client.delete_messages(ADA, gone.id)
        with unrecorded():
            await client.send_message(ADA, "one moment")

    found = [(one.text, one.redacted) for one in await base.messages(CHAT)]
    assert found == [("What is tea?", False), ("final", False), ("", True)]


async def test_what_telegram_refuses_is_recorded(base: History, recorder: LetopisRecorder) -> None:
    client = Offline()
    client.loop = asyncio.get_running_loop()
    recorder.attach(client)
    client.troubles = [UserIsBlocked(), FloodWait(3), ConnectionError()]
    for text, error in (("one", UserIsBlocked), ("two", FloodWait), ("three", ConnectionError)):
        with pytest.raises(error):
            await client.send_message(ADA, text)
    await client.send_message(ADA, "two")  # after the wait: the same message

    found = {one.text: one.delivery for one in await base.messages(CHAT)}
    assert found == {"one": Delivery.FAILED, "two": Delivery.SENT, "three": Delivery.APPENDED}
    assert len(await said(base)) == 3


async def test_a_long_answer_is_a_file_and_one_message(base: History, recorder: LetopisRecorder) -> None:
    client, long = Offline(), "Tea is a leaf. " * 300
    client.loop = asyncio.get_running_loop()
    recorder.attach(client)

    async def answer(_: Client, message: Any) -> None:
        sent = await recorder.smart_send(message, long, entities=[{"type": "bold", "offset": 0, "length": 3}])
        assert sent.sent_as == "file"
        await recorder.smart_send(message, "short", reply=True)

    client.add_handler(MessageHandler(answer))
    async with dispatching(client):
        client.say(7, "Tell me all")
        await eventually(lambda: len(client.calls) >= 2)
        await eventually(client.dispatcher.updates_queue.empty)
        await asyncio.sleep(0.2)

    assert await said(base) == [("user", "Tell me all"), ("assistant", long), ("assistant", "short")]
    (_, file, _) = await base.messages(CHAT)
    assert Path(file.delivery_data["file_path"]).read_text(encoding="utf-8") == long


async def test_wrong_use_is_named(base: History, tmp_path: Path) -> None:
    recorder = LetopisRecorder(tmp_path / "other.outbox.db", relay=False)
    with pytest.raises(InvalidInput, match="not started"):
        _ = recorder.parts
    client = Offline()
    client.loop = asyncio.get_running_loop()
    async with recorder:
        recorder.attach(client)
        with pytest.raises(InvalidInput, match="connected already"):
            recorder.attach(client)
        await client.send_message(ADA, "hello")
        assert await said(recorder.history) == [("assistant", "hello")]
    with pytest.raises(InvalidInput, match="open already"):
        LetopisRecorder(base, store="x.db")
