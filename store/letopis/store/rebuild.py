"""Rebuild: make the rows of conversations and their messages anew from the log, one conversation at a time, online."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.dialects import Dialect
from letopis.store.erasing import Eraser
from letopis.store.faults import FaultClass, StoreFault, translated
from letopis.store.fold import PROJECTION_RULES
from letopis.store.owners import OwnerRow, OwnerStatements
from letopis.store.plan import Row
from letopis.store.projection import ConversationRow, MessageRow
from letopis.store.remaking import SEEN, Remaking
from letopis.store.rows import message_row
from letopis.store.schema import conversations, events, messages, owners
from letopis.store.upcasters import Upcasters

PAGE: Final = 500
"""Rows that are read or written at a time."""
NAMED: Final = 20
"""Differences of one conversation that are named; the others are counted."""
_ATTEMPTS: Final = 3
_COLUMNS: Final = tuple(column.name for column in conversations.columns)
# Not made of the events: who got which number, what forks need, and which rules made the row.
_KEPT: Final = frozenset({"number", "retained", "rules"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What the rebuild of one conversation came to.

    :ivar events: that the log holds of it.
    :ivar messages: that these make.
    :ivar differences: what the rows had otherwise, by name and without content, the first 20: ``title``,
        ``messages[12].left_at``, ``messages[12] missing``, ``messages[12] too many``, ``row missing``,
        ``events[12] not erased`` where a redaction or deletion met damaged rows, or ``events missing``, which cannot be
        mended from the log.
    :ivar difference_count: of all of them.
    :ivar written: whether they were mended.
    """

    conversation_id: str
    events: int
    messages: int
    differences: tuple[str, ...] = ()
    difference_count: int = 0
    written: bool = False


@dataclass(slots=True)
class _Changes:
    """What is to be written, and how the differences are named."""

    named: list[str] = field(default_factory=list)
    count: int = 0
    inserted: list[Row] = field(default_factory=list)
    overwritten: list[Row] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    emptied: list[int] = field(default_factory=list)

    def differ(self, name: str) -> None:
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(name)


