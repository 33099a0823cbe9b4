"""Take content out of stored events and out of the search index, in an open transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, check_row_count, in_batches, pages
from letopis.store.database.schema import conversations, events, messages, of_conversation, tasks
from letopis.store.model.codec import decode
from letopis.store.model.event_types import ConversationDeleted, MessageAppended
from letopis.store.model.events import Upcasters
from letopis.store.model.large_content import references_in
from letopis.store.read.descendants import Descendants
from letopis.store.read.task_marks import (
    ERASE,
    LEAVE,
    MAX_ROWS_PER_TRANSACTION,
    RESET,
    TRIM,
    Task,
    is_content,
    write_marks,
)
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES, internal_metadata, stripped
from letopis.store.search.index import Index
from letopis.store.write.contents import ContentWriter

ConversationKey = tuple[int, str]
"""The partition and the id of a conversation."""
_EVENTS_PER_READ: Final = 500
_MAX_IDS_IN_STATEMENT: Final = 20
"""Up to this many messages the database finds by their ids; for more, all events are read."""
_DATA: Final = list(events.c.keys()).index("data")
_METADATA: Final = list(events.c.keys()).index("metadata")
_SALT: Final = list(events.c.keys()).index("salt")


class Eraser:
    """Carries out what erases content: at once, or as tasks in steps; the statements are compiled once."""

    def __init__(self, dialect: Dialect, index: Index, *, upcasters: Upcasters) -> None:
        self._dialect = dialect
        self.descendants = Descendants(dialect, upcasters)
        self._index = index
        self._contents = dialect.shared(ContentWriter)
        at = (
            *of_conversation(events),
            events.c.version > sa.bindparam("after"),
            events.c.version <= sa.bindparam("upto"),
            events.c.salt.is_not(None),
        )
        self._all = sa.select(events).where(*at).order_by(events.c.version)
        self._content = self._all.where(is_content(events))
        self._of_messages = self._all.where(events.c.type.in_(MESSAGE_CONTENT_TYPES))
        self._retaining = sa.select(
            conversations.c.partition, conversations.c.conversation_id, conversations.c.retained
        ).where(conversations.c.retained > 0)
        there = sa.update(messages).where(
            messages.c.partition == sa.bindparam("at_partition"),
            messages.c.conversation_id == sa.bindparam("at_conversation"),
            messages.c.version > sa.bindparam("at_least"),
            messages.c.version <= sa.bindparam("at_most"),
        )
        by_event: sa.BindParameter[Any] = sa.bindparam("at_event")
        self._leave = there.where(messages.c.left_at.is_(None)).values(left_at=by_event)
        # Reactions are content too; those in events are stripped with these.
        self._remove_reactions = there.where(messages.c.reactions.is_not(None)).values(reactions=None)
        # The conversation goes on, so each message notes that it is erased: later changes of it are not shown.
        self._redact = there.where(
            sa.or_(messages.c.redacted_at.is_(None), messages.c.redacted_at == messages.c.version)
        ).values(redacted_at=by_event, content_version=messages.c.version)
        self._last = sa.select(sa.func.max(events.c.version)).where(*of_conversation(events))
        self._lock = dialect.locked(sa.select(conversations.c.retained).where(*of_conversation(conversations)))

    async def erase(
        self, connection: AsyncConnection, work: Iterable[Task], *, later: bool, deleted: bool = False
    ) -> None:
        """Carry out tasks in the open transaction; if that is too much for it, mark them for the steps."""
        if later:
            await write_marks(connection, self._dialect, work)
            return
        for task in work:
            if task.after < task.upto:
                await self.carry_out(connection, task, deleted=deleted)

    async def carry_out(
        self, connection: AsyncConnection, task: Task, *, limit: int | None = None, deleted: bool = False
    ) -> int:
        """Carry out a task, or the next ``limit`` versions of it; return the version up to which that is done."""
        if task.kind in (ERASE, TRIM):
            return await (self.strip(connection, task) if limit is None else self.strip_some(connection, task, limit))
        upto = task.upto if limit is None else min(task.after + limit, task.upto)
        name = task.conversation_id
        span = {"at_partition": task.partition, "at_conversation": name, "at_least": task.after, "at_most": upto}
        if task.kind in (LEAVE, RESET):
            statement = self._leave if task.kind == LEAVE else self._redact
            await connection.execute(statement, {**span, "at_event": task.version})
        if task.kind == RESET or deleted:
            await connection.execute(self._remove_reactions, span)
        await self._index.forget_between(connection, task.partition, name, task.after, upto)
        return upto

    async def trim(
        self, connection: AsyncConnection, conversation: ConversationKey, trim: Sequence[int], *, now: int, room: int
    ) -> int:
        """Carry out what ``Projected.trims`` holds, or mark it; return how many of the ``room`` rows it took."""
        after, upto, at, kept = trim
        work = [
            Task(*conversation, kind, version=at, after=start, upto=upto, created_at=now)
            for kind, start in ((RESET, after), (TRIM, kept))
        ]
        later = upto - after > room
        await self.erase(connection, work, later=later)
        return 0 if later else max(0, upto - after)

    async def strip(self, connection: AsyncConnection, task: Task) -> int:
        """Strip the events of a task; the event that deleted the conversation keeps its reason."""
        while task.after < task.upto:
            task = replace(task, after=await self.strip_some(connection, task, _EVENTS_PER_READ))
        return task.upto

    async def strip_some(self, connection: AsyncConnection, task: Task, limit: int) -> int:
        """Strip at most the next ``limit`` events of a task; return the version of the last one."""
        conversation = (task.partition, task.conversation_id)
        statement = _limited(self._content if task.kind == TRIM else self._all, limit)
        span = {**_key(conversation), "after": task.after, "upto": task.upto}
        rows = (await connection.execute(statement, span)).all()
        await self._overwrite(connection, conversation, [row for row in rows if row.type != ConversationDeleted.type])
        return int(rows[-1].version) if len(rows) == limit else task.upto

    async def strip_messages(
        self, connection: AsyncConnection, conversation: ConversationKey, message_ids: Collection[str], *, upto: int
    ) -> None:
        """Strip the events of some messages up to a version, and remove these messages from search."""
        statement = self._of_messages
        if len(message_ids) <= _MAX_IDS_IN_STATEMENT:
            # The database looks for them, so that a long conversation need not be read here.
            ids = (orjson.dumps(name).decode() for name in sorted(message_ids))
            statement = statement.where(sa.or_(*(events.c.data.contains(name, autoescape=True) for name in ids)))
        removed = list[int]()
        statement, span = _limited(statement, _EVENTS_PER_READ), {**_key(conversation), "upto": upto}
        async for rows in pages(connection, statement, span, size=_EVENTS_PER_READ):
            held = [row for row in rows if decode(row.data).get("message_id") in message_ids]
            removed += [row.version for row in held if row.type == MessageAppended.type]
            await self._overwrite(connection, conversation, held)
        await self._index.forget(connection, *conversation, removed)

    async def strip_versions(
        self,
        connection: AsyncConnection,
        conversation: ConversationKey,
        versions: Sequence[int],
        *,
        messages: Collection[int],
    ) -> None:
        """Strip events, named by their versions, and remove messages, named by theirs, from search."""
        statement = _limited(self._all, _EVENTS_PER_READ)
        for part in in_batches(versions):
            wanted, span = set(part), {**_key(conversation), "upto": part[-1]}
            async for rows in pages(connection, statement, span, size=_EVENTS_PER_READ, after=part[0] - 1):
                await self._overwrite(connection, conversation, [row for row in rows if row.version in wanted])
        await self._index.forget(connection, *conversation, messages)

    async def _overwrite(
        self, connection: AsyncConnection, conversation: ConversationKey, rows: Sequence[sa.Row[Any]]
    ) -> None:
        """Strip rows of the log, and remove the large content that the others do not show."""
        await self._dialect.overwrite(connection, events, [_stripped_row(row, decode(row.data)) for row in rows])
        if any(references_in(row.type, row.data) for row in rows):
            await self._contents.sweep(connection, *conversation)

    async def erase_released(self, connection: AsyncConnection, *, now: int, marks: Sequence[Task] = ()) -> bool:
        """Strip what deleted and reset conversations retain and no fork reads any more; return True if any was.

        The tasks ``marks`` asked for it, and are done with it.
        """
        # Long conversations are only marked; the steps of the task strip them.
        retaining = (await connection.execute(self._retaining)).all()
        done, room = False, MAX_ROWS_PER_TRANSACTION
        for row in sorted(retaining, key=lambda row: (row.partition, row.conversation_id.encode())):
            erased = await self._erase_released_of(connection, (row.partition, row.conversation_id), now=now, room=room)
            done, room = done or erased > 0, room - erased
        await self._dialect.overwrite(connection, tasks, [replace(mark, after=mark.upto).as_row() for mark in marks])
        return done

    async def _erase_released_of(
        self, connection: AsyncConnection, conversation: ConversationKey, *, now: int, room: int
    ) -> int:
        key = _key(conversation)
        retained = (await connection.execute(self._lock, key)).scalar_one()
        needed = await self.descendants.read_up_to(connection, *conversation, kept=retained)
        if needed >= retained:
            return 0
        at = (conversations.c.partition == conversation[0], conversations.c.conversation_id == conversation[1])
        changed = await connection.execute(conversations.update().where(*at).values(retained=needed))
        check_row_count(conversations, changed.rowcount, 1)
        upto = min(retained, (await connection.execute(self._last, key)).scalar() or 0)
        # A trim has left the events that make the conversation's state; a deletion or a reset leaves none.
        whole = min(upto, max(needed, await self.descendants.reset_to(connection, *conversation)))
        work = [
            Task(*conversation, kind, version=last, after=first, upto=last, created_at=now)
            for kind, first, last in ((ERASE, needed, whole), (TRIM, whole, upto))
        ]
        later = upto - needed > room
        await self.erase(connection, work, later=later)
        return 1 if later else max(int(upto) - needed, 1)


def _key(conversation: ConversationKey) -> dict[str, Any]:
    return {"partition": conversation[0], "conversation": conversation[1]}


def _limited(statement: sa.Select[Any], rows: int) -> sa.Select[Any]:
    """Return a select with a literal limit: PostgreSQL plans a bound one for all rows."""
    return statement.limit(sa.literal_column(str(rows)))


def _stripped_row(row: sa.Row[Any], data: Mapping[str, Any]) -> TableRow:
    values = list(row)
    values[_DATA] = orjson.dumps(stripped(row.type, data)).decode()
    values[_METADATA] = internal_metadata(row.metadata)
    values[_SALT] = None
    return tuple(values)
