"""Give conversations their owner's numbers and move the mark of the owner's active conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.schema import conversations, owners
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.projection import Projected
from letopis.store.rules.rows import ConversationRow
from letopis.store.write.transaction import ApplyTransaction


@dataclass(slots=True, kw_only=True)
class OwnerRow:
    """A row of the owners; mutable for the time of one transaction.

    :ivar number: the next one to give to a conversation.
    :ivar by: the outbox that moved the mark last; ``order`` is the activation's order there.
    """

    owner_id: str
    active: str | None = None
    number: int = 1
    by: UUID | None = None
    order: int | None = None
    new: bool = False
    changed: bool = False

    def activate(self, conversation_id: str, origin_id: UUID, order: int | None) -> None:
        """Move the mark, unless the same outbox has moved it by a later activation."""
        if self.by == origin_id and self.order is not None and order is not None and order < self.order:
            return
        self.active, self.by, self.order, self.changed = conversation_id, origin_id, order, True

    def as_row(self) -> TableRow:
        """Return the values in the order of the table's columns."""
        return (self.owner_id, self.active, self.number, self.by, self.order)


class OwnerStatements:
    """The lookups of owners, compiled once."""

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
    """The owners that one apply concerns."""

    def __init__(self, transaction: ApplyTransaction, statements: OwnerStatements) -> None:
        self._transaction = transaction
        self._statements = statements

    async def lock_and_number(self, projected: Sequence[Projected]) -> dict[str, OwnerRow]:
        """Lock the owners and number each conversation whose owner is new to it; return the owners by id.

        Numbers are never used again.
        """
        concerned: dict[str, list[ConversationRow]] = {}
        for item in projected:
            owner_id = item.row.conversation.owner_id
            if owner_id is not None and (item.row.number is None or item.activations or item.left):
                concerned.setdefault(owner_id, []).append(item.row)
        names = sorted(concerned, key=str.encode)
        found: dict[str, OwnerRow] = {}
        for part in in_batches(names):
            for row in await self._transaction.execute(self._statements.locked, owners=part):
                found[row.owner_id] = OwnerRow(
                    owner_id=row.owner_id,
                    active=row.active_conversation_id,
                    number=row.next_number,
                    by=row.activated_by,
                    order=row.activated_order,
                )
        for owner_id in names:
            owner = found.setdefault(owner_id, OwnerRow(owner_id=owner_id, new=True))
            for conversation in concerned[owner_id]:
                if conversation.number is None:
                    conversation.number = owner.number
                    owner.number += 1
                    owner.changed = True
        return found

    async def write(self, projected: Sequence[Projected], rows: Mapping[str, OwnerRow]) -> None:
        """Move the marks of the active conversations, and write the rows of the owners."""
        origin_id = self._transaction.origin.origin_id
        for item in projected:
            name = item.row.conversation_id
            owner = rows.get(item.row.conversation.owner_id or "")
            if owner is None:
                continue
            for order in item.activations:
                owner.activate(name, origin_id, order)
            if item.left and owner.active == name:
                found = await self._transaction.execute(
                    self._statements.next_active, owner=owner.owner_id, conversation=name
                )
                owner.active, owner.changed = found.scalar(), True
        touched = [owner for owner in rows.values() if owner.new or owner.changed]
        dialect, connection = self._transaction.dialect, self._transaction.connection
        await dialect.insert(connection, owners, [owner.as_row() for owner in touched if owner.new])
        await dialect.overwrite(connection, owners, [owner.as_row() for owner in touched if not owner.new])
