"""Regressions: one test a defect that was found by reading, each with the way in which it showed."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.append import append_events
from letopis.outbox.lanes import find_lane
from letopis.outbox.lease import AnotherOutbox
from letopis.outbox.marks import block
from letopis.outbox.rebirth import give_new_origin
from letopis.outbox.relay import Relay
from letopis.outbox.repair import Selection, entries, restore, skip
from letopis.outbox.tail import Pruner, Retention
from letopis.store.conversation import Saved
from letopis.store.errors import OutboxFull, OutboxUnavailable
from letopis.store.messages import Message
from tests.relays import until


async def test_a_cancelled_append_in_a_callers_transaction_is_not_committed_by_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``append_in`` was cut off between the events and their lane; the caller's commit then kept half of the append,
    and every later append to the conversation failed on a sequence that was taken."""
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("c1", Message.user("one"))
        tasks: list[asyncio.Task[Any]] = []

        class Cursor:
            def __init__(self, cursor: Any) -> None:
                self._cursor = cursor

            def __getattr__(self, name: str) -> Any:
                return getattr(self._cursor, name)

            def executemany(self, statement: str, rows: Sequence[Any]) -> Any:
                if "letopis_outbox_lanes" in statement:
                    tasks[0].cancel()
                return self._cursor.executemany(statement, rows)

        def cut_off(cursor: Any, *args: Any, **options: Any) -> Any:
            return append_events(Cursor(cursor), *args, **options)

        monkeypatch.setattr("letopis.outbox.transaction.append_events", cut_off)
        async with history.outbox.engine.begin() as connection:
            tasks.append(asyncio.create_task(history.append_in(connection, "c1", Message.user("two"))))
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]

        receipt = await history.append("c1", Message.user("three"))

        assert receipt.sequence == 4
        assert [one.text for one in await history.messages("c1")] == ["one", "two", "three"]


async def test_a_transaction_that_sqlite_took_back_is_not_called_committed(tmp_path: Path) -> None:
    """On a full disk SQLite rolls back the whole transaction; a bot that caught the ``OutboxFull`` went on in
    autocommit, lost the rows it had written before, and was told that all was well."""
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history:
        async with history.transaction() as tx:
            await tx.execute(sa.text("CREATE TABLE credits (n INTEGER)"))

        async def refused() -> None:
            async with history.transaction() as tx:
                pages = (await tx.connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
                await tx.connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 6}")
                await tx.execute(sa.text("INSERT INTO credits VALUES (1)"))
                with pytest.raises(OutboxFull):
                    await tx.append("c1", *[Message.user("y" * 3_000) for _ in range(20)])

        with pytest.raises(OutboxUnavailable, match="nothing was committed"):
            await refused()

        async with history.transaction() as tx:
            assert await tx.scalar(sa.text("SELECT count(*) FROM credits")) == 0
            await tx.append("c1", Message.user("again"))
        assert [one.text for one in await history.messages("c1")] == ["again"]


async def test_nothing_is_written_behind_a_statement_that_took_the_transaction_back(tmp_path: Path) -> None:
    """After a statement of the bot's own on which SQLite rolls back, what followed was committed by itself."""
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history:
        async with history.transaction() as tx:
            await tx.execute(sa.text("CREATE TABLE credits (n INTEGER UNIQUE ON CONFLICT ROLLBACK)"))

        async def refused() -> None:
            async with history.transaction() as tx:
                await tx.append("c1", Message.user("one"))
                await tx.execute(sa.text("INSERT INTO credits VALUES (1)"))
                with pytest.raises(sa.exc.IntegrityError):
                    await tx.execute(sa.text("INSERT INTO credits VALUES (1)"))
                with pytest.raises(sa.exc.InvalidRequestError):
                    await tx.execute(sa.text("INSERT INTO credits VALUES (2)"))

        with pytest.raises(OutboxUnavailable, match="nothing was committed"):
            await refused()

        async with history.transaction() as tx:
            assert await tx.scalar(sa.text("SELECT count(*) FROM credits")) == 0
        assert list(await history.messages("c1")) == []


