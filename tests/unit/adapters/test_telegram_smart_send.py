"""An answer of any length reaches the user, whatever Telegram refuses, and is sent again after a crash."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, call

import pytest

from letopis.adapters.telegram_core import answer_files
from letopis.adapters.telegram_core.bot import HANDLING_LIMIT, BotParts
from letopis.adapters.telegram_core.calls import Failure, failure_of
from letopis.adapters.telegram_core.chat_history import ChatHistory
from letopis.adapters.telegram_core.smart_send import SmartSender
from letopis.adapters.telegram_core.splitting import TEXT_LIMIT, Entity, units
from letopis.outbox import History, UnsentReply
from letopis.store import InvalidInput, Message, MessageSent, SendRefused
from letopis.store.model.conversations import Delivery, RecordedMessage
from letopis.store.model.events import utc_now
from letopis.store.model.parts import Content, Data, File, Text
from tests.support.telegram_calls import PLACE, Refused, Telegram, handling

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


async def test_an_empty_answer_and_limits_beyond_those_of_telegram_are_refused(
    sender: SmartSender, parts: BotParts
) -> None:
    limits: tuple[dict[str, Any], ...] = ({"threshold": 5000}, {"threshold": 63}, {"preview": 1000})
    for wrong in limits:
        with pytest.raises(ValueError, match="must be"):
            SmartSender(parts.outgoing, **wrong)
    for text in ("", " \n "):
        with pytest.raises(ValueError, match="empty"):
            await sender.send(Telegram(), PLACE, text)
    assert await parts.history.chat(PLACE.owner).conversation() is None


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


QUESTION = {"message_id": 5, "date": 1_790_000_000, "chat": {"id": 1001}, "text": "What is tea?"}
ASKED = {"update_id": 1, "message": QUESTION}


def reply(content: Content, **more: Any) -> UnsentReply:
    about = {"metadata": {"telegram": more.pop("telegram")}} if "telegram" in more else {}
    given: dict[str, Any] = {
        "conversation_id": PLACE.owner,
        "owner_id": PLACE.owner,
        "message": Message.assistant(content, id="0192d6a0-0000-7000-8000-000000000001", **about),
        "appended_at": utc_now(),
        "idempotency_key": "key",
        "attempt": 1,
    }
    return UnsentReply(**{**given, **more})


def photo(uri: str) -> File:
    return File(uri, "image/jpeg", "photo")


@pytest.mark.parametrize(
    ("content", "shown", "sent_as"),
    [
        ("A leaf.", [("text", "A leaf.")], "message"),
        (LONG, [("document", LONG)], "file"),
        ((Text("A leaf"), photo("tg-file:AgAC")), [("photo", "AgAC", "A leaf")], "photo"),
        (
            (photo("tg-file:one"), Text("and"), photo("https://tea.example/two"), Text("done")),
            [("photo", "one", ""), ("photo", "https://tea.example/two", "and"), ("text", "done")],
            "photo",
        ),
    ],
    ids=["text", "long text", "photo", "several"],
)
async def test_what_the_history_holds_is_sent(
    parts: BotParts, content: Content, shown: list[tuple[str, ...]], sent_as: str
) -> None:
    telegram = Telegram()
    sent = await parts.send_again(reply(content, telegram={"parse_mode": "HTML"}), telegram.to)
    assert telegram.shown == shown
    assert (telegram.place, telegram.options) == (PLACE, {"parse_mode": "HTML"})
    assert isinstance(sent, MessageSent)
    numbers = [500 + number for number in range(1, len(shown) + 1)]
    assert sent.platform_ids == {"telegram": numbers[0] if len(numbers) == 1 else numbers}
    assert sent.sent_as == sent_as
    assert (sent.file_path is not None) == (sent_as == "file")


@pytest.mark.parametrize(
    "given",
    [
        reply((File("tg-upload:report.pdf", None, "report.pdf"),)),
        reply((Data({"method": "sendPoll"}),)),
        reply("A leaf.", owner_id="tg:8000:1001"),
        reply("A leaf.", owner_id=None, conversation_id="a web page"),
    ],
    ids=["an upload", "a poll", "another bot's", "another chat's"],
)
async def test_what_cannot_be_sent_is_refused(parts: BotParts, given: UnsentReply) -> None:
    telegram = Telegram()
    with pytest.raises(SendRefused):
        await parts.send_again(given, telegram.to)
    assert telegram.shown == []


async def test_only_what_telegram_refuses_is_given_up(parts: BotParts) -> None:
    blocked = failure_of(403, "Forbidden: bot was blocked by the user")
    moved = failure_of(400, "group chat was upgraded", {"migrate_to_chat_id": -100})
    telegram = Telegram([failure_of(502, "Bad Gateway"), moved, blocked])
    for error in (Refused, Refused, SendRefused):
        with pytest.raises(error):
            await parts.send_again(reply("A leaf."), telegram.to)


async def test_handler_that_still_runs_goes_first(parts: BotParts) -> None:
    """After a crash its update is handled again, which sends the reply that it had begun."""
    await parts.incoming.record(ASKED)
    telegram, given = Telegram(), reply("A leaf.", telegram={"update_id": 1})
    with pytest.raises(InvalidInput, match="handler"):
        await parts.send_again(given, telegram.to)
    await parts.send_again(replace(given, appended_at=utc_now() - HANDLING_LIMIT), telegram.to)
    await parts.incoming.handled(1)
    await parts.send_again(given, telegram.to)
    assert len(telegram.shown) == 2


async def test_handler_that_ends_hands_over_what_failed(parts: BotParts, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_over = AsyncMock(return_value=True)
    monkeypatch.setattr(parts.history._parts.replies, "hand_over", hand_over)
    refused, lost = failure_of(413, "too large"), Failure(ending="unknown", reason="ConnectionError")
    telegram = Telegram([refused, None, lost])
    with handling(await parts.incoming.record(ASKED)), pytest.raises(Refused):
        await parts.sender.send(telegram, PLACE, LONG)  # the file is refused, and the second message lost
    await parts.incoming.handled(1)
    await parts.outgoing.handler_ended(2)
    hand_over.assert_not_awaited()
    await parts.outgoing.handler_ended(1)
    [_, answer] = await parts.history.messages(PLACE.owner)
    hand_over.assert_awaited_once_with(PLACE.owner, answer.id)
    await parts.send_again(reply(LONG, message=answer.message), telegram.to)
    assert " ".join(text for _, text in telegram.shown).split() == LONG.split()
    assert answer.message.metadata["telegram"]["update_id"] == 1
