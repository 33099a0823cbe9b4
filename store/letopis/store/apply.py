"""Apply: write one batch of lanes in one transaction, exactly once, whatever was delivered before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.dialects import Dialect, lookups
from letopis.store.erasing import EVERYTHING, Eraser
from letopis.store.errors import BatchRefused, InvalidInput, OriginSuperseded
from letopis.store.faults import FaultClass, StoreFault, translated
from letopis.store.fold import Tally
from letopis.store.identifiers import check_identifier, partition_of
from letopis.store.inline import Inline
from letopis.store.owners import Owners, OwnerStatements
from letopis.store.plan import (
    ApplyResult,
    Compared,
    Delivery,
    LaneApplied,
    LaneBatch,
    Origin,
    Row,
    Stored,
    absorb,
    check_known,
    check_places,
    compare,
)
from letopis.store.projection import (
    ConversationRow,
    Interpreted,
    MessageRow,
    Projected,
    leaves_after,
    project,
    targets_of,
)
from letopis.store.readings import Readings
from letopis.store.rows import conflict_of, conversation_row, message_row
from letopis.store.schema import conversations, events, lanes, log_heads, messages, origins
from letopis.store.turns import Conflict
from letopis.store.upcasters import Upcasters
from letopis.store.verdicts import Verdicts
from letopis.store.vocabulary import ConversationDeleted, ConversationStarted, ForkPoint

logger = logging.getLogger("letopis.store.apply")

_ATTEMPTS: Final = 4
"""The first optimistic, the others careful; two outboxes that begin one conversation at once need the second."""
_AT_ONCE: Final = 100
"""Events that are taken in between two turns of the loop: less than a millisecond's work."""
_SEEN_AGAIN: Final = 60_000_000
"""Microseconds after which an origin's ``last_seen_at`` is written again; each apply would make it a bottleneck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Accepted:
    """A lane of which something may be written."""

    compared: Compared
    partition: int
    fresh: tuple[Interpreted, ...]
    verdicts: Mapping[int, Conflict]
    """Those of the events that are stored already, by sequence."""


class Applier:
    """Applies batches to one history store; its statements are made once."""

    def __init__(
        self,
        engine: AsyncEngine,
        dialect: Dialect,
        *,
        partitions: int,
        upcasters: Upcasters,
        inline: Inline,
        eraser: Eraser,
        now: Callable[[], int],
        serial: bool = False,
        erased: Callable[[], None] = lambda: None,
    ) -> None:
        self._inline = inline
        self._erased = erased
        self._looked_back = False  # whether what a process that died had erased was seen to
        self._engine = engine
        self._dialect = dialect
        self._partitions = partitions
        self._upcasters = upcasters
        self._now = now
        self._statements = _Statements(dialect)
        self._eraser = eraser
        # SQLite has one writer: to wait for it here is cheaper than to ask the file again and again.
        self._turn: AbstractAsyncContextManager[Any] = asyncio.Lock() if serial else nullcontext()

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        """Apply a batch; see :meth:`letopis.store.history.ConversationStore.apply`."""
        names = [lane.conversation_id for lane in batch]
        if len(set(names)) != len(names):
            raise InvalidInput("batch", "has two deliveries of one lane: put them together")
        for name in names:
            check_identifier(name, "conversation_id")
        readings = Readings(self._upcasters)
        await readings.read(batch)
        async with self._turn:
            result, transaction = await self._tried(origin, batch, readings)
        if transaction.released:
            await self._let_go()
        if transaction.erased or transaction.released or not self._looked_back:
            self._looked_back = True
            self._erased()
        return result

    async def _tried(
        self, origin: Origin, batch: Sequence[LaneBatch], readings: Readings
    ) -> tuple[ApplyResult, _Apply]:
        for attempt in range(1, _ATTEMPTS):
            try:
                return await self._attempt(origin, batch, readings, careful=attempt > 1)
            except StoreFault as fault:
                # Somebody else began the same conversation, or delivered one of these events, since we looked. Now
                # that their transaction is over, a careful look will see it.
                if not isinstance(fault.__cause__, IntegrityError):
                    raise
        return await self._attempt(origin, batch, readings, careful=True)

    async def _let_go(self) -> None:
        """Strip what deleted conversations kept for forks that read it no more; what fails is done the next time."""
        try:
            with translated():
                async with self._engine.connect() as connection:
                    await self._dialect.begin_apply(connection)
                    await self._eraser.let_go(connection)
                    await connection.commit()
        except StoreFault as fault:
            logger.info("what deleted conversations kept for their forks is let go later: %s", fault)

    async def _attempt(
        self, origin: Origin, batch: Sequence[LaneBatch], readings: Readings, *, careful: bool
    ) -> tuple[ApplyResult, _Apply]:
        with translated():
            async with self._engine.connect() as connection:
                await self._dialect.begin_apply(connection)
                transaction = _Apply(
                    connection,
                    self._dialect,
                    self._statements,
                    self._eraser,
                    origin=origin,
                    partitions=self._partitions,
                    readings=readings,
                    now=self._now(),
                )
                result = await transaction.run(batch, careful=careful)
                await self._inline.take(connection, transaction.recorded)
                with translated(committing=True):
                    await connection.commit()
        return result, transaction


class _Statements:
    """The lookups of an apply, compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        by_lane = (
            dialect.among(lanes.c.partition, "partitions"),
            dialect.among(lanes.c.conversation_id, "conversations"),
        )
        self.origin = sa.select(origins).where(origins.c.origin_id == sa.bindparam("origin"))
        self.origin_locked = dialect.locked(self.origin)
        self.lanes = dialect.locked(
            sa.select(lanes.c.conversation_id, lanes.c.sequence)
            .where(*by_lane, lanes.c.origin_id == sa.bindparam("origin"))
            .order_by(lanes.c.partition, lanes.c.conversation_id)
        )
        self.conversations = dialect.locked(
            sa.select(conversations)
            .where(
                dialect.among(conversations.c.partition, "partitions"),
                dialect.among(conversations.c.conversation_id, "conversations"),
            )
            .order_by(conversations.c.partition, conversations.c.conversation_id)
        )
        self.stored = sa.select(
            events.c.conversation_id,
            events.c.event_id,
            events.c.origin_id,
            events.c.sequence,
            events.c.digest,
            events.c.metadata,
        ).where(
            dialect.among(events.c.partition, "partitions"),
            dialect.among(events.c.conversation_id, "conversations"),
            dialect.among(events.c.event_id, "ids"),
        )
        self.places = sa.select(events.c.sequence, events.c.event_id).where(
            events.c.partition == sa.bindparam("partition"),
            events.c.conversation_id == sa.bindparam("conversation"),
            events.c.origin_id == sa.bindparam("origin"),
            dialect.among(events.c.sequence, "sequences"),
        )
        self.targets = sa.select(messages).where(
            dialect.among(messages.c.partition, "partitions"),
            dialect.among(messages.c.conversation_id, "conversations"),
            dialect.among(messages.c.message_id, "ids"),
        )
        self.path = sa.select(messages).where(
            messages.c.partition == sa.bindparam("partition"),
            messages.c.conversation_id == sa.bindparam("conversation"),
            messages.c.version > sa.bindparam("after"),
            messages.c.left_at.is_(None),
        )
        self.verdicts = Verdicts(dialect)
        self.owners = OwnerStatements(dialect)
        self.log_heads = dialect.locked(
            sa.select(log_heads)
            .where(dialect.among(log_heads.c.partition, "partitions"))
            .order_by(log_heads.c.partition)
        )