async def test_a_skipped_event_is_never_called_saved(tmp_path: Path) -> None:
    """A receipt of a skipped event waited for ever, and said "saved" once the tombstone had been let go."""
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history:
        outbox, relay = history.outbox, Relay(history.outbox, history.store)
        await history.append("c1", Message.user("good"))
        await relay.drain()
        receipt = await history.append("c1", Message.user("bad"))
        await outbox.write(_block)
        await outbox.write(
            lambda connection: skip(connection, receipt.event_ids[0], reason="a test", now_us=outbox.now_us())
        )

        assert not await receipt.saved(timeout=20)
        assert await receipt.state() is Saved.BLOCKED

        assert await relay.drain() == 1
        await outbox.write(Pruner(Retention(keep_last=0, keep_for=timedelta(0)), outbox.now_us))

        assert not await receipt.saved(timeout=20)
        assert await receipt.state() is Saved.BLOCKED


async def test_a_skipped_event_that_was_put_back_is_saved_again(tmp_path: Path) -> None:
    """The counterpart: what was skipped, put back and delivered is saved, also when it has been let go."""
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history:
        outbox, relay = history.outbox, Relay(history.outbox, history.store)
        await history.append("c1", Message.user("good"))
        await relay.drain()
        receipt = await history.append("c1", Message.user("bad"))
        await outbox.write(_block)
        await outbox.write(
            lambda connection: skip(connection, receipt.event_ids[0], reason="a test", now_us=outbox.now_us())
        )
        await outbox.write(_block)
        [tombstone] = await outbox.read(lambda connection: entries(connection, Selection(), limit=10))
        await outbox.write(
            lambda connection: restore(connection, tombstone.event_id, reason="a mistake", now_us=outbox.now_us())
        )

        assert await receipt.state() is Saved.PENDING
        assert await relay.drain() == 1
        await outbox.write(Pruner(Retention(keep_last=0, keep_for=timedelta(0)), outbox.now_us))

        assert await receipt.saved(timeout=20)


async def test_what_the_caller_rolled_back_is_never_called_saved(tmp_path: Path) -> None:
    """A receipt of ``append_in`` did not hear of a rollback: it waited for ever, and said "saved" once the event that
    took its place had been delivered and let go."""
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history:
        async with history.outbox.engine.connect() as connection:
            kept = await history.append_in(connection, "c1", Message.user("kept"))
            await connection.commit()
            taken_back = await history.append_in(connection, "c1", Message.user("never"))
            await connection.rollback()
            closed = await history.append_in(connection, "c1", Message.user("never either"))
        await history.append("c1", Message.user("other"))
        await Relay(history.outbox, history.store).drain()
        await history.outbox.write(Pruner(Retention(keep_last=0, keep_for=timedelta(0)), history.outbox.now_us))

        for receipt in (taken_back, closed):
            assert not await receipt.saved(timeout=20)
            assert await receipt.state() is Saved.PENDING
        assert await kept.saved(timeout=20)
        assert await kept.state() is Saved.SAVED


async def test_a_relay_does_not_deliver_under_an_identity_that_the_file_no_longer_has(tmp_path: Path) -> None:
    """A relay that had stood by took the lease after ``init --new-origin`` and delivered the events, numbered anew,
    under the old identity: each conversation that had been delivered to before was blocked as diverged."""
    path = tmp_path / "bot.outbox.db"
    async with History.open(path, relay=False) as history:
        await history.append("c1", Message.user("one"))
        await Relay(history.outbox, history.store).drain()
        await history.append("c1", Message.user("two"))
        await give_new_origin(path)

        with pytest.raises(AnotherOutbox, match="open it anew"):
            await Relay(history.outbox, history.store).drain()
        async with asyncio.timeout(20):
            with pytest.raises(AnotherOutbox):
                await Relay(history.outbox, history.store).run()

    async with History.open(path) as history:
        assert await history.drained(timeout=20)
        assert [one.text for one in await history.messages("c1")] == ["one", "two"]


