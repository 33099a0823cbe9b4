"""Take content out of stored events and out of the search index, in an open transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, check_row_count, in_batches
from letopis.store.database.schema import conversations, events, messages, of_conversation, tasks
from letopis.store.model.codec import decode
from letopis.store.model.event_types import ConversationDeleted, MessageAppended
from letopis.store.model.events import Upcasters
from letopis.store.model.large_content import references_in
from letopis.store.read.descendants import Descendants, NewFork
from letopis.store.read.task_marks import ERASE, MAX_ROWS_PER_TRANSACTION, RESET, TRIM, Task, is_content, write_marks
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES, internal_metadata, stripped
from letopis.store.search.index import Index
from letopis.store.write.contents import ContentWriter

_EVENTS_PER_READ: Final = 500
_MAX_IDS_IN_STATEMENT: Final = 20
"""Up to this many messages the database finds by their ids; for more, all events are read."""
_DATA: Final = list(events.c.keys()).index("data")
_METADATA: Final = list(events.c.keys()).index("metadata")
_SALT: Final = list(events.c.keys()).index("salt")


class Eraser:
    """Strips stored events; the statements are compiled once."""

    def __init__(self, dialect: Dialect, index: Index, *, upcasters: Upcasters) -> None:
        self._dialect = dialect
        self._descendants = Descendants(dialect, upcasters)
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
        there = (
            messages.c.partition == sa.bindparam("at_partition"),
            messages.c.conversation_id == sa.bindparam("at_conversation"),
            messages.c.version > sa.bindparam("at_least"),
            messages.c.version <= sa.bindparam("at_most"),
        )
        # Reactions are content too; those in events are stripped with these.
        self._remove_reactions = (
            sa.update(messages).where(*there, messages.c.reactions.is_not(None)).values(reactions=None)
        )
        # The conversation goes on, so each message notes that it is erased: later changes of it are not shown.
        self._redact = (
            sa.update(messages)
            .where(*there, sa.or_(messages.c.redacted_at.is_(None), messages.c.redacted_at == messages.c.version))
            .values(redacted_at=sa.bindparam("reset_at"), content_version=messages.c.version)
        )
        self._last = sa.select(sa.func.max(events.c.version)).where(*of_conversation(events))
        self._lock = dialect.locked(sa.select(conversations.c.retained).where(*of_conversation(conversations)))

    async def erase_messages(
        self, connection: AsyncConnection, partition: int, conversation_id: str, *, upto: int, reset_at: int | None
    ) -> None:
        """Remove the reactions to a conversation's messages up to a version, and all its messages from search."""
        await self._redact_messages(connection, partition, conversation_id, after=0, upto=upto, at=reset_at)
        await self._index.forget(connection, partition, conversation_id, None)

    async def _redact_messages(
        self,
        connection: AsyncConnection,
        partition: int,
        conversation_id: str,
        *,
        after: int,
        upto: int,
        at: int | None,
    ) -> None:
        of_messages = {"at_partition": partition, "at_conversation": conversation_id}
        bounds = {**of_messages, "at_least": after, "at_most": upto}
        await connection.execute(self._remove_reactions, bounds)
        if at is not None:
            await connection.execute(self._redact, {**bounds, "reset_at": at})

    async def trim(
        self,
        connection: AsyncConnection,
        partition: int,
        conversation_id: str,
        *,
        after: int,
        upto: int,
        at: int,
        kept: int,
        now: int,
        room: int,
    ) -> int:
        """Redact the messages of a range by the event ``at``, and strip content beyond ``kept``; mark what is too long.

        Return how many of the ``room`` rows it took.
        """
        if upto - after > room:
            for kind, start in ((RESET, after), (TRIM, kept)):
                task = Task(partition, conversation_id, kind, version=at, after=start, upto=upto, created_at=now)
                await write_marks(connection, self._dialect, [task])
            return 0
        conversation = (connection, partition, conversation_id)
        await self._redact_messages(*conversation, after=after, upto=upto, at=at)
        await self._index.forget_between(*conversation, after, upto)
        await self.strip(*conversation, after=kept, upto=upto, content_only=True)
        return max(0, upto - after)

    async def strip(
        self,
        connection: AsyncConnection,
        partition: int,
        conversation_id: str,
        *,
        after: int,
        upto: int,
        content_only: bool = False,
    ) -> None:
        """Strip the events of a conversation in a range; the event that deleted it keeps its reason."""
        conversation = (connection, partition, conversation_id)
        while after < upto:
            after = await self.strip_some(
                *conversation, after=after, upto=upto, limit=_EVENTS_PER_READ, content_only=content_only
            )

    async def strip_messages(
        self,
        connection: AsyncConnection,
        partition: int,
        conversation_id: str,
        message_ids: Collection[str],
        *,
        upto: int,
    ) -> None:
        """Strip the events of some messages up to a version, and remove these messages from search."""
        key = {"partition": partition, "conversation": conversation_id}
        statement = self._of_messages
        if len(message_ids) <= _MAX_IDS_IN_STATEMENT:
            # The database looks for them, so that a long conversation need not be read here.
            ids = (orjson.dumps(name).decode() for name in sorted(message_ids))
            statement = statement.where(sa.or_(*(events.c.data.contains(name, autoescape=True) for name in ids)))
        removed = list[int]()
        async for rows in self._pages(connection, statement, key, after=0, upto=upto):
            held = [(row, data) for row in rows if (data := decode(row.data)).get("message_id") in message_ids]
            removed += [row.version for row, _ in held if row.type == MessageAppended.type]
            await self._overwrite(connection, partition, conversation_id, [row for row, _ in held])
        await self._index.forget(connection, partition, conversation_id, removed)

    async def strip_some(
        self,
        connection: AsyncConnection,
        partition: int,
        conversation_id: str,
        *,
        after: int,
        upto: int,
        limit: int,
        content_only: bool = False,
    ) -> int:
        """Strip at most the next ``limit`` events of a range; return the version of the last one."""
        key = {"partition": partition, "conversation": conversation_id, "after": after, "upto": upto}
        statement = self._content if content_only else self._all
        rows = (await connection.execute(_limited(statement, limit), key)).all()
        old = [row for row in rows if row.type != ConversationDeleted.type]
        await self._overwrite(connection, partition, conversation_id, old)
        return int(rows[-1].version) if len(rows) == limit else upto

    async def strip_versions(
        self,
        connection: AsyncConnection,
        partition: int,
        conversation_id: str,
        versions: Sequence[int],
        *,
        messages: Collection[int],
    ) -> None:
        """Strip events, named by their versions, and remove messages, named by theirs, from search."""
        key = {"partition": partition, "conversation": conversation_id}
        for part in in_batches(versions):
            wanted = set(part)
            async for rows in self._pages(connection, self._all, key, after=part[0] - 1, upto=part[-1]):
                old = [row for row in rows if row.version in wanted]
                await self._overwrite(connection, partition, conversation_id, old)
        await self._index.forget(connection, partition, conversation_id, messages)

    async def _overwrite(
        self, connection: AsyncConnection, partition: int, conversation_id: str, rows: Sequence[sa.Row[Any]]
    ) -> None:
        """Strip rows of the log, and remove the large content that the others do not show."""
        await self._dialect.overwrite(connection, events, [_stripped_row(row, decode(row.data)) for row in rows])
        if any(references_in(row.type, row.data) for row in rows):
            await self._contents.sweep(connection, partition, conversation_id)

    async def _pages(
        self, connection: AsyncConnection, statement: sa.Select[Any], key: Mapping[str, Any], *, after: int, upto: int
    ) -> AsyncIterator[Sequence[sa.Row[Any]]]:
        while after < upto:
            span = {**key, "after": after, "upto": upto}
            rows = (await connection.execute(_limited(statement, _EVENTS_PER_READ), span)).all()
            yield rows
            after = rows[-1].version if len(rows) == _EVENTS_PER_READ else upto

    async def retained(
        self, connection: AsyncConnection, partition: int, conversation_id: str, *, new: Sequence[NewFork] = ()
    ) -> int:
        """Return the version up to which forks read a conversation, through any chain; 0 if none does."""
        return await self._descendants.read_up_to(connection, partition, conversation_id, new=new)

    async def erase_released(self, connection: AsyncConnection, *, now: int, marks: Sequence[Task] = ()) -> bool:
        """Strip what deleted and reset conversations retain and no fork reads any more; return True if any was.

        The tasks ``marks`` asked for it, and are done with it.
        """
        # Long conversations are only marked; the steps of the task strip them.
        retaining = (await connection.execute(self._retaining)).all()
        done, room = False, MAX_ROWS_PER_TRANSACTION
        for row in sorted(retaining, key=lambda row: (row.partition, row.conversation_id.encode())):
            erased = await self._erase_released_of(connection, row.partition, row.conversation_id, now=now, room=room)
            done, room = done or erased > 0, room - erased
        await self._dialect.overwrite(connection, tasks, [replace(mark, after=mark.upto).as_row() for mark in marks])
        return done

    async def _erase_released_of(
        self, connection: AsyncConnection, partition: int, conversation_id: str, *, now: int, room: int
    ) -> int:
        key = {"partition": partition, "conversation": conversation_id}
        retained = (await connection.execute(self._lock, key)).scalar_one()
        needed = await self._descendants.read_up_to(connection, partition, conversation_id, kept=retained)
        if needed >= retained:
            return 0
        at = (conversations.c.partition == partition, conversations.c.conversation_id == conversation_id)
        changed = await connection.execute(conversations.update().where(*at).values(retained=needed))
        check_row_count(conversations, changed.rowcount, 1)
        upto = min(retained, (await connection.execute(self._last, key)).scalar() or 0)
        # A trim has left the events that make the conversation's state; a deletion or a reset leaves none.
        whole = min(upto, max(needed, await self._descendants.reset_to(connection, partition, conversation_id)))
        conversation = (connection, partition, conversation_id)
        if upto - needed <= room:
            await self.strip(*conversation, after=needed, upto=whole)
            await self.strip(*conversation, after=whole, upto=upto, content_only=True)
            return max(int(upto) - needed, 1)
        await self.mark_erased(*conversation, after=needed, upto=whole, now=now)
        trimmed = Task(partition, conversation_id, TRIM, version=upto, after=whole, upto=upto, created_at=now)
        await write_marks(connection, self._dialect, [trimmed])
        return 1

    async def mark_erased(
        self, connection: AsyncConnection, partition: int, conversation_id: str, *, after: int, upto: int, now: int
    ) -> None:
        """Mark events of a deleted or reset conversation as erased; the steps of the task strip them."""
        task = Task(partition, conversation_id, ERASE, version=upto, after=after, upto=upto, created_at=now)
        await write_marks(connection, self._dialect, [task])


def _limited(statement: sa.Select[Any], rows: int) -> sa.Select[Any]:
    """Return a select with a literal limit: PostgreSQL plans a bound one for all rows."""
    return statement.limit(sa.literal_column(str(rows)))


def _stripped_row(row: sa.Row[Any], data: Mapping[str, Any]) -> TableRow:
    values = list(row)
    values[_DATA] = orjson.dumps(stripped(row.type, data)).decode()
    values[_METADATA] = internal_metadata(row.metadata)
    values[_SALT] = None
    return tuple(values)
