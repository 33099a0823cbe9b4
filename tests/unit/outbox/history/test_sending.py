"""Replies that were appended and never confirmed are sent again: in order, later and later, within a limit of age."""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from letopis import History, Message, SendRefused, Unconfirmed, UnsentReply
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.history.options import Options
from letopis.outbox.history.sending import LIVE_SENDING_SECONDS, MAX_CALLS, Resender
from letopis.store import (
    ConversationRenamed,
    ConversationRewound,
    Delivery,
    InvalidInput,
    MessageAppended,
    MessageSent,
    OutboxUnavailable,
)
from tests.support.outboxes import open_apart
from tests.support.relays import Hands, deliver_all, until
from tests.support.victim import WAYS, append_reply
from tests.unit.outbox.history.test_replies import died, write

DAY = 86_400.0


class Platform:
    """Takes every reply, but for what ``answers`` says of the next ones."""

    def __init__(self) -> None:
        self.calls: list[UnsentReply] = []
        self.answers: deque[Any] = deque()
        self.failing: set[str] = set()  # texts that it refuses once
        self.busy = asyncio.Event()
        self.busy.set()

    async def send(self, reply: UnsentReply) -> Any:
        self.calls.append(reply)
        answer = self.answers.popleft() if self.answers else {"telegram": len(self.calls)}
        await self.busy.wait()
        if reply.message.text in self.failing:
            self.failing.remove(reply.message.text)
            raise ConnectionError
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def texts(self) -> list[str]:
        return [reply.message.text for reply in self.calls]


class Bot:
    """A history whose sender is stepped by hand."""

    def __init__(self, history: History, hands: Hands, *, within: float = DAY) -> None:
        self.history, self.hands, self.platform = history, hands, Platform()
        self.told: list[Unconfirmed] = []
        parts = history._parts
        self.resender = Resender(
            sender=self.platform.send,
            options=Options("bot.outbox.db", send_within=within, on_unconfirmed=self.told.extend),
            replies=parts.replies,
            appender=parts.appender,
            finder=parts.finder,
            clock=Clock(now=hands.now, monotonic=hands.monotonic),
            uniform=lambda _, longest: longest,
        )
        parts.replies.hand_over = self.resender.take_over

    async def write(self, conversation_id: str, *texts: str) -> list[str]:
        return [(await write(self.history, text, conversation_id, owner="42")).message_id for text in texts]

    async def leave(self, *texts: str, answers: Iterable[Any] = ()) -> None:
        """Have a process write replies and end before it sends them; the platform will give these answers."""
        await self.write("c", *texts)
        died(self.history)
        self.platform.answers.extend(answers)

    async def step(self) -> float:
        """Send what is due, to the end, and return the seconds until the next attempt."""
        while True:
            seconds = await self.resender.step()
            if not self.resender.calls:
                return seconds
            await asyncio.gather(*self.resender.calls.values())
            await asyncio.sleep(0)

    async def forward(self, seconds: float) -> float:
        self.hands.advance(seconds)
        return await self.step()


def opened(tmp_path: Path, **options: Any) -> History:
    return open_apart(tmp_path / "bot.outbox.db", **{"relay": False, "watch": False, **options})


@pytest.fixture
async def bot(tmp_path: Path, hands: Hands) -> AsyncIterator[Bot]:
    async with opened(tmp_path, now=hands.now) as history:
        yield Bot(history, hands)


async def test_reply_of_a_dead_process_is_sent_and_confirmed(bot: Bot) -> None:
    [message_id] = await bot.write("c", "Hello")
    await bot.step()
    assert bot.platform.calls == []  # it may be sending it

    died(bot.history)
    await bot.forward(60)

    [reply] = bot.platform.calls
    assert (reply.conversation_id, reply.owner_id, reply.message.text) == ("c", "42", "Hello")
    assert (reply.message.id, reply.attempt) == (message_id, 1)
    [message] = await bot.history.messages("c")
    assert reply.idempotency_key == str(message.event_id)
    assert (message.delivery, message.delivery_data["platform_ids"]) == (Delivery.SENT, {"telegram": 1})
    assert await bot.history.unconfirmed() == ()
    await bot.forward(DAY)
    assert len(bot.platform.calls) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_message_to_confirm_is_sent_however_it_was_appended(bot: Bot, way: str) -> None:
    key, message_id = await append_reply(bot.history, "c", "Hello", way)
    await append_reply(bot.history, "c", "sent", way)
    [first, second] = await bot.history.unconfirmed(owner="42")
    assert (first.message, first.abandoned) == (Message.assistant("Hello", id=message_id), False)
    await bot.history.chat("c").sent(second.message_id)

    died(bot.history)
    await bot.step()

    assert [(reply.idempotency_key, reply.message.text) for reply in bot.platform.calls] == [(key, "Hello")]
    assert await bot.history.unconfirmed() == ()


