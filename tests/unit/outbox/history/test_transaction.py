"""A transaction: the bot's rows and its words together, or neither, also on a connection of the bot's own."""

import asyncio
import logging
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import letopis.outbox.history.transaction as transaction_module
from letopis import History, Message, Saved
from letopis.outbox.event_log.append import append_events
from letopis.outbox.file.change_watcher import FileWatcher
from letopis.store import InvalidInput, MessageEdited, MessageSent, OutboxFull, OutboxUnavailable
from tests.support.outboxes import prune
from tests.support.relays import sql

purse = sa.Table("purse", sa.MetaData(), sa.Column("owner", sa.Text, primary_key=True), sa.Column("left", sa.Integer))


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with History(tmp_path / "bot.outbox.db") as opened:
        async with opened.transaction() as tx:
            await tx.execute(sa.schema.CreateTable(purse))
            await tx.execute(sa.insert(purse), [{"owner": "42", "left": 10}, {"owner": "43", "left": 10}])
        yield opened


async def left(history: History) -> int:
    ((credits_left,),) = await sql(history.outbox, "SELECT \"left\" FROM purse WHERE owner = '42'")
    return int(credits_left)


async def said(history: History) -> list[str]:
    return [message.text for message in await history.messages("c1", last=None)]


def pay() -> Any:
    return sa.update(purse).where(purse.c.owner == "42").values(left=purse.c.left - 1)


class Oops(Exception):
    pass


async def test_a_commit_leaves_both_and_nobody_sees_them_before_it(history: History, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "bot.outbox.db")
    count = 'SELECT (SELECT count(*) FROM letopis_outbox_events), (SELECT min("left") FROM purse)'
    async with history.transaction() as tx:
        await tx.execute(pay())
        first = await tx.append("c1", Message.user("hi"), owner="42")
        second = await tx.append("c1", Message.assistant("hello"))
        assert await tx.scalar(sa.select(purse.c.left).where(purse.c.owner == "42")) == 9
        assert other.execute(count).fetchone() == (0, 10)

    assert other.execute(count).fetchone() == (3, 9)
    other.close()
    assert await said(history) == ["hi", "hello"]
    assert (first.sequence, second.sequence) == (2, 3)
    assert await second.saved(timeout=20)


