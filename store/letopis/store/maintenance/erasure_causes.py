"""Check that what was erased has its cause in the log; read in pages and change nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import rows_by_key
from letopis.store.database.row_mapping import conflict_of
from letopis.store.database.schema import conversations, events, tasks
from letopis.store.model.codec import decode
from letopis.store.model.event_types import (
    STATE_EVENTS,
    ConversationDeleted,
    ConversationRewound,
    ConversationTrimmed,
    MessageAppended,
    MessageRedacted,
)
from letopis.store.read.task_marks import ERASE, LEAVE, RESET, TRIM
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES, arrived_erased

_PAGE_ROWS: Final = 500
_ERASING: Final = (MessageRedacted.type, ConversationDeleted.type, ConversationRewound.type, ConversationTrimmed.type)


@dataclass(slots=True)
class _Erasures:
    """What the log of one conversation says of erasures."""

    redacted: set[str] = field(default_factory=set)
    rewinds: set[int] = field(default_factory=set)
    resets: set[int] = field(default_factory=set)
    trims: dict[int, int] = field(default_factory=dict)  # by version, how far
    deleted: bool = False

    def erase(self, version: int) -> bool:
        """Return True if everything at a version was erased."""
        return self.deleted or version < max(self.resets, default=0)

    def erase_event(self, version: int, type_name: str) -> bool:
        """Return True if the content of an event was erased."""
        trimmed = version <= max(self.trims.values(), default=0) and not type_name.startswith(STATE_EVENTS)
        return trimmed or self.erase(version)


_NOTHING: Final = _Erasures()


async def erasure_problems(connection: AsyncConnection) -> AsyncIterator[str]:
    """Yield erased events, pending tasks and retained content that no event of their conversation has asked for."""
    # An event that its outbox erased before the delivery says so: the redaction may come later. Events that cannot be
    # read are left to the check of the log.
    erasures = await _erasures(connection)
    async for row in _rows(connection, events.c.salt.is_(None)):
        data, known = _decoded(row), erasures.get(row.conversation_id, _NOTHING)
        if data is None or known.erase_event(row.version, row.type) or arrived_erased(row.metadata):
            continue
        message_id = data.get("message_id") if row.type in MESSAGE_CONTENT_TYPES else None
        if message_id in known.redacted or (message_id and await _was_erased(connection, row, message_id, known)):
            continue
        yield f"event {row.position} of partition {row.partition} was erased, and no event of its conversation says so"
    for task in await connection.execute(sa.select(tasks).where(tasks.c.after < tasks.c.upto)):
        known = erasures.get(task.conversation_id, _NOTHING)
        asked = {ERASE: known.erase(task.upto), RESET: task.version in known.resets or task.version in known.trims}
        asked[TRIM] = task.upto <= max(known.trims.values(), default=0)
        asked[LEAVE] = known.deleted or task.version in known.rewinds
        if not asked.get(task.kind, True):
            yield f"conversation {task.conversation_id!r} has a task {task.kind!r} that no event of it asked for"
    retained = sa.select(conversations.c.conversation_id).where(conversations.c.retained > 0)
    for (name,) in await connection.execute(retained):
        if not (known := erasures.get(name, _NOTHING)).deleted and not known.resets and not known.trims:
            yield f"conversation {name!r} retains content for forks, and no event of it has erased any"


async def _was_erased(connection: AsyncConnection, row: sa.Row[Any], message_id: str, known: _Erasures) -> bool:
    """Return True if a message was erased before an event of it came: by a reset, or in its outbox."""
    appended = sa.and_(
        events.c.partition == row.partition,
        events.c.conversation_id == row.conversation_id,
        events.c.type == MessageAppended.type,
    )
    async for appending in _rows(connection, appended):
        if known.erase_event(appending.version, appending.type) or arrived_erased(appending.metadata):
            data = _decoded(appending)
            if data is not None and data.get("message_id") == message_id:
                return True
    return False


async def _erasures(connection: AsyncConnection) -> dict[str, _Erasures]:
    erasures: dict[str, _Erasures] = defaultdict(_Erasures)
    async for row in _rows(connection, events.c.type.in_(_ERASING)):
        if (data := _decoded(row)) is None or conflict_of(row.metadata) is not None:
            continue
        known = erasures[row.conversation_id]
        if row.type == MessageRedacted.type:
            known.redacted.add(str(data.get("message_id")))
        elif row.type == ConversationDeleted.type:
            known.deleted = True
        elif row.type == ConversationTrimmed.type:
            known.trims[row.version] = min(int(data["upto"]), row.version - 1)
        else:
            known.rewinds.add(row.version)
            if data.get("erase") is True:
                known.resets.add(row.version)
    return erasures


async def _rows(connection: AsyncConnection, condition: sa.ColumnElement[bool]) -> AsyncIterator[sa.Row[Any]]:
    """Yield the events that fulfil a condition, in the order of the log."""
    select = sa.select(events).where(condition)
    async for rows in rows_by_key(connection, select, events.c.partition, events.c.position, size=_PAGE_ROWS):
        for row in rows:
            yield row


def _decoded(row: sa.Row[Any]) -> Mapping[str, Any] | None:
    try:
        decode(row.metadata)
        return decode(row.data)
    except ValueError:
        return None
