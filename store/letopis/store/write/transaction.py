"""Hold what the phases of one apply share: the open transaction, its outbox, and the order of locks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.model.records import lane_partition
from letopis.store.rules.apply_plan import Origin


def of_conversation(table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions that select the rows of one conversation: ``:partition`` and ``:conversation``."""
    return table.c.partition == sa.bindparam("partition"), table.c.conversation_id == sa.bindparam("conversation")


def of_conversations(dialect: Dialect, table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions that select the rows of several: ``:partitions`` and ``:conversations``."""
    return dialect.among(table.c.partition, "partitions"), dialect.among(table.c.conversation_id, "conversations")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyTransaction:
    """An open transaction in which one batch is applied.

    :ivar partitions: how many partitions the log has.
    :ivar now: the time to record, in microseconds.
    """

    connection: AsyncConnection
    dialect: Dialect
    origin: Origin
    partitions: int
    now: int

    def partition(self, conversation_id: str) -> int:
        """Return the log partition of a conversation, or of a lane of records."""
        return lane_partition(conversation_id, self.partitions)

    def partitions_of(self, conversation_ids: Iterable[str]) -> list[int]:
        """Return the log partitions of conversations, sorted."""
        return sorted({self.partition(name) for name in conversation_ids})

    def lock_order(self, conversation_id: str) -> tuple[int, bytes]:
        """Return a sort key: the order of the primary keys, which compare bytes on all three databases.

        Every transaction locks in this order, so that none deadlocks with another.
        """
        return self.partition(conversation_id), conversation_id.encode()

    async def execute(self, statement: sa.Executable, **parameters: Any) -> sa.CursorResult[Any]:
        """Execute a statement with its parameters."""
        found: sa.CursorResult[Any] = await self.connection.execute(statement, parameters)
        return found
