"""Replies: written piece by piece, never lost by an exception or a cancellation, and known until they are confirmed."""

import asyncio
import logging
import random
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import anyio
import pytest
import sqlalchemy as sa

from letopis import Closed, History, Limits, Message, OutboxFull, Reasoning, Reply, Text, ToolCall, Unconfirmed
from letopis.outbox import Relay
from letopis.outbox.drafts.completion import UNCONFIRMED_TTL, recover, run_maintenance
from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.statements import on_cursor
from letopis.store import (
    ConversationDeleted,
    ConversationGone,
    ConversationRewound,
    Delivery,
    IdReused,
    InvalidInput,
    MessageRedacted,
    MessageSent,
)
from letopis.store.model.identifiers import uuid7
from tests.support.outboxes import open_apart
from tests.support.pages import programs
from tests.support.paths import ROOT
from tests.support.relays import sql, until
from tests.support.sayings import occurs, present


def opened(tmp_path: Path, **options: Any) -> History:
    return open_apart(tmp_path / "bot.outbox.db", **{"relay": False, **options})


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with opened(tmp_path) as history:
        yield history


async def kept(history: History) -> list[str]:
    """The data of the drafts in the file."""
    return [data for (data,) in await sql(history.outbox, "SELECT data FROM letopis_outbox_drafts")]


async def said(history: History, name: str = "c") -> list[tuple[str, bool]]:
    """The texts of a conversation, and which of them were cut off."""
    return [(one.text, one.interrupted) for one in await history.messages(name)]


async def write(history: History, text: str = "Hello", name: str = "c", **options: Any) -> Reply:
    async with history.reply(name, **options) as reply:
        await reply.add(text)
    return reply


async def cut_off(history: History, text: str = "Hello", name: str = "c", **options: Any) -> Reply:
    """Write a reply that an exception cuts off, which is raised."""
    with pytest.raises(ConnectionError, match="the model is away"):  # noqa: PT012 - the end of the block is part of it
        async with history.reply(name, **options) as reply:
            await reply.add(text)
            raise ConnectionError("the model is away")
    return reply


async def confirmed(history: History) -> None:
    """Wait until no reply is owed any more."""
    async with asyncio.timeout(60):
        while await history.unconfirmed():  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.005)


def full() -> Mock:
    """In the place of a check, a disk without room."""
    return Mock(side_effect=OutboxFull("the disk is full"))


def died(history: History) -> None:
    """Take a history's sign of life away, as the end of its process does."""
    history._parts.replies.writer_lock.release()


async def test_a_reply_becomes_one_message(history: History) -> None:
    async with history.reply("c", owner="42", name="bot", metadata={"model": "m"}, every=0) as reply:
        await reply.add("He")
        await reply.add("llo")
        await until(lambda: reply.kept == 5)
        assert list(await history.messages("c")) == []
        assert '"Hello"' in (await kept(history))[0]
        receipt = await reply.finish(tokens=7, usage={"output": 7}, metadata={"stop": "end"})

    (message,) = await history.messages("c")
    metadata = {"model": "m", "stop": "end"}
    assert message.message == Message.assistant(
        "Hello", id=reply.message_id, name="bot", tokens=7, usage={"output": 7}, metadata=metadata
    )
    assert not message.interrupted
    assert (receipt.message_id, receipt.event_ids) == (reply.message_id, (reply.event_id,))
    assert reply.receipt == receipt
    assert await kept(history) == []
    assert present(await history.chat("c").conversation()).owner_id == "42"


async def test_where_nothing_was_said_nothing_is_appended(history: History) -> None:
    async with history.reply("c") as reply:
        await reply.add("")
    with pytest.raises(RuntimeError, match="the model is away"):
        async with history.reply("c") as another:
            raise RuntimeError("the model is away")

    assert reply.receipt is another.receipt is None
    assert not reply.interrupted
    for call in (reply.sent, another.failed):
        with pytest.raises(InvalidInput, match="is empty"):
            await call()
    assert await history.chat("c").conversation() is None
    assert await history.unconfirmed() == ()


async def test_adding_does_not_wait_for_the_disk(history: History) -> None:
    async with history.reply("c", every=0) as reply:
        async with history.transaction():
            async with asyncio.timeout(60):
                for _ in range(200):
                    await reply.add("word ")
            assert reply.kept == 0
        await until(lambda: reply.kept == 1000)

    assert len(reply.text) == 1000


