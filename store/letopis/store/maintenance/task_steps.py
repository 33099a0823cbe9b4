"""Carry out pending tasks in steps, a bounded piece in each transaction, so that any process may be killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.database.dialects import Dialect, check_row_count, reading
from letopis.store.database.schema import conversations, log_heads, of_conversation, same_conversation, tasks
from letopis.store.database.store_identity import (
    check_connection,
    check_counters,
    check_identity,
    expected_store_id,
    read_identity,
)
from letopis.store.read.task_marks import EDITS, ERASE, RELEASE, TRIM, PendingTasks, Task
from letopis.store.write.erasing import Eraser

STEP_SECONDS: Final = 0.2
"""Length of one step, in which an SQLite file has no other writer."""
PIECE_VERSIONS: Final = 500
"""Versions between two looks at the clock."""
_ERASING: Final = (ERASE, TRIM, EDITS, RELEASE)


class TaskSteps:
    """Carries out the tasks of one history store."""

    # An interrupted step has not happened, and steps are idempotent: any number of processes may run them. Before a
    # step commits, it locks the counter of its partition, as an apply does: a move closes the log, and copies the rows
    # once no step can change them.
    def __init__(self, engine: AsyncEngine, dialect: Dialect, *, eraser: Eraser, erased: Callable[[], object]) -> None:
        self._engine = engine
        self._dialect = dialect
        self._eraser = eraser
        self._erased = erased
        there = (tasks.c.partition == sa.bindparam("b_partition"), tasks.c.conversation_id == sa.bindparam("b_name"))
        at = (*there, tasks.c.kind == sa.bindparam("b_kind"), tasks.c.version == sa.bindparam("b_version"))
        # The earlier of two rewinds first: messages belong to the one that took them off the path. What concerns other
        # conversations comes last: one that cannot be erased must not delay the rest.
        order = (sa.case((tasks.c.kind == RELEASE, 1), else_=0), tasks.c.version)
        self._pending = sa.select(tasks).where(tasks.c.after < tasks.c.upto).order_by(*order).limit(1)
        self._task: Any = dialect.locked(sa.select(tasks).where(*at))
        self._lock: Any = dialect.locked(sa.select(conversations.c.version).where(*of_conversation(conversations)))
        self._advance = sa.update(tasks).where(*at).values(after=sa.bindparam("b_after"))
        self._counter: Any = dialect.locked(
            sa.select(log_heads.c.closed).where(log_heads.c.partition == sa.bindparam("partition"))
        )

    async def pending(self, *, owner: str | None = None) -> PendingTasks:
        """Return how much is pending, in all conversations or in an owner's."""
        statement = sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(tasks.c.upto - tasks.c.after), 0),
            sa.func.coalesce(sa.func.sum(sa.case((tasks.c.kind.in_(_ERASING), 1), else_=0)), 0),
        ).where(tasks.c.after < tasks.c.upto)
        if owner is not None:
            own = same_conversation(conversations, tasks)
            statement = statement.where(sa.exists().where(own, conversations.c.owner_id == owner))
        async with reading(self._engine) as connection:
            await check_connection(connection)
            count, rows, erasing = (await connection.execute(statement)).one()
        return PendingTasks(tasks=int(count), rows=int(rows), erasing=int(erasing))

    async def step(self, *, conversation: tuple[int, str] | None = None) -> bool:
        """Carry out a piece of the first pending task. Return True if there was one."""
        pending = self._pending
        if conversation is not None:
            pending = pending.where(tasks.c.partition == conversation[0], tasks.c.conversation_id == conversation[1])
        async with reading(self._engine) as connection:
            await check_connection(connection)
            row = (await connection.execute(pending)).first()
        if row is None:
            return False
        async with self._dialect.transaction(self._engine) as connection:
            check_identity((await read_identity(connection)).store_id, expected_store_id())
            if row.kind == RELEASE:  # it locks the conversations that it erases, in the order of an apply
                task = Task(**row._mapping)
                await self._eraser.erase_released(connection, now=task.created_at, marks=[task])
            else:
                await self._advance_task(connection, row)
            closed = (await connection.execute(self._counter, {"partition": row.partition})).scalars().all()
            check_counters(closed, expected=1)
        if row.kind in _ERASING:
            self._erased()
        return True

    async def _advance_task(self, connection: AsyncConnection, row: sa.Row[Any]) -> None:
        # Read again under the lock: another process may have carried it out.
        key = {"partition": row.partition, "conversation": row.conversation_id}
        await connection.execute(self._lock, key)
        at = {"b_partition": row.partition, "b_name": row.conversation_id, "b_kind": row.kind, "b_version": row.version}
        task = Task(**(await connection.execute(self._task, at)).one()._mapping)
        if task.after < task.upto:
            after = await self._work(connection, task)
            advanced = await connection.execute(self._advance, {**at, "b_after": after})
            check_row_count(tasks, advanced.rowcount, 1)

    async def _work(self, connection: AsyncConnection, task: Task) -> int:
        """Work on a task for one step, or to its end. Return the version up to which it is done."""
        deadline = time.monotonic() + STEP_SECONDS
        while True:
            after = await self._eraser.step(connection, task, limit=PIECE_VERSIONS)
            if after >= task.upto or time.monotonic() >= deadline:
                return after
            task = replace(task, after=after)
