"""An answer of any length reaches the user, whatever Telegram refuses, and is one message of the history."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, call

import pytest

from letopis.adapters.telegram_core import answer_files
from letopis.adapters.telegram_core.bot import BotParts
from letopis.adapters.telegram_core.calls import Failure, failure_of
from letopis.adapters.telegram_core.chat_history import ChatHistory
from letopis.adapters.telegram_core.smart_send import SmartSender
from letopis.adapters.telegram_core.splitting import TEXT_LIMIT, Entity, units
from letopis.outbox import History
from letopis.store.model.conversations import Delivery, RecordedMessage
from tests.support.telegram_calls import PLACE, Refused, Telegram

LONG = "\n\n".join(f"Paragraph {number}. " + "Words of tea. " * 20 for number in range(30))


@pytest.fixture
def sleep() -> AsyncMock:
    return AsyncMock()


@pytest.fixture
def sender(parts: BotParts, sleep: AsyncMock) -> SmartSender:
    return SmartSender(parts.outgoing, sleep=sleep)


async def only(parts: BotParts) -> RecordedMessage:
    [message] = await parts.history.messages(PLACE.owner)
    return message


async def test_a_short_answer_is_a_message(sender: SmartSender, parts: BotParts) -> None:
    telegram = Telegram()
    sent = await sender.send(telegram, PLACE, "A leaf.", [{"type": "bold", "offset": 2, "length": 4}])
    assert (telegram.shown, telegram.last, telegram.entities) == ([("text", "A leaf.")], [True], 1)
    message = await only(parts)
    assert (message.text, message.delivery) == ("A leaf.", Delivery.SENT)
    assert message.delivery_data == {"platform_ids": {"telegram": 501}, "sent_as": "message"}
    assert (sent.sent_as, sent.numbers, sent.message_id) == ("message", (501,), message.id)


async def test_a_long_answer_is_a_file_with_a_preview(sender: SmartSender, parts: BotParts) -> None:
    telegram = Telegram()
    sent = await sender.send(telegram, PLACE, LONG, language="ru")
    assert telegram.shown == [("document", LONG)]
    [preview] = telegram.captions
    assert preview.startswith("Paragraph 0.") and preview.endswith("📎 Полный ответ в файле.")
    assert units(preview) < 1024
    message = await only(parts)
    assert (message.text, message.delivery_data["sent_as"]) == (LONG, "file")
    path = Path(message.delivery_data["file_path"])
    assert (path.read_text(encoding="utf-8"), sent.file_path) == (LONG, str(path))
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("failure", [failure_of(413, "Request Entity Too Large"), failure_of(400, "Bad Request: file")])
async def test_a_failed_file_is_split(sender: SmartSender, parts: BotParts, tmp_path: Path, failure: Failure) -> None:
    telegram = Telegram([failure])
    sent = await sender.send(telegram, PLACE, LONG)
    assert sent.sent_as == "messages"
    assert len(telegram.shown) > 1
    assert all(units(text) <= TEXT_LIMIT for _, text in telegram.shown)
    assert telegram.last == [False] * (len(telegram.shown) - 1) + [True]
    assert " ".join(text for _, text in telegram.shown).split() == LONG.split()
    numbers = {"telegram": list(sent.numbers)}
    assert (await only(parts)).delivery_data == {"platform_ids": numbers, "sent_as": "messages"}
    assert list((tmp_path / "files").iterdir()) == []


async def test_a_file_that_may_have_been_shown_is_not_sent_a_second_time_as_text(
    sender: SmartSender, parts: BotParts, tmp_path: Path
) -> None:
    telegram = Telegram([failure_of(502, "Bad Gateway")])
    with pytest.raises(Refused):
        await sender.send(telegram, PLACE, LONG)
    assert telegram.shown == []
    assert (await only(parts)).delivery is Delivery.APPENDED
    assert list((tmp_path / "files").iterdir()) == []
    assert (await sender.send(telegram, PLACE, LONG)).sent_as == "file"  # again, as the same message
    assert (await only(parts)).delivery is Delivery.SENT


@pytest.mark.parametrize("moment", ["writing", "sending"])
async def test_a_cancelled_send_leaves_no_file(
    sender: SmartSender, parts: BotParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    begun, go = asyncio.Event(), threading.Event()
    loop, write = asyncio.get_running_loop(), answer_files._write

    def slowly(path: Path, text: str) -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait(20)
        write(path, text)

    class Hanging(Telegram):
        async def send_file(self, path: Path, name: str, caption: str, entities: Sequence[Entity]) -> int:
            assert path.exists()
            begun.set()
            return await asyncio.Event().wait()

    if moment == "writing":
        monkeypatch.setattr(answer_files, "_write", slowly)
    sending = asyncio.create_task(sender.send(Hanging(), PLACE, LONG))
    await begun.wait()
    sending.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await sending

    assert list((tmp_path / "files").iterdir()) == []
    assert (await only(parts)).delivery is Delivery.APPENDED


async def test_the_file_of_an_answer_goes_with_its_content(
    sender: SmartSender, parts: BotParts, tmp_path: Path
) -> None:
    def held() -> list[bool]:
        return [b"Words of tea" in path.read_bytes() for path in (tmp_path / "files").iterdir()]

    first, second = await sender.send(Telegram(), PLACE, LONG), await sender.send(Telegram(), PLACE, LONG)
    assert held() == [True, True]  # the control: the search finds what is there
    gone = {"chat_id": 1001, "message_id": first.numbers[0]}
    await parts.history.chat(PLACE.owner).sent(str(second.message_id), platform_ids={"telegram": 777})
    await parts.outgoing.after("deleteMessage", await parts.outgoing.before("deleteMessage", gone), True)
    assert held() == [True]
    chat = ChatHistory(chats=parts.chats, key=PLACE, conversation_id=PLACE.owner)
    await chat.redact(str(second.message_id), reason="asked")
    assert held() == []
    assert [one.redacted for one in await parts.history.messages(PLACE.owner)] == [True, True]


async def test_if_the_disk_refuses_the_file_it_is_split(history: History, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    sender = BotParts.of(history, 7000, files=tmp_path / "taken" / "files").sender
    assert (await sender.send(Telegram(), PLACE, LONG)).sent_as == "messages"


async def test_a_limit_is_waited_out(sender: SmartSender, parts: BotParts, sleep: AsyncMock) -> None:
    telegram = Telegram([failure_of(429, "Too Many Requests", {"retry_after": 7})] * 2)
    await sender.send(telegram, PLACE, "A leaf.")
    assert sleep.await_args_list == [call(7.0), call(7.0)]
    assert (await only(parts)).delivery is Delivery.SENT


async def test_formatting_that_is_refused_is_left_out(sender: SmartSender, parts: BotParts) -> None:
    telegram = Telegram([failure_of(400, "Bad Request: can't parse entities")])
    await sender.send(telegram, PLACE, "A leaf.", [{"type": "bold", "offset": 2, "length": 4}])
    assert (telegram.shown, telegram.entities) == ([("text", "A leaf.")], 0)
    assert (await only(parts)).delivery is Delivery.SENT


@pytest.mark.parametrize(
    ("fails", "delivery"),
    [
        ([failure_of(403, "Forbidden: bot was blocked by the user")], Delivery.FAILED),
        ([failure_of(413, "Too Large"), None, failure_of(400, "Bad Request: odd")], Delivery.APPENDED),
    ],
    ids=["a blocked bot", "a part after others were shown"],
)
async def test_a_refusal_is_raised_and_a_failure_unless_something_was_shown(
    sender: SmartSender, parts: BotParts, tmp_path: Path, fails: list[Failure | None], delivery: Delivery
) -> None:
    telegram = Telegram(list(fails))
    with pytest.raises(Refused):
        await sender.send(telegram, PLACE, LONG)
    assert bool(telegram.shown) is (delivery is Delivery.APPENDED)
    assert (await only(parts)).delivery is delivery
    assert list((tmp_path / "files").iterdir()) == []


async def test_only_what_was_not_confirmed_is_sent_again(sender: SmartSender, parts: BotParts) -> None:
    telegram = Telegram([failure_of(413, "Too Large"), None, failure_of(502, "Bad Gateway")])
    with pytest.raises(Refused):
        await sender.send(telegram, PLACE, LONG)
    assert (await only(parts)).delivery is Delivery.APPENDED
    sent = await sender.send(telegram, PLACE, LONG)
    assert " ".join(text for _, text in telegram.shown).split() == LONG.split()
    assert len(sent.numbers) == len(telegram.shown)
    assert (await only(parts)).delivery_data["platform_ids"]["telegram"] == list(sent.numbers)


@pytest.mark.parametrize("text", ["", " \n "])
async def test_an_empty_answer_is_refused_and_not_recorded(sender: SmartSender, parts: BotParts, text: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        await sender.send(Telegram(), PLACE, text)
    assert await parts.history.chat(PLACE.owner).conversation() is None


@pytest.mark.parametrize("wrong", [{"threshold": 5000}, {"threshold": 63}, {"preview": 1000}])
async def test_limits_of_telegram_cannot_be_exceeded(parts: BotParts, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        SmartSender(parts.outgoing, **wrong)