async def test_checkpoints_keep_their_distance(history: History) -> None:
    async with history.reply("c", every=3600) as reply:
        await reply.add("first")
        await until(lambda: reply.kept == 5)
        await reply.add(" second")
        await history.append("another", Message.user("time passes"))
        assert '"first"' in (await kept(history))[0]
    async with history.reply("c", every=None) as without:
        await without.add("first")
        await history.append("another", Message.user("time passes"))
        assert await kept(history) == [""]
    assert [one.text for one in await history.messages("c")] == ["first second", "first"]


async def test_an_exception_leaves_an_interrupted_message_and_goes_on(history: History) -> None:
    reply = await cut_off(history)

    assert (await said(history), reply.interrupted) == ([("Hello", True)], True)
    assert await kept(history) == []
    with pytest.raises(Closed, match="cut off"):
        await reply.finish()
    await reply.sent()
    assert [one.delivery for one in await history.messages("c")] == [Delivery.SENT]

    with pytest.raises(RuntimeError):  # noqa: PT012 - the end of the block is part of it
        async with history.reply("d") as reply:
            await reply.add("Hello")
            await reply.finish()
            raise RuntimeError("after the end")
    assert await said(history, "d") == [("Hello", False)]


@types.coroutine
def interrupted_at(
    steps: list[int], coroutine: Coroutine[Any, Any, None], cancel: Callable[[], object]
) -> Generator[Any, Any, None]:
    """Runs `coroutine` and calls `cancel` when it waits at the n-th time, for each n of `steps`: no clock decides."""
    waits = 0
    resume: Callable[[], Any] = partial(coroutine.send, None)
    while True:
        try:
            future = resume()
        except StopIteration:
            return
        waits += 1
        if waits in steps:
            asyncio.get_running_loop().call_soon(cancel)
        try:
            result = yield future
        except BaseException as error:
            resume = partial(coroutine.throw, error)
        else:
            resume = partial(coroutine.send, result)


@pytest.mark.parametrize("seed", range(2))
async def test_a_cancellation_at_any_moment_loses_nothing(history: History, seed: int) -> None:
    """By asyncio and by anyio, while it is written, while it is finished, and twice."""
    chance = random.Random(seed)
    said: dict[str, str] = {}

    async def speak(name: str) -> None:
        async with history.reply(name, every=0) as reply:
            for word in range(chance.randrange(1, 12)):
                said[name] = said.get(name, "") + f"{word} "
                await reply.add(f"{word} ")
                await asyncio.sleep(0)
            await reply.finish(tokens=3)

    async def in_scope(name: str, steps: list[int]) -> None:
        with anyio.CancelScope() as scope:
            await interrupted_at(steps, speak(name), scope.cancel)

    async def in_task(name: str, steps: list[int]) -> None:
        this = asyncio.current_task()
        assert this is not None
        await interrupted_at(steps, speak(name), this.cancel)

    for number in range(60):
        first = chance.randrange(1, 40)
        steps = [first, first + chance.randrange(1, 4)][: chance.choice((1, 2))]
        if number % 2:
            await in_scope(f"c{number}", steps)
        else:
            await asyncio.wait((asyncio.create_task(in_task(f"c{number}", steps)),))

    cut = 0
    for name, text in said.items():
        (message,) = await history.messages(name)
        assert message.text == text
        assert message.message.tokens == (None if message.interrupted else 3)
        cut += message.interrupted
    assert 0 < cut < len(said)
    assert await kept(history) == []
    assert history._parts.replies.writing == {}


