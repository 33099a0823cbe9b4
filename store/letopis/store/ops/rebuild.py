"""Rebuild the rows of conversations and their messages from the log, one conversation at a time, online."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.conversation_store import ConversationStore
from letopis.store.database.dialects import Dialect, in_batches, pages, reading
from letopis.store.database.fault_classification import repeat_on_conflict
from letopis.store.database.row_mapping import message_row
from letopis.store.database.schema import conversations, events, messages, of_conversation, owners, same_conversation
from letopis.store.maintenance.task_steps import TaskSteps
from letopis.store.model.event_types import ConversationDeleted
from letopis.store.model.events import Upcasters
from letopis.store.model.identifiers import check_identifier, partition_of
from letopis.store.ops.replay import ConversationReplay
from letopis.store.read.task_marks import erased, message_columns
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.reducer import PROJECTION_RULES
from letopis.store.rules.rows import ConversationRow, MessageRow
from letopis.store.search.indexer import index_progress
from letopis.store.write.erasing import Eraser
from letopis.store.write.row_writer import OwnerRow, OwnerStatements

PAGE_ROWS: Final = 500
"""Rows in one page that is read."""
MAX_NAMED_DIFFERENCES: Final = 20
"""Differences of one conversation that are named; the others are only counted."""
_COLUMNS: Final = tuple(column.name for column in conversations.columns)
# Not derived from the events: the number, what forks need, and the rules that made the row.
_NOT_DERIVED: Final = frozenset({"number", "retained", "rules"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """The result for one conversation.

    :ivar events: how many the log holds.
    :ivar messages: how many these make.
    :ivar differences: names of the first 20 differences of the stored rows, without content: ``title``,
        ``messages[12].left_at``, ``messages[12] missing``, ``messages[12] too many``, ``row missing``,
        ``events[12] not erased`` if a redaction or deletion met damaged rows, or ``events missing``, which the log
        cannot repair.
    :ivar difference_count: of all differences.
    :ivar written: True if the differences were repaired.
    """

    conversation_id: str
    events: int
    messages: int
    differences: tuple[str, ...] = ()
    difference_count: int = 0
    written: bool = False


async def rebuild(
    store: ConversationStore, *, check: bool = False, every: bool = False, conversation: str | None = None
) -> AsyncGenerator[Rebuilt, None]:
    """Rebuild the rows of conversations and messages from the log while it is written to; yield each when done.

    By default those whose rows were made by the rules of an older release and those whose row is missing, so an
    interrupted run is continued by calling this again. Numbers and the owners' active conversations stay; one whose
    row was lost gets its owner's next number. Rows that a newer release made are left alone.

    :param check: write nothing, and compare every conversation.
    :param every: rebuild all of them.
    :param conversation: rebuild this one alone.
    :raises InvalidInput: ``conversation`` is not valid.
    :raises StoreFault: the database failed; what was yielded stays done.
    """
    runtime = store.runtime
    components = await runtime.prepared()
    rebuilder = Rebuilder(
        engine=runtime.engine,
        dialect=runtime.dialect,
        partitions=components.partitions,
        upcasters=runtime.upcasters,
        eraser=components.eraser,
        erased=components.erased,
        whole=runtime.whole,
        steps=components.steps,
        now=runtime.now,
    )
    if conversation is None:
        async for rebuilt in rebuilder.run(check=check, every=every or check):
            yield rebuilt
        return
    partition = partition_of(check_identifier(conversation, "conversation"), components.partitions)
    alone = await rebuilder.rebuild(partition, conversation, check=check)
    if alone is not None:
        yield alone


@dataclass(slots=True)
class _Changes:
    """The rows to write, and the names of the differences."""

    names: list[str] = field(default_factory=list)
    count: int = 0
    inserted: list[TableRow] = field(default_factory=list)
    overwritten: list[TableRow] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    redacted: list[int] = field(default_factory=list)

    def differ(self, name: str) -> None:
        self.count += 1
        if len(self.names) < MAX_NAMED_DIFFERENCES:
            self.names.append(name)


@dataclass(kw_only=True)
class Rebuilder:
    """Rebuilds the conversations of one history store."""

    # A conversation is first read without a lock, however long it is. Then its row is locked, the events since are read
    # and differences are written: only an apply to this conversation waits for that, on SQLite every apply.
    engine: AsyncEngine
    dialect: Dialect
    partitions: int
    upcasters: Upcasters
    eraser: Eraser
    erased: Callable[[], object]
    whole: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]
    steps: TaskSteps
    now: Callable[[], int]
    _retains_too_much: bool = False  # a conversation whose row was lost may retain more than its forks read

    def __post_init__(self) -> None:
        self._statements = self.dialect.shared(RebuildStatements)
        self._owner_statements = self.dialect.shared(OwnerStatements)

    async def run(self, *, check: bool, every: bool) -> AsyncGenerator[Rebuilt, None]:
        """Rebuild the conversations whose rows older rules made, and those without a row."""
        statements = self._statements
        for statement in (statements.every if every else statements.older, statements.lost):
            async for partition, conversation_id in self._keys(statement):
                if (rebuilt := await self.rebuild(partition, conversation_id, check=check)) is not None:
                    yield rebuilt
        if self._retains_too_much and not check:
            await self.whole(self._release_retained())

    async def rebuild(self, partition: int, conversation_id: str, *, check: bool) -> Rebuilt | None:
        """Rebuild one conversation. Return ``None`` if it does not exist, or a newer release made its rows."""
        replay = ConversationReplay(partition, conversation_id, self.upcasters)
        if not check:
            # Carried out first: rows with a pending task are neither right nor wrong.
            while await self.whole(self.steps.step(conversation=(partition, conversation_id))):
                pass
        rebuilt: Rebuilt | None = await self.whole(self._checked(replay) if check else self._rebuilt(replay))
        return rebuilt

    async def _keys(self, statement: Any) -> AsyncIterator[tuple[int, str]]:
        partition, name, rows = -1, "", None
        while rows is None or len(rows) == PAGE_ROWS:
            rows = await self.whole(self._page(statement, {"partition": partition, "conversation": name}))
            for partition, name in rows:
                yield partition, name

    async def _page(self, statement: Any, after: dict[str, Any]) -> list[tuple[int, str]]:
        async with reading(self.engine) as connection:
            rows = await connection.execute(statement, {**after, "limit": PAGE_ROWS})
            return [(row.partition, row.conversation_id) for row in rows]

    async def _checked(self, replay: ConversationReplay) -> Rebuilt | None:
        async with reading(self.engine) as connection:
            await self.dialect.begin_snapshot(connection)
            stored = (await connection.execute(self._statements.row, replay.key)).first()
            await self._read_new_events(connection, replay)
            changes = await self._compare(connection, replay, stored)
            return None if changes is None else _result(replay, changes, written=False)

    async def _rebuilt(self, replay: ConversationReplay) -> Rebuilt | None:
        async with reading(self.engine) as connection:
            await self._read_new_events(connection, replay)
        # An apply may insert the missing row meanwhile.
        return await repeat_on_conflict(partial(self._transaction, replay), deadlocks=True)

    async def _transaction(self, replay: ConversationReplay) -> Rebuilt | None:
        async with self.dialect.transaction(self.engine) as connection:
            stored = (await connection.execute(self._statements.locked_row, replay.key)).first()
            await self._read_new_events(connection, replay)
            changes = await self._compare(connection, replay, stored)
            if changes is None:
                return None
            if replay.row is not None:
                await self._write(connection, replay, replay.row, changes, stored)
        if changes.redacted:
            self.erased()
        return _result(replay, changes, written=replay.row is not None and changes.count > 0)

    async def _release_retained(self) -> None:
        """Strip the content that no fork reads, now that every fork has its row."""
        async with self.dialect.transaction(self.engine) as connection:
            stripped = await self.eraser.erase_released(connection, now=self.now())
        if stripped:
            self.erased()
        self._retains_too_much = False

    async def _read_new_events(self, connection: AsyncConnection, replay: ConversationReplay) -> None:
        key = {**replay.key, "limit": PAGE_ROWS}
        async for page in pages(connection, self._statements.events, key, size=PAGE_ROWS, after=replay.events):
            replay.apply(page)

    async def _compare(
        self, connection: AsyncConnection, replay: ConversationReplay, stored: sa.Row[Any] | None
    ) -> _Changes | None:
        """Return how the stored rows differ, or ``None`` if there is nothing to compare."""
        changes = _Changes()
        if stored is not None and stored.rules > PROJECTION_RULES:
            return None
        if replay.row is None:
            if stored is None:
                return None
            changes.differ("events missing")
            return changes
        # No event determines the number and what is retained.
        replay.row.number = None if stored is None else stored.number
        if stored is None:
            if replay.row.retained:
                # The rows of its forks may be lost too, so everything is retained for now; see _release_retained().
                replay.row.retained = replay.content_up_to
                self._retains_too_much = True
            changes.differ("row missing")
        else:
            replay.row.retained = stored.retained
            for name, value in zip(_COLUMNS, replay.row.as_row(), strict=True):
                if name not in _NOT_DERIVED and stored._mapping[name] != value:
                    changes.differ(name)
            if replay.row.number is None and replay.row.conversation.owner_id is not None:
                changes.differ("number")
        await self._compare_messages(connection, replay, changes)
        changes.redacted = replay.pending_redactions()
        for version in changes.redacted:
            changes.differ(f"events[{version}] not erased")
        return changes

    async def _compare_messages(
        self, connection: AsyncConnection, replay: ConversationReplay, changes: _Changes
    ) -> None:
        wanted = {message.version: message for message in replay.messages}
        async for rows in pages(
            connection, self._statements.messages, {**replay.key, "limit": PAGE_ROWS}, size=PAGE_ROWS
        ):
            for row in rows:
                message = wanted.pop(row.version, None)
                if message is None:
                    changes.differ(f"messages[{row.version}] too many")
                    changes.deleted.append(row.version)
                elif different := _different(replay, message, row):
                    for name in different:
                        changes.differ(f"messages[{row.version}].{name}")
                    changes.overwritten.append(message.as_row(replay.partition, replay.conversation_id))
        for version, message in wanted.items():
            changes.differ(f"messages[{version}] missing")
            changes.inserted.append(message.as_row(replay.partition, replay.conversation_id))

    async def _write(
        self,
        connection: AsyncConnection,
        replay: ConversationReplay,
        row: ConversationRow,
        changes: _Changes,
        stored: sa.Row[Any] | None,
    ) -> None:
        if not changes.count and stored is not None and stored.rules == PROJECTION_RULES:
            return
        if row.number is None and row.conversation.owner_id is not None:
            await self._assign_number(connection, row, row.conversation.owner_id)
        write = self.dialect.insert if stored is None else self.dialect.overwrite
        await write(connection, conversations, [row.as_row()])
        for versions in in_batches(changes.deleted):
            await connection.execute(self._statements.delete_messages, {**replay.key, "versions": versions})
        for old in in_batches(changes.overwritten):
            await self.dialect.overwrite(connection, messages, old)
        for new in in_batches(changes.inserted):
            await self.dialect.insert(connection, messages, new)
        if changes.redacted:
            erased = [item.version for item in replay.messages if item.redacted_at is not None]
            key = (replay.partition, replay.conversation_id)
            await self.eraser.strip_versions(connection, key, changes.redacted, messages=erased)

    async def _assign_number(self, connection: AsyncConnection, row: ConversationRow, owner_id: str) -> None:
        """Give a conversation whose row was lost its owner's next number: no event says which one it had."""
        values = {"partitions": [partition_of(owner_id, self.partitions)], "owners": [owner_id]}
        owner_row = (await connection.execute(self._owner_statements.locked, values)).first()
        if owner_row is None:
            highest = (await connection.execute(self._statements.highest_number, {"owner": owner_id})).scalar()
            owner = OwnerRow(owner_id=owner_id, number=(highest or 0) + 1)
        else:
            owner = OwnerRow.of(owner_row)
        row.number = owner.number
        owner.number += 1
        write = self.dialect.insert if owner_row is None else self.dialect.overwrite
        await write(connection, owners, [owner.as_row(self.partitions)])


