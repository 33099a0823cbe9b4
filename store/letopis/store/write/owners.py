"""Give conversations their owner's numbers and move the mark of the owner's active conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.schema import conversations, events, owners
from letopis.store.model.identifiers import partition_of
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.projection import Projected
from letopis.store.rules.rows import ConversationRow
from letopis.store.write.transaction import ApplyTransaction


@dataclass(slots=True, kw_only=True)
class OwnerRow:
    """A row of the owners; ``by`` is the outbox that moved the mark last, ``order`` the activation's order there."""

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

    def as_row(self, partitions: int) -> TableRow:
        """Return the values in the order of the table's columns."""
        active_partition = None if self.active is None else partition_of(self.active, partitions)
        partition = partition_of(self.owner_id, partitions)
        return (partition, self.owner_id, self.active, active_partition, self.number, self.by, self.order)


class OwnerStatements:
    """The lookups of owners, compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        others = (
            conversations.c.owner_id == sa.bindparam("owner"),
            conversations.c.conversation_id != sa.bindparam("conversation"),
            sa.or_(conversations.c.state == "active", dialect.among(conversations.c.conversation_id, "later")),
        )
        updated = conversations.c.updated_at
        moment: sa.BindParameter[Any] = sa.bindparam("moment")
        self.newest = (
            sa.select(updated.label("at"), conversations.c.conversation_id)
            .where(*others, updated <= moment)
            .order_by(updated.desc(), conversations.c.conversation_id.desc())
            .limit(1)
        )
        before = (
            sa.select(events.c.occurred_at)
            .where(
                events.c.partition == conversations.c.partition,
                events.c.conversation_id == conversations.c.conversation_id,
                events.c.occurred_at <= moment,
            )
            .order_by(events.c.version.desc())
            .limit(1)
            .correlate(conversations)
            .scalar_subquery()
        )
        self.newer = sa.select(before.label("at"), conversations.c.conversation_id).where(*others, updated > moment)
        self.locked = dialect.locked(
            sa.select(owners)
            .where(dialect.among(owners.c.partition, "partitions"), dialect.among(owners.c.owner_id, "owners"))
            .order_by(owners.c.partition, owners.c.owner_id)
        )


async def lock_owners(
    transaction: ApplyTransaction, statements: OwnerStatements, projected: Sequence[Projected]
) -> dict[str, OwnerRow]:
    """Lock the owners and number each conversation whose owner is new to it; return the owners by id.

    Numbers are never used again.
    """
    concerned: dict[str, list[ConversationRow]] = {}
    for item in projected:
        if (owner_id := item.row.conversation.owner_id) is not None:
            concerned.setdefault(owner_id, []).append(item.row)
    names = sorted(concerned, key=transaction.lock_order)
    owners_by_id: dict[str, OwnerRow] = {}
    for part in in_batches(names):
        partitions = transaction.partitions_of(part)
        for row in await transaction.execute(statements.locked, partitions=partitions, owners=part):
            owners_by_id[row.owner_id] = OwnerRow(
                owner_id=row.owner_id,
                active=row.active_conversation_id,
                number=row.next_number,
                by=row.activated_by,
                order=row.activated_order,
            )
    for owner_id in names:
        owner = owners_by_id.setdefault(owner_id, OwnerRow(owner_id=owner_id, new=True))
        for conversation in concerned[owner_id]:
            if conversation.number is None:
                conversation.number = owner.number
                owner.number += 1
                owner.changed = True
    return owners_by_id


async def write_owners(
    transaction: ApplyTransaction,
    statements: OwnerStatements,
    projected: Sequence[Projected],
    rows: Mapping[str, OwnerRow],
) -> None:
    """Move the marks of the active conversations, and write the rows of the owners."""
    origin_id = transaction.origin.origin_id
    left: dict[str, list[tuple[int, str]]] = {}
    for item in projected:
        name = item.row.conversation_id
        owner = rows.get(item.row.conversation.owner_id or "")
        if owner is None:
            continue
        for order in item.activations:
            owner.activate(name, origin_id, order)
        if item.left_at is not None:
            left.setdefault(owner.owner_id, []).append((item.left_at, name))
    for owner_id, moments in left.items():
        # In the order in which they left, however many of them are delivered together.
        for moment, name in sorted(moments):
            if (owner := rows[owner_id]).active == name:
                later = [conversation for at, conversation in moments if at > moment]
                values = {"owner": owner_id, "conversation": name, "moment": moment, "later": later}
                owner.active, owner.changed = await _next_active(transaction, statements, projected, values), True
    touched = [owner for owner in rows.values() if owner.new or owner.changed]
    new = [owner.as_row(transaction.partitions) for owner in touched if owner.new]
    old = [owner.as_row(transaction.partitions) for owner in touched if not owner.new]
    await transaction.dialect.write(transaction.connection, owners, new, old)


async def _next_active(
    transaction: ApplyTransaction,
    statements: OwnerStatements,
    projected: Sequence[Projected],
    values: Mapping[str, Any],
) -> str | None:
    """Return the owner's conversation with the newest activity when the active one left; ``None`` if none is left.

    Activity after that does not count, so that the answer does not depend on when this is delivered.
    """
    newest = await transaction.execute(statements.newest, **values)
    active: list[tuple[int, str | None]] = [(row.at, row.conversation_id) for row in newest]
    # The events of this delivery are not in the log yet.
    fresh = {item.row.conversation_id: item.events for item in projected}
    for row in await transaction.execute(statements.newer, **values):
        events_of = reversed(fresh.get(row.conversation_id, ()))
        at = next((event.occurred_at for event in events_of if event.occurred_at <= values["moment"]), row.at)
        if at is not None:
            active.append((at, row.conversation_id))
    return max(active, default=(0, None))[1]