async def test_a_finish_that_has_begun_is_not_taken_back(history: History) -> None:
    async def speak() -> None:
        async with history.reply("c") as reply:
            await reply.add("Hello")
            begun.set()
            await reply.finish(tokens=3)

    begun = asyncio.Event()
    seen = history.outbox.appended.generation
    async with history.transaction():
        task = asyncio.create_task(speak())
        await begun.wait()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()  # the file is not free
    await asyncio.wait((task,))

    assert task.cancelled()
    (message,) = await history.messages("c")
    assert (message.text, message.interrupted, message.message.tokens) == ("Hello", False, 3)
    assert history.outbox.appended.generation == seen + 1  # the relay was notified


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        *(({"every": every}, "every") for every in (-1, float("nan"), float("inf"), "often")),
        ({"role": "robot"}, "role"),
        ({"message_id": "a\0"}, "message_id"),
        ({"owner": ""}, "owner"),
        ({"metadata": {"score": float("nan")}}, "data.metadata.score"),
        ({"metadata": {"long": ["x" * 1_000] * 2_000}}, "data"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_wrong_beginning_is_refused(history: History, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, check=lambda refused: refused.field == field):
        await history.reply("c", **arguments).__aenter__()
    assert history._parts.replies.writing == {}


async def test_a_reply_that_could_not_be_appended_is_refused_before_it_is_written(
    tmp_path: Path, history: History
) -> None:
    await history.append("c", Message.user("hi", id="taken"), owner="42")
    with pytest.raises(IdReused, match="'taken' already holds"):
        await history.reply("c", message_id="taken").__aenter__()
    with pytest.raises(InvalidInput, match="another owner"):
        await history.reply("c", owner="another").__aenter__()
    async with history.reply("c", message_id="mine") as reply:
        await reply.add("text")
        async with opened(tmp_path) as other, other.reply("c", message_id="theirs", every=0) as another:
            await another.add("text")
            await until(lambda: another.kept == 4)
            for message_id in ("mine", "theirs"):
                with pytest.raises(InvalidInput, match="another reply is being written"):
                    await history.reply("c", message_id=message_id).__aenter__()
    await sql(history.outbox, "UPDATE letopis_outbox_lanes SET deleted_at = 1")
    with pytest.raises(ConversationGone):
        await history.reply("c").__aenter__()


async def test_a_chunk_that_cannot_be_kept_does_not_end_the_reply(tmp_path: Path) -> None:
    async with opened(tmp_path, limits=Limits(max_bytes=400)) as history:
        async with history.reply("c") as reply:
            await reply.add("Hello")
            for chunk in ("a\0b", "\udcff", 7, "x" * 400):
                with pytest.raises(InvalidInput):
                    await reply.add(chunk)  # type: ignore[arg-type]
            endings: list[Any] = [{"tokens": -1}, {"metadata": [1]}, {"metadata": {"long": "x" * 400}}]
            for ending in endings:
                with pytest.raises(InvalidInput):
                    await reply.finish(**ending)
            await reply.add(" there")

        assert await said(history) == [("Hello there", False)]


async def test_a_checkpoint_that_fails_is_told_once_and_the_reply_goes_on(
    history: History, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "letopis.outbox.history")
    with monkeypatch.context() as patch:
        patch.setattr(history.outbox.gate, "check_room", check := full())
        async with history.reply("c", every=0) as reply:
            while check.call_count < 5:
                await reply.add("word ")
                await asyncio.sleep(0.001)
            with pytest.raises(OutboxFull):
                await reply.finish()
            assert [record.getMessage() for record in caplog.records] == [
                "a draft of a reply cannot be kept, the reply goes on: the disk is full"
            ]
            patch.undo()
            await reply.add("end")

    assert await said(history) == [(reply.text, False)]


async def test_what_was_refused_is_appended_with_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as history:
        with monkeypatch.context() as patch:
            patch.setattr(history.outbox.gate, "check_room", full())
            with pytest.raises(OutboxFull):
                await write(history, name="c1")
            await history._parts.replies.retry()
            assert await said(history, "c1") == []
        await history._parts.replies.retry()

        assert await said(history, "c1") == [("Hello", True)]
        assert history._parts.replies.writing == {}

        with monkeypatch.context() as patch:
            patch.setattr(history.outbox.gate, "check_room", full())
            with pytest.raises(OutboxFull):
                await write(history, name="c3")
    async with opened(tmp_path) as history:
        assert await said(history, "c3") == [("Hello", True)]


async def test_a_conversation_that_is_deleted_takes_the_reply_along(history: History) -> None:
    with pytest.raises(ConversationGone):  # noqa: PT012 - the end of the block is part of it
        async with history.reply("c", every=0) as reply:
            await history.append("c", Message.user("hi"))
            await reply.add("Hello")
            await until(lambda: reply.kept == 5)
            await history.append("c", ConversationDeleted())
            assert await kept(history) == []
            await reply.add(" there")  # also a checkpoint after that brings nothing back
            await asyncio.sleep(0.01)

    assert await kept(history) == []
    assert await history.unconfirmed() == ()
    assert history._parts.replies.writing == {}


@pytest.mark.parametrize("every", [0, None])
async def test_a_reply_whose_message_is_redacted_meanwhile_ends(history: History, every: float | None) -> None:
    with pytest.raises(Closed, match="erased"):  # noqa: PT012 - the end of the block is part of it
        async with history.reply("c", message_id="m", every=every) as reply:
            await reply.add("secret")
            if every is not None:
                await until(lambda: reply.kept == 6)
            await history.append("c", MessageRedacted(message_id="m"))
            assert await kept(history) == []
            with pytest.raises(Closed, match="erased"):
                await reply.finish()
    assert (await kept(history), await history.unconfirmed()) == ([], ())
    assert history._parts.replies.writing == {}
    assert not occurs("secret", history.outbox.path)


async def test_a_reply_that_a_transaction_erases_is_not_finished_in_it(history: History) -> None:
    with pytest.raises(Closed, match="erased"):  # noqa: PT012 - the end of the block is part of it
        async with history.reply("c") as reply:
            await reply.add("secret")
            async with history.transaction() as tx:
                await tx.append("c", ConversationRewound(erase=True), Message.user("goes on"))
                with pytest.raises(Closed, match="erased"):
                    await tx.finish(reply)
    assert await said(history) == [("goes on", False)]
    assert not occurs("secret", history.outbox.path)


async def test_a_reply_of_which_nothing_was_saved_leaves_no_trace(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        async with history.reply("c", message_id="m"):
            assert await kept(history) == [""]
        assert await kept(history) == []
        await history.reply("c", message_id="m").__aenter__()
        died(history)
        async with opened(tmp_path) as other:
            assert (await kept(other), list(await other.messages("c"))) == ([], [])


async def test_a_reply_that_begins_in_a_transaction_or_without_room_goes_on(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with history.transaction():
        block = history.reply("c", every=0)
        inside = await block.__aenter__()
    monkeypatch.setattr(history.outbox.gate, "check_room", full())
    async with history.reply("c") as without_room:
        monkeypatch.undo()
        await without_room.add("first")
    await inside.add("second")
    await until(lambda: inside.kept == 6)
    await block.__aexit__(None, None, None)
    assert await said(history) == [("first", False), ("second", False)]
    assert await kept(history) == []


async def test_text_that_may_be_erased_elsewhere_is_not_shown(tmp_path: Path) -> None:
    """Of a saved reply, only the history store knows."""
    async with opened(tmp_path, store=tmp_path / "history.db") as history:
        saved = await write(history, "saved")
        await Relay(history.outbox, history.store).drain()
    async with opened(tmp_path, store=tmp_path / "elsewhere" / "history.db", read_timeout=0.5) as history:
        pending = await write(history, "pending")
        shown = {waiting.message_id: waiting.message for waiting in await history.unconfirmed()}
    assert shown == {saved.message_id: None, pending.message_id: Message.assistant("pending", id=pending.message_id)}


async def test_a_draft_of_the_living_is_nobody_elses_affair(tmp_path: Path) -> None:
    async with opened(tmp_path) as history, history.reply("c", every=0) as reply:
        await reply.add("Hello")
        await until(lambda: reply.kept == 5)
        async with opened(tmp_path) as other:
            await run_maintenance(other.outbox, other._parts.replies.writer_lock)
            assert (list(await other.messages("c")), len(await kept(other))) == ([], 1)


async def test_a_draft_of_the_dead_is_recovered_once_by_many(tmp_path: Path) -> None:
    async with opened(tmp_path) as history, opened(tmp_path) as other, opened(tmp_path) as third:
        blocks, replies = [], []
        for number in range(10):
            blocks.append(history.reply("c", owner="42", metadata={"n": number}, every=0))
            replies.append(await blocks[-1].__aenter__())
            await replies[-1].add(f"reply {number}")
        await until(lambda: all(reply.kept for reply in replies))
        died(history)

        async with opened(tmp_path, watch=False) as reader:
            assert list(await reader.messages("c")) == [], "a program that only reads writes nothing"
        made = await asyncio.gather(
            *(recover(one.outbox, one._parts.replies.writer_lock) for one in (other, third, other, third)),
            return_exceptions=True,
        )

        assert sum(count for count in made if isinstance(count, int)) == 10, made
        assert await recover(other.outbox, other._parts.replies.writer_lock) == 0
        assert await said(other) == [(f"reply {n}", True) for n in range(10)]
        assert [one.event_id for one in await other.messages("c")] == [reply.event_id for reply in replies]
        assert await kept(other) == []
        # The one that was taken for dead finds that its place is taken, and doubles nothing.
        for block in blocks:
            with pytest.raises(IdReused):
                await block.__aexit__(None, None, None)
        assert len(list(await other.messages("c"))) == 10


async def test_a_bad_draft_stays_and_holds_up_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def draft(name: str, data: str, *, owner: str | None = None) -> Callable[[sa.Connection], bool]:
        one = drafts.Draft(name, "m", uuid7(), owner, data, "0" * 32, started_at=1, updated_at=1_700_000_000_000_000)
        return lambda connection: all(on_cursor(connection, work, one) for work in (drafts.begin, drafts.save))

    async with opened(tmp_path) as history:
        await history.append("b", Message.user("hi"), owner="42")
        await history.outbox.write(draft("a", '{"mess'))
        await history.outbox.write(draft("b", '{"message_id":"m","role":"assistant","content":"x"}', owner="7"))
        await history.outbox.write(draft("c", '{"message_id":"m","role":"assistant","content":"said"}'))
    with caplog.at_level(logging.WARNING, "letopis.outbox.history"):
        async with opened(tmp_path) as history:
            (message,) = await history.messages("c")
            left = await kept(history)

    assert (message.text, message.occurred_at) == ("said", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))
    assert len(left) == 2
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "WARNING"]
    assert '{"mess' not in caplog.text


async def test_a_reply_waits_until_it_is_confirmed(history: History) -> None:
    replies = [await write(history, name=f"c{number}", owner=f"o{number}") for number in range(5)]
    waiting = await history.unconfirmed()

    assert [one.message_id for one in waiting] == [reply.message_id for reply in replies]
    assert {(one.abandoned, one.interrupted) for one in waiting} == {(False, False)}
    assert waiting[0].message == Message.assistant("Hello", id=replies[0].message_id)
    assert [one.conversation_id for one in await history.unconfirmed(owner="o3")] == ["c3"]
    assert datetime.now(UTC) - waiting[0].appended_at < timedelta(minutes=1)

    with pytest.raises(RuntimeError):  # noqa: PT012 - the end of the block is part of it
        async with history.transaction() as tx:
            await tx.append("c0", MessageSent(message_id=replies[0].message_id))
            raise RuntimeError
    assert await history.unconfirmed() == waiting
    await replies[0].sent(platform_ids={"telegram": 1}, sent_as="text")
    await replies[1].failed(reason="blocked by the user")
    await history.chat("c2").sent(replies[2].message_id)
    async with history.transaction() as tx:
        await tx.append("c3", MessageSent(message_id=replies[3].message_id))
    async with history.outbox.engine.begin() as connection:
        await history.append_in(connection, "c4", MessageSent(message_id=replies[4].message_id))

    assert await history.unconfirmed() == ()
    deliveries = [(await history.messages(f"c{number}")).items[0].delivery for number in range(2)]
    assert deliveries == [Delivery.SENT, Delivery.FAILED]


async def test_what_is_confirmed_first_is_finished_first(history: History) -> None:
    for confirm in (Reply.sent, Reply.failed):
        async with history.reply("c") as reply:
            await reply.add("Hello")
            await confirm(reply)

    assert [one.delivery for one in await history.messages("c")] == [Delivery.SENT, Delivery.FAILED]
    assert await history.unconfirmed() == ()


async def test_a_bot_is_told_once_of_what_was_never_confirmed(tmp_path: Path) -> None:
    told: list[tuple[Unconfirmed, ...]] = []
    tell = told.append
    async with opened(tmp_path) as history:
        whole = await write(history, "whole", owner="42")
        half = await cut_off(history, "half")
        await (await write(history, "confirmed")).sent()
        # While it lives, no other process may touch it.
        async with opened(tmp_path, on_unconfirmed=tell) as other:
            assert [one.abandoned for one in await other.unconfirmed()] == [False, False]
            await asyncio.sleep(0.05)
    assert told == []

    async with opened(tmp_path, on_unconfirmed=tell) as history:
        await until(lambda: len(told) == 1)
        found = [(one.message_id, one.interrupted, one.abandoned) for one in told[0]]
        assert found == [(whole.message_id, False, True), (half.message_id, True, True)]
        assert {one.owner_id for one in told[0]} == {"42"}
        # They are this one's now: a second worker that is opened meanwhile is not told.
        async with opened(tmp_path, on_unconfirmed=tell):
            await asyncio.sleep(0.05)
        await history.chat("c").sent(whole.message_id)
    assert len(told) == 1

    async with opened(tmp_path, on_unconfirmed=tell) as history:
        await until(lambda: len(told) == 2)
        await history.chat("c").failed(half.message_id, reason="given up")
    async with opened(tmp_path, on_unconfirmed=tell):
        await asyncio.sleep(0.05)

    ids = [[one.message_id for one in found] for found in told]
    assert ids == [[whole.message_id, half.message_id], [half.message_id]]


async def test_whoever_is_told_may_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path) as history:
        await write(history)

    def breaks(_: tuple[Unconfirmed, ...]) -> None:
        raise RuntimeError("secret")

    async with opened(tmp_path, on_unconfirmed=breaks):
        await until(lambda: "did not take 1 replies that were never confirmed: RuntimeError" in caplog.text)
    assert "secret" not in caplog.text


