"""Lock the conversations of a batch and load what its events depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.row_mapping import conflict_of, conversation_row, message_row
from letopis.store.database.schema import (
    conversations,
    events,
    lanes,
    messages,
    of_conversation,
    same_conversation,
    tasks,
)
from letopis.store.holds import Subject, all_held, owners_of, written_by
from letopis.store.model.codec import INTEGER_MAX, decode
from letopis.store.model.event_types import (
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationTrimmed,
    MessageAppended,
    MessageRedacted,
    read,
)
from letopis.store.read.descendants import NewFork
from letopis.store.read.task_marks import LEAVE, MAX_ROWS_PER_TRANSACTION, is_on_path, left_by_mark, message_columns
from letopis.store.rules.decoding import removal_bound, target_ids
from letopis.store.rules.preconditions import Conflict, LoggedEvent, Precondition, detect_conflicts, lowest_seen_version
from letopis.store.rules.projection import HeldMessages, Unloaded, takes_content
from letopis.store.rules.redaction import ARRIVED_ERASED_KEY, arrived_erased
from letopis.store.rules.reducer import MAKES_STATE, ConversationState
from letopis.store.rules.rows import ConversationRow, MessageRow
from letopis.store.write.erasing import Eraser
from letopis.store.write.lanes import AcceptedLane
from letopis.store.write.transaction import ApplyTransaction

Condition = tuple[int, UUID, Precondition]
"""Sequence, event id and condition of an event."""


class ConflictLookup:
    """Finds the conflicts of one lane at a time; the statements are compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        origin: sa.BindParameter[Any] = sa.bindparam("origin")
        self._others = sa.select(lanes.c.origin_id).where(*of_conversation(lanes), lanes.c.origin_id != origin).limit(1)
        logged = sa.select(
            events.c.version, events.c.event_id, events.c.type, events.c.sequence, events.c.metadata
        ).where(*of_conversation(events))
        own = logged.where(events.c.origin_id == origin)
        self._last_seen = (
            own.where(events.c.sequence <= sa.bindparam("sequence")).order_by(events.c.version.desc()).limit(1)
        )
        self._batches = own.where(dialect.among(events.c.event_id, "ids"))
        self._unseen = logged.where(events.c.origin_id != origin, events.c.version > sa.bindparam("after")).order_by(
            events.c.version
        )

    async def find(self, transaction: ApplyTransaction, lane: AcceptedLane) -> dict[int, Conflict]:
        """Return the conflicts of a lane's fresh events, by sequence."""
        # Under the lock of the conversation, so that no other writer can come in between.
        conditions = [
            (item.delivery.sequence, item.delivery.event.event_id, item.expects)
            for item in lane.fresh
            if item.expects is not None
        ]
        if not conditions:
            return {}
        key: dict[str, Any] = {**lane.key, "origin": transaction.origin.origin_id}
        return await self._detect(transaction.connection, key, conditions, lane.compared.head)

    async def find_before(
        self, connection: AsyncConnection, key: Mapping[str, Any], event_id: UUID, expects: Precondition, *, head: int
    ) -> Conflict | None:
        """Return the conflict that an event would have if it were delivered now; ``None`` if it is stored already."""
        if (await connection.execute(self._batches, {**key, "ids": [event_id]})).first() is not None:
            return None
        sequence = max(head, expects.sequence) + 1
        conflicts = await self._detect(connection, key, [(sequence, event_id, expects)], head)
        return conflicts.get(sequence)

    async def _detect(
        self, connection: AsyncConnection, key: Mapping[str, Any], conditions: Sequence[Condition], head: int
    ) -> dict[int, Conflict]:
        # If every event is from this outbox, no other writer can have been first.
        if (await connection.execute(self._others, key)).first() is None:
            return {}
        rows: list[Any] = []
        for sequence in {seen.sequence for _, _, seen in conditions if seen.version is None and seen.sequence <= head}:
            rows += await connection.execute(self._last_seen, {**key, "sequence": sequence})
        for part in in_batches({seen.batch_id for _, _, seen in conditions if seen.batch_id is not None}):
            rows += await connection.execute(self._batches, {**key, "ids": part})
        own = [_logged(row, own=True) for row in rows]
        after = lowest_seen_version(conditions, own, head=head)
        unseen = await connection.execute(self._unseen, {**key, "after": after})
        return detect_conflicts(conditions, [*own, *(_logged(row, own=False) for row in unseen)], head=head)


