"""What a crash or a failed call kept from Telegram is sent again, as far as the history holds it."""

from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from letopis.adapters.telegram_core.bot import HANDLING_LIMIT, BotParts
from letopis.adapters.telegram_core.calls import Failure, failure_of
from letopis.outbox import UnsentReply
from letopis.store import InvalidInput, Message, MessageSent, SendRefused
from letopis.store.model.events import utc_now
from letopis.store.model.parts import Content, Data, File, Text
from tests.support.telegram_calls import PLACE, Refused, Telegram, handling

LONG = "Words of tea. " * 400
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
