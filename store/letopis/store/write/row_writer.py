"""Write what a batch comes to: rows, content that is erased, and the events at their positions in the log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import conversations, events, messages, owners, same_conversation
from letopis.store.model.identifiers import partition_of
from letopis.store.read.task_marks import LEAVE, MAX_ROWS_PER_TRANSACTION, RELEASE, Task, write_marks
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.projection import Projected
from letopis.store.rules.rows import ConversationRow
from letopis.store.write.erasing import Eraser
from letopis.store.write.lanes import AcceptedLane
from letopis.store.write.transaction import ApplyTransaction


class RowWriter:
    """Writes the rows of a batch; the statements are compiled once."""

    def __init__(self, dialect: Dialect, eraser: Eraser) -> None:
        self._eraser = eraser
        self._owners = dialect.shared(OwnerStatements)

    async def write(
        self, transaction: ApplyTransaction, lanes: Sequence[AcceptedLane], *, delivered: Sequence[AcceptedLane]
    ) -> None:
        """Write what a batch makes of its conversations, messages and owners."""
        # ``lanes`` in the order of their locks, ``delivered`` in that of the batch, which numbers conversations.
        concerned = [lane.result for lane in delivered if lane.result.concerns_owner]
        rows_of_owners = await _lock_owners(transaction, self._owners, concerned) if concerned else {}
        new_rows, old_rows = list[TableRow](), list[TableRow]()
        new_messages, old_messages = list[TableRow](), list[TableRow]()
        for lane in lanes:
            row = lane.result.row
            (new_rows if row.new else old_rows).append(row.as_row())
            for message in lane.result.messages:
                rows = new_messages if message.new else old_messages
                rows.append(message.as_row(lane.partition, row.conversation_id))
        dialect, connection = transaction.dialect, transaction.connection
        await dialect.write(connection, conversations, new_rows, old_rows)
        await dialect.write(connection, messages, new_messages, old_messages)
        if rows_of_owners:
            await _write_owners(transaction, self._owners, [lane.result for lane in delivered], rows_of_owners)
        room = MAX_ROWS_PER_TRANSACTION
        for lane in lanes:
            if not lane.plain:
                room -= await self._erase(transaction, lane, room)

    async def _erase(self, transaction: ApplyTransaction, lane: AcceptedLane, room: int) -> int:
        """Carry out the plans of a lane over what was stored before; return how many rows that took."""
        result, before, now = lane.result, lane.result.first - 1, transaction.now
        key, connection, dialect = (lane.partition, lane.conversation_id), transaction.connection, transaction.dialect
        marks = [
            Task(*key, LEAVE, version=at, after=after, upto=min(upto, before), created_at=now)
            for after, upto, at in result.cuts
        ]
        # Messages that leave the path without being loaded are too many: all else of their conversation waits too.
        taken, left = 0, 0 if marks else room
        for plan in result.plans:
            taken += await self._eraser.carry_out(
                connection, plan, lane.partition, before=before, room=left - taken, now=now
            )
        if result.released or (result.row.retained > 0 and any(plan.at for plan in result.plans)):
            # Retained content is checked again afterwards: only then is all of this batch there to look at.
            at = result.versions.stop - 1
            released = Task(*key, RELEASE, version=at, after=at - 1, upto=at, created_at=now)
            marks.append(released)
            transaction.released.append(released)
        await write_marks(connection, dialect, marks)
        transaction.erased |= bool(result.plans)
        return taken


async def append_to_log(transaction: ApplyTransaction, accepted: Sequence[AcceptedLane]) -> None:
    """Give fresh events their positions, in the order of the batch, and write them."""
    # The counters are locked last, and held only until the commit.

    # Also if nothing of a lane is new to the log: a closed log lets no lane change.
    added = {lane.partition: 0 for lane in accepted if lane.moves}
    if not added:
        return
    rows, origin_id, now = list[TableRow](), transaction.origin.origin_id, transaction.now
    for lane in accepted:
        if not lane.fresh:
            continue
        position, version = added[lane.partition], lane.result.first
        for decoded, event in zip(lane.fresh, lane.result.events, strict=True):
            position += 1
            rows.append(
                (
                    lane.partition,
                    position,
                    event.conversation_id,
                    version,
                    event.event_id,
                    origin_id,
                    decoded.delivery.sequence,
                    event.type,
                    event.schema_version,
                    event.data,
                    event.metadata,
                    event.digest,
                    event.salt,
                    event.occurred_at,
                    now,
                )
            )
            version += 1
        added[lane.partition] = position
    transaction.log_locked_at = time.monotonic()
    transaction.appended = rows
    transaction.counters = await transaction.dialect.append_to_log(
        transaction.connection, added, rows, origin=transaction.origin
    )


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

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return a row of the table in the form that changes."""
        active, by, order = row.active_conversation_id, row.activated_by, row.activated_order
        return cls(owner_id=row.owner_id, active=active, number=row.next_number, by=by, order=order)

    def activate(self, conversation_id: str, origin_id: UUID, order: int | None) -> None:
        """Move the mark, unless the same outbox has moved it by a later activation."""
        if self.by == origin_id and self.order is not None and order is not None and order < self.order:
            return
        self.active, self.by, self.order, self.changed = conversation_id, origin_id, order, True

    def as_row(self, partitions: int) -> TableRow:
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
        own = same_conversation(events, conversations)
        last = sa.select(events.c.occurred_at).where(own, events.c.occurred_at <= moment)
        before = last.order_by(events.c.version.desc()).limit(1).correlate(conversations).scalar_subquery()
        self.newer = sa.select(before.label("at"), conversations.c.conversation_id).where(*others, updated > moment)
        self.locked = dialect.locked(
            sa.select(owners)
            .where(dialect.among(owners.c.partition, "partitions"), dialect.among(owners.c.owner_id, "owners"))
            .order_by(owners.c.partition, owners.c.owner_id)
        )


async def _lock_owners(
    transaction: ApplyTransaction, statements: OwnerStatements, projected: Sequence[Projected]
) -> dict[str, OwnerRow]:
    """Lock the owners and number each conversation whose owner is new to it; return the owners by id."""
    # Numbers are never used again.
    concerned: dict[str, list[ConversationRow]] = {}
    for item in projected:
        if (owner_id := item.row.conversation.owner_id) is not None:
            concerned.setdefault(owner_id, []).append(item.row)
    parts = await transaction.in_lock_order(concerned)
    owners_by_id: dict[str, OwnerRow] = {}
    for part in parts:
        partitions = transaction.partitions_of(part)
        for row in await transaction.execute(statements.locked, partitions=partitions, owners=part):
            owners_by_id[row.owner_id] = OwnerRow.of(row)
    for owner_id in chain.from_iterable(parts):
        owner = owners_by_id.setdefault(owner_id, OwnerRow(owner_id=owner_id, new=True))
        for conversation in concerned[owner_id]:
            if conversation.number is None:
                conversation.number = owner.number
                owner.number += 1
                owner.changed = True
    return owners_by_id


async def _write_owners(
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
    """Return the owner's conversation with the newest activity when the active one left; ``None`` for none."""
    # Later activity does not count, so that the answer does not depend on when this is delivered.
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
