"""Documents: what a stretch of the log means for an index: which messages are to be found, and by which text.

What is read is what became of each message that an event is about, not what the event says: so a stretch may be read
again, or late, and the outcome is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.codec import decode
from letopis.store.dialects import Dialect, lookups
from letopis.store.messages import content_text
from letopis.store.schema import conversations, events, messages
from letopis.store.search.index import Document
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import (
    ConversationDeleted,
    ConversationRewound,
    MessageAppended,
    MessageEdited,
    MessageRedacted,
    read,
)

_CHANGING: Final = (MessageEdited.type, MessageRedacted.type)
_SAYING: Final = (MessageAppended.type, *_CHANGING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What a stretch of one log partition comes to.

    :ivar last: the position of its last event; where it began if there was none.
    :ivar events: how many.
    :ivar documents: messages to be found, as they stand.
    :ivar gone: messages not to be found (any more), by conversation; ``None`` is all of it.
    """

    last: int
    events: int
    documents: tuple[Document, ...]
    gone: Mapping[str, frozenset[int] | None]


class Stretches:
    """Reads stretches of the log over connections that it is given; its statements are made once.

    Each is a lookup by the keys of one table: a join of them took PostgreSQL half a minute on tables that were filled
    since its statistics were made.
    """

    def __init__(self, dialect: Dialect, upcasters: Upcasters) -> None:
        self._upcasters = upcasters
        told = (
            events.c.position,
            events.c.conversation_id,
            events.c.version,
            events.c.type,
            events.c.schema_version,
            events.c.occurred_at,
        )
        self._events = (
            sa.select(*told, sa.case((events.c.type.in_(_SAYING), events.c.data)).label("data"))
            .where(
                events.c.partition == sa.bindparam("partition"),
                events.c.position > sa.bindparam("after"),
                events.c.position <= sa.bindparam("upto"),
            )
            .order_by(events.c.position)
            .limit(sa.bindparam("limit"))
        )
        self._at = sa.select(*told, events.c.data).where(
            events.c.partition == sa.bindparam("partition"),
            dialect.among(events.c.conversation_id, "conversations"),
            dialect.among(events.c.version, "keys"),
        )
        gone = sa.or_(messages.c.left_at.is_not(None), messages.c.redacted_at.is_not(None))
        state = sa.select(
            messages.c.conversation_id,
            messages.c.version,
            messages.c.message_id,
            messages.c.content_version,
            gone.label("gone"),
        ).where(
            messages.c.partition == sa.bindparam("partition"),
            dialect.among(messages.c.conversation_id, "conversations"),
        )
        self._appended = state.where(dialect.among(messages.c.version, "keys"))
        self._named = state.where(dialect.among(messages.c.message_id, "keys"))
        self._left = state.where(dialect.among(messages.c.left_at, "keys"))
        self._owners = sa.select(
            conversations.c.conversation_id, conversations.c.owner_id, conversations.c.state
        ).where(
            conversations.c.partition == sa.bindparam("partition"),
            dialect.among(conversations.c.conversation_id, "conversations"),
        )

    async def read(self, connection: AsyncConnection, *, partition: int, after: int, upto: int, limit: int) -> Stretch:
        """Return what the next events of a partition come to: after a position and up to another, at most ``limit``."""
        bounds = {"partition": partition, "after": after, "upto": upto, "limit": limit}
        rows: Sequence[Any] = (await connection.execute(self._events, bounds)).all()
        if not rows:
            return Stretch(last=after, events=0, documents=(), gone={})
        look = _Look(connection, partition)
        appended = {(row.conversation_id, row.version) for row in rows if row.type == MessageAppended.type}
        named = {
            (row.conversation_id, message_id)
            for row in rows
            if row.type in _CHANGING and isinstance(message_id := _data(row.data).get("message_id"), str)
        }
        rewinds = {(row.conversation_id, row.version) for row in rows if row.type == ConversationRewound.type}
        states = {
            key: row
            for row in await look.up(self._appended, appended)
            if (key := (row.conversation_id, row.version)) in appended
        }
        for row in await look.up(self._named, named):
            if (row.conversation_id, row.message_id) in named:
                states[row.conversation_id, row.version] = row
        gone: dict[str, set[int] | None] = {
            row.conversation_id: None for row in rows if row.type == ConversationDeleted.type
        }
        for row in await look.up(self._left, rewinds):
            # Others than these rewinds may have taken it off the path: it is gone all the same.
            _add(gone, row.conversation_id, row.version)
        found = await look.up(self._owners, ((name, None) for name, _ in states))
        owners = {row.conversation_id: row.owner_id for row in found if row.state != "deleted"}
        left = {}
        for key, row in states.items():
            if row.gone or row.conversation_id not in owners:
                _add(gone, *key)
            else:
                left[key] = row
        told = {(row.conversation_id, row.version): row for row in rows}
        missing = {
            (name, version)
            for (name, first), row in left.items()
            for version in (first, row.content_version)
            if (name, version) not in told
        }
        told.update({(row.conversation_id, row.version): row for row in await look.up(self._at, missing)})
        documents = (
            Document(
                partition=partition,
                conversation_id=name,
                version=version,
                content_version=row.content_version,
                position=told[name, version].position,
                occurred_at=told[name, version].occurred_at,
                owner_id=owners[name],
                text=self._text(told[name, row.content_version]),
            )
            for (name, version), row in left.items()
            if (some := gone.get(name, set())) is not None and version not in some
        )
        return Stretch(
            last=rows[-1].position,
            events=len(rows),
            documents=tuple(documents),
            gone={name: None if some is None else frozenset(some) for name, some in gone.items()},
        )

    def _text(self, row: Any) -> str:
        body = read(row.type, *self._upcasters.upcast(row.type, row.schema_version, _data(row.data)))
        match body:
            case MessageAppended():
                return body.message.text
            case MessageEdited():
                return content_text(body.content)
            case _:
                return ""  # of a newer release: it has its own words for it


class _Look:
    """Looks up rows of one partition by conversation and a key in it."""

    def __init__(self, connection: AsyncConnection, partition: int) -> None:
        self._connection = connection
        self._partition = partition

    async def up(self, statement: sa.Executable, wanted: Iterable[tuple[str, Any]]) -> list[Any]:
        """Return the rows of the pairs, and maybe some of other pairs of the same conversations and keys."""
        found = list[Any]()
        for part in lookups(sorted(set(wanted), key=lambda pair: pair[0])):
            rows = await self._connection.execute(
                statement,
                {
                    "partition": self._partition,
                    "conversations": list(dict.fromkeys(name for name, _ in part)),
                    "keys": list(dict.fromkeys(key for _, key in part)),
                },
            )
            found.extend(rows)
        return found


def _data(text: str) -> Mapping[str, Any]:
    try:
        return decode(text)
    except ValueError:
        return {}  # damaged: who reads the message is told


def _add(gone: dict[str, set[int] | None], name: str, version: int) -> None:
    some = gone.setdefault(name, set())
    if some is not None:
        some.add(version)