class _Apply:
    """One transaction of an apply. Every lock is taken in the same order by everybody, so that none waits in a ring."""

    def __init__(
        self,
        connection: AsyncConnection,
        dialect: Dialect,
        statements: _Statements,
        eraser: Eraser,
        *,
        origin: Origin,
        partitions: int,
        readings: Readings,
        now: int,
    ) -> None:
        self._connection = connection
        self._dialect = dialect
        self._statements = statements
        self._eraser = eraser
        self._marks = Owners(connection, dialect, statements.owners, origin_id=origin.origin_id)
        self._origin = origin
        self.released = False  # whether a fork has ceased to read its parent
        self.erased = False  # whether content was taken out of what is stored
        self.recorded = list[Row]()
        self._partitions = partitions
        self._readings = readings
        self._now = now

    async def run(self, batch: Sequence[LaneBatch], *, careful: bool) -> ApplyResult:
        """Do all but the commit."""
        await self._register()
        accepted, refused = await self._compare(batch, careful=careful)
        projected = await self._project([lane for lane in accepted if lane.fresh])
        marks = await self._marks.take([item for _, item in projected])
        await self._write(projected)
        await self._marks.move([item for _, item in projected], marks)
        await self._erase(projected)
        await self._advance(accepted)
        # The counter of a partition is what all writers share: taken last, held for one insert and the commit.
        await self._log(projected)
        verdicts = {item.row.conversation_id: item.superseded for _, item in projected}
        return ApplyResult(
            applied=tuple(
                LaneApplied(
                    conversation_id=lane.compared.lane.conversation_id,
                    head=max(lane.compared.head, lane.compared.lane.deliveries[-1].sequence),
                    inserted=len(lane.fresh),
                    duplicates=len(lane.compared.lane.deliveries) - len(lane.fresh),
                    superseded={**lane.verdicts, **verdicts.get(lane.compared.lane.conversation_id, {})},
                )
                for lane in accepted
            ),
            refused=tuple(refused),
        )

    async def _register(self) -> None:
        """Make the origin known, and refuse one that a newer copy has superseded."""
        origin = self._origin
        row = (await self._rows(self._statements.origin, origin=origin.origin_id)).first()
        if row is None:
            values = (origin.origin_id, origin.epoch, origin.name, self._now, self._now)
            await self._dialect.insert(self._connection, origins, [values])
            return
        # Read without a lock: a copy that takes over this very moment may as well have come a moment later, and what
        # both deliver is told apart under the lock of the lane.
        self._check_epoch(row)
        if (row.epoch, row.name) != (origin.epoch, origin.name) or abs(self._now - row.last_seen_at) > _SEEN_AGAIN:
            row = (await self._rows(self._statements.origin_locked, origin=origin.origin_id)).one()
            self._check_epoch(row)
            values = (origin.origin_id, origin.epoch, origin.name, row.first_seen_at, self._now)
            await self._dialect.overwrite(self._connection, origins, [values])

    def _check_epoch(self, row: sa.Row[Any]) -> None:
        if row.epoch > self._origin.epoch:
            raise OriginSuperseded(origin_id=self._origin.origin_id, epoch=self._origin.epoch, current=row.epoch)

    async def _compare(
        self, batch: Sequence[LaneBatch], *, careful: bool
    ) -> tuple[list[_Accepted], list[BatchRefused]]:
        """Lock the lanes, and find what of each is new."""
        heads = await self._heads(batch)
        compared, refused = [], list[BatchRefused]()
        for lane in batch:
            try:
                compared.append(compare(lane, heads.get(lane.conversation_id, 0)))
            except BatchRefused as refusal:
                refused.append(refusal)
        doubted = [(one.lane, [*one.known, *(one.fresh if careful else ())]) for one in compared]
        stored = await self._stored([(lane, deliveries) for lane, deliveries in doubted if deliveries])
        accepted = []
        for one in compared:
            name = one.lane.conversation_id
            there = stored.get(name, {})
            try:
                doubtful = check_known(one, self._origin.origin_id, there)
                if doubtful:
                    check_places(one.lane, doubtful, await self._places(name, doubtful))
                fresh = absorb(one, there) if careful else one.fresh
            except BatchRefused as refusal:
                refused.append(refusal)
                continue
            accepted.append(
                _Accepted(
                    compared=one,
                    partition=self._partition(name),
                    fresh=self._readings.of(fresh),
                    verdicts={
                        delivery.sequence: found.conflict
                        for delivery in one.lane.deliveries
                        if (found := there.get(delivery.event.event_id)) is not None and found.conflict is not None
                    },
                )
            )
        return accepted, refused

    async def _heads(self, batch: Sequence[LaneBatch]) -> dict[str, int]:
        heads: dict[str, int] = {}
        # Sorted, also from part to part.
        names = sorted((lane.conversation_id for lane in batch), key=self._lock_order)
        for part in lookups(names):
            rows = await self._rows(
                self._statements.lanes,
                partitions=self._partitions_of(part),
                conversations=part,
                origin=self._origin.origin_id,
            )
            heads.update({row.conversation_id: row.sequence for row in rows})
        return heads

    async def _stored(self, doubted: Sequence[tuple[LaneBatch, list[Delivery]]]) -> dict[str, dict[UUID, Stored]]:
        """Return what the conversations hold under the ids delivered, by conversation and id."""
        stored: dict[str, dict[UUID, Stored]] = {}
        pairs = [(lane.conversation_id, delivery.event.event_id) for lane, rest in doubted for delivery in rest]
        for part in lookups(pairs):
            names = list(dict.fromkeys(name for name, _ in part))
            rows = await self._rows(
                self._statements.stored,
                partitions=self._partitions_of(names),
                conversations=names,
                ids=[event_id for _, event_id in part],
            )
            for row in rows:
                stored.setdefault(row.conversation_id, {})[row.event_id] = Stored(
                    event_id=row.event_id,
                    origin_id=row.origin_id,
                    sequence=row.sequence,
                    digest=row.digest,
                    conflict=conflict_of(row.metadata),
                )
        return stored

    async def _places(self, name: str, doubtful: Sequence[Delivery]) -> dict[int, UUID]:
        taken: dict[int, UUID] = {}
        for part in lookups([delivery.sequence for delivery in doubtful]):
            rows = await self._rows(
                self._statements.places,
                partition=self._partition(name),
                conversation=name,
                origin=self._origin.origin_id,
                sequences=part,
            )
            taken.update({row.sequence: row.event_id for row in rows})
        return taken

    async def _project(self, accepted: Sequence[_Accepted]) -> list[tuple[_Accepted, Projected]]:
        """Lock the conversations, and take the fresh events into them."""
        rows = await self._conversations(accepted)
        targets = await self._targets(accepted)
        forks = _forks(accepted)
        projected = []
        taken = 0
        for lane in accepted:
            taken += len(lane.fresh)
            if taken >= _AT_ONCE:
                taken = 0
                await asyncio.sleep(0)
            name = lane.compared.lane.conversation_id
            row = rows.get(name)
            if row is None:
                first = lane.fresh[0].delivery.event.occurred_at
                row = ConversationRow(
                    partition=lane.partition,
                    conversation_id=name,
                    tally=Tally(created_at=first, updated_at=first),
                    new=True,
                )
            known = await self._leaving(lane, targets.get(name, []))
            verdicts = await self._judge(lane, row)
            deletes = any(isinstance(item.body, ConversationDeleted) for item in lane.fresh)
            retain = 0
            if deletes:
                retain = await self._eraser.retained(self._connection, lane.partition, name)
                retain = max(retain, *(_reads(fork) for fork in forks if fork.conversation_id == name), 0)
            projected.append((lane, project(row, lane.fresh, known, verdicts=verdicts, retain=retain)))
        return projected

    async def _leaving(self, lane: _Accepted, targets: list[MessageRow]) -> list[MessageRow]:
        """Return the stored messages that the fresh events change, with those that they take off the path."""
        after = leaves_after(lane.fresh, targets)
        if after is None:
            return targets
        rows = await self._rows(
            self._statements.path,
            partition=lane.partition,
            conversation=lane.compared.lane.conversation_id,
            after=after,
        )
        there = {row.version for row in targets}
        return [*targets, *(message_row(row) for row in rows if row.version not in there)]

    async def _judge(self, lane: _Accepted, row: ConversationRow) -> dict[int, Conflict]:
        """Return which conditional events came too late; asked under the lock of the conversation."""
        conditions = [
            (item.delivery.sequence, item.delivery.event.event_id, item.expects)
            for item in lane.fresh
            if item.expects is not None
        ]
        if not conditions or row.new:
            return {}
        return await self._statements.verdicts.of(
            self._connection,
            conditions,
            partition=lane.partition,
            conversation_id=lane.compared.lane.conversation_id,
            origin_id=self._origin.origin_id,
            head=lane.compared.head,
        )

    async def _conversations(self, accepted: Sequence[_Accepted]) -> dict[str, ConversationRow]:
        found: dict[str, ConversationRow] = {}
        # A fork's parent too, so that it is not deleted and emptied before the fork is seen to read it.
        parents = {fork.conversation_id for fork in _forks(accepted)}
        names = sorted(parents | {lane.compared.lane.conversation_id for lane in accepted}, key=self._lock_order)
        for part in lookups(names):
            rows = await self._rows(
                self._statements.conversations, partitions=self._partitions_of(part), conversations=part
            )
            found.update({row.conversation_id: conversation_row(row) for row in rows})
        return found

    async def _targets(self, accepted: Sequence[_Accepted]) -> dict[str, list[MessageRow]]:
        """Return the stored messages that the fresh events change, by conversation."""
        wanted = {lane.compared.lane.conversation_id: targets_of(lane.fresh) for lane in accepted}
        pairs = [(name, message_id) for name, ids in wanted.items() for message_id in ids]
        found: dict[str, list[MessageRow]] = {}
        for part in lookups(pairs):
            names = list(dict.fromkeys(name for name, _ in part))
            ids = list({message_id for _, message_id in part})
            rows = await self._rows(
                self._statements.targets, partitions=self._partitions_of(names), conversations=names, ids=ids
            )
            for row in rows:
                if row.message_id in wanted[row.conversation_id]:
                    found.setdefault(row.conversation_id, []).append(message_row(row))
        return found

    async def _erase(self, projected: Sequence[tuple[_Accepted, Projected]]) -> None:
        """Take the content of redacted messages and deleted conversations out of the events that are stored."""
        for lane, item in projected:
            name = item.row.conversation_id
            if item.deleted:
                await self._eraser.strip(
                    self._connection, lane.partition, name, after=item.row.retained, upto=item.versions.start - 1
                )
            elif item.redactions:
                await self._eraser.strip(
                    self._connection,
                    lane.partition,
                    name,
                    upto=item.versions.start - 1,
                    message_ids=item.redactions,
                )
            # What was retained is looked at again too: only now is all of this batch there to look at.
            self.released = self.released or item.released or (item.deleted and item.row.retained > 0)
            self.erased = self.erased or item.deleted or bool(item.redactions)

    async def _write(self, projected: Sequence[tuple[_Accepted, Projected]]) -> None:
        """Write the projections."""
        new_rows, old_rows = list[Row](), list[Row]()
        new_messages, old_messages = list[Row](), list[Row]()
        for lane, item in sorted(projected, key=lambda pair: self._lock_order(pair[1].row.conversation_id)):
            (new_rows if item.row.new else old_rows).append(item.row.as_row())
            for message in item.messages:
                rows = new_messages if message.new else old_messages
                rows.append(message.as_row(lane.partition, item.row.conversation_id))
        await self._dialect.insert(self._connection, conversations, new_rows)
        await self._dialect.overwrite(self._connection, conversations, old_rows)
        await self._dialect.insert(self._connection, messages, new_messages)
        await self._dialect.overwrite(self._connection, messages, old_messages)

    async def _advance(self, accepted: Sequence[_Accepted]) -> None:
        """Write how far the lanes have got."""
        new, old = list[Row](), list[Row]()
        for lane in sorted(accepted, key=lambda lane: self._lock_order(lane.compared.lane.conversation_id)):
            if lane.compared.fresh:
                last = lane.compared.fresh[-1].sequence
                row = (lane.partition, lane.compared.lane.conversation_id, self._origin.origin_id, last)
                (old if lane.compared.head else new).append(row)
        await self._dialect.insert(self._connection, lanes, new)
        await self._dialect.overwrite(self._connection, lanes, old)

    async def _log(self, projected: Sequence[tuple[_Accepted, Projected]]) -> None:
        """Give the events their positions and write them."""
        if not projected:
            return
        wanted = sorted({lane.partition for lane, _ in projected})
        rows = await self._rows(self._statements.log_heads, partitions=wanted)
        heads: dict[int, int] = {row.partition: row.position for row in rows}
        if len(heads) != len(wanted):
            raise StoreFault(
                fault_class=FaultClass.MISCONFIGURED,
                code="partitions",
                reason="the store has fewer log partitions than when it was opened: open it again",
            )
        recorded, origin_id, now = self.recorded, self._origin.origin_id, self._now
        for lane, item in projected:
            position = heads[lane.partition]
            for interpreted_event, event, version in zip(lane.fresh, item.events, item.versions, strict=True):
                position += 1
                recorded.append(
                    (
                        lane.partition,
                        position,
                        event.conversation_id,
                        version,
                        event.event_id,
                        origin_id,
                        interpreted_event.delivery.sequence,
                        event.type,
                        event.schema_version,
                        event.data,
                        event.metadata,
                        None if event.redacted else event.digest,
                        event.occurred_at,
                        now,
                    )
                )
            heads[lane.partition] = position
        await self._dialect.insert(self._connection, events, recorded)
        await self._dialect.overwrite(self._connection, log_heads, sorted(heads.items()))

    def _partition(self, name: str) -> int:
        return partition_of(name, self._partitions)

    def _partitions_of(self, names: Sequence[str]) -> list[int]:
        return sorted({self._partition(name) for name in names})

    def _lock_order(self, name: str) -> tuple[int, bytes]:
        """The order of the primary key, which compares bytes on all three databases."""
        return self._partition(name), name.encode()

    async def _rows(self, statement: sa.Executable, **parameters: Any) -> sa.CursorResult[Any]:
        found: sa.CursorResult[Any] = await self._connection.execute(statement, parameters)
        return found


def _forks(accepted: Sequence[_Accepted]) -> list[ForkPoint]:
    """Return up to where the forks that a batch begins read their parents."""
    return [
        fork
        for lane in accepted
        for item in lane.fresh
        if isinstance(item.body, ConversationStarted) and (fork := item.body.fork) is not None
    ]


def _reads(fork: ForkPoint) -> int:
    return EVERYTHING if fork.version is None else fork.version