@pytest.mark.skipif(os.name == "nt", reason="a name of a file is text there")
async def test_a_file_with_a_name_that_is_no_text_is_delivered(tmp_path: Path) -> None:
    """The store was given the file's name with lone surrogates in it, which no driver writes: nothing was delivered."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bot\xff.outbox.db"))
    async with History.open(path, store=tmp_path / "history.db") as history:
        receipt = await history.append("c1", Message.user("one"))

        assert await receipt.saved(timeout=20)


async def test_what_is_said_after_an_outbox_was_restored_from_a_backup_is_read(tmp_path: Path) -> None:
    """The store holds other events at the places of those that are pending, so reads took them for delivered: what
    was blocked as diverged was in no read at all."""
    path, backup = tmp_path / "bot.outbox.db", tmp_path / "backup.db"
    async with History.open(path, relay=False) as history:
        await history.append("c1", Message.user("kept"))
        await Relay(history.outbox, history.store).drain()
    shutil.copy(path, backup)
    async with History.open(path, relay=False) as history:
        await history.append("c1", Message.user("forgotten 1"), Message.user("forgotten 2"))
        await Relay(history.outbox, history.store).drain()
    path.unlink()
    shutil.copy(backup, path)

    async with History.open(path, relay=False) as history:
        await history.append("c1", Message.user("new"))
        await Relay(history.outbox, history.store).drain()

        texts = ["kept", "forgotten 1", "forgotten 2", "new"]
        found = await history.messages("c1")
        assert [one.text for one in found] == texts
        assert found[-1].saved is Saved.BLOCKED
        assert [one.text for one in await history.messages("c1", last=2)] == texts[-2:]
        conversation = await history.conversation("c1")
        assert conversation is not None
        assert (conversation.message_count, conversation.pending) == (4, 1)


async def test_a_repair_that_came_too_late_doubles_nothing(tmp_path: Path) -> None:
    """The counterpart: behind an event that was repaired after the store had it, the store's are the file's own."""
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history:
        outbox, relay = history.outbox, Relay(history.outbox, history.store)
        receipt = await history.append("c1", Message.user("one"), Message.user("two"))
        await relay.drain()
        await outbox.write(  # as when the acknowledgement was lost
            lambda connection: (
                connection.exec_driver_sql("UPDATE letopis_outbox_lanes SET delivered = 1, state = 'paused'").rowcount
            )
        )
        await outbox.write(
            lambda connection: skip(connection, receipt.event_ids[0], reason="a test", now_us=outbox.now_us())
        )
        await relay.drain()

        assert (await history.status()).lanes["blocked"] == 1
        assert [one.text for one in await history.messages("c1")] == ["one", "two"]
        conversation = await history.conversation("c1")
        assert conversation is not None
        assert conversation.message_count == 2


async def test_a_task_that_opens_a_second_transaction_is_refused_at_once(tmp_path: Path) -> None:
    """It waited for its own first one, for ever, and every append of the process failed from then on."""
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history, asyncio.timeout(20):
        async with history.transaction() as tx:
            with pytest.raises(OutboxUnavailable, match="holds a transaction on the outbox already"):
                async with history.transaction():
                    pass
            await tx.append("c1", Message.user("one"))

        assert (await history.append("c1", Message.user("two"))).sequence == 3


async def test_a_transaction_that_waits_behind_one_that_does_not_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appends were refused after the time that is promised; other transactions waited for ever, and the one that was
    open perhaps for them."""
    monkeypatch.setattr("letopis.outbox.transaction.LONG", 0.1)
    monkeypatch.setattr("letopis.outbox.transaction.PATIENCE", 0.3)
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history, asyncio.timeout(20):

        async def second() -> None:
            async with history.transaction() as inner:
                await inner.append("c1", Message.user("never"))

        async with history.transaction() as tx:
            task = asyncio.create_task(second())
            with pytest.raises(OutboxUnavailable, match="has held the outbox"):
                await task
            await tx.append("c1", Message.user("one"))

        assert (await history.append("c1", Message.user("two"))).sequence == 3
        assert not history.outbox.turn.taken