async def test_a_transaction_that_stays_open_is_told_of_once_and_does_not_hold_the_others_for_ever(
    history: History, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither appends nor other transactions."""
    monkeypatch.setattr(transaction_module, "WARN_AFTER_SECONDS", 0.05)
    monkeypatch.setattr(transaction_module, "LOCK_TIMEOUT_SECONDS", 0.3)

    async def second() -> None:
        async with history.transaction() as inner:
            await inner.append("c1", Message.user("never"))

    with caplog.at_level(logging.WARNING, logger="letopis.outbox.history"):
        async with history.transaction() as tx:
            waiting = [asyncio.create_task(one) for one in (history.append("c1", Message.user("waits")), second())]
            for one in waiting:
                with pytest.raises(OutboxUnavailable, match="held the outbox"):
                    await one
            await tx.append("c1", Message.user("slow"))

    assert [record.message for record in caplog.records if "has been open" in record.message][1:] == []
    monkeypatch.undo()  # the relay of this history takes its turns too
    await history.append("c1", Message.user("later"))
    assert await said(history) == ["slow", "later"]


async def test_a_lock_of_another_process_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_module, "LOCK_TIMEOUT_SECONDS", 0.1)
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        other = sqlite3.connect(history.outbox.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutboxUnavailable, match="SQLITE_BUSY"):
            await history.transaction().__aenter__()
        other.execute("ROLLBACK")
        other.close()

        async with history.transaction() as tx:
            await tx.append("c1", Message.user("later"))
        assert await said(history) == ["later"]


async def in_asyncio(append: Callable[[], Any], after: float) -> Any:
    task = asyncio.ensure_future(append())
    await asyncio.sleep(after)
    task.cancel()
    return (await asyncio.gather(task, return_exceptions=True))[0]


async def in_anyio(append: Callable[[], Any], after: float) -> Any:
    with anyio.move_on_after(after):
        return await append()
    return asyncio.CancelledError()


@pytest.mark.parametrize("cancelled", [in_asyncio, in_anyio])
async def test_a_transaction_cancelled_at_a_random_moment_is_whole_or_not_at_all(
    history: History, cancelled: Callable[[Callable[[], Any], float], Any]
) -> None:
    chance = random.Random(5)
    await history.drained(20)
    committed, longest = 0, 0.012

    async def one(number: int) -> None:
        nonlocal committed
        async with history.transaction() as tx:
            await tx.execute(pay())
            await tx.append("c1", Message.user(str(number)))
            await asyncio.sleep(0)
            await tx.append("c1", Message.assistant(str(number)))
        committed += 1

    tasks_before = len(asyncio.all_tasks())
    for number in range(150):
        await cancelled(lambda number=number: one(number), chance.random() * longest)  # type: ignore[misc]
        longest *= 1 if committed else 1.1  # on a busy machine nothing is quick
    texts = await said(history)
    spent = 10 - await left(history)

    assert committed <= spent <= 150
    assert len(texts) == 2 * spent
    assert all(texts.count(text) == 2 for text in texts)
    assert 0 < committed < 150, "neither cancellation nor commit came in time: this test shows nothing"
    async with history.transaction() as tx:  # the lock is free
        await tx.execute(pay())
    await history.drained(20)
    assert len([task for task in asyncio.all_tasks() if "terminate" in repr(task)]) == 0
    assert len(asyncio.all_tasks()) <= tasks_before + 2


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


async def orders(history: History) -> list[str]:
    return list(await history.outbox.read(lambda connection: connection.scalars(sa.select(Order.what)).all()))


@pytest.fixture
async def shop(history: History) -> History:
    async with history.transaction() as tx:
        await tx.execute(sa.schema.CreateTable(Order.metadata.tables["orders"]))
    return history


async def test_rows_of_a_session_commit_with_the_transaction(shop: History) -> None:
    async with shop.transaction() as tx:
        async with tx.session() as session:
            session.add(Order(what="tea"))
            receipt = await shop.append_in(session, "c1", Message.assistant("Ordered."))
            await session.commit()  # as a function of the bot's may that knows of no transaction around it
            found = (await session.scalars(sa.select(Order))).one()
            found.what = "green tea"
        assert await tx.scalar(sa.select(Order.what)) == "green tea"
        assert not await receipt.saved(timeout=0)
        assert await orders(shop) == []

    assert (await orders(shop), await said(shop)) == (["green tea"], ["Ordered."])
    assert await receipt.saved(timeout=20)


@pytest.mark.parametrize("inside", [True, False])
async def test_an_exception_leaves_nothing(shop: History, inside: bool) -> None:
    with pytest.raises(Oops):  # noqa: PT012 - the end of the block is part of it
        async with shop.transaction() as tx:
            await tx.execute(pay())
            async with tx.session() as session:
                session.add(Order(what="tea"))
                await session.commit()
                receipt = await tx.append("c1", Message.assistant("Ordered."))
                if inside:
                    raise Oops
            raise Oops

    assert (await left(shop), await orders(shop), await said(shop)) == (10, [], [])
    assert not await receipt.saved()
    assert (await shop.append("c1", Message.user("after"))).sequence == 2


async def test_a_session_that_fails_before_its_first_statement_takes_back_what_was_appended(shop: History) -> None:
    async with shop.transaction() as tx:
        with suppress(LookupError):
            async with tx.session():
                await tx.append("c1", Message.user("taken back"))
                raise LookupError
        await tx.append("c1", Message.user("kept"))

    assert await said(shop) == ["kept"]


async def test_a_session_that_fails_takes_back_its_own_part_alone(shop: History) -> None:
    """The receipt of an append in a savepoint that was rolled back said "saved" once the event that took its place had
    been delivered and pruned."""
    async with shop.transaction() as tx:
        await tx.execute(pay())
        with pytest.raises(IntegrityError):  # noqa: PT012
            async with tx.session() as session:
                session.add(Order(id=1, what="tea"))
                await session.flush()
                lost = await tx.append("c1", Message.assistant("Ordered."))
                await session.execute(sa.insert(Order), [{"id": 1, "what": "twice"}])
        kept = await tx.append("c1", Message.assistant("Sold out."))

    assert lost.sequence == kept.sequence
    assert (await left(shop), await orders(shop), await said(shop)) == (9, [], ["Sold out."])
    assert await kept.saved(timeout=20)
    async with asyncio.timeout(20):
        assert not await lost.saved()
        await prune(shop, keep_last=0)
        assert not await lost.saved()
    assert await lost.state() is Saved.PENDING
    assert await kept.saved(timeout=20)


async def test_a_connection_of_an_engine_of_the_bots_own_works_too(history: History, tmp_path: Path) -> None:
    """An edit was taken for one of an erased message, as a fetch is a coroutine there."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'bot.outbox.db'}")
    message = Message.user("one", id="m-1")
    async with engine.begin() as connection:
        await connection.execute(pay())
        receipt = await history.append_in(connection, "c1", message)
    async with engine.connect() as connection:
        edited = await history.append_in(connection, "c1", MessageEdited(message_id="m-1", content="two"))
        sent = await history.append_in(connection, "c1", MessageSent(message_id="m-1", sent_as="text"))
        again = await history.append_in(connection, "c1", message, after=receipt)
        await connection.commit()
        third = await history.append_in(connection, "c1", Message.user("three"))
        await connection.rollback()

    assert (edited.sequence, sent.sequence, again.sequence) == (3, 4, 2)
    assert await sent.saved(timeout=20)
    assert not await third.saved(timeout=0.05)
    assert await said(history) == ["two"]
    await engine.dispose()