def _different(replay: ConversationReplay, message: MessageRow, row: sa.Row[Any]) -> list[str]:
    """Return the names of the fields in which a stored row differs."""
    try:
        stored = message_row(row)
    except (TypeError, ValueError):
        return ["reactions"]  # not the JSON that was written
    wanted, held = replay.compared_values(message), replay.compared_values(stored)
    return [name for name, value in wanted.items() if held[name] != value]


def _result(replay: ConversationReplay, changes: _Changes, *, written: bool) -> Rebuilt:
    return Rebuilt(
        conversation_id=replay.conversation_id,
        events=replay.events,
        messages=len(replay.messages),
        differences=tuple(changes.names),
        difference_count=changes.count,
        written=written,
    )


async def conversations_to_rebuild(engine: AsyncEngine, *, every: bool) -> int:
    """Return how many conversations a rebuild goes through, without those whose row is missing."""
    rules = conversations.c.rules
    chosen = rules <= PROJECTION_RULES if every else rules < PROJECTION_RULES
    async with reading(engine) as connection:
        count = await connection.execute(sa.select(sa.func.count()).select_from(conversations).where(chosen))
        return int(count.scalar_one())


async def events_to_index(engine: AsyncEngine) -> int:
    """Return how many events the search index is behind the log."""
    async with reading(engine) as connection:
        return sum(progress.behind for progress in await index_progress(connection))