async def test_append_marks_what_the_assistant_says_once_and_only_if_it_commits(bot: Bot) -> None:
    answer = Message.assistant("A leaf.", id="a")
    turn: Any = (
        Message.user("What is tea?", id="q"),
        MessageAppended(message=answer),
        ConversationRenamed(title="Tea"),
    )
    await bot.history.append("c", *turn, confirm=True)
    assert [reply.message_id for reply in await bot.history.unconfirmed()] == ["a"]
    await bot.history.chat("c").sent("a")
    await bot.history.append("c", *turn[:2], Message.assistant("More.", id="b"), confirm=True)  # of which two are there
    assert [reply.message_id for reply in await bot.history.unconfirmed()] == ["b"]
    # What ends in the append that it is written in.
    await bot.history.append("c", Message.assistant("x", id="x"), MessageSent(message_id="x"), confirm=True)
    gone = (Message.assistant("y", id="y"), ConversationRewound(erase=True), Message.assistant("z", id="z"))
    await bot.history.append("c", *gone, confirm=True)
    assert [reply.message_id for reply in await bot.history.unconfirmed()] == ["z"]

    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the end of the block is part of it
        async with bot.history.transaction() as tx:
            await tx.append("c", Message.assistant("never"), confirm=True)
            raise ZeroDivisionError
    async with bot.history.outbox.engine.begin() as connection:
        await bot.history.append_in(connection, "c", Message.assistant("own", id="own"), confirm=True)
    assert [reply.message_id for reply in await bot.history.unconfirmed()] == ["z", "own"]