@pytest.mark.parametrize("as_session", [False, True])
async def test_the_bell_rings_after_the_callers_commit_and_not_before(tmp_path: Path, as_session: bool) -> None:
    async with (
        History(tmp_path / "bot.outbox.db", relay=False) as history,
        FileWatcher(history.outbox.path, history.outbox.appended, file_id=history.outbox.file_id),  # as a relay has one
    ):
        bell = history.outbox.appended
        async with AsyncSession(history.outbox.engine) if as_session else history.outbox.engine.connect() as own:
            seen = bell.generation
            await history.append_in(own, "c1", Message.user("hi"))
            await asyncio.sleep(0.02)
            assert bell.generation == seen
            await own.commit()
            await asyncio.wait_for(bell.wait(after=seen), 60)
            assert await sql(history.outbox, "SELECT count(*) FROM letopis_outbox_events") == [(2,)]
            await history.append_in(own, "c1", Message.user("no"))
            seen = bell.generation
            await own.rollback()
        await asyncio.sleep(0.02)
        assert bell.generation == seen


@pytest.mark.parametrize(
    ("name", "options", "pragma", "reason"),
    [
        ("other.db", {}, "user_version", "not on this outbox file"),
        ("bot.outbox.db", {}, "synchronous=NORMAL", "synchronous=FULL"),
        ("bot.outbox.db", {"isolation_level": "AUTOCOMMIT"}, "user_version", "begin a transaction"),
    ],
)
async def test_a_connection_that_will_not_do_is_refused(
    history: History, tmp_path: Path, name: str, options: dict[str, Any], pragma: str, reason: str
) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / name}", **options)
    async with engine.connect() as connection:
        await connection.exec_driver_sql(f"PRAGMA {pragma}")
        with pytest.raises(InvalidInput, match=reason):
            await history.append_in(connection, "c1", Message.user("x"))
        with pytest.raises(InvalidInput, match="AsyncConnection"):
            await history.append_in(None, "c1", Message.user("x"))  # type: ignore[arg-type]
    assert await said(history) == []
    await engine.dispose()


