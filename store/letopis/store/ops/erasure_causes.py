"""Check that what was erased has its cause in the log; read in pages and change nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import rows_by_key
from letopis.store.database.row_mapping import conflict_of
from letopis.store.database.schema import conversations, events, tasks
from letopis.store.model.codec import INTEGER_MAX, decode
from letopis.store.model.event_types import (
    ConversationDeleted,
    ConversationRewound,
    ConversationTrimmed,
    MessageAppended,
    MessageRedacted,
)
from letopis.store.read.task_marks import EDITS, ERASE, LEAVE, RESET, TRIM
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES, arrived_erased
from letopis.store.rules.sight import Sight

_PAGE_ROWS: Final = 500
_ERASING: Final = (MessageRedacted.type, ConversationDeleted.type, ConversationRewound.type, ConversationTrimmed.type)


@dataclass(slots=True)
class _Erasures:
    """What the log of one conversation says of erasures."""

    redacted: set[str] = field(default_factory=set)
    rewinds: set[int] = field(default_factory=set)
    erasing: set[int] = field(default_factory=set)  # versions of resets, trims and the deletion
    sight: Sight = Sight(conversation_id="")  # noqa: RUF009 - it is frozen

    def erase(self, version: int, *, reset_to: int = 0, trimmed: int = 0) -> None:
        """Note what the event of a version erased."""
        self.erasing.add(version)
        reset_to, trimmed = max(self.sight.reset_to, reset_to), max(self.sight.trimmed, trimmed)
        self.sight = replace(self.sight, reset_to=reset_to, trimmed=trimmed)

    def erased(self, event: Any) -> bool:
        """Return True if the content of an event was erased; also of a second deletion, which came too late."""
        return bool(event.version <= self.sight.reset_to or self.sight.hides(event.version, event.type))


_NOTHING: Final = _Erasures()


async def erasure_problems(connection: AsyncConnection) -> AsyncIterator[str]:
    """Yield erased events, pending tasks and retained content that no event of their conversation has asked for."""
    # An event that its outbox erased before the delivery says so: the redaction may come later. Events that cannot be
    # read are left to the check of the log.
    erasures = await _erasures(connection)
    async for row in _rows(connection, events.c.salt.is_(None)):
        data, known = _decoded(row), erasures.get(row.conversation_id, _NOTHING)
        if data is None or known.erased(row) or arrived_erased(row.metadata):
            continue
        message_id = data.get("message_id") if row.type in MESSAGE_CONTENT_TYPES else None
        if message_id in known.redacted or (message_id and await _was_erased(connection, row, message_id, known)):
            continue
        yield f"event {row.position} of partition {row.partition} was erased, and no event of its conversation says so"
    for task in await connection.execute(sa.select(tasks).where(tasks.c.after < tasks.c.upto)):
        known = erasures.get(task.conversation_id, _NOTHING)
        reset_to, trimmed = known.sight.reset_to, known.sight.trimmed
        asked = {ERASE: task.upto <= reset_to, TRIM: task.upto <= trimmed, RESET: task.version in known.erasing}
        asked[EDITS] = bool(known.erasing)
        asked[LEAVE] = task.version in known.erasing | known.rewinds
        if not asked.get(task.kind, True):
            yield f"conversation {task.conversation_id!r} has a task {task.kind!r} that no event of it asked for"
    retained = sa.select(conversations.c.conversation_id).where(conversations.c.retained > 0)
    for (name,) in await connection.execute(retained):
        if not erasures.get(name, _NOTHING).erasing:
            yield f"conversation {name!r} retains content for forks, and no event of it has erased any"


async def _was_erased(connection: AsyncConnection, row: sa.Row[Any], message_id: str, known: _Erasures) -> bool:
    """Return True if a message was erased before an event of it came: by a reset, or in its outbox."""
    appended = sa.and_(
        events.c.partition == row.partition,
        events.c.conversation_id == row.conversation_id,
        events.c.type == MessageAppended.type,
    )
    async for appending in _rows(connection, appended):
        if known.erased(appending) or arrived_erased(appending.metadata):
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
            known.erase(row.version, reset_to=INTEGER_MAX)
        elif row.type == ConversationTrimmed.type:
            known.erase(row.version, trimmed=min(int(data["upto"]), row.version - 1))
        else:
            known.rewinds.add(row.version)
            if data.get("erase") is True:
                known.erase(row.version, reset_to=min(int(data.get("upto", row.version)), row.version - 1))
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
