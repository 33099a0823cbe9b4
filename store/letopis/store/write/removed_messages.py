"""Load the stored messages that events take off the path or, where they are too many, count them and mark the rest."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.row_mapping import message_row
from letopis.store.database.schema import messages, tasks
from letopis.store.model.event_types import Body, ConversationDeleted, ConversationRewound
from letopis.store.read.task_marks import LEAVE, MAX_ROWS_PER_TRANSACTION, RESET, Task, is_on_path, left_by_mark
from letopis.store.rules.decoding import removal_bound
from letopis.store.rules.projection import Projected, Unloaded
from letopis.store.rules.reducer import ConversationState
from letopis.store.rules.rows import MessageRow
from letopis.store.write.lanes import AcceptedLane
from letopis.store.write.transaction import of_conversation


class RemovalStatements:
    """The selects of removed messages, compiled once."""

    def __init__(self, _: Dialect) -> None:
        beyond = (*of_conversation(messages), messages.c.version > sa.bindparam("after"))
        self.path = sa.select(messages).where(*beyond, is_on_path(messages)).limit(sa.bindparam("limit"))
        # Marks are rare: without one there is no need to look for marks of each row.
        self.count = (
            sa.select(sa.func.count())
            .select_from(messages)
            .where(*beyond, messages.c.version <= sa.bindparam("upto"), messages.c.left_at.is_(None))
        )
        self.count_marked = self.count.where(left_by_mark(messages).is_(None))
        self.marked = (
            sa.select(tasks.c.version)
            .where(*of_conversation(tasks), tasks.c.kind == LEAVE, tasks.c.after < tasks.c.upto)
            .limit(1)
        )


class RemovalBudget:
    """Loads removed messages until one transaction has enough rows to change."""

    def __init__(self, connection: AsyncConnection, statements: RemovalStatements) -> None:
        self._connection = connection
        self._statements = statements
        self._rows = MAX_ROWS_PER_TRANSACTION

    async def load(
        self, lane: AcceptedLane, conversation: ConversationState[int], targets: list[MessageRow]
    ) -> tuple[list[MessageRow], Unloaded | None]:
        """Return the stored messages that fresh events change, including those that they take off the path.

        If those are more than the budget has left, return ``targets`` alone and the number of the others.

        :param conversation: its state before the events.
        :param targets: the stored messages that the events name.
        """
        fresh, key, version = lane.fresh, lane.key, conversation.version
        after = removal_bound(fresh, targets)
        if after is None:
            return targets, None
        # A deletion or reset changes the rows of all events, too.
        erased = version if any(erases(item.body) for item in fresh) else 0
        if erased <= self._rows:
            limit = self._rows + 1
            found = await self._connection.execute(self._statements.path, {**key, "after": after, "limit": limit})
            rows = found.all()
            cost = max(len(rows), erased)
            if cost <= self._rows:
                self._rows -= cost
                loaded = {row.version for row in targets}
                return [*targets, *(message_row(row) for row in rows if row.version not in loaded)], None
        named = {item.body.to_message_id for item in fresh if isinstance(item.body, ConversationRewound)}
        ends = {row.version for row in targets if row.message_id in named}
        beyond = {end: await self._count_after(end, key, conversation) for end in ends}
        return targets, Unloaded(beyond=beyond, bound=version)

    async def _count_after(self, end: int, key: dict[str, Any], conversation: ConversationState[int]) -> int:
        """Return how many stored messages on the path come after a version, counted on the shorter side of it."""
        statements = self._statements
        marked = (await self._connection.execute(statements.marked, key)).first() is not None
        last = conversation.version
        after, upto = (0, end) if end < last - end else (end, last)
        count = await self._connection.execute(
            statements.count_marked if marked else statements.count, {**key, "after": after, "upto": upto}
        )
        found = int(count.scalar_one())
        return found if after else conversation.message_count - found


def erases(body: Body) -> bool:
    """Return True if an event erases all content before it: a deletion or a reset."""
    return isinstance(body, ConversationDeleted) or (isinstance(body, ConversationRewound) and bool(body.erase))


def removal_tasks(partition: int, projected: Projected, now: int) -> list[Task]:
    """Return the tasks for messages that left the path, or were reset, without being loaded."""
    marks = [(LEAVE, after, version) for after, version in projected.cuts]
    if projected.cuts and projected.reset_at is not None:
        marks.append((RESET, 0, projected.reset_at))
    return [
        Task(
            partition=partition,
            conversation_id=projected.row.conversation_id,
            kind=kind,
            version=version,
            after=after,
            upto=projected.versions.start - 1,
            created_at=now,
        )
        for kind, after, version in marks
    ]
