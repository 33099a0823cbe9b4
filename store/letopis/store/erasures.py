"""Record erasures of all that someone said, which every outbox carries out, and holds, which forbid them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import check_row_count
from letopis.store.database.schema import conversations, erasures, events, holds, log_heads, of_conversation, origins
from letopis.store.database.store_identity import check_counters, check_identity, check_not_moved, read_identity
from letopis.store.errors import InvalidInput
from letopis.store.holds import refuse_held
from letopis.store.maintenance.retention import read_again
from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.events import from_microseconds, to_microseconds
from letopis.store.model.identifiers import check_identifier, check_whole, partition_of, uuid7
from letopis.store.read.paging import check_count
from letopis.store.rules.apply_plan import Origin
from letopis.store.runtime import StoreRuntime

Kind = Literal["owner", "person", "conversation"]
How = Literal["reset", "delete"]
HeldKind = Literal["owner", "conversation"]

_BOUND: Final = (
    sa.select(events.c.version)
    .where(
        *of_conversation(events),
        events.c.position <= sa.bindparam("position"),
        # Without an owner to compare with, this leaves nothing out.
        ~sa.exists().where(*of_conversation(conversations), conversations.c.owner_id != sa.bindparam("owner")),
    )
    .order_by(events.c.version.desc())
    .limit(1)
)
MAX_REASON_CHARACTERS: Final = 1_000
"""Characters of a reason, and of the name of who asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """An erasure of all that someone said up to a moment: in each outbox, the moment at which it is carried out there.

    :ivar number: counted from 1 in each history store; an outbox carries them out in this order.
    :ivar erasure_id: stays when it is recorded again, under another number: see :meth:`ErasureRegister.repeat`.
    :ivar kind: what is erased: all of an ``owner`` or ``person``, or a ``conversation``.
    :ivar subject: the id of the owner, person or conversation.
    :ivar how: what becomes of the conversations: ``reset`` empties them, ``delete`` ends them.
    :ivar origin_id: the outbox through which it was asked for.
    :ivar answers: of a person: with the answers to their messages in conversations of others.
    :ivar positions: the last position of each partition of the log when it was recorded.
    """

    number: int
    erasure_id: UUID
    kind: Kind
    subject: str
    how: How
    reason: str | None
    requested_by: str | None
    origin_id: UUID | None
    answers: bool
    positions: tuple[int, ...]
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
        answers: bool = False,
        origin: Origin | None = None,
        used: int = 0,
    ) -> Erasure:
        """Record an erasure, and return it. What is stored is not erased by it: append that after it.

        Recording the same again is safe, and gives a new number.

        :param answers: of a person: with the answers to their messages in conversations of others.
        :param origin: the outbox that asks.
        :param used: the highest number that it has seen; a store that was restored gives none out again that is known.
        :raises Held: a hold forbids it.
        :raises InvalidInput: an argument is not valid.
        :raises StoreFault: the database failed, or the history was moved away.
        """
        _check_kind(kind)
        if how not in ("reset", "delete"):
            raise InvalidInput("how", "must be reset or delete")
        check_identifier(subject, "subject")
        if not isinstance(answers, bool) or (answers and kind != "person"):
            raise InvalidInput("answers", "must be True or False, and are those to a person")
        check_whole(used, "used", 0, INTEGER_MAX)
        if origin is not None and not isinstance(origin, Origin):
            raise InvalidInput("origin", f"must be an Origin, not {type(origin).__name__}")
        _check_text(reason, "reason")
        _check_text(requested_by, "requested_by")

        asked = Erasure(
            number=0,
            erasure_id=uuid7(),
            kind=kind,
            subject=subject,
            how=how,
            reason=reason,
            requested_by=requested_by,
            origin_id=None if origin is None else origin.origin_id,
            answers=answers,
            positions=(),
            recorded_at=from_microseconds(self._runtime.now()),
        )
        return await self._record(asked, store_id=None if origin is None else origin.store_id, used=used)

    async def repeat(self, erasure: Erasure, *, store_id: UUID | None = None, used: int = 0) -> Erasure:
        """Record an erasure again that this store does not know, as it was restored from before it. Idempotent.

        It keeps its id and its moment: what was delivered since the restore was said after it. Holds that the store
        lost have to be set again before.

        :param store_id: the only history store that may record it; ``None`` for any store.
        :param used: the highest number that the outbox that asks has seen.
        :raises Held: a hold forbids it.
        :raises StoreFault: the database failed, or the history was moved away.
        """
        return await self._record(erasure, store_id=store_id, used=used)

    async def _record(self, erasure: Erasure, *, store_id: UUID | None, used: int) -> Erasure:
        """Record an erasure under the next number; one without positions reaches up to now."""

        async def work(connection: AsyncConnection) -> Erasure:
            counters = await self._lock(connection, store_id)
            known = sa.select(erasures).where(erasures.c.erasure_id == erasure.erasure_id)
            if (row := (await connection.execute(known)).first()) is not None:
                return _erasure(row)
            fields = {"owner": ("owner",), "person": ("owner", "author"), "conversation": ("conversation",)}
            await refuse_held(connection, **dict.fromkeys(fields[erasure.kind], erasure.subject))
            positions = [row.position for row in counters]
            if erasure.positions:
                positions = [await _last_before(connection, *place, erasure) for place in enumerate(erasure.positions)]
            # A store that was restored from a backup counts on from what the outboxes know.
            acknowledged = (await connection.execute(sa.select(sa.func.max(origins.c.erasures)))).scalar() or 0
            number = max(*(row.erasures for row in counters), acknowledged, used) + 1
            recorded = replace(erasure, number=number, positions=tuple(positions))
            values = asdict(recorded) | {"positions": orjson.dumps(positions).decode(), "answers": int(erasure.answers)}
            values["recorded_at"] = to_microseconds(erasure.recorded_at)
            await self._runtime.dialect.insert(connection, erasures, [tuple(map(values.get, erasures.c.keys()))])
            last = sa.update(log_heads).values(erasures=number, erasure_id=erasure.erasure_id)
            check_row_count(log_heads, (await connection.execute(last)).rowcount, self._runtime.known_partitions)
            return recorded

        return await self._runtime.write(work)

    async def after(self, number: int, *, limit: int = 100) -> list[Erasure]:
        """Return the erasures after a number, in order.

        :raises InvalidInput: an argument is not valid.
        """
        check_whole(number, "number", 0, INTEGER_MAX)
        check_count(limit, "limit")
        statement = sa.select(erasures).where(erasures.c.number > number).order_by(erasures.c.number).limit(limit)
        return [_erasure(row) for row in await self._rows(statement)]

    async def last(self, kind: Kind, subject: str) -> int | None:
        """Return the number of the last erasure of a subject; ``None`` if there is none.

        :raises InvalidInput: an argument is not valid.
        """
        _check_kind(kind)
        check_identifier(subject, "subject")
        matching = sa.select(sa.func.max(erasures.c.number)).where(
            erasures.c.kind == kind, erasures.c.subject == subject
        )
        number: int | None = (await self._rows(matching))[0][0]
        return number

    async def erasure_bounds(
        self, number: int, conversation_ids: Collection[str], *, owner: str | None = None
    ) -> dict[str, int]:
        """Return the last version that each of some conversations had when an erasure was recorded.

        Those that began later are left out. It is the ``upto`` of a reset that spares what was said since.

        :param owner: leave out those that belong to somebody else.
        :raises InvalidInput: there is no such erasure, or an id is not valid.
        """
        check_whole(number, "number", 0, INTEGER_MAX)
        names = [check_identifier(name, "conversation_id") for name in conversation_ids]
        if owner is not None:
            check_identifier(owner, "owner")

        async def read(_: object, connection: AsyncConnection) -> dict[str, int]:
            recorded = sa.select(erasures.c.positions).where(erasures.c.number == number)
            if (positions := (await connection.execute(recorded)).scalar()) is None:
                raise InvalidInput("number", "is of no erasure of this history store")
            last, bounds = orjson.loads(positions), dict[str, int]()
            for name in names:
                partition = partition_of(name, len(last))
                key = {"partition": partition, "conversation": name, "position": last[partition], "owner": owner}
                if (version := (await connection.execute(_BOUND, key)).scalar()) is not None:
                    bounds[name] = version
            return bounds

        return await self._runtime.read(read)

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

    async def check_not_held(
        self, *, owner: str | None = None, conversation: str | None = None, author: str | None = None
    ) -> None:
        """Raise :exc:`Held` if a hold forbids to erase an owner, a conversation, or what an author wrote.

        An owner is held by a hold on any of the owner's conversations, and a conversation by one on its owner.

        :raises InvalidInput: an id is not valid.
        """
        subjects = {"owner": owner, "conversation": conversation, "author": author}
        for field, value in subjects.items():
            if value is not None:
                check_identifier(value, field)
        await self._runtime.read(lambda _, connection: refuse_held(connection, **subjects))

    async def _lock(self, connection: AsyncConnection, store_id: UUID | None) -> Sequence[sa.Row[Any]]:
        """Lock the counters as an apply does, check that the store takes deliveries; return the counters in order."""
        expected = self._runtime.known_partitions
        counters = await self._runtime.dialect.lock_heads(connection, range(expected))
        check_counters([row.closed for row in counters], expected=expected)
        identity = await read_identity(connection)
        check_identity(identity.store_id, store_id)
        check_not_moved(identity.moved_to)
        return counters

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


def _erasure(row: Sequence[Any]) -> Erasure:
    values = _values(erasures, row)
    values["answers"] = bool(values["answers"])
    return Erasure(**{**values, "positions": tuple(orjson.loads(values["positions"]))})


async def _last_before(connection: AsyncConnection, partition: int, position: int, erasure: Erasure) -> int:
    """Return the last position that an erasure reaches in a store that was restored, and gives positions out again."""
    before = sa.select(events.c.position).where(
        events.c.partition == partition,
        events.c.position <= position,
        events.c.recorded_at <= to_microseconds(erasure.recorded_at),
    )
    last = await connection.execute(before.order_by(events.c.position.desc()).limit(1))
    return last.scalar() or 0


def _check_kind(kind: object) -> None:
    if kind not in ("owner", "person", "conversation"):
        raise InvalidInput("kind", "must be owner, person or conversation")


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