@pytest.mark.parametrize(
    ("message", "options", "reason"),
    [
        (Message.user("hi"), {"confirm": True}, "needs a message of the assistant"),
        (Message.assistant("hi"), {"confirm": "store"}, "in_store=True waits"),
        (Message.assistant("hi"), {"in_store": "yes"}, "must be True or False"),
    ],
)
async def test_what_cannot_be_confirmed_is_refused(bot: Bot, message: Message, options: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        await bot.history.append("c", message, **options)
    assert [*await bot.history.messages("c")] == []


async def test_replies_of_a_conversation_go_in_order_and_others_do_not_wait(bot: Bot) -> None:
    await bot.write("c", "one", "two")
    await bot.write("d", "other")
    [three] = await bot.write("c", "three")
    died(bot.history)
    bot.platform.failing.add("one")

    seconds = await bot.step()
    assert sorted(bot.platform.texts) == ["one", "other"]  # at the same time
    assert seconds == 1

    await bot.history.chat("c").sent(three)  # by the bot itself, which comes first
    await bot.forward(1)
    assert bot.platform.texts[2:] == ["one", "two"]
    assert await bot.history.unconfirmed() == ()


async def test_order_is_that_of_the_appends_and_what_is_too_old_is_not_sent(bot: Bot) -> None:
    await bot.write("c", "old")
    bot.hands.advance(DAY)
    for seconds, text in ((50.0, "one"), (-30.0, "two"), (10.0, "three")):
        bot.hands.jump(seconds)  # set back after the first
        await bot.write("c", text)
    died(bot.history)
    await bot.step()
    assert bot.platform.texts == ["one", "two", "three"]
    assert [told.failure for told in bot.told] == ["not sent within 86400 s"]


async def test_attempts_come_later_and_later_with_the_same_key(bot: Bot) -> None:
    await bot.leave("Hello", answers=[TimeoutError()] * 15)
    seconds, moments = await bot.step(), [bot.hands.ticks]
    while len(moments) < 15:
        seconds = await bot.forward(seconds)
        moments.extend([bot.hands.ticks] * (len(bot.platform.calls) - len(moments)))

    waits = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert waits == [2.0**number for number in range(12)] + [3600.0] * 2
    assert [reply.attempt for reply in bot.platform.calls] == list(range(1, 16))
    assert len({reply.idempotency_key for reply in bot.platform.calls}) == 1
    assert bot.told == []


async def test_reply_is_given_up_by_age(tmp_path: Path, hands: Hands, caplog: pytest.LogCaptureFixture) -> None:
    begun = hands.ticks
    async with opened(tmp_path, now=hands.now) as history:
        bot = Bot(history, hands, within=100)
        await bot.leave("Hello", answers=[ConnectionError("secret")] * 50)
        seconds = await bot.step()
        while await history.unconfirmed():
            seconds = await bot.forward(seconds)
        await bot.forward(DAY)

        assert hands.ticks == begun + 100 + DAY
        assert len(bot.platform.calls) == 7  # at 0, 1, 3, 7, 15, 31 and 63 s
        [told] = bot.told
        assert told.message is not None
        assert (told.message.text, told.failure) == ("Hello", "not sent within 100 s ConnectionError")
        [message] = await history.messages("c")
        assert (message.text, message.delivery) == ("Hello", Delivery.FAILED)
        assert message.delivery_data["reason"] == told.failure
        [given_up] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert "is given up" in given_up.message
        assert "secret" not in caplog.text


async def test_refused_reply_is_given_up_at_once_and_the_next_one_goes(bot: Bot) -> None:
    await bot.leave("one", "two", answers=[SendRefused("the user has blocked the bot")])
    await bot.step()
    assert bot.platform.texts == ["one", "two"]
    assert [told.failure for told in bot.told] == ["the user has blocked the bot"]
    messages = await bot.history.messages("c")
    assert [message.delivery for message in messages] == [Delivery.FAILED, Delivery.SENT]


@pytest.mark.parametrize("answer", [{"telegram": 7}, SendRefused("blocked")], ids=["sent", "refused"])
async def test_outcome_is_recorded_later_if_need_be(bot: Bot, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    await bot.leave("Hello", answers=[answer])
    with monkeypatch.context() as patch:
        gone = AsyncMock(side_effect=OutboxUnavailable("the disk is gone"))
        patch.setattr(bot.history._parts.appender, "change", gone)
        assert await bot.step() == 1
        assert await bot.forward(1) == 2
    await bot.forward(2)

    assert bot.platform.texts == ["Hello"]
    assert len(bot.told) == isinstance(answer, SendRefused)
    assert await bot.history.unconfirmed() == ()


SENT: dict[str, Any] = {"platform_ids": {"t": 7}, "sent_as": "file"}


@pytest.mark.parametrize(
    ("answer", "kept"),
    [(None, {}), ({"telegram": object()}, {}), (17, {}), (MessageSent(message_id="other", **SENT), SENT)],
    ids=["nothing", "an object", "a number", "an event"],
)
async def test_whatever_the_sender_returns_confirms_the_reply(bot: Bot, answer: Any, kept: dict[str, Any]) -> None:
    await bot.leave("Hello", answers=[answer])
    await bot.step()
    await bot.forward(1)
    assert len(bot.platform.calls) == 1
    [message] = await bot.history.messages("c")
    assert message.delivery is Delivery.SENT
    assert {name: value for name, value in message.delivery_data.items() if value} == kept


async def test_message_is_sent_as_it_is_now_and_only_while_it_is_shown(bot: Bot) -> None:
    edited, undone = await bot.write("c", "edited", "undone")
    await bot.write("d", "redacted")
    [redacted] = [message.id for message in await bot.history.messages("d")]
    await bot.history.chat("c").edit(edited, "anew")
    await bot.history.chat("c").pop()
    await bot.history.chat("d").redact(redacted)
    died(bot.history)
    await bot.step()

    assert bot.platform.texts == ["anew"]
    assert [(told.message_id, told.failure) for told in bot.told] == [(undone, "no longer part of the conversation")]
    assert await bot.history.unconfirmed() == ()


async def test_a_reply_that_was_redacted_through_another_outbox_is_not_sent(bot: Bot, tmp_path: Path) -> None:
    """This file still holds its text: it would be sent, or an empty message in its place."""
    [message_id] = await bot.write("c", "gone elsewhere")
    await deliver_all(bot.history)
    async with open_apart(tmp_path / "other.outbox.db", store=bot.history.store, relay=False, watch=False) as other:
        await other.chat("c").redact(message_id)
        await deliver_all(other)
    died(bot.history)
    await bot.step()
    assert bot.platform.calls == []
    assert [told.failure for told in bot.told] == ["no longer part of the conversation"]


async def test_reply_that_is_being_sent_is_waited_for(bot: Bot, tmp_path: Path) -> None:
    """A later reply of its conversation waits for the live one, and for no longer than a sending may take."""
    async with opened(tmp_path, now=bot.hands.now) as other:
        live = await write(other, "live")
        await bot.write("c", "later")
        died(bot.history)
        assert await bot.step() == 1
        assert bot.platform.texts == []
        await live.sent()
        await bot.forward(1)
        assert bot.platform.texts == ["later"]

        await write(other, "forgotten")
        await bot.write("c", "last")
        died(bot.history)
        await bot.forward(60)
        assert bot.platform.texts == ["later"]
        await bot.forward(LIVE_SENDING_SECONDS)
        assert bot.platform.texts == ["later", "last"]


async def test_reply_whose_own_sending_failed_is_handed_over(bot: Bot) -> None:
    reply = await write(bot.history)
    assert await reply.send()
    assert await reply.send()
    await bot.step()
    assert bot.platform.texts == ["Hello"]

    assert not await reply.send()  # it is confirmed
    assert not await (await write(bot.history, "on a web page", confirm=False)).send()
    async with bot.history.reply("c") as whole:
        await whole.add("not finished yet")
        assert await whole.send()
    bot.platform.answers.append(ConnectionError())
    await bot.step()
    assert await bot.history.chat("c").send(whole.message_id)  # it is due later
    await bot.step()
    assert bot.platform.texts == ["Hello", "not finished yet"]
    with pytest.raises(InvalidInput):
        await bot.history.chat("c").send("")


async def test_of_two_processes_one_sends(bot: Bot, tmp_path: Path) -> None:
    await bot.leave(*"abcdef")
    async with opened(tmp_path, now=bot.hands.now) as history:
        other = Bot(history, bot.hands)
        await asyncio.gather(bot.step(), other.step())
        await other.forward(60)
        await bot.step()

    assert sorted(bot.platform.texts + other.platform.texts) == list("abcdef")
    assert [] in (bot.platform.texts, other.platform.texts)


async def test_calls_are_bounded_and_one_that_hangs_holds_up_its_conversation_only(bot: Bot) -> None:
    for number in range(MAX_CALLS + 2):
        await bot.write(f"c{number}", "one", "two")
    died(bot.history)
    bot.platform.busy.clear()
    await bot.resender.step()
    await asyncio.sleep(0)
    await bot.resender.step()

    assert len(bot.resender.calls) == MAX_CALLS
    bot.platform.busy.set()
    await bot.step()
    assert await bot.history.unconfirmed() == ()
    assert len(bot.platform.calls) == 2 * (MAX_CALLS + 2)


async def test_closing_waits_for_the_call_in_flight(tmp_path: Path) -> None:
    platform = Platform()
    platform.busy.clear()
    async with opened(tmp_path, sender=platform.send) as history:
        await (await write(history)).send()
        await until(lambda: platform.calls)
        asyncio.get_running_loop().call_later(0.05, platform.busy.set)
    async with opened(tmp_path) as history:
        assert await history.unconfirmed() == ()


async def test_history_without_a_sender_runs_nothing(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with opened(tmp_path, relay=False, watch=True) as history, history.reply("c") as reply:
        await reply.add("Hello")
        assert not await reply.send()
        assert not await history.chat("c").send(reply.message_id)
        tasks = {task.get_name() for task in asyncio.all_tasks() - before}
        assert tasks == {"letopis-outbox", "letopis-watch", "letopis-replies"}
        assert [one.abandoned for one in await history.unconfirmed()] == [False]


async def test_a_sender_that_is_cancelled_as_it_wakes_ends(bot: Bot) -> None:
    """Or the history that closes would wait for it without an end."""
    task = asyncio.create_task(bot.resender.run())
    await asyncio.sleep(0.1)  # it has looked, and waits
    bot.resender._wake.set()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=10)
    task.cancel()

    assert done == {task}
    assert task.cancelled()
