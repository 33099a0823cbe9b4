"""Queue what the tasks of an event loop write to an outbox file, and commit it in groups."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

from sqlalchemy.exc import DBAPIError

from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.file.change_watcher import Signal
from letopis.outbox.file.committer import Committer, Member, WriteGate
from letopis.store.database.sqlite import WalTruncator
from letopis.store.database.worker_thread import WorkerThread
from letopis.store.errors import Closed, OutboxUnavailable

MAX_GROUP_SIZE: Final = 512  # requests in one transaction: more gain nothing, and keep the first of them waiting


_Request = tuple[Member, "asyncio.Future[Any]"]  # what one caller wants written, and the future that it waits for


class Writer:
    """The one writer of an outbox file in this process; all that waits when a transaction begins shares it."""

    def __init__(
        self, *, committer: Committer, thread: WorkerThread, gate: WriteGate, appended: Signal, changed: Signal
    ) -> None:
        self._gate = gate
        self._thread = thread
        self._committer = committer
        self._truncator = WalTruncator(self._try_truncate_wal)
        self._appended = appended
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Request] = deque()
        self._scheduled = False  # a group is being committed, or waits for the gate
        self._concurrent = False  # the last group was of several requests
        self._idle: asyncio.Future[None] | None = None
        self._closed = False

    def submit(self, member: Member) -> asyncio.Future[Any]:
        """Queue what a caller wants written; the future has its result once that is durable, or its error."""
        if self._closed:
            raise Closed("the outbox was closed")
        if self._gate.holder is not None:
            self._gate.refuse_holder("this task holds a transaction on the outbox: append through it (tx.append)")
        self._thread.check()
        if asyncio.get_running_loop() is not self._loop:
            raise Closed("opened in another event loop: open the outbox in the loop that uses it")
        answer = self._loop.create_future()
        self._queue.append((member, answer))
        if not self._scheduled:
            self._scheduled = True
            if self._concurrent:
                # At the end of this turn of the loop, so that what other tasks are about to submit comes along.
                self._loop.call_soon(self._gate.call_when_free, self._begin)
            else:
                self._gate.call_when_free(self._begin)
        return answer

    async def maintain(self) -> None:
        """Checkpoint the WAL between two transactions, and make the disk reserve where it is missing."""
        await self._thread.run(self._committer.maintain)

    def truncate_wal(self) -> None:
        """Have the WAL truncated as soon as no reader needs it, because it holds erased content."""
        self._committer.wal.truncation_due = True
        self._truncator.schedule()

    async def close(self) -> None:
        """Write what waits, then close the connection. Later requests are refused."""
        self._closed = True
        await self._truncator.close()
        if self._scheduled:
            self._idle = self._loop.create_future()
            await self._idle
        await self._thread.run(self._committer.disconnect)

    def reject_waiters(self, reason: str) -> None:
        """Refuse the requests that are not being written yet."""
        rejected, self._queue = self._queue, deque()
        for _, answer in rejected:
            if not answer.done():
                answer.set_exception(OutboxUnavailable(reason))

    def _begin(self) -> bool:
        """Commit the next group; called with the gate held, which :meth:`_finish` releases."""
        group = self._queue
        if len(group) <= MAX_GROUP_SIZE:
            self._queue = deque()
        else:
            group = deque([self._queue.popleft() for _ in range(MAX_GROUP_SIZE)])
        self._concurrent = len(group) > 1
        members: list[Member] = []
        answers: list[asyncio.Future[Any]] = []
        for member, answer in group:
            if not answer.done():  # a caller that was cancelled while it waited is not written at all
                members.append(member)
                answers.append(answer)
        try:
            self._thread.submit(partial(self._committer.commit, members), partial(self._finish, answers))
        except Closed as closed:
            self._loop.call_soon(self._finish, answers, None, closed)
        return True

    def _finish(
        self, answers: Sequence[asyncio.Future[Any]], outcomes: list[Any] | None, error: BaseException | None
    ) -> None:
        """Answer the callers of a group, notify the signals, and begin the next group."""
        appended = changed = erased = False
        for answer, outcome in zip(answers, outcomes or [cast(Any, error)] * len(answers), strict=True):
            if isinstance(outcome, BaseException):
                if not answer.done():
                    answer.set_exception(outcome)
                continue
            if type(outcome) is Appended:
                appended = True
                if outcome.erased:
                    erased = True
            else:
                changed = True
            if not answer.done():
                answer.set_result(outcome)
        if appended:
            self._appended.notify()
        if changed:
            self._changed.notify()
        if erased and self._committer.wal.truncation_due and not self._closed:
            self._truncator.schedule()
        if self._queue:
            # After those who were woken just now, and behind the transactions that wait already.
            self._loop.call_soon(self._gate.call_when_free, self._begin)
        else:
            self._scheduled = False
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
        self._gate.release()

    async def _try_truncate_wal(self) -> bool:
        """Return True once the WAL holds no erased content any more."""

        def run() -> bool:
            with suppress(sqlite3.Error, DBAPIError, OutboxUnavailable):
                self._committer.checkpoint()
            return not self._committer.wal.truncation_due

        return await self._thread.run(run)