def _logged(row: Any, *, own: bool) -> LoggedEvent:
    return LoggedEvent(
        version=row.version,
        event_id=row.event_id,
        type=row.type,
        sequence=row.sequence,
        own=own,
        conflict=conflict_of(row.metadata),
    )


class LoadStatements:
    """The selects of conversations and of the messages that events change, compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        c = conversations.c
        wanted = sa.select(conversations).where(*dialect.of_conversations(conversations))
        self.conversations = dialect.locked(wanted.order_by(c.partition, c.conversation_id))
        message = sa.select(*message_columns(messages))
        named = dialect.among(messages.c.message_id, "ids")
        self.targets = message.where(*dialect.of_conversations(messages), named)
        beyond = (*of_conversation(messages), messages.c.version > sa.bindparam("after"))
        self.path = message.where(*beyond, is_on_path(messages)).limit(sa.bindparam("limit"))
        # Marks are rare: without one there is no need to look for marks of each row.
        within = (*beyond, messages.c.version <= sa.bindparam("upto"), messages.c.left_at.is_(None))
        self.count = sa.select(sa.func.count()).select_from(messages).where(*within)
        self.count_marked = self.count.where(left_by_mark(messages).is_(None))
        after = (*of_conversation(events), events.c.version > sa.bindparam("after"))
        self.arrived = (
            message.join(events, same_conversation(events, messages, "version"))
            .where(*after, events.c.salt.is_(None), events.c.metadata.contains(ARRIVED_ERASED_KEY))
            .order_by(messages.c.version)
        )
        self.state = (
            sa.select(events.c.version, events.c.type, events.c.schema_version, events.c.data, events.c.metadata)
            .where(*after, events.c.type.in_([body.type for body in MAKES_STATE]))
            .order_by(events.c.version)
        )
        named, first = messages.c.message_id, sa.func.min(messages.c.version)
        self.held_ids = written_by(dialect, named).where(dialect.among(named, "ids"))
        # What an earlier trim erases in steps still has its content.
        bounds = (messages.c.version > sa.bindparam("after"), messages.c.version <= sa.bindparam("upto"))
        self.held_first = written_by(dialect, first).where(*bounds)
        pending = (tasks.c.kind == LEAVE, tasks.c.after < tasks.c.upto)
        self.marked = sa.select(tasks.c.version).where(*of_conversation(tasks), *pending).limit(1)


class Loader:
    """Loads conversations and messages; the statements are compiled once."""

    def __init__(self, dialect: Dialect, eraser: Eraser) -> None:
        self._eraser = eraser
        self._conflicts = dialect.shared(ConflictLookup)
        self._statements = dialect.shared(LoadStatements)

    async def load(self, transaction: ApplyTransaction, accepted: Sequence[AcceptedLane]) -> list[AcceptedLane]:
        """Lock the conversations of the lanes with fresh events, load what these depend on, and return these lanes."""
        # Those of lanes with records are locked too, so that they are not deleted meanwhile.
        fresh, beside = list[AcceptedLane](), list[tuple[AcceptedLane, str]]()
        for lane in accepted:
            if lane.fresh:
                fresh.append(lane)
            elif lane.changes and (name := lane.scope.conversation_id):
                beside.append((lane, name))
        special = [lane for lane in fresh if not lane.plain]
        forks = _new_forks(special)
        # A fork's parent too: its deletion must not erase it before the fork is seen to read it.
        wanted = {lane.conversation_id for lane in fresh}
        wanted.update([fork.point.conversation_id for fork in forks], [name for _, name in beside])
        rows = dict[str, ConversationRow]()
        for part in await transaction.in_lock_order(wanted):
            key = {"partitions": transaction.partitions_of(part), "conversations": part}
            for row in await transaction.connection.execute(self._statements.conversations, key):
                rows[row.conversation_id] = conversation_row(row)
        for lane, name in beside:
            if name in rows:
                lane.gone = rows[name].conversation.state == "deleted"
                lane.owner_id = rows[name].conversation.owner_id
        for lane in fresh:
            lane.row = rows.get(lane.conversation_id) or _new_row(lane)
        for lane in special:
            lane.erasing = any(takes_content(item.body) for item in lane.fresh)
            transaction.erasing |= lane.erasing
        for lane in accepted:
            if lane.changes:
                lane.erasing = any(change.erases for change in lane.changes)
                transaction.erasing |= lane.erasing
        if transaction.erasing:
            await self._find_holds(transaction, [lane for lane in accepted if lane.erasing])
        if special:
            await self._load_targets(transaction, special, forks)
        return fresh

    async def check_holds(self, transaction: ApplyTransaction) -> None:
        """Check that no hold was set since :meth:`load`; the counters, which it locks too, are locked by now."""
        if not await all_held(transaction.connection) <= transaction.holds:
            reason = "a hold was set while an erasure was applied: it is applied again"
            raise StoreFault(fault_class=FaultClass.CONFLICT, code="held", reason=reason)

    async def _find_holds(self, transaction: ApplyTransaction, lanes: Sequence[AcceptedLane]) -> None:
        """Find out which lanes are of something that is held, or would erase messages of authors who are."""
        held = transaction.holds = await all_held(transaction.connection)
        authors = owners_of(held)
        for lane in lanes:
            lane.held = not held.isdisjoint(_may_be_held(lane))
            if authors and lane.fresh:
                lane.held_messages = await self._messages_of(transaction, lane, authors)

    async def _messages_of(self, transaction: ApplyTransaction, lane: AcceptedLane, authors: list[str]) -> HeldMessages:
        """Return what fresh events would erase by redactions and trims of what some authors wrote."""
        bodies = [item.body for item in lane.fresh]
        redacted = {body.message_id for body in bodies if isinstance(body, MessageRedacted)}
        upto = max((body.upto for body in bodies if isinstance(body, ConversationTrimmed)), default=0)
        fresh = [body.message for body in bodies if isinstance(body, MessageAppended)]
        ids, key = {message.id for message in fresh if message.author in authors}, {**lane.key, "authors": authors}
        for part in in_batches(redacted):
            rows = await transaction.connection.execute(self._statements.held_ids, {**key, "ids": part})
            ids.update(rows.scalars())
        first = None
        if upto:
            bounds = {"after": lane.row.conversation.trimmed, "upto": upto}
            first = (await transaction.connection.execute(self._statements.held_first, {**key, **bounds})).scalar()
        return HeldMessages(frozenset(redacted).intersection(ids), INTEGER_MAX if first is None else first)

    async def _load_targets(
        self, transaction: ApplyTransaction, lanes: Sequence[AcceptedLane], forks: Sequence[NewFork]
    ) -> None:
        """Load the stored messages that the events name or take off the path, and find the conflicts of the events."""
        wanted = {lane.conversation_id: target_ids(lane.fresh) for lane in lanes}
        pairs = [(name, message_id) for name, ids in wanted.items() for message_id in ids]
        targets: dict[str, list[MessageRow]] = {}
        for part in in_batches(pairs):
            names = list(dict.fromkeys(name for name, _ in part))
            rows = await transaction.execute(
                self._statements.targets,
                partitions=transaction.partitions_of(names),
                conversations=names,
                ids=list({message_id for _, message_id in part}),
            )
            for row in rows:
                if row.message_id in wanted[row.conversation_id]:
                    targets.setdefault(row.conversation_id, []).append(message_row(row))
        budget = RemovalBudget(transaction.connection, self._statements)
        for lane in lanes:
            name = lane.conversation_id
            lane.targets, lane.unloaded = await budget.load(lane, lane.row.conversation, targets.get(name, []))
            if any(takes_content(item.body) and type(item.body) is not MessageRedacted for item in lane.fresh):
                read_up_to = self._eraser.descendants.read_up_to
                lane.retained = (await read_up_to(transaction.connection, lane.partition, name, new=forks)).upto
            if not lane.row.new:
                lane.verdicts = await self._conflicts.find(transaction, lane)


class RemovalBudget:
    """Loads removed messages until one transaction has enough rows to change."""

    def __init__(self, connection: AsyncConnection, statements: LoadStatements) -> None:
        self._connection = connection
        self._statements = statements
        self._rows = MAX_ROWS_PER_TRANSACTION

    async def load(
        self, lane: AcceptedLane, conversation: ConversationState[int], targets: list[MessageRow]
    ) -> tuple[list[MessageRow], Unloaded | None]:
        """Return the stored messages that fresh events change, including those that they take off the path."""
        fresh, key, version = lane.fresh, lane.key, conversation.version
        after = removal_bound(fresh, targets)
        if after is None:
            return targets, None
        rewinds = [item.body for item in fresh if isinstance(item.body, ConversationRewound)]
        bounds = {body.upto for body in rewinds if body.upto is not None}
        # A deletion or reset changes the rows of all events, too.
        ends_all = any(isinstance(item.body, ConversationDeleted) for item in fresh)
        erased = version if ends_all or any(body.erase for body in rewinds) else 0
        unloaded: Unloaded | None = None
        loaded = {row.version: row for row in targets}
        limit = self._rows + 1
        values = {**key, "after": after, "limit": limit}
        rows = [] if erased >= limit else (await self._connection.execute(self._statements.path, values)).all()
        if (cost := max(len(rows), erased)) < limit:
            self._rows -= cost
            loaded = {row.version: message_row(row) for row in rows} | loaded
        else:
            named = {body.to_message_id for body in rewinds}
            ends = {row.version for row in targets if row.message_id in named} | bounds
            beyond = {end: await self._count_after(end, key, conversation) for end in ends}
            unloaded = Unloaded(beyond={0: conversation.message_count, **beyond}, bound=version)
        if bounds:
            values = {**key, "after": min(bounds)}
            for row in await self._connection.execute(self._statements.arrived, values):
                loaded.setdefault(row.version, message_row(row)).arrived_erased = True
            values["after"] = max(values["after"], conversation.reset_to)
            conversation.made_by = [
                (row.version, read(row.type, row.schema_version, decode(row.data)))
                for row in await self._connection.execute(self._statements.state, values)
                if conflict_of(row.metadata) is None and not arrived_erased(row.metadata)
            ]
        return list(loaded.values()), unloaded

    async def _count_after(self, end: int, key: dict[str, Any], conversation: ConversationState[int]) -> int:
        """Return how many stored messages on the path come after a version, counted on the shorter side of it."""
        statements = self._statements
        marked = (await self._connection.execute(statements.marked, key)).first() is not None
        last = conversation.version
        after, upto = (0, end) if end < last - end else (end, last)
        count = await self._connection.execute(
            statements.count_marked if marked else statements.count, {**key, "after": after, "upto": upto}
        )
        counted = int(count.scalar_one())
        return counted if after else conversation.message_count - counted


def _new_row(lane: AcceptedLane) -> ConversationRow:
    first = lane.fresh[0].delivery.event.occurred_at
    return ConversationRow(
        partition=lane.partition,
        conversation_id=lane.conversation_id,
        conversation=ConversationState(created_at=first, updated_at=first),
        new=True,
    )


def _may_be_held(lane: AcceptedLane) -> set[Subject]:
    """Return what a hold on which forbids a lane to erase anything."""
    if lane.changes:
        return {lane.scope.named, ("owner", lane.owner_id)}
    owners = {item.body.owner_id for item in lane.fresh if isinstance(item.body, ConversationStarted)}
    owners.add(lane.row.conversation.owner_id)
    return {("conversation", lane.conversation_id), *(("owner", owner) for owner in owners)}


def _new_forks(fresh: Sequence[AcceptedLane]) -> list[NewFork]:
    return [
        NewFork(conversation_id=lane.conversation_id, point=fork)
        for lane in fresh
        for item in lane.fresh
        if isinstance(item.body, ConversationStarted) and (fork := item.body.fork) is not None
    ]
