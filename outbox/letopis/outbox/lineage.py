"""Lineage: what a fork reads of its ancestors, from the history store or, where that has not got so far, the outbox."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import sqlalchemy as sa

from letopis.outbox.file import OutboxFile
from letopis.outbox.reach import Reach
from letopis.store.asking import Window
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.fold import redacted
from letopis.store.lineage import DEPTH_MAX, Ancestor, Level
from letopis.store.vocabulary import ForkPoint, MessageRedacted

_SEQUENCE: Final = "SELECT sequence FROM letopis_outbox_events WHERE event_id = ? AND conversation_id = ?"
_REDACTED: Final = (
    "SELECT json_extract(e.data, '$.message_id') FROM letopis_outbox_lanes AS l"
    " JOIN letopis_outbox_events AS e ON e.conversation_id = l.conversation_id AND e.sequence > l.delivered"
    " WHERE l.conversation_id = ? AND e.type = ? AND json_valid(e.data)"
)
_GONE: Final = "SELECT 1 FROM letopis_outbox_lanes WHERE conversation_id = ? AND deleted > 0"
_AT_ONCE: Final = 500
"""Messages of a page in which a message is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What was read of a conversation itself.

    :ivar conversation: as it stands at the same moment; ``None`` where it inherits nothing, or that was not asked.
    :ivar place: of the message that was looked for; ``None`` where it is not on the page.
    """

    page: Page[RecordedMessage]
    conversation: Conversation | None = None
    place: int | None = None


class ReadOwn(Protocol):
    """Reads messages that were said in a conversation itself, the store's with what the file holds beyond it."""

    async def __call__(
        self,
        conversation_id: str,
        window: Window,
        *,
        upto: int | None = None,
        find: str | None = None,
        inherits: bool = False,
    ) -> Own: ...


class Ancestry:
    """Finds the ancestors of a fork, each where its fork point is.

    :param file: ``False`` to take those alone whose fork point is in the history store.
    """

    def __init__(self, reach: Reach, outbox: OutboxFile, own: ReadOwn, *, file: bool = True) -> None:
        self._reach = reach
        self._outbox = outbox
        self._own = own
        self._file = file

    async def levels(self, fork: ForkPoint | None, *, known: Collection[str] = ()) -> tuple[list[Level], bool]:
        """Return what is read through a fork, the nearest first, and whether that is all of it.

        :raises Arrived: an event that was pending is in the history store by now.
        """
        levels: list[Level] = []
        seen = set(known)
        while fork is not None and len(seen) <= DEPTH_MAX and fork.conversation_id not in seen:
            found = await self._stored(fork, seen)
            if found:
                seen.update(one.conversation_id for one in found)
                levels += [_Stored(self._reach, self._outbox, one) for one in found]
                fork = found[-1].fork
            elif (level := await self._pending(fork)) is not None:
                seen.add(fork.conversation_id)
                levels.append(level)
                fork = level.fork
            else:
                break
        return levels, fork is None

    async def of(self, point: ForkPoint) -> Ancestor | int | None:
        """Return a conversation as of an event: the ancestor, or the sequence where the event is in the file alone.

        ``None`` where the event is nowhere.
        """
        found = await self._stored(point, ())
        return found[0] if found else await self._sequence(point)

    async def _stored(self, fork: ForkPoint, known: Collection[str]) -> list[Ancestor] | None:
        return await self._reach.read(
            lambda store: store.read_past(
                lambda lineage, connection: lineage.ancestors(connection, fork, known=known),
            )
        )

    async def _pending(self, fork: ForkPoint) -> _Pending | None:
        if (sequence := await self._sequence(fork)) is None:
            return None
        own = await self._own(fork.conversation_id, Window(last=1), upto=sequence, inherits=True)
        held = own.conversation
        return _Pending(
            outbox=self._outbox,
            own=self._own,
            conversation_id=fork.conversation_id,
            sequence=sequence,
            fork=held.forked_from if held is not None and held.inherits else None,
            inherited_to=None if held is None else held.inherited_to,
        )

    async def _sequence(self, point: ForkPoint) -> int | None:
        if not self._file or point.event_id is None:
            return None
        values = (point.event_id.bytes, point.conversation_id)
        return await self._outbox.read(lambda connection: _one(connection, _SEQUENCE, values))


async def is_gone(outbox: OutboxFile, conversation_id: str) -> bool:
    """Whether a conversation was deleted here, whether or not the history store knows that yet."""
    return await outbox.read(lambda connection: _one(connection, _GONE, (conversation_id,))) is not None


@dataclass(frozen=True, slots=True)
class _Stored:
    """An ancestor whose fork point is in the history store."""

    reach: Reach
    outbox: OutboxFile
    ancestor: Ancestor

    @property
    def inherited_to(self) -> str | None:
        return self.ancestor.inherited_to

    async def page(self, window: Window) -> Page[RecordedMessage]:
        name, version = self.ancestor.conversation_id, self.ancestor.version
        # First: a redaction that is delivered in between shows in what is read.
        taken = await _taken_away(self.outbox, name)
        page = await self.reach.read(
            lambda store: store.read_past(
                lambda lineage, connection: lineage.past.messages(connection, name, version, window)
            )
        )
        return Page((), complete=False) if page is None else _without(page, taken)

    async def find(self, message_id: str, upto: int | None) -> int | None:
        name, version = self.ancestor.conversation_id, self.ancestor.version
        return await self.reach.read(
            lambda store: store.read_past(
                lambda lineage, connection: lineage.past.find(connection, name, version, message_id, upto)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """An ancestor whose fork point is in the outbox file, as far as is known here."""

    outbox: OutboxFile
    own: ReadOwn
    conversation_id: str
    sequence: int
    fork: ForkPoint | None
    inherited_to: str | None

    async def page(self, window: Window) -> Page[RecordedMessage]:
        taken = await _taken_away(self.outbox, self.conversation_id)
        own = await self.own(self.conversation_id, window, upto=self.sequence)
        return _without(replace(own.page, seen=None), taken)

    async def find(self, message_id: str, upto: int | None) -> int | None:
        window = Window(last=_AT_ONCE, before=None if upto is None else upto + 1)
        while True:
            own = await self.own(self.conversation_id, window, upto=self.sequence, find=message_id)
            if own.place is not None or own.page.next is None:
                return own.place
            window = replace(window, before=int(own.page.next))


async def _taken_away(outbox: OutboxFile, conversation_id: str) -> frozenset[str]:
    """Return the messages that are redacted here, and not in the history store yet."""
    return await outbox.read(
        lambda connection: frozenset(
            row[0] for row in _all(connection, _REDACTED, (conversation_id, MessageRedacted.type))
        )
    )


def _without(page: Page[RecordedMessage], message_ids: Collection[str]) -> Page[RecordedMessage]:
    if not message_ids:
        return page
    return replace(page, items=tuple(redacted(one) if one.id in message_ids else one for one in page))


def _one(connection: sa.Connection, statement: str, values: tuple[Any, ...]) -> int | None:
    rows = _all(connection, statement, values)
    return rows[0][0] if rows else None


def _all(connection: sa.Connection, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    cursor = connection.connection.cursor()
    try:
        return list(cursor.execute(statement, values).fetchall())
    finally:
        cursor.close()