class Rebuilder:
    """Rebuilds one history store; its statements are made once.

    A conversation is read without a lock first, however long it is. Then its row is locked, what has come since is read
    too, and what differs is written: an apply to it waits for that, and no other one does. An SQLite file has one
    writer: there every apply waits for the comparison of one conversation.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        readers: AsyncEngine,
        dialect: Dialect,
        *,
        upcasters: Upcasters,
        eraser: Eraser,
        erased: Callable[[], None],
        whole: Callable[[Awaitable[Any]], Awaitable[Any]],
    ) -> None:
        self._engine = engine
        self._readers = readers
        self._dialect = dialect
        self._upcasters = upcasters
        self._whole = whole
        self._statements = _Statements(dialect)
        self._owner_statements = OwnerStatements(dialect)
        self._eraser = eraser
        self._erased = erased

    async def run(self, *, check: bool, every: bool) -> AsyncGenerator[Rebuilt, None]:
        """Rebuild the conversations whose rows older rules made, or ``every`` one, and those without a row."""
        statements = self._statements
        for statement in (statements.every if every else statements.older, statements.lost):
            async for partition, conversation_id in self._keys(statement):
                if (rebuilt := await self.rebuild(partition, conversation_id, check=check)) is not None:
                    yield rebuilt

    async def rebuild(self, partition: int, conversation_id: str, *, check: bool) -> Rebuilt | None:
        """Rebuild one conversation; ``None`` where there is nothing of it, or a newer release made its rows.

        :param check: write nothing.
        :raises StoreFault: the database failed; the conversation is as it was.
        """
        made = Remaking(partition, conversation_id, self._upcasters)
        rebuilt: Rebuilt | None = await self._whole(self._checked(made) if check else self._rebuilt(made))
        return rebuilt

    async def _keys(self, statement: Any) -> AsyncIterator[tuple[int, str]]:
        place: tuple[int, str] = (-1, "")
        while True:
            rows = await self._whole(self._page(statement, place))
            for row in rows:
                yield row.partition, row.conversation_id
            if len(rows) < PAGE:
                return
            place = (rows[-1].partition, rows[-1].conversation_id)

    async def _page(self, statement: Any, place: tuple[int, str]) -> list[sa.Row[Any]]:
        key = {"partition": place[0], "conversation": place[1], "limit": PAGE}
        with translated():
            async with self._readers.connect() as connection:
                return list((await connection.execute(statement, key)).all())

    async def _checked(self, made: Remaking) -> Rebuilt | None:
        with translated():
            async with self._readers.connect() as connection:
                await self._dialect.begin_snapshot(connection)
                there = (await connection.execute(self._statements.row, _key(made))).first()
                await self._read_on(connection, made)
                changes = await self._compare(connection, made, there)
                return None if changes is None else _told(made, changes, written=False)

    async def _rebuilt(self, made: Remaking) -> Rebuilt | None:
        with translated():
            async with self._readers.connect() as connection:
                await self._read_on(connection, made)
        for attempt in range(_ATTEMPTS):
            try:
                return await self._transaction(made)
            except StoreFault as fault:
                # Its row was missing, and an apply has made one since we looked; or locks were taken in a ring.
                passing = isinstance(fault.__cause__, IntegrityError) or fault.fault_class is FaultClass.CONFLICT
                if attempt == _ATTEMPTS - 1 or not passing:
                    raise
        return None  # never comes here

    async def _transaction(self, made: Remaking) -> Rebuilt | None:
        with translated():
            async with self._engine.connect() as connection:
                await self._dialect.begin_apply(connection)
                there = (await connection.execute(self._statements.locked_row, _key(made))).first()
                await self._read_on(connection, made)
                changes = await self._compare(connection, made, there)
                if changes is None:
                    return None
                if made.row is not None:
                    await self._write(connection, made, made.row, changes, there)
                with translated(committing=True):
                    await connection.commit()
                if changes.emptied:
                    self._erased()
                return _told(made, changes, written=made.row is not None and changes.count > 0)

    async def _read_on(self, connection: AsyncConnection, made: Remaking) -> None:
        """Take in the events that were not read yet."""
        while True:
            key = {**_key(made), "after": made.events, "limit": PAGE}
            page = (await connection.execute(self._statements.events, key)).all()
            made.take(page)
            if len(page) < PAGE:
                return

    async def _compare(self, connection: AsyncConnection, made: Remaking, there: sa.Row[Any] | None) -> _Changes | None:
        """Return how the stored rows differ; ``None`` where there is nothing to compare."""
        changes = _Changes()
        if there is not None and there.rules > PROJECTION_RULES:
            return None
        if made.row is None:
            if there is None:
                return None
            changes.differ("events missing")
            return changes
        await self._keep(connection, made.row, there)
        if there is None:
            changes.differ("row missing")
        else:
            for name, value in zip(_COLUMNS, made.row.as_row(), strict=True):
                if name not in _KEPT and there._mapping[name] != value:
                    changes.differ(name)
            if made.row.number is None and made.row.tally.owner_id is not None:
                changes.differ("number")
        await self._compare_messages(connection, made, changes)
        changes.emptied = made.to_erase()
        for version in changes.emptied:
            changes.differ(f"events[{version}] not erased")
        return changes

    async def _keep(self, connection: AsyncConnection, row: ConversationRow, there: sa.Row[Any] | None) -> None:
        """Give a row what no event says."""
        row.number = None if there is None else there.number
        if there is not None:
            row.retained = there.retained
        elif row.tally.state == "deleted":
            row.retained = await self._eraser.retained(connection, row.partition, row.conversation_id)

    async def _compare_messages(self, connection: AsyncConnection, made: Remaking, changes: _Changes) -> None:
        wanted = {message.version: message for message in made.messages}
        after = 0
        while True:
            key = {**_key(made), "after": after, "limit": PAGE}
            rows = (await connection.execute(self._statements.messages, key)).all()
            for row in rows:
                message = wanted.pop(row.version, None)
                if message is None:
                    changes.differ(f"messages[{row.version}] too many")
                    changes.deleted.append(row.version)
                elif different := _different(made, message, row):
                    for name in different:
                        changes.differ(f"messages[{row.version}].{name}")
                    changes.overwritten.append(message.as_row(made.partition, made.conversation_id))
            if len(rows) < PAGE:
                break
            after = rows[-1].version
        for version, message in wanted.items():
            changes.differ(f"messages[{version}] missing")
            changes.inserted.append(message.as_row(made.partition, made.conversation_id))

    async def _write(
        self,
        connection: AsyncConnection,
        made: Remaking,
        row: ConversationRow,
        changes: _Changes,
        there: sa.Row[Any] | None,
    ) -> None:
        if not changes.count and there is not None and there.rules == PROJECTION_RULES:
            return
        if row.number is None and row.tally.owner_id is not None:
            await self._number(connection, row, row.tally.owner_id)
        write = self._dialect.insert if there is None else self._dialect.overwrite
        await write(connection, conversations, [row.as_row()])
        for start in range(0, len(changes.deleted), PAGE):
            key = {**_key(made), "versions": changes.deleted[start : start + PAGE]}
            await connection.execute(self._statements.delete_messages, key)
        for start in range(0, len(changes.overwritten), PAGE):
            await self._dialect.overwrite(connection, messages, changes.overwritten[start : start + PAGE])
        for start in range(0, len(changes.inserted), PAGE):
            await self._dialect.insert(connection, messages, changes.inserted[start : start + PAGE])
        if changes.emptied:
            gone = row.tally.state == "deleted"
            said = [message.version for message in made.messages if gone or message.redacted_at is not None]
            await self._eraser.empty(connection, made.partition, made.conversation_id, changes.emptied, messages=said)

    async def _number(self, connection: AsyncConnection, row: ConversationRow, owner_id: str) -> None:
        """Give a conversation whose row was lost its owner's next number: which one it had, no event says."""
        found = (await connection.execute(self._owner_statements.locked, {"owners": [owner_id]})).first()
        if found is None:
            highest = (await connection.execute(self._statements.highest_number, {"owner": owner_id})).scalar()
            owner = OwnerRow(owner_id=owner_id, number=(highest or 0) + 1)
        else:
            owner = OwnerRow(
                owner_id=owner_id,
                active=found.active_conversation_id,
                number=found.next_number,
                by=found.activated_by,
                order=found.activated_order,
            )
        row.number = owner.number
        owner.number += 1
        write = self._dialect.insert if found is None else self._dialect.overwrite
        await write(connection, owners, [owner.as_row()])