async def test_a_transaction_that_read_first_and_was_overtaken_is_told_why(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'bot.outbox.db'}")
    async with History(tmp_path / "bot.outbox.db", relay=False) as history, engine.connect() as connection:
        await connection.exec_driver_sql("BEGIN")
        await connection.exec_driver_sql("SELECT count(*) FROM letopis_outbox_events")
        await history.append("c1", Message.user("came first"))
        with pytest.raises(OutboxUnavailable, match="BEGIN IMMEDIATE"):
            await history.append_in(connection, "c1", Message.user("too late"))
        await connection.rollback()

        assert await said(history) == ["came first"]
    await engine.dispose()


async def test_a_cancelled_append_is_not_committed_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``append_in`` was cut off between the events and their lane; the caller's commit then kept half of the append,
    and every later append to the conversation failed on a sequence that was taken."""
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("c1", Message.user("one"))

        def cut_off(cursor: Any, *args: Any, **options: Any) -> Any:
            def executemany(statement: str, rows: Sequence[Any]) -> Any:
                if "letopis_outbox_lanes" in statement:
                    task.cancel()
                return cursor.executemany(statement, rows)

            return append_events(Mock(wraps=cursor, executemany=executemany), *args, **options)

        monkeypatch.setattr("letopis.outbox.file.joint_write.append_events", cut_off)
        async with history.outbox.engine.begin() as connection:
            task = asyncio.create_task(history.append_in(connection, "c1", Message.user("two")))
            with pytest.raises(asyncio.CancelledError):
                await task

        receipt = await history.append("c1", Message.user("three"))

        assert receipt.sequence == 4
        assert await said(history) == ["one", "two", "three"]


async def test_a_transaction_that_sqlite_took_back_is_not_called_committed(tmp_path: Path) -> None:
    """On a full disk SQLite rolls back the whole transaction; a bot that caught the ``OutboxFull`` continued in
    autocommit, lost the rows it had written before, and got no error."""
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        async with history.transaction() as tx:
            await tx.execute(sa.text("CREATE TABLE credits (n INTEGER)"))

        with pytest.raises(OutboxUnavailable, match="nothing was committed"):  # noqa: PT012 - as above
            async with history.transaction() as tx:
                pages = (await tx.connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
                await tx.connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 6}")
                await tx.execute(sa.text("INSERT INTO credits VALUES (1)"))
                with pytest.raises(OutboxFull):
                    await tx.append("c1", *[Message.user("y" * 3_000) for _ in range(20)])

        async with history.transaction() as tx:
            assert await tx.scalar(sa.text("SELECT count(*) FROM credits")) == 0
            await tx.append("c1", Message.user("again"))
        assert await said(history) == ["again"]


async def test_nothing_is_written_behind_a_statement_that_took_the_transaction_back(history: History) -> None:
    """After a statement of the bot's own on which SQLite rolls back, what followed was committed on its own."""
    async with history.transaction() as tx:
        await tx.execute(sa.text("CREATE TABLE credits (n INTEGER UNIQUE ON CONFLICT ROLLBACK)"))

    with pytest.raises(OutboxUnavailable, match="nothing was committed"):  # noqa: PT012 - as above
        async with history.transaction() as tx:
            await tx.append("c1", Message.user("one"))
            await tx.execute(sa.text("INSERT INTO credits VALUES (1)"))
            with pytest.raises(sa.exc.IntegrityError):
                await tx.execute(sa.text("INSERT INTO credits VALUES (1)"))
            with pytest.raises(sa.exc.InvalidRequestError):
                await tx.execute(sa.text("INSERT INTO credits VALUES (2)"))

    async with history.transaction() as tx:
        assert await tx.scalar(sa.text("SELECT count(*) FROM credits")) == 0
    assert await said(history) == []


async def test_a_task_that_opens_a_second_transaction_is_refused_at_once(history: History) -> None:
    """It waited for its own first one, for ever, and every append of the process failed from then on."""
    async with asyncio.timeout(20), history.transaction() as tx:
        with pytest.raises(OutboxUnavailable, match="holds a transaction on the outbox already"):
            await history.transaction().__aenter__()
        await tx.append("c1", Message.user("one"))
    assert (await history.append("c1", Message.user("two"))).sequence == 3
