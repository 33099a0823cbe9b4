"""Read from a range of the log which messages an index has to hold, and with which text."""

# Each message is read as it is now, not as its event says, so a range can be read again, or late, with the same result.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.schema import conversations, events, messages
from letopis.store.model.codec import decode
from letopis.store.model.event_types import (
    ConversationDeleted,
    ConversationRewound,
    MessageAppended,
    MessageEdited,
    MessageRedacted,
    read,
)
from letopis.store.model.events import Upcasters
from letopis.store.model.large_content import without_references
from letopis.store.model.parts import content_text
from letopis.store.read.task_marks import MAX_ROWS_PER_TRANSACTION, is_shown
from letopis.store.search.index import Document

_CHANGE_TYPES: Final = (MessageEdited.type, MessageRedacted.type)
_CONTENT_TYPES: Final = (MessageAppended.type, *_CHANGE_TYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRange:
    """What a range of one log partition means for an index."""

    last: int  # position of its last event; where it began if there was none
    events: int  # how many it has
    documents: tuple[Document, ...]  # messages to index, as they are now
    gone: Mapping[str, frozenset[int] | None]  # versions to remove, by conversation; None is the whole conversation
    long: Mapping[str, int] = field(default_factory=dict)  # last versions of what is too long for a transaction


class _Statements:
    def __init__(self, dialect: Dialect) -> None:
        names = ("position", "conversation_id", "version", "type", "schema_version", "occurred_at")
        columns = [events.c[name] for name in names]

        def of_some(table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
            names = dialect.among(table.c.conversation_id, "conversations")
            return table.c.partition == sa.bindparam("partition"), names

        self.events = (
            sa.select(*columns, sa.case((events.c.type.in_(_CONTENT_TYPES), events.c.data)).label("data"))
            .where(
                events.c.partition == sa.bindparam("partition"),
                events.c.position > sa.bindparam("after"),
                events.c.position <= sa.bindparam("upto"),
            )
            .order_by(events.c.position)
            .limit(sa.bindparam("limit"))
        )
        self.at = sa.select(*columns, events.c.data).where(*of_some(events), dialect.among(events.c.version, "keys"))
        gone = sa.not_(is_shown(messages))
        kept = [messages.c[name] for name in ("conversation_id", "version", "message_id", "content_version")]
        state = sa.select(*kept, gone.label("gone")).where(*of_some(messages))
        self.appended = state.where(dialect.among(messages.c.version, "keys"))
        self.named = state.where(dialect.among(messages.c.message_id, "keys"))
        self.left = state.where(dialect.among(messages.c.left_at, "keys"))
        self.owners = sa.select(conversations.c.conversation_id, conversations.c.owner_id, conversations.c.state).where(
            *of_some(conversations)
        )


class LogRanges:
    """Reads ranges of the log over connections that it is given."""

    # Each statement looks up keys of one table: PostgreSQL plans a join of them badly on tables that have grown since
    # its statistics were made.
    def __init__(self, dialect: Dialect, upcasters: Upcasters) -> None:
        self._upcasters = upcasters
        self._statements = dialect.shared(_Statements)
        # What a rewind removes from the path beyond that, the steps of its task remove from the index too.
        self._left = self._statements.left.limit(MAX_ROWS_PER_TRANSACTION)

    async def read(self, connection: AsyncConnection, *, partition: int, after: int, upto: int, limit: int) -> LogRange:
        """Return what the next events of a partition mean: after a position, up to another, at most ``limit``."""
        bounds = {"partition": partition, "after": after, "upto": upto, "limit": limit}
        rows: Sequence[Any] = (await connection.execute(self._statements.events, bounds)).all()
        if not rows:
            return LogRange(last=after, events=0, documents=(), gone={})
        lookup = _Lookup(connection, partition)
        appended = {(row.conversation_id, row.version) for row in rows if row.type == MessageAppended.type}
        named = {
            (row.conversation_id, message_id)
            for row in rows
            if row.type in _CHANGE_TYPES and isinstance(message_id := _data(row.data).get("message_id"), str)
        }
        rewinds = {(row.conversation_id, row.version) for row in rows if row.type == ConversationRewound.type}
        states = {
            key: row
            for row in await lookup.rows(self._statements.appended, appended)
            if (key := (row.conversation_id, row.version)) in appended
        }
        for row in await lookup.rows(self._statements.named, named):
            if (row.conversation_id, row.message_id) in named:
                states[row.conversation_id, row.version] = row
        gone: dict[str, set[int] | None] = {
            row.conversation_id: None for row in rows if row.type == ConversationDeleted.type
        }
        for row in await lookup.rows(self._left, rewinds):
            # It may have left the path by another rewind: it is gone all the same.
            _add(gone, row.conversation_id, row.version)
        owner_rows = await lookup.rows(self._statements.owners, ((name, None) for name, _ in states))
        owners = {row.conversation_id: row.owner_id for row in owner_rows if row.state != "deleted"}
        present = {}
        for key, row in states.items():
            if row.gone or row.conversation_id not in owners:
                _add(gone, *key)
            else:
                present[key] = row
        events_at = {(row.conversation_id, row.version): row for row in rows}
        missing = {
            (name, version)
            for (name, first), row in present.items()
            for version in (first, row.content_version)
            if (name, version) not in events_at
        }
        events_at.update(
            {(row.conversation_id, row.version): row for row in await lookup.rows(self._statements.at, missing)}
        )
        documents = (
            Document(
                partition=partition,
                conversation_id=name,
                version=version,
                content_version=row.content_version,
                position=events_at[name, version].position,
                occurred_at=events_at[name, version].occurred_at,
                owner_id=owners[name],
                text=self._text(events_at[name, row.content_version]),
            )
            for (name, version), row in present.items()
            if (some := gone.get(name, set())) is not None and version not in some
        )
        return LogRange(
            last=rows[-1].position,
            events=len(rows),
            documents=tuple(documents),
            gone={name: None if some is None else frozenset(some) for name, some in gone.items()},
            long={
                row.conversation_id: row.version
                for row in rows
                if row.type == ConversationDeleted.type and row.version > MAX_ROWS_PER_TRANSACTION
            },
        )

    def _text(self, row: Any) -> str:
        body = read(row.type, *self._upcasters.upcast(row.type, row.schema_version, _data(row.data)))
        match body:
            case MessageAppended():
                return without_references(body.message.text)
            case MessageEdited():
                return without_references(content_text(body.content))
            case _:
                return ""  # written by a newer release, which indexes it


class _Lookup:
    """Looks up rows of one partition by conversation and a key in it."""

    def __init__(self, connection: AsyncConnection, partition: int) -> None:
        self._connection = connection
        self._partition = partition

    async def rows(self, statement: sa.Executable, wanted: Iterable[tuple[str, Any]]) -> list[Any]:
        """Return the rows of the pairs, and possibly of other pairs of the same conversations and keys."""
        collected = list[Any]()
        for part in in_batches(sorted(set(wanted), key=lambda pair: pair[0])):
            names, keys = dict.fromkeys(name for name, _ in part), dict.fromkeys(key for _, key in part)
            values = {"partition": self._partition, "conversations": list(names), "keys": list(keys)}
            collected.extend(await self._connection.execute(statement, values))
        return collected


def _data(text: str) -> Mapping[str, Any]:
    try:
        return decode(text)
    except ValueError:
        return {}  # damaged: reading the message raises


def _add(gone: dict[str, set[int] | None], name: str, version: int) -> None:
    some = gone.setdefault(name, set())
    if some is not None:
        some.add(version)
