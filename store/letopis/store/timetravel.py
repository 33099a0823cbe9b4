"""Time travel: a conversation and its own messages as they were after one of its events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.asking import Shape, Window
from letopis.store.codec import INTEGER_MAX
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.dialects import Dialect, lookups
from letopis.store.errors import InvalidInput
from letopis.store.events import RecordedEvent, from_microseconds, to_microseconds
from letopis.store.fold import SUPERSEDED, Fold, Tally, redacted
from letopis.store.reads import Reader
from letopis.store.recorded import appended_event, recorded_event
from letopis.store.rows import fork_of
from letopis.store.schema import conversations, events, messages
from letopis.store.selects import messages_select
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import (
    Body,
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ForkPoint,
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
)

AsOf = int | datetime
"""A version, or a moment."""

_PAGE: Final = 1_000
"""Events that are held in memory at a time."""
_REACTING: Final = (ReactionAdded.type, ReactionRemoved.type)
_CHANGING: Final = (MessageEdited.type, MessageSent.type, MessageFailed.type, MessageRedacted.type, *_REACTING)
_STARTING: Final = (ConversationStarted.type,)
_INHERITING: Final = (ConversationStarted.type, ConversationRewound.type, ConversationDeleted.type)


def check_as_of(value: object) -> AsOf:
    """Return ``value`` if it names a moment of a conversation.

    :raises InvalidInput: no whole number from 0, and no aware datetime.
    """
    if isinstance(value, datetime):
        try:
            to_microseconds(value)
        except InvalidInput as error:
            raise InvalidInput("as_of", error.reason) from error
        return value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INTEGER_MAX:
        raise InvalidInput("as_of", "must be a version, which is a whole number from 0, or an aware datetime")
    return value


def bare(message: RecordedMessage) -> RecordedMessage:
    """Return a message of a conversation that was deleted since: nobody reads there what it said any more."""
    return replace(redacted(message), reactions=())


def bare_conversation(conversation: Conversation) -> Conversation:
    """Return a conversation that was deleted since, as it was, without what a person wrote."""
    return replace(conversation, title=None, metadata={})


@dataclass(slots=True, kw_only=True)
class Heritage:
    """A conversation while its events are taken in, as far as no single message matters; by the rules of ``fold``.

    :ivar own: whether a message was said in the conversation itself before a version.
    """

    own: Callable[[str, int], bool]
    tally: Tally[datetime] = field(
        default_factory=lambda: Tally(created_at=from_microseconds(0), updated_at=from_microseconds(0))
    )

    def take(self, event: RecordedEvent, body: Body) -> None:
        """Take in the next event of the log."""
        tally, version = self.tally, event.version or 0
        superseded = SUPERSEDED in event.metadata or tally.state == "deleted"
        tally.take(body, version=version, occurred_at=event.occurred_at, superseded=superseded)
        if superseded or not isinstance(body, ConversationRewound):
            return
        if body.to_message_id is None:
            tally.inherits = False
        elif tally.inherits and not self.own(body.to_message_id, version):
            tally.inherited_to = body.to_message_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a conversation's row says now, as far as its past hangs on it."""

    version: int
    deleted: bool
    fork: ForkPoint | None
    inherits: bool
    inherited_to: str | None