async def test_a_damaged_event_is_named_and_not_quoted(tmp_path: Path) -> None:
    """A read of what the outbox holds raised the JSON decoder's error, which carries the whole text of the event."""
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("c1", Message.user("one"))
        await history.outbox.write(
            lambda connection: (
                connection.exec_driver_sql(
                    "UPDATE letopis_outbox_events SET data = substr(data, 1, 20) WHERE sequence = 2"
                ).rowcount
            )
        )

        for read in (history.messages, history.conversation, history.events):
            with pytest.raises(OutboxUnavailable, match="event 2 of the conversation is damaged") as caught:
                await read("c1")
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be removed there")
async def test_a_history_file_that_is_removed_under_a_running_bot_is_made_again_and_filled(tmp_path: Path) -> None:
    """The pool, and the connection that is kept for small reads, went on with the file that nobody finds any more;
    receipts said ``saved``, and what was delivered before was missed only after the next start."""
    store = tmp_path / "history.db"
    async with History.open(tmp_path / "bot.outbox.db", store=store) as history:
        await history.append("c1", *(Message.user(f"before {number}") for number in range(5)))
        assert await history.drained(timeout=20)
        for _ in range(3):  # the connection is opened for a read, and used by the next
            assert len(await history.store.messages("c1", last=20)) == 5
            await asyncio.sleep(0.05)
        for one in tmp_path.glob("history.db*"):
            one.unlink()

        receipt = await history.append("c1", Message.user("after"))
        assert await receipt.saved(timeout=20)
        assert await history.drained(timeout=20)

        with sqlite3.connect(store) as connection:
            said = "SELECT count(*) FROM letopis_events WHERE type = 'message.appended'"
            assert connection.execute(said).fetchall() == [(6,)]
        connection.close()
        assert len(await history.store.messages("c1", last=20)) == 6


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be replaced there")
async def test_a_history_file_that_is_replaced_under_a_running_bot_is_used_and_filled_at_the_next_start(
    tmp_path: Path,
) -> None:
    """The pool went on with the file that was replaced, and receipts said ``saved`` of it."""
    store = tmp_path / "history.db"
    said = "SELECT count(*) FROM letopis_events WHERE type = 'message.appended'"

    def stored() -> int:
        with sqlite3.connect(store) as connection:
            ((count,),) = connection.execute(said).fetchall()
        connection.close()
        return int(count)

    async with History.open(tmp_path / "bot.outbox.db", store=store) as history, asyncio.timeout(60):
        await history.append("c1", Message.user("in the backup"))
        assert await history.drained()
        with sqlite3.connect(store) as connection:
            connection.execute("VACUUM INTO ?", (str(tmp_path / "backup"),))
        connection.close()
        await history.append("c2", Message.user("not in the backup"))
        assert await history.drained()
        for one in tmp_path.glob("history.db*"):
            one.unlink()
        shutil.move(tmp_path / "backup", store)

        receipt = await history.append("c3", Message.user("and on it goes"))
        assert await receipt.saved(timeout=20)
        assert stored() >= 2
    async with History.open(tmp_path / "bot.outbox.db", store=store) as history:
        await history.append("c3", Message.user("after a start"))
        assert await history.drained(timeout=20)
        # What the backup lacks is found in a quiet moment after that, and sent again.
        await until(lambda: stored() >= 4)

        assert stored() == 4


def _block(connection: sa.Connection) -> None:
    lane = find_lane(connection, "c1")
    assert lane is not None
    assert block(connection, lane, attempts=4, fault_class="poison", fault="refused")
