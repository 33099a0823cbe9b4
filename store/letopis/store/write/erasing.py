"""Erase what plans name in every table that holds words, in an open transaction: at once, or as tasks in steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, check_row_count, pages
from letopis.store.database.schema import (
    conversations,
    erasures,
    events,
    holds,
    messages,
    of_conversation,
    record_parts,
    record_tags,
    records,
    search,
    tasks,
)
from letopis.store.model.codec import decode
from letopis.store.model.event_types import ConversationDeleted, MessageAppended
from letopis.store.model.events import Upcasters
from letopis.store.model.large_content import references_in
from letopis.store.read.descendants import Descendants
from letopis.store.read.task_marks import (
    EDITS,
    ERASE,
    FORGET,
    LEAVE,
    MAX_ROWS_PER_TRANSACTION,
    RESET,
    TRIM,
    ErasedMessages,
    Task,
    is_content,
    write_marks,
)
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.erasure_plan import Cause, ErasurePlan
from letopis.store.rules.redaction import (
    LATER_CONTENT_TYPES,
    MESSAGE_CONTENT_TYPES,
    RETAINED_KEY,
    internal_metadata,
    stripped,
    with_note,
)
from letopis.store.search.index import Index
from letopis.store.write.contents import ContentWriter

ConversationKey = tuple[int, str]
"""The partition and the id of a conversation."""
_EVENTS_PER_READ: Final = 500
_MAX_IDS_IN_STATEMENT: Final = 20
"""Up to this many messages the database finds by their ids; for more, all events are read."""
_DATA, _METADATA, _SALT = (list(events.c.keys()).index(name) for name in ("data", "metadata", "salt"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TableHolder:
    """A table that holds words.

    :ivar columns: those that can hold words.
    :ivar kinds: the kinds of tasks that erase there.
    :ivar erase: erases a range of versions of one conversation, and returns the version up to which that is done.
        ``None`` where whoever applies the event does it: rows that it has loaded, and records, which go by their keys.
    """

    columns: tuple[sa.Column[Any], ...]
    kinds: tuple[str, ...] = ()
    erase: Callable[[Eraser, AsyncConnection, Task], Awaitable[int]] | None = None


class Eraser:
    """Carries out plans of erasure; the statements are compiled once."""

    def __init__(self, dialect: Dialect, index: Index, *, upcasters: Upcasters) -> None:
        self._dialect = dialect
        self.descendants = Descendants(dialect, upcasters)
        self._index = index
        self._contents = dialect.shared(ContentWriter)
        span = (events.c.version > sa.bindparam("after"), events.c.version <= sa.bindparam("upto"))
        self._all = sa.select(events).where(*of_conversation(events), *span, events.c.salt.is_not(None))
        self._all = self._all.order_by(events.c.version).limit(sa.literal_column(str(_EVENTS_PER_READ)))
        self._changes = self._all.where(events.c.type.in_(LATER_CONTENT_TYPES))
        self._erased = dialect.shared(ErasedMessages)
        self._of_messages = self._all.where(events.c.type.in_(MESSAGE_CONTENT_TYPES))
        there = sa.update(messages).where(
            messages.c.partition == sa.bindparam("at_partition"),
            messages.c.conversation_id == sa.bindparam("at_conversation"),
            messages.c.version > sa.bindparam("at_least"),
            messages.c.version <= sa.bindparam("at_most"),
        )
        by_event: sa.BindParameter[Any] = sa.bindparam("at_event")
        self._leave = there.where(messages.c.left_at.is_(None)).values(left_at=by_event)
        # Each message notes that it is erased: later changes of it are not shown.
        new = sa.or_(messages.c.redacted_at.is_(None), messages.c.redacted_at == messages.c.version)
        self._redact = there.where(new).values(redacted_at=by_event, content_version=messages.c.version)
        # Reactions are content too; those in events are stripped with these.
        self._remove_reactions = there.where(messages.c.reactions.is_not(None)).values(reactions=None)
        self._last = sa.select(sa.func.max(events.c.version)).where(*of_conversation(events))
        c = conversations.c
        self._retaining = sa.select(c.partition, c.conversation_id).where(c.retained > 0)
        row = sa.select(c.retained, c.reset_to, c.trimmed).where(*of_conversation(conversations))
        self._lock = dialect.locked(row)

    async def carry_out(
        self, connection: AsyncConnection, plan: ErasurePlan, partition: int, *, before: int, room: int, now: int
    ) -> int:
        """Erase what a plan names of the events up to a version or, beyond ``room`` rows, mark it for the steps.

        Return how many rows it took.
        """
        key = (partition, plan.lane)
        if plan.message_ids is not None:
            await self._strip_messages(connection, key, plan.message_ids, upto=before)
            return 0
        work, size = _tasks_of(plan, partition, before, now), max(0, min(plan.upto, before) - plan.after)
        # Changes beyond the range are few and are looked for in what may be long.
        marks = work if size > room else [task for task in work if task.upto - task.after > MAX_ROWS_PER_TRANSACTION]
        await write_marks(connection, self._dialect, marks)
        for task in work:
            while task not in marks and task.after < task.upto:
                task = replace(task, after=await self.step(connection, task))
        return 0 if size > room else size

    async def step(self, connection: AsyncConnection, task: Task, *, limit: int | None = None) -> int:
        """Carry out a task, or the next ``limit`` versions of it; return the version up to which that is done."""
        piece = task if limit is None else replace(task, upto=min(task.after + limit, task.upto))
        done = piece.upto
        for holder in HOLDERS:
            if holder.erase is not None and piece.kind in holder.kinds:
                done = min(done, await holder.erase(self, connection, piece))
        return done

    async def _erase_rows(self, connection: AsyncConnection, task: Task) -> int:
        span = {"at_partition": task.partition, "at_conversation": task.conversation_id}
        span.update(at_least=task.after, at_most=task.upto)
        await connection.execute(
            self._leave if task.kind == LEAVE else self._redact, {**span, "at_event": task.version}
        )
        if task.kind == RESET:
            await connection.execute(self._remove_reactions, span)
        return task.upto

    async def _erase_search(self, connection: AsyncConnection, task: Task) -> int:
        await self._index.forget_between(connection, task.partition, task.conversation_id, task.after, task.upto)
        return task.upto

    async def _erase_events(self, connection: AsyncConnection, task: Task) -> int:
        """Strip the next events of a task; the event that deleted the conversation keeps its reason."""
        key = (task.partition, task.conversation_id)
        statement = self._all.where(is_content(events)) if task.kind == TRIM else self._all
        span = {**_key(key), "after": task.after, "upto": task.upto}
        rows = (await connection.execute(statement, span)).all()
        await self._overwrite(connection, key, [row for row in rows if row.type != ConversationDeleted.type])
        return int(rows[-1].version) if len(rows) == _EVENTS_PER_READ else task.upto

    async def _erase_changes(self, connection: AsyncConnection, task: Task) -> int:
        """Strip the next later changes of messages without content; what forks read of them is hidden from others."""
        key = (task.partition, task.conversation_id)
        span = {**_key(key), "after": task.after, "upto": task.upto}
        rows = (await connection.execute(self._changes, span)).all()
        if gone := [rows[index] for index in sorted(await self._erased.changed_by(connection, rows))]:
            retained = (await connection.execute(self._lock, _key(key))).one().retained
            await self._overwrite(connection, key, [row for row in gone if row.version > retained])
            noted = [_noted_row(row) for row in gone if row.version <= retained]
            await self._dialect.overwrite(connection, events, noted)
        return int(rows[-1].version) if len(rows) == _EVENTS_PER_READ else task.upto

    async def _strip_messages(
        self, connection: AsyncConnection, key: ConversationKey, message_ids: Collection[str], *, upto: int
    ) -> None:
        """Strip the events of some messages up to a version, and remove these messages from search."""
        statement = self._of_messages
        if len(message_ids) <= _MAX_IDS_IN_STATEMENT:
            # The database looks for them, so that a long conversation need not be read here.
            ids = (orjson.dumps(name).decode() for name in sorted(message_ids))
            statement = statement.where(sa.or_(*(events.c.data.contains(name, autoescape=True) for name in ids)))
        await self._strip(
            connection, key, statement, upto, lambda row: decode(row.data).get("message_id") in message_ids
        )

    async def strip_versions(
        self, connection: AsyncConnection, key: ConversationKey, versions: Collection[int], *, messages: Collection[int]
    ) -> None:
        """Strip events, named by their versions, and remove messages, named by theirs, from search."""
        wanted = frozenset(versions)
        await self._strip(connection, key, self._all, max(wanted), lambda row: row.version in wanted)
        await self._index.forget(connection, *key, messages)

    async def _strip(
        self,
        connection: AsyncConnection,
        key: ConversationKey,
        statement: sa.Select[Any],
        upto: int,
        wanted: Callable[[sa.Row[Any]], bool],
    ) -> None:
        removed = list[int]()
        async for rows in pages(connection, statement, {**_key(key), "upto": upto}, size=_EVENTS_PER_READ):
            held = [row for row in rows if wanted(row)]
            removed += [row.version for row in held if row.type == MessageAppended.type]
            await self._overwrite(connection, key, held)
        await self._index.forget(connection, *key, removed)

    async def _overwrite(self, connection: AsyncConnection, key: ConversationKey, rows: Sequence[sa.Row[Any]]) -> None:
        """Strip rows of the log, and remove the large content that the others do not show."""
        await self._dialect.overwrite(connection, events, [_stripped_row(row, decode(row.data)) for row in rows])
        if any(references_in(row.type, row.data) for row in rows):
            await self._contents.sweep(connection, *key)

    async def erase_released(self, connection: AsyncConnection, *, now: int, marks: Sequence[Task] = ()) -> bool:
        """Erase what conversations retain and no fork reads any more; return True if any was.

        The tasks ``marks`` asked for it, and are done with it.
        """
        retaining = (await connection.execute(self._retaining)).all()
        done, room = False, MAX_ROWS_PER_TRANSACTION
        for row in sorted(retaining, key=lambda row: (row.partition, row.conversation_id.encode())):
            plans, before = await self._released(connection, (row.partition, row.conversation_id))
            for plan in plans:
                room -= await self.carry_out(connection, plan, row.partition, before=before, room=room, now=now)
            done = done or bool(plans)
        await self._dialect.overwrite(connection, tasks, [replace(mark, after=mark.upto).as_row() for mark in marks])
        return done

    async def _released(self, connection: AsyncConnection, key: ConversationKey) -> tuple[list[ErasurePlan], int]:
        """Lock a conversation; return what no fork of it needs any more, and its last version."""
        row = (await connection.execute(self._lock, _key(key))).one()
        needed = await self.descendants.read_up_to(connection, *key, kept=row.retained)
        upto = min(needed.upto, row.retained)
        if upto < row.retained:
            at = (conversations.c.partition == key[0], conversations.c.conversation_id == key[1])
            changed = await connection.execute(conversations.update().where(*at).values(retained=upto))
            check_row_count(conversations, changed.rowcount, 1)
        # A trim has left the events that make the conversation's state; a deletion or a reset leaves none.
        whole = max(upto, min(row.reset_to, row.retained))
        content = max(whole, min(row.trimmed, row.retained))
        # What had been erased when each fork began, another one has kept until now, or one that came with the erasure.
        first, second = min(needed.whole, upto), min(needed.content, upto)
        plans = [
            ErasurePlan(lane=key[1], cause=Cause.RELEASE, upto=first),
            ErasurePlan(lane=key[1], cause=Cause.TRIM, after=first, upto=second),
            ErasurePlan(lane=key[1], cause=Cause.RELEASE, after=upto, upto=whole),
            ErasurePlan(lane=key[1], cause=Cause.TRIM, after=whole, upto=content, beyond=row.retained),
        ]
        plans = [plan for plan in plans if plan.after < max(plan.upto, plan.beyond if upto < row.retained else 0)]
        return plans, (await connection.execute(self._last, _key(key))).scalar() or 0


HOLDERS: Final = (
    TableHolder(columns=(messages.c.reactions,), kinds=(LEAVE, RESET), erase=Eraser._erase_rows),
    TableHolder(columns=(search.c.document,), kinds=(LEAVE, RESET, FORGET), erase=Eraser._erase_search),
    TableHolder(columns=(events.c.data, events.c.metadata), kinds=(ERASE, TRIM), erase=Eraser._erase_events),
    TableHolder(columns=(events.c.data, events.c.metadata), kinds=(EDITS,), erase=Eraser._erase_changes),
    TableHolder(columns=(conversations.c.title, conversations.c.metadata, conversations.c.tags)),
    TableHolder(columns=(records.c.body, records.c.tags, record_parts.c.body, record_tags.c.value)),
    # What operators write, who are asked to write no content.
    TableHolder(columns=(erasures.c.reason, holds.c.reason)),
)
"""Every table that holds words. A rule test goes through all tables and columns."""


def _tasks_of(plan: ErasurePlan, partition: int, before: int, now: int) -> list[Task]:
    """Return what a plan comes to in steps: the rows of messages, unless they are erased, and the events."""
    upto, beyond = min(plan.upto, before), min(plan.beyond, before)
    kinds = [(TRIM if plan.keeps_state else ERASE, max(plan.after, plan.retained), upto), (EDITS, upto, beyond)]
    if plan.at:
        kinds.insert(0, (RESET, plan.after, upto))
    at = plan.at or max(upto, beyond)
    work = (
        Task(partition, plan.lane, kind, version=at, after=after, upto=end, created_at=now)
        for kind, after, end in kinds
    )
    return [task for task in work if task.after < task.upto]


def _key(conversation: ConversationKey) -> dict[str, Any]:
    return {"partition": conversation[0], "conversation": conversation[1]}


def _noted_row(row: sa.Row[Any]) -> TableRow:
    values = list(row)
    values[_METADATA] = with_note(row.metadata, RETAINED_KEY)
    return tuple(values)


def _stripped_row(row: sa.Row[Any], data: Mapping[str, Any]) -> TableRow:
    values = list(row)
    values[_DATA] = orjson.dumps(stripped(row.type, data)).decode()
    values[_METADATA] = internal_metadata(row.metadata)
    values[_SALT] = None
    return tuple(values)