class Past:
    """Reads the past of conversations over connections that it is given; its statements are made once.

    What a message was at a version is read from its row where nothing of it has changed since; of the rest, and of no
    more, the events up to that version are folded.
    """

    def __init__(self, dialect: Dialect, *, reader: Reader, upcasters: Upcasters) -> None:
        self._reader = reader
        self._upcasters = upcasters
        self._statements = _Statements(dialect)
        self._selects: dict[Shape, sa.Executable] = {}

    async def standing(self, connection: AsyncConnection, conversation_id: str) -> Standing | None:
        """Return what a conversation's row says; ``None`` where there is none."""
        key = self._reader.key(conversation_id)
        row = (await connection.execute(self._statements.standing, key)).first()
        if row is None:
            return None
        return Standing(
            version=row.version,
            deleted=row.state == "deleted",
            fork=fork_of(row._mapping),
            inherits=bool(row.inherits),
            inherited_to=row.inherited_to,
        )

    async def version_at(self, connection: AsyncConnection, conversation_id: str, as_of: AsOf) -> int:
        """Return the version that is meant; of a moment that of the last event, in order, that had happened by then."""
        if not isinstance(as_of, datetime):
            return as_of
        key = {**self._reader.key(conversation_id), "moment": to_microseconds(as_of)}
        return (await connection.execute(self._statements.happened, key)).scalar() or 0

    async def version_of(self, connection: AsyncConnection, fork: ForkPoint, standing: Standing) -> int | None:
        """Return the version that a fork reads up to; ``None`` where that event is not here."""
        if fork.version is not None and (fork.version <= standing.version or fork.event_id is None):
            return fork.version
        key = {**self._reader.key(fork.conversation_id), "event": fork.event_id}
        found: int | None = (await connection.execute(self._statements.version, key)).scalar()
        return found

    async def heritage(
        self, connection: AsyncConnection, conversation_id: str, version: int, standing: Standing
    ) -> Tally[datetime]:
        """Return a conversation as of a version, of which only the fork and what it inherits is to be believed."""
        types: tuple[str, ...] = _INHERITING
        if standing.fork is None:
            types = ()
        elif standing.inherits and standing.inherited_to is None:
            types = _STARTING  # nothing has changed since
        taken = [
            (event, event.body(self._upcasters))
            async for event in self._events(connection, conversation_id, version, types)
        ]
        said = await self._said(
            connection,
            conversation_id,
            {body.to_message_id for _, body in taken if isinstance(body, ConversationRewound) and body.to_message_id},
        )
        running = Heritage(own=lambda message_id, before: said.get(message_id, before) < before)
        for event, body in taken:
            running.take(event, body)
        return running.tally

    async def conversation(
        self, connection: AsyncConnection, conversation_id: str, version: int
    ) -> Conversation | None:
        """Return a conversation as of a version; ``None`` where it had not begun. Reads its events in pages."""
        now = await self._reader.conversation(connection, conversation_id)
        if now is None or version == 0:
            return None
        said: set[str] = set()
        running: Heritage | None = None
        async for event in self._events(connection, conversation_id, version, None):
            if running is None:
                tally = Tally(created_at=event.occurred_at, updated_at=event.occurred_at)
                running = Heritage(own=lambda message_id, _: message_id in said, tally=tally)
            body = event.body(self._upcasters)
            running.take(event, body)
            if isinstance(body, MessageAppended):
                said.add(body.message.id)
        if running is None:
            return None
        count = await connection.execute(
            self._statements.count, {**self._reader.key(conversation_id), "as_of": version}
        )
        tally = running.tally
        found = Conversation(
            conversation_id=conversation_id,
            owner_id=tally.owner_id,
            number=None if tally.owner_id is None else now.number,
            title=tally.title,
            state=tally.state,
            version=tally.version,
            message_count=count.scalar_one(),
            tokens=tally.tokens,
            metadata=tally.metadata,
            forked_from=tally.fork,
            inherits=tally.inherits,
            inherited_to=tally.inherited_to,
            created_at=tally.created_at,
            updated_at=tally.updated_at,
        )
        return bare_conversation(found) if now.state == "deleted" else found

    async def messages(
        self, connection: AsyncConnection, conversation_id: str, version: int, window: Window
    ) -> Page[RecordedMessage]:
        """Return the conversation's own messages of a window, in order, as of a version."""
        standing = await self.standing(connection, conversation_id)
        if standing is None:
            return Page(())
        if window.every and standing.deleted and await self._was_deleted(connection, conversation_id, version):
            return Page(())  # then nothing of it is shown any more
        key = self._reader.key(conversation_id)
        if (select := self._selects.get(window.shape)) is None:
            select = self._selects[window.shape] = messages_select(window.shape, as_of=True)
        found = await connection.execute(select, {**key, **window.values, "as_of": version})
        rows = sorted(found.all(), key=lambda row: row.m_version, reverse=window.last is not None)
        more = window.limit is not None and len(rows) > window.limit
        if more:
            rows = rows[: window.limit]
        place = str(rows[-1].m_version) if more and rows else None
        if window.last is not None:
            rows.reverse()
        then = await self._then(connection, conversation_id, version, rows, standing)
        return Page(
            tuple(
                replace(
                    then[row.m_version],
                    on_path=row.m_left_at is None or row.m_left_at > version,
                    superseded=row.m_left_at == row.m_version,
                )
                for row in rows
            ),
            next=place,
        )

    async def find(
        self, connection: AsyncConnection, conversation_id: str, version: int, message_id: str, upto: int | None = None
    ) -> int | None:
        """Return the version of the newest message of an id that was on the path as of a version."""
        last = version if upto is None else min(version, upto)
        key = {**self._reader.key(conversation_id), "message": message_id, "as_of": version, "upto": last}
        found: int | None = (await connection.execute(self._statements.find, key)).scalar()
        return found

    async def _then(
        self,
        connection: AsyncConnection,
        conversation_id: str,
        version: int,
        rows: Sequence[sa.Row[Any]],
        standing: Standing,
    ) -> dict[int, RecordedMessage]:
        """Return messages as of a version, by their own: as their rows say, but for those that have changed since."""
        found = {row.m_version: self._reader.message(row, conversation_id) for row in rows}
        changed = await self._changed(connection, conversation_id, version, rows, standing)
        if not changed:
            return found
        names = {row.m_message_id for row in rows if row.m_version in changed}
        log = [appended_event(row._mapping, conversation_id) for row in rows if row.m_version in changed]
        first = min(changed)
        log += [
            event
            async for event in self._events(connection, conversation_id, version, _CHANGING, after=first)
            if event.data.get("message_id") in names
        ]
        folding = Fold(upcasters=self._upcasters)
        for event in sorted(log, key=lambda event: event.version or 0):
            folding.apply(event)
        for message in folding.result().messages:
            if message.version is not None:
                found[message.version] = replace(message, redacted=message.redacted or found[message.version].redacted)
        return found

    async def _changed(
        self,
        connection: AsyncConnection,
        conversation_id: str,
        version: int,
        rows: Sequence[sa.Row[Any]],
        standing: Standing,
    ) -> set[int]:
        """Return which messages may have been something else at a version than they are now."""
        if not rows or standing.version <= version:
            return set()
        everything = {row.m_version for row in rows}
        first = min(everything)
        # A deletion takes all reactions back. Else what was said since is looked through where that is less.
        if standing.deleted or standing.version - version > version - first:
            return everything
        since = {
            event.data.get("message_id")
            async for event in self._events(connection, conversation_id, standing.version, _REACTING, after=version)
        }
        return {
            row.m_version
            for row in rows
            if row.m_content_version > version or (row.m_delivery_version or 0) > version or row.m_message_id in since
        }

    async def _was_deleted(self, connection: AsyncConnection, conversation_id: str, version: int) -> bool:
        tally = Heritage(own=lambda *_: True)
        async for event in self._events(connection, conversation_id, version, (ConversationDeleted.type,)):
            tally.take(event, event.body(self._upcasters))
        return tally.tally.state == "deleted"

    async def _said(
        self, connection: AsyncConnection, conversation_id: str, message_ids: set[str]
    ) -> Mapping[str, int]:
        """Return the version at which each message was first said here; those that were not are left out."""
        said: dict[str, int] = {}
        for part in lookups(sorted(message_ids)):
            rows = await connection.execute(self._statements.said, {**self._reader.key(conversation_id), "ids": part})
            for row in rows:
                said[row.message_id] = min(row.version, said.get(row.message_id, row.version))
        return said

    async def _events(
        self,
        connection: AsyncConnection,
        conversation_id: str,
        upto: int,
        types: Sequence[str] | None,
        *,
        after: int = 0,
    ) -> AsyncIterator[RecordedEvent]:
        """Yield the events of some types, of all with ``None``, between two versions, in order."""
        if types is not None and not types:
            return
        statement = self._statements.all_events if types is None else self._statements.events
        key = {**self._reader.key(conversation_id), "upto": upto}
        if types is not None:
            key["types"] = list(types)
        while True:
            rows = (await connection.execute(statement, {**key, "after": after})).all()
            for row in rows:
                yield recorded_event(row)
            if len(rows) < _PAGE:
                return
            after = rows[-1].version