def _key(made: Remaking) -> dict[str, Any]:
    return {"partition": made.partition, "conversation": made.conversation_id}


def _different(made: Remaking, message: MessageRow, row: sa.Row[Any]) -> list[str]:
    """Return the names of what a stored row has otherwise."""
    try:
        stored = message_row(row)
    except (TypeError, ValueError):
        return ["reactions"]  # no JSON of ours
    pairs = zip(SEEN, made.seen(message), made.seen(stored), strict=True)
    return [name for name, one, other in pairs if one != other]


def _told(made: Remaking, changes: _Changes, *, written: bool) -> Rebuilt:
    return Rebuilt(
        conversation_id=made.conversation_id,
        events=made.events,
        messages=len(made.messages),
        differences=tuple(changes.named),
        difference_count=changes.count,
        written=written,
    )


class _Statements:
    """The lookups of a rebuild, compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        self.row = sa.select(conversations).where(*_of(conversations))
        self.locked_row: Any = dialect.locked(self.row)
        self.events = (
            sa.select(events)
            .where(*_of(events), events.c.version > sa.bindparam("after"))
            .order_by(events.c.version)
            .limit(sa.bindparam("limit"))
        )
        self.messages = (
            sa.select(messages)
            .where(*_of(messages), messages.c.version > sa.bindparam("after"))
            .order_by(messages.c.version)
            .limit(sa.bindparam("limit"))
        )
        self.delete_messages = sa.delete(messages).where(*_of(messages), dialect.among(messages.c.version, "versions"))
        self.highest_number = sa.select(sa.func.max(conversations.c.number)).where(
            conversations.c.owner_id == sa.bindparam("owner")
        )
        self.every = _keys_of(conversations).where(conversations.c.rules <= PROJECTION_RULES)
        self.older = _keys_of(conversations).where(conversations.c.rules < PROJECTION_RULES)
        # Every conversation begins with version 1.
        same = sa.and_(
            conversations.c.partition == events.c.partition,
            conversations.c.conversation_id == events.c.conversation_id,
        )
        self.lost = (
            _keys_of(events)
            .select_from(events.outerjoin(conversations, same))
            .where(events.c.version == 1, conversations.c.conversation_id.is_(None))
        )


def _of(table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        table.c.partition == sa.bindparam("partition"),
        table.c.conversation_id == sa.bindparam("conversation"),
    )


def _keys_of(table: sa.Table) -> Any:
    """Return the select of a page of keys after one."""
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