class RebuildStatements:
    """The statements, built once a store."""

    def __init__(self, dialect: Dialect) -> None:
        self.row = sa.select(conversations).where(*of_conversation(conversations))
        self.locked_row: Any = dialect.locked(self.row)
        # A pending task counts as carried out.
        kept = sa.or_(erased(events).is_(None), events.c.type == ConversationDeleted.type)
        salt: sa.ColumnElement[Any] = sa.case((kept, events.c.salt)).label("salt")
        self.events = (
            sa.select(*(salt if column.name == "salt" else column for column in events.c))
            .where(*of_conversation(events), events.c.version > sa.bindparam("after"))
            .order_by(events.c.version)
            .limit(sa.bindparam("limit"))
        )
        self.messages = (
            sa.select(*message_columns(messages))
            .where(*of_conversation(messages), messages.c.version > sa.bindparam("after"))
            .order_by(messages.c.version)
            .limit(sa.bindparam("limit"))
        )
        self.delete_messages = sa.delete(messages).where(
            *of_conversation(messages), dialect.among(messages.c.version, "versions")
        )
        self.highest_number = sa.select(sa.func.max(conversations.c.number)).where(
            conversations.c.owner_id == sa.bindparam("owner")
        )
        self.every = _keys_of(conversations).where(conversations.c.rules <= PROJECTION_RULES)
        self.older = _keys_of(conversations).where(conversations.c.rules < PROJECTION_RULES)
        # Every conversation begins with version 1.
        self.lost = (
            _keys_of(events)
            .select_from(events.outerjoin(conversations, same_conversation(conversations, events)))
            .where(events.c.version == 1, conversations.c.conversation_id.is_(None))
        )


def _keys_of(table: sa.Table) -> Any:
    """Return the select of a page of conversations after one."""
    partition, name = table.c.partition, table.c.conversation_id
    return (
        sa.select(partition, name)
        .where(
            partition >= sa.bindparam("partition"),
            sa.or_(
                partition > sa.bindparam("partition"),
                sa.and_(partition == sa.bindparam("partition"), name > sa.bindparam("conversation")),
            ),
        )
        .order_by(partition, name)
        .limit(sa.bindparam("limit"))
    )