class _Statements:
    """The selects of the past, compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        of_events = (
            events.c.partition == sa.bindparam("partition"),
            events.c.conversation_id == sa.bindparam("conversation"),
        )
        of_messages = (
            messages.c.partition == sa.bindparam("partition"),
            messages.c.conversation_id == sa.bindparam("conversation"),
        )
        on_path = (
            messages.c.version <= sa.bindparam("as_of"),
            sa.or_(messages.c.left_at.is_(None), messages.c.left_at > sa.bindparam("as_of")),
        )
        self.standing = sa.select(
            conversations.c.version,
            conversations.c.state,
            conversations.c.forked_from_id,
            conversations.c.forked_from_version,
            conversations.c.forked_from_event,
            conversations.c.inherits,
            conversations.c.inherited_to,
        ).where(
            conversations.c.partition == sa.bindparam("partition"),
            conversations.c.conversation_id == sa.bindparam("conversation"),
        )
        self.happened = (
            sa.select(events.c.version)
            .where(*of_events, events.c.occurred_at <= sa.bindparam("moment"))
            .order_by(events.c.version.desc())
            .limit(1)
        )
        self.version = sa.select(events.c.version).where(*of_events, events.c.event_id == sa.bindparam("event"))
        self.all_events = (
            sa.select(events)
            .where(*of_events, events.c.version > sa.bindparam("after"), events.c.version <= sa.bindparam("upto"))
            .order_by(events.c.version)
            .limit(_PAGE)
        )
        self.events = self.all_events.where(dialect.among(events.c.type, "types"))
        self.said = sa.select(messages.c.message_id, messages.c.version).where(
            *of_messages, dialect.among(messages.c.message_id, "ids")
        )
        self.count = sa.select(sa.func.count()).select_from(messages).where(*of_messages, *on_path)
        self.find = sa.select(sa.func.max(messages.c.version)).where(
            *of_messages,
            *on_path,
            messages.c.message_id == sa.bindparam("message"),
            messages.c.version <= sa.bindparam("upto"),
        )
