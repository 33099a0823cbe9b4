"""Mark what an event does to very many rows, so that readers heed it at once and steps carry it out later."""

# A task is a range of versions of one conversation, of which (after, upto] is still to be carried out.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, astuple, dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.schema import messages, of_conversation, same_conversation, tasks
from letopis.store.model.codec import decode
from letopis.store.model.event_types import STATE_EVENTS, ConversationDeleted
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.redaction import LATER_CONTENT_TYPES

LEAVE: Final = "leave"  # its messages have left the path at the task's version, unless they left it before
ERASE: Final = "erase"  # its events have no content any more
FORGET: Final = "forget"  # its messages must not be in the search index
RESET: Final = "reset"  # its messages were redacted at that version, unless before, and have no reactions
TRIM: Final = "trim"  # its events that are no state of the conversation have no content any more
EDITS: Final = "edits"  # its events that change messages without content have none either
RELEASE: Final = "release"  # its event may have been the last to read what others retain: those are to be checked
MAX_ROWS_PER_TRANSACTION: Final = 2_000
"""Rows that one delivery may change in its own transaction; more are marked and changed later."""


@dataclass(frozen=True, slots=True)
class Task:
    """A mark: what is to be done to a range of versions of one conversation."""

    partition: int
    conversation_id: str
    kind: str
    _: KW_ONLY
    version: int  # of its event; of what is released, the end of the range
    after: int
    upto: int
    created_at: int

    def as_row(self) -> TableRow:
        return astuple(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTasks:
    """What is still to be carried out in a history store.

    :ivar tasks: how many marks there are.
    :ivar rows: how many versions they still cover, which bounds the work.
    :ivar erasing: how many of the tasks erase content.
    """

    tasks: int = 0
    rows: int = 0
    erasing: int = 0


async def write_marks(connection: AsyncConnection, dialect: Dialect, wanted: Iterable[Task]) -> None:
    """Write marks in the open transaction, which holds the locks of their conversations."""
    for task in wanted:
        if task.after >= task.upto:
            continue
        key = (
            tasks.c.partition == task.partition,
            tasks.c.conversation_id == task.conversation_id,
            tasks.c.kind == task.kind,
            tasks.c.version == task.version,
        )
        known = (await connection.execute(sa.select(tasks.c.after).where(*key))).first()
        # A row of a task that was carried out is used again: rows are emptied, never deleted.
        write = dialect.insert if known is None else dialect.overwrite
        await write(connection, tasks, [task.as_row()])


def any_mark() -> sa.ColumnElement[bool]:
    """Return the condition that marks of the conversation that is bound are still to be carried out."""
    return sa.exists().where(*of_conversation(tasks), tasks.c.after < tasks.c.upto)


def left_by_mark(m: Any) -> sa.ColumnElement[Any]:
    """Return the version at which a message has left the path by a mark; NULL where none covers it."""
    return _covering((LEAVE,), m, sa.func.min)


def is_on_path(m: Any) -> sa.ColumnElement[bool]:
    """Return the condition that a message of a table of messages is on the path."""
    # Not NOT EXISTS: planners turn that into a join and lose the order of the index. Nor IS NULL alone: PostgreSQL
    # estimates that one row in two hundred fulfils it, and sorts instead of following the index.
    return sa.and_(m.c.left_at.is_(None), sa.case((left_by_mark(m).is_(None), 1)).is_not(None))


def is_shown(m: Any) -> sa.ColumnElement[bool]:
    """Return the condition that a message of a table of messages is on the path and has its content."""
    return sa.and_(has_content(m), is_on_path(m))


def has_content(m: Any) -> sa.ColumnElement[bool]:
    """Return the condition that a message of a table of messages has its content, on the path or off it."""
    return sa.and_(m.c.redacted_at.is_(None), _reset_by_mark(m).is_(None))


def left_at(m: Any) -> sa.ColumnElement[Any]:
    """Return the version at which a message has left the path, by its row or by a mark."""
    return sa.func.coalesce(m.c.left_at, left_by_mark(m))


def message_columns(m: Any) -> list[sa.ColumnElement[Any]]:
    """Return the columns of a table of messages as marks have them."""
    reset = _reset_by_mark(m)
    # A message that came without content has its own version there until its redaction comes.
    redacted = m.c.redacted_at
    marked: dict[str, sa.ColumnElement[Any]] = {
        "left_at": left_at(m),
        "redacted_at": sa.case(
            (sa.or_(redacted.is_(None), redacted == m.c.version), sa.func.coalesce(reset, redacted)), else_=redacted
        ),
        "content_version": sa.case((reset.is_(None), m.c.content_version), else_=m.c.version),
        "reactions": sa.case((reset.is_(None), m.c.reactions)),
    }
    return [marked[column.name].label(column.name) if column.name in marked else column for column in m.c]


def _reset_by_mark(m: Any) -> sa.ColumnElement[Any]:
    return _covering((RESET,), m, sa.func.min)


def erased(e: Any) -> sa.ColumnElement[Any]:
    """Return the version at which a mark erases the content of an event; NULL where none does."""
    return _covering((ERASE, sa.case((is_content(e), TRIM), else_=ERASE)), e, sa.func.max)


def is_content(e: Any) -> sa.ColumnElement[bool]:
    """Return the condition that an event is no state of its conversation, so that a trim takes its content away."""
    return sa.or_(e.c.type < STATE_EVENTS, e.c.type >= STATE_EVENTS.replace(".", chr(ord(".") + 1)))


def is_hidden(e: Any, c: Any) -> sa.ColumnElement[bool]:
    """Return what :meth:`Sight.hides` does, for a table of events and the conversations that they are read in."""
    trimmed = sa.and_(e.c.version <= c.c.trimmed, is_content(e))
    return sa.and_(e.c.type != ConversationDeleted.type, sa.or_(e.c.version <= c.c.reset_to, trimmed))


def event_columns(e: Any, *, read_in: Any = None) -> list[sa.ColumnElement[Any]]:
    """Return the columns of a table of events, and as ``erased`` whether their content is gone.

    :param read_in: the table of conversations, for those who read an event in its own; ``None`` for forks. They also
        get as ``changes`` if a mark erases it with its message: see :class:`ErasedMessages`.
    """
    gone, changes = erased(e), []
    if read_in is not None:
        later = sa.and_(e.c.type.in_(LATER_CONTENT_TYPES), e.c.salt.is_not(None))
        changes = [_covering((sa.case((later, EDITS)),), e, sa.func.max).label("changes")]
        gone = sa.func.coalesce(gone, sa.case((is_hidden(e, read_in), e.c.version)))
    columns = (
        shown_digest(e).label("digest") if column.name == "digest" else column
        for column in e.c
        if column.name != "salt"
    )
    return [*columns, *changes, gone.label("erased")]


class ErasedMessages:
    """Finds messages of which no content is left: later changes of them are erased too."""

    def __init__(self, dialect: Dialect) -> None:
        m, named = messages.c, dialect.among(messages.c.message_id, "ids")
        self._named = sa.select(m.conversation_id, m.message_id, has_content(messages).label("shown")).where(
            *dialect.of_conversations(messages), named
        )

    async def changed_by(self, connection: AsyncConnection, rows: Sequence[sa.Row[Any]]) -> frozenset[int]:
        """Return the indices of those of some events, of one partition, which change such a message."""
        named = {index: (row.conversation_id, decode(row.data).get("message_id")) for index, row in enumerate(rows)}
        erased, shown = set[tuple[str, Any]](), set[tuple[str, Any]]()
        for part in in_batches({message_id for _, message_id in named.values()}):
            names = sorted({name for name, message_id in named.values() if message_id in part})
            key = {"partitions": [rows[0].partition], "conversations": names, "ids": part}
            for row in await connection.execute(self._named, key):
                (shown if row.shown else erased).add((row.conversation_id, row.message_id))
        return frozenset(index for index, message in named.items() if message in erased - shown)


def shown_digest(e: Any) -> sa.ColumnElement[Any]:
    """Return the digest of an event; NULL where the content was erased."""
    return sa.case((e.c.salt.is_not(None), e.c.digest))


def _covering(kinds: tuple[Any, ...], table: Any, pick: Any) -> sa.ColumnElement[Any]:
    t = tasks.alias()
    within = (sa.or_(*(t.c.kind == kind for kind in kinds)), t.c.after < table.c.version, t.c.upto >= table.c.version)
    covering = sa.select(pick(t.c.version)).where(same_conversation(t, table), *within)
    version: sa.ColumnElement[Any] = covering.correlate(table).scalar_subquery()
    return version