async def test_what_the_outbox_let_go_is_still_known_for_a_while(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    async with opened(tmp_path, now=lambda: moment) as history:
        reply = await write(history)
        await sql(history.outbox, "DELETE FROM letopis_outbox_events")
        (waiting,) = await history.unconfirmed()
        assert (waiting.message_id, waiting.message, waiting.interrupted) == (reply.message_id, None, False)
    for days, count in ((UNCONFIRMED_TTL - timedelta(hours=1), 1), (UNCONFIRMED_TTL + timedelta(hours=1), 0)):
        async with opened(tmp_path, now=lambda later=moment + days: later) as history:
            assert len(await history.unconfirmed()) == count


def blocks(page: str) -> dict[str, Any]:
    """What the Python blocks of a page define, one after the other."""
    names: dict[str, Any] = {}
    for program in programs(ROOT / "docs" / "howto" / page):
        exec(program, names)  # noqa: S102
    return names


async def test_the_how_to_of_streaming_runs(history: History) -> None:
    names = blocks("streaming-replies.md")

    async def chunks(*, breaks: bool) -> AsyncIterator[str]:
        for word in ("Good ", "day"):
            yield word
        if breaks:
            raise ConnectionError

    assert await names["answer"](history, "c", "42", chunks(breaks=False)) == "Good day"
    with pytest.raises(ConnectionError):
        await names["answer"](history, "c", "42", chunks(breaks=True))
    await names["with_reasoning"](history, "d")

    assert await said(history) == [("Good day", False), ("Good day", True)]
    assert await names["cut_off"](history, "c") == ["Good day"]
    (message,) = await history.messages("d")
    assert message.message.content == (
        Reasoning("The person wants the weather."),
        Text("One moment."),
        ToolCall("call-1", "weather", {"city": "Oslo"}),
    )


def platform(*troubles: Exception) -> tuple[SimpleNamespace, list[str]]:
    """A bot that takes what is "good", and the rest after its troubles; and what it has shown."""
    shown: list[str] = []
    left = [*troubles]

    async def send_message(_: str, text: str) -> SimpleNamespace:
        if text != "good" and left:
            raise left.pop(0)
        shown.append(text)
        return SimpleNamespace(message_id=len(shown))

    return SimpleNamespace(send_message=send_message), shown


async def test_the_how_to_of_confirming_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = blocks("confirm-sending.md")
    monkeypatch.chdir(tmp_path)
    bot, shown = platform(ConnectionError())
    async with opened(tmp_path) as history:
        await names["reply_to"](history, bot, "a", "good")
        with pytest.raises(ConnectionError):
            await names["reply_to"](history, bot, "b", "bad")
        reply = await write(history, "whole", owner="42")
        cut = await cut_off(history, "half", "d", owner="42")
        assert await names["waiting"](history, "42") == []
    async with opened(tmp_path) as history:
        assert await names["waiting"](history, "42") == [reply.message_id, cut.message_id]

    async def serve(history: History) -> None:
        await confirmed(history)
        deliveries = [(await history.messages(name))[0].delivery.name for name in "abcd"]
        assert deliveries == ["SENT", "FAILED", "SENT", "FAILED"]

    await names["run_bot"](bot, serve)
    assert shown == ["good", "whole"]


async def test_the_how_to_of_sending_again_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = blocks("confirm-sending.md")
    monkeypatch.chdir(tmp_path)
    bot, shown = platform(ConnectionError(), PermissionError())
    told: list[Unconfirmed] = []

    async def serve(history: History) -> None:
        for chat, text in (("a", "good"), ("b", "blocked")):
            await names["reply_at_last"](history, bot, chat, text)
        await confirmed(history)

    await names["run_sending_bot"](bot, serve, told.extend)
    assert shown == ["good"]
    assert [one.failure for one in told] == ["the user has blocked the bot"]
