"""A streamed reply and the bot's own rows commit together, or not at all."""

import time
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from letopis import Closed, History, InvalidInput, OutboxUnavailable
from tests.support.relays import sql, until
from tests.unit.outbox.history.test_replies import kept, said

CHAT = "chat-1"


class Boom(Exception):
    """What a program of the caller's raises."""


SPEND = sa.text("UPDATE balance SET credits = credits - 1")


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with History(tmp_path / "bot.outbox.db", relay=False, watch=False) as opened:
        await sql(opened.outbox, "CREATE TABLE balance AS SELECT 10 AS credits")
        yield opened


async def balance(history: History) -> int:
    ((credits_left,),) = await sql(history.outbox, "SELECT credits FROM balance")
    return int(credits_left)


async def test_both_are_there_after_the_commit(history: History) -> None:
    async with history.reply(CHAT, every=0) as reply:
        await reply.add("hello ")
        await reply.add("there")
        async with history.transaction() as tx:
            await tx.execute(SPEND)
            receipt = await tx.finish(reply, tokens=7, metadata={"k": 1})
            assert await tx.finish(reply, tokens=7, metadata={"k": 1}) == receipt
            with pytest.raises(Closed, match="transaction that is open"):
                await reply.add("more")
            assert await said(history, CHAT) == []
        assert await reply.finish() == receipt
        with pytest.raises(Closed):
            await reply.add("more")
    assert await said(history, CHAT) == [("hello there", False)]
    [message] = await history.messages(CHAT)
    assert (message.message.tokens, dict(message.message.metadata)) == (7, {"k": 1})
    assert (await balance(history), await kept(history)) == (9, [])
    assert [one.message_id for one in await history.unconfirmed()] == [reply.message_id]
    await reply.sent()
    assert await history.unconfirmed() == ()


@pytest.mark.parametrize("to_savepoint", [False, True])
async def test_a_rollback_leaves_the_reply_unfinished_and_finishable(history: History, to_savepoint: bool) -> None:
    async with history.reply(CHAT, every=0) as reply:
        await reply.add("hello")
        await until(lambda: reply.kept == 5)
        with suppress(Boom):
            async with history.transaction() as tx:
                with suppress(Boom) if to_savepoint else nullcontext():
                    async with tx.session() if to_savepoint else nullcontext(tx) as inner:
                        await inner.execute(SPEND)
                        lost = await tx.finish(reply)
                        raise Boom
        assert not await lost.saved(1)
        assert (await said(history, CHAT), len(await kept(history))) == ([], 1)
        await reply.add(" again")
        async with history.transaction() as tx:
            await tx.execute(SPEND)
            await tx.finish(reply)
    assert await said(history, CHAT) == [("hello again", False)]
    assert (await balance(history), await kept(history)) == (9, [])


async def test_a_rollback_that_ends_the_reply_too_leaves_what_was_said_as_interrupted(history: History) -> None:
    with pytest.raises(Boom):  # noqa: PT012
        async with history.reply(CHAT) as reply:
            await reply.add("hello")
            async with history.transaction() as tx:
                await tx.execute(SPEND)
                await tx.finish(reply)
                raise Boom
    assert await said(history, CHAT) == [("hello", True)]
    assert await balance(history) == 10


async def test_what_would_wait_for_itself_is_refused_at_once(history: History) -> None:
    begun = time.monotonic()
    async with history.reply(CHAT) as reply:
        await reply.add("hello")
        async with history.transaction() as tx:
            await tx.execute(SPEND)
            for call in (reply.finish, reply.sent):
                with pytest.raises(OutboxUnavailable, match=r"tx\.finish"):
                    await call()
            await tx.finish(reply)
            with pytest.raises(Closed, match="end that first"):
                await reply.finish()
    assert time.monotonic() - begun < 9
    assert await said(history, CHAT) == [("hello", False)]


async def test_a_reply_whose_block_lies_in_the_transaction(history: History) -> None:
    begun = time.monotonic()
    async with history.transaction() as tx:
        async with history.reply(CHAT) as reply:
            await reply.add("hello")
            await tx.finish(reply)
        await tx.execute(SPEND)
    assert await said(history, CHAT) == [("hello", False)]
    with pytest.raises(Boom):  # noqa: PT012
        async with history.transaction(), history.reply(CHAT) as cut:
            await cut.add("cut")
            raise Boom
    assert time.monotonic() - begun < 9
    assert cut._needs_retry
    await history._parts.replies.retry()
    assert await said(history, CHAT) == [("hello", False), ("cut", True)]


async def test_what_is_no_reply_of_this_history_is_refused(history: History, tmp_path: Path) -> None:
    async with (
        History(tmp_path / "other.outbox.db", relay=False, watch=False) as other,
        other.reply(CHAT) as reply,
        history.transaction() as tx,
    ):
        await reply.add("hello")
        with pytest.raises(InvalidInput, match="another history"):
            await tx.finish(reply)
        with pytest.raises(InvalidInput, match=r"history\.reply\(\)"):
            await tx.finish("hello")  # type: ignore[arg-type]
