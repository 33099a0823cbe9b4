"""A client of Kurigram without a network: its own dispatcher and methods, with a server of ours behind ``invoke``."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyrogram", reason="needs Kurigram: pip install 'letopis[pyrogram]'")

from pyrogram import Client, filters, raw
from pyrogram.errors import FloodWait, UserIsBlocked
from pyrogram.handlers import MessageHandler

from letopis.adapters.pyrogram import LetopisRecorder, unrecorded
from letopis.outbox import History
from letopis.store import Delivery, InvalidInput
from tests.support.bot_api import BOT_ID
from tests.support.pyrogram_clients import ADA, Offline, dispatching
from tests.support.relays import until

CHAT = f"tg:{BOT_ID}:{ADA}"


@pytest.fixture
def recorder(history: History, tmp_path: Path) -> LetopisRecorder:
    return LetopisRecorder(history, files=tmp_path / "files")


def offline() -> Offline:
    client = Offline()
    client.loop = asyncio.get_running_loop()
    return client


@pytest.fixture
async def client(recorder: LetopisRecorder) -> Offline:
    client = offline()
    recorder.attach(client)
    return client


async def said(history: History) -> list[tuple[str, str]]:
    return [(one.role, one.text) for one in await history.messages(CHAT)]


async def test_both_sides_are_recorded(history: History, recorder: LetopisRecorder, client: Offline) -> None:
    seen = list[str]()

    async def answer(_: Client, message: Any) -> None:
        chat = await recorder.chat(message)
        seen.append((await chat.messages())[-1].text)
        await message.reply(f"answer to {message.text}")

    client.add_handler(MessageHandler(answer, filters.text))
    async with dispatching(client):
        client.say(7, "What is tea?")
        await until(lambda: len(client.calls) == 1)
        client.say(7, "What is tea?")  # the same again
        await until(lambda: len(client.calls) == 2)

    assert seen == ["What is tea?", "answer to What is tea?"]
    question, answered, repeated = await history.messages(CHAT)
    assert (question.id, question.message.external_ids) == ("tg:1001:7", {"telegram": 7})
    assert (answered.text, answered.delivery) == ("answer to What is tea?", Delivery.SENT)
    assert answered.delivery_data["platform_ids"] == {"telegram": 501}
    assert repeated.text == answered.text  # the bot has answered twice, to one question


async def test_a_question_is_the_last_of_its_context_though_another_has_come(
    recorder: LetopisRecorder, client: Offline
) -> None:
    seen = list[str]()

    async def answer(_: Client, message: Any) -> None:
        later = {"message_id": 8, "date": 1, "chat": {"id": ADA}, "from": {"id": ADA}, "text": "And coffee?"}
        await recorder.parts.incoming.record({"update_id": 1, "message": later})
        chat = await recorder.chat(message)
        seen.append((await chat.context(turns=20)).messages[-1].text)
        await recorder.smart_send(message, "A leaf.")

    client.add_handler(MessageHandler(answer, filters.text))
    async with dispatching(client):
        client.say(7, "What is tea?")
        await until(lambda: len(client.calls) == 1)

    assert seen == ["What is tea?"]


async def test_edits_and_deletions_are_followed(history: History, client: Offline) -> None:
    async with dispatching(client):
        client.say(7, "What is coffee?")
        edited = client.message(7, "What is tea?", edited=9)
        client.receive(raw.types.UpdateEditMessage(message=edited, pts=1, pts_count=1))
        await until(client.dispatcher.updates_queue.empty)
        sent = await client.send_message(ADA, "draft")
        await client.edit_message_text(ADA, sent.id, "final")
        gone = await client.send_message(ADA, "wrong")
        await client.delete_messages(ADA, gone.id)
        with unrecorded():
            await client.send_message(ADA, "one moment")
    found = [(one.text, one.redacted) for one in await history.messages(CHAT)]
    assert found == [("What is tea?", False), ("final", False), ("", True)]


async def test_what_telegram_refuses_is_recorded(history: History, client: Offline) -> None:
    client.troubles = [UserIsBlocked(), FloodWait(3), ConnectionError()]
    for text, error in (("one", UserIsBlocked), ("two", FloodWait), ("three", ConnectionError)):
        with pytest.raises(error):
            await client.send_message(ADA, text)
    await client.send_message(ADA, "two")  # after the wait: the same message
    found = {one.text: one.delivery for one in await history.messages(CHAT)}
    assert found == {"one": Delivery.FAILED, "two": Delivery.SENT, "three": Delivery.APPENDED}
    assert len(await said(history)) == 3


async def test_a_long_answer_is_a_file(history: History, recorder: LetopisRecorder, client: Offline) -> None:
    long = "Tea is a leaf. " * 300

    async def answer(_: Client, message: Any) -> None:
        sent = await recorder.smart_send(message, long, entities=[{"type": "bold", "offset": 0, "length": 3}])
        assert sent.sent_as == "file"
        await recorder.smart_send(message, "short", reply=True)

    client.add_handler(MessageHandler(answer))
    async with dispatching(client):
        client.say(7, "Tell me all")
        await until(lambda: len(client.calls) >= 2)
        await until(client.dispatcher.updates_queue.empty)
        await asyncio.sleep(0.2)

    assert await said(history) == [("user", "Tell me all"), ("assistant", long), ("assistant", "short")]
    (_, file, _) = await history.messages(CHAT)
    assert Path(file.delivery_data["file_path"]).read_text(encoding="utf-8") == long


async def test_reply_that_a_failed_call_kept_back_is_sent_after_the_next_start(tmp_path: Path) -> None:
    client, path = offline(), tmp_path / "other.outbox.db"
    client.troubles = [ConnectionError()]
    async with LetopisRecorder(path, relay=False) as recorder:
        recorder.attach(client)
        with pytest.raises(ConnectionError):
            await client.send_message(ADA, "**Good day**")
    client = offline()
    async with LetopisRecorder(path, relay=False, sender=True) as recorder:
        recorder.attach(client)
        while await recorder.history.unconfirmed():  # noqa: ASYNC110 - nothing rings
            await asyncio.sleep(0.01)
        [message] = await recorder.history.messages(CHAT)

    assert [(call.message, len(call.entities)) for call in client.calls] == [("Good day", 1)]
    assert (message.text, message.delivery) == ("**Good day**", Delivery.SENT)
    assert message.delivery_data["platform_ids"] == {"telegram": 501}


async def test_wrong_use_is_named(history: History, tmp_path: Path) -> None:
    recorder = LetopisRecorder(tmp_path / "other.outbox.db", relay=False)
    with pytest.raises(InvalidInput, match="not started"):
        _ = recorder.parts
    client = offline()
    async with recorder:
        recorder.attach(client)
        with pytest.raises(InvalidInput, match="connected already"):
            recorder.attach(client)
        await client.send_message(ADA, "hello")
        assert await said(recorder.history) == [("assistant", "hello")]
    with pytest.raises(InvalidInput, match="open already"):
        LetopisRecorder(history, store="x.db")
