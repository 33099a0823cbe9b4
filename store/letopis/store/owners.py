"""Owners: their permanent numbers and the mark of the active conversation, in the transaction of an apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.dialects import Dialect, lookups
from letopis.store.plan import Row
from letopis.store.projection import ConversationRow, Projected
from letopis.store.schema import conversations, owners


@dataclass(slots=True, kw_only=True)
class OwnerRow:
    """A row of the owners while a batch is applied to it; mutable for the time of one transaction."""

    owner_id: str
    active: str | None = None
    number: int = 1
    by: UUID | None = None
    order: int | None = None
    new: bool = False
    changed: bool = False

    def activate(self, conversation_id: str, origin_id: UUID, order: int | None) -> None:
        """Move the mark, unless the same outbox has moved it by something that it said later."""
        if self.by == origin_id and self.order is not None and order is not None and order < self.order:
            return
        self.active, self.by, self.order, self.changed = conversation_id, origin_id, order, True

    def as_row(self) -> Row:
        """Return the values in the order of the table's columns."""
        return (self.owner_id, self.active, self.number, self.by, self.order)


class OwnerStatements:
    """The lookups, compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        self.next_active = (
            sa.select(conversations.c.conversation_id)
            .where(
                conversations.c.owner_id == sa.bindparam("owner"),
                conversations.c.state == "active",
                conversations.c.conversation_id != sa.bindparam("conversation"),
            )
            .order_by(conversations.c.updated_at.desc(), conversations.c.conversation_id.desc())
            .limit(1)
        )
        self.locked = dialect.locked(
            sa.select(owners).where(dialect.among(owners.c.owner_id, "owners")).order_by(owners.c.owner_id)
        )


class Owners:
    """The owners whom one apply concerns."""

    def __init__(
        self, connection: AsyncConnection, dialect: Dialect, statements: OwnerStatements, *, origin_id: UUID
    ) -> None:
        self._connection = connection
        self._dialect = dialect
        self._statements = statements
        self._origin_id = origin_id

    async def take(self, projected: Sequence[Projected]) -> dict[str, OwnerRow]:
        """Lock the owners whom this concerns; give each conversation whose owner is known now that owner's next number.

        Numbers are never used again.
        """
        due: dict[str, list[ConversationRow]] = {}
        for item in projected:
            owner_id = item.row.tally.owner_id
            if owner_id is not None and (item.row.number is None or item.activations or item.left):
                due.setdefault(owner_id, []).append(item.row)
        known: dict[str, OwnerRow] = {}
        for part in lookups(sorted(due, key=str.encode)):
            for row in await self._connection.execute(self._statements.locked, {"owners": part}):
                known[row.owner_id] = OwnerRow(
                    owner_id=row.owner_id,
                    active=row.active_conversation_id,
                    number=row.next_number,
                    by=row.activated_by,
                    order=row.activated_order,
                )
        for owner_id in sorted(due, key=str.encode):
            owner = known.setdefault(owner_id, OwnerRow(owner_id=owner_id, new=True))
            for conversation in due[owner_id]:
                if conversation.number is None:
                    conversation.number = owner.number
                    owner.number += 1
                    owner.changed = True
        return known

    async def move(self, projected: Sequence[Projected], marks: Mapping[str, OwnerRow]) -> None:
        """Move the marks of the active conversations, and write the owners."""
        for item in projected:
            name = item.row.conversation_id
            owner = marks.get(item.row.tally.owner_id or "")
            if owner is None:
                continue
            for order in item.activations:
                owner.activate(name, self._origin_id, order)
            if item.left and owner.active == name:
                key = {"owner": owner.owner_id, "conversation": name}
                rows = await self._connection.execute(self._statements.next_active, key)
                owner.active, owner.changed = rows.scalar(), True
        touched = [owner for owner in marks.values() if owner.new or owner.changed]
        await self._dialect.insert(self._connection, owners, [owner.as_row() for owner in touched if owner.new])
        await self._dialect.overwrite(self._connection, owners, [owner.as_row() for owner in touched if not owner.new])
