"""Record erasures of all that someone said, which every outbox carries out, and holds, which forbid them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store._runtime import StoreRuntime
from letopis.store.database.dialects import check_row_count
from letopis.store.database.schema import conversations, erasures, holds, log_heads, origins
from letopis.store.database.store_identity import check_counters, check_identity, check_not_moved, read_identity
from letopis.store.errors import Held, InvalidInput
from letopis.store.maintenance.retention import read_again
from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.events import from_microseconds
from letopis.store.model.identifiers import check_identifier, check_whole
from letopis.store.read.paging import check_count
from letopis.store.rules.apply_plan import Origin

Kind = Literal["owner", "person", "conversation"]
How = Literal["reset", "delete"]
HeldKind = Literal["owner", "conversation"]

MAX_REASON_CHARACTERS: Final = 1_000
"""Characters of a reason, and of the name of who asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """An erasure of all that someone said up to a moment: in each outbox, the moment at which it is carried out there.

    :ivar number: counted from 1 in each history store; an outbox carries them out in this order.
    :ivar kind: what is erased: all of an ``owner`` or ``person``, or a ``conversation``.
    :ivar subject: the id of the owner, person or conversation.
    :ivar how: what becomes of the conversations: ``reset`` empties them, ``delete`` ends them.
    :ivar origin_id: the outbox through which it was asked for.
    """

    number: int
    kind: Kind
    subject: str
    how: How
    reason: str | None
    requested_by: str | None
    origin_id: UUID | None
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Unacknowledged:
    """An outbox that has not told the history store that it has carried out all erasures.

    :ivar name: the base name of its file.
    :ivar carried_out: the number of the last erasure that it has acknowledged.
    :ivar since: when the first one that it lacks was recorded.
    :ivar last_seen_at: when it last delivered, to the hour.
    """

    name: str
    origin_id: UUID
    carried_out: int
    since: datetime
    last_seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What must not be erased until it is released: an owner with all conversations, or one conversation."""

    kind: HeldKind
    subject: str
    reason: str
    requested_by: str | None
    held_at: datetime


class ErasureRegister:
    """The erasures and holds of one history store.

    An erasure is recorded under the lock of the counters that every apply takes last. So a delivery is either committed
    before it, or refused until its outbox has carried it out.
    """

    def __init__(self, runtime: StoreRuntime) -> None:
        self._runtime = runtime

    async def register(
        self,
        kind: Kind,
        subject: str,
        *,
        how: How,
        reason: str | None = None,
        requested_by: str | None = None,
        origin: Origin | None = None,
    ) -> Erasure:
        """Record an erasure, and return it. What is stored is not erased by it: append that after it.

        Recording the same again is safe, and gives a new number.

        :param origin: the outbox that asks.
        :raises Held: a hold forbids it.
        :raises InvalidInput: an argument is not valid.
        :raises StoreFault: the database failed, or the history was moved away.
        """
        if kind not in ("owner", "person", "conversation"):
            raise InvalidInput("kind", "must be owner, person or conversation")
        if how not in ("reset", "delete"):
            raise InvalidInput("how", "must be reset or delete")
        check_identifier(subject, "subject")
        if origin is not None and not isinstance(origin, Origin):
            raise InvalidInput("origin", f"must be an Origin, not {type(origin).__name__}")
        _check_text(reason, "reason")
        _check_text(requested_by, "requested_by")

        async def work(connection: AsyncConnection) -> Erasure:
            counted = await self._lock(connection, None if origin is None else origin.store_id)
            # A person may be the owner of conversations, too.
            await self._refuse_held(connection, **{"conversation" if kind == "conversation" else "owner": subject})
            # A store that was restored from a backup counts on from what the outboxes know.
            known = (await connection.execute(sa.select(sa.func.max(origins.c.erasures)))).scalar() or 0
            number = max(counted, known, 0 if origin is None else origin.erasures) + 1
            now = self._runtime.now()
            row = (number, kind, subject, how, reason, requested_by, origin and origin.origin_id, now)
            await self._runtime.dialect.insert(connection, erasures, [row])
            changed = await connection.execute(sa.update(log_heads).values(erasures=number))
            check_row_count(log_heads, changed.rowcount, self._runtime.known_partitions)
            return Erasure(**_values(erasures, row))

        return await self._runtime.write(work)

    async def after(self, number: int, *, limit: int = 100) -> list[Erasure]:
        """Return the erasures after a number, in order.

        :raises InvalidInput: an argument is not valid.
        """
        check_whole(number, "number", 0, INTEGER_MAX)
        check_count(limit, "limit")
        statement = sa.select(erasures).where(erasures.c.number > number).order_by(erasures.c.number).limit(limit)
        return [Erasure(**_values(erasures, row)) for row in await self._rows(statement)]

    async def unacknowledged(self) -> list[Unacknowledged]:
        """Return the outboxes that have not acknowledged all erasures, the longest first."""
        return await self._runtime.read(lambda _, connection: read_unacknowledged(connection))

    async def hold(self, kind: HeldKind, subject: str, *, reason: str, requested_by: str | None = None) -> Hold:
        """Hold an owner or a conversation: nothing of it is erased from now on. Again replaces the reason.

        What was erased before stays erased. An erasure or a reset, deletion or redaction that was asked for before and
        arrives later is set aside for good: ask for it again after the release.

        :raises InvalidInput: an argument is not valid.
        """
        _check_held(kind, subject)
        if not reason:
            raise InvalidInput("reason", "must not be empty: it is shown to those who want to erase")
        _check_text(reason, "reason")
        _check_text(requested_by, "requested_by")

        async def work(connection: AsyncConnection) -> Hold:
            await self._lock(connection, None)
            await connection.execute(sa.delete(holds).where(holds.c.kind == kind, holds.c.subject == subject))
            row = (kind, subject, reason, requested_by, self._runtime.now())
            await self._runtime.dialect.insert(connection, holds, [row])
            return Hold(**_values(holds, row))

        return await self._runtime.write(work)

    async def release(self, kind: HeldKind, subject: str) -> bool:
        """Release a hold. Return False if there is none."""
        _check_held(kind, subject)

        async def work(connection: AsyncConnection) -> bool:
            await self._lock(connection, None)
            removed = sa.delete(holds).where(holds.c.kind == kind, holds.c.subject == subject)
            if (await connection.execute(removed)).rowcount == 0:
                return False
            await read_again(connection)  # retention has passed over what was held
            return True

        return await self._runtime.write(work)

    async def holds(self) -> list[Hold]:
        """Return all holds, in the order of kind and id."""
        rows = sa.select(holds).order_by(holds.c.kind, holds.c.subject)
        return [Hold(**_values(holds, row)) for row in await self._rows(rows)]

    async def check_not_held(self, *, owner: str | None = None, conversation: str | None = None) -> None:
        """Raise :exc:`Held` if a hold forbids to erase an owner, or a conversation.

        An owner is held by a hold on any of the owner's conversations, and a conversation by one on its owner.

        :raises InvalidInput: an id is not valid.
        """
        for value, field in ((owner, "owner"), (conversation, "conversation")):
            if value is not None:
                check_identifier(value, field)
        await self._runtime.read(
            lambda _, connection: self._refuse_held(connection, owner=owner, conversation=conversation)
        )

    async def _refuse_held(
        self, connection: AsyncConnection, *, owner: str | None = None, conversation: str | None = None
    ) -> None:
        of_owner, of_conversation = holds.c.kind == "owner", holds.c.kind == "conversation"
        matches: list[sa.ColumnElement[bool]] = [sa.false()]
        if owner is not None:
            own = sa.select(conversations.c.conversation_id).where(conversations.c.owner_id == owner)
            matches.append(sa.and_(of_owner, holds.c.subject == owner))
            matches.append(sa.and_(of_conversation, holds.c.subject.in_(own)))
        if conversation is not None:
            whose = sa.select(conversations.c.owner_id).where(conversations.c.conversation_id == conversation)
            matches.append(sa.and_(of_conversation, holds.c.subject == conversation))
            matches.append(sa.and_(of_owner, holds.c.subject.in_(whose)))
        row = (await connection.execute(sa.select(holds).where(sa.or_(*matches)).limit(1))).first()
        if row is not None:
            raise Held(kind=row.kind, subject=row.subject, reason=row.reason)

    async def _lock(self, connection: AsyncConnection, store_id: UUID | None) -> int:
        """Lock the counters as an apply does, check that the store takes deliveries; return the last erasure."""
        heads = self._runtime.dialect.locked(sa.select(log_heads).order_by(log_heads.c.partition))
        counters = (await connection.execute(heads)).all()
        check_counters([row.closed for row in counters], expected=self._runtime.known_partitions)
        identity = await read_identity(connection)
        check_identity(identity.store_id, store_id)
        check_not_moved(identity.moved_to)
        return int(max(row.erasures for row in counters))

    async def _rows(self, statement: Any) -> Sequence[Any]:
        async def read(_: object, connection: AsyncConnection) -> Sequence[Any]:
            return (await connection.execute(statement)).all()

        return await self._runtime.read(read)


async def read_unacknowledged(connection: AsyncConnection) -> list[Unacknowledged]:
    """Return what :meth:`ErasureRegister.unacknowledged` does, on an open connection."""
    first = sa.select(sa.func.min(erasures.c.recorded_at)).where(erasures.c.number > origins.c.erasures)
    since = first.correlate(origins).scalar_subquery()
    behind = sa.select(origins, since.label("since")).where(since.is_not(None)).order_by(sa.text("since"), "name")
    return [
        Unacknowledged(
            name=row.name,
            origin_id=row.origin_id,
            carried_out=row.erasures,
            since=from_microseconds(row.since),
            last_seen_at=from_microseconds(row.last_seen_at),
        )
        for row in await connection.execute(behind)
    ]


def _values(table: sa.Table, row: Sequence[Any]) -> dict[str, Any]:
    """Return the columns of a row by name; the last one is the moment at which it was written."""
    values: dict[str, Any] = dict(zip(table.columns.keys(), row, strict=True))
    name, moment = values.popitem()
    return {**values, name: from_microseconds(moment)}


def _check_held(kind: object, subject: str) -> None:
    if kind not in ("owner", "conversation"):
        raise InvalidInput("kind", "must be owner or conversation")
    check_identifier(subject, "subject")


def _check_text(text: object, field: str) -> None:
    if text is None:
        return
    if not isinstance(text, str) or len(text) > MAX_REASON_CHARACTERS or "\0" in text:
        raise InvalidInput(field, f"must be text of at most {MAX_REASON_CHARACTERS} characters, without NUL")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidInput(field, "has half of a surrogate pair, which is no text")
