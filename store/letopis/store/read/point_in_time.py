"""Read a conversation and its own messages as they were after one of its events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, in_batches, pages
from letopis.store.database.row_mapping import appended_event, fork_of, recorded_event
from letopis.store.database.schema import conversations, events, messages, of_conversation
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.event_types import (
    Body,
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationTrimmed,
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
)
from letopis.store.model.events import RecordedEvent, Upcasters, from_microseconds, to_microseconds
from letopis.store.model.identifiers import ForkPoint
from letopis.store.read.paging import AsOf, Window, WindowShape, page_of
from letopis.store.read.reader import Reader
from letopis.store.read.statements import messages_select
from letopis.store.read.task_marks import event_columns, is_on_path, left_at
from letopis.store.rules.fold import Fold
from letopis.store.rules.preconditions import SUPERSEDED_KEY
from letopis.store.rules.redaction import ARRIVED_ERASED_KEY
from letopis.store.rules.reducer import STATE_FIELDS, ConversationState, MessageSink, reduce_event
from letopis.store.rules.sight import Sight, without_words

MAX_EVENTS_PER_PAGE: Final = 1_000
"""Events that are held in memory at a time."""
_REACTION_TYPES: Final = (ReactionAdded.type, ReactionRemoved.type)
_CHANGE_TYPES: Final = (
    MessageEdited.type,
    MessageSent.type,
    MessageFailed.type,
    MessageRedacted.type,
    *_REACTION_TYPES,
)
_START_TYPES: Final = (ConversationStarted.type,)
_INHERITANCE_TYPES: Final = (
    ConversationStarted.type,
    ConversationRewound.type,
    ConversationTrimmed.type,
    ConversationDeleted.type,
)


@dataclass(slots=True, kw_only=True)
class ForkState(MessageSink):
    """The state of a conversation while its events are applied, with what it inherits, but without its messages."""

    is_own: Callable[[str, int], bool]  # of a message id and a version: was it appended here before it?
    state: ConversationState[datetime] = field(
        default_factory=lambda: ConversationState(created_at=from_microseconds(0), updated_at=from_microseconds(0))
    )

    def apply(self, event: RecordedEvent, body: Body) -> None:
        late = SUPERSEDED_KEY in event.metadata or self.state.state == "deleted"
        reduce_event(
            self.state,
            body,
            self,
            version=event.version or 0,
            occurred_at=event.occurred_at,
            superseded=late,
            arrived_erased=ARRIVED_ERASED_KEY in event.metadata,
        )

    def rewind_to(self, message_id: str, count: int) -> int | None:
        return count if self.is_own(message_id, self.state.version) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationHead:
    """What reading the past of a conversation needs of its row."""

    version: int
    sight: Sight  # of those who read it as it stands
    fork: ForkPoint | None
    inherits: bool
    inherited_to: str | None


class PointInTimeReader:
    """Reads the past of conversations over connections that it is given."""

    # A message is read from its row if nothing of it has changed since; for the others alone, events are folded.
    def __init__(self, dialect: Dialect, *, reader: Reader, upcasters: Upcasters) -> None:
        self._reader = reader
        self._upcasters = upcasters
        self._statements = dialect.shared(_Statements)
        self._selects: dict[WindowShape, sa.Executable] = {}

    async def head(self, connection: AsyncConnection, conversation_id: str) -> ConversationHead | None:
        key = self._reader.key(conversation_id)
        row = (await connection.execute(self._statements.head, key)).first()
        if row is None:
            return None
        return ConversationHead(
            version=row.version,
            sight=Sight(conversation_id=conversation_id, reset_to=row.reset_to, trimmed=row.trimmed),
            fork=fork_of(row._mapping),
            inherits=bool(row.inherits),
            inherited_to=row.inherited_to,
        )

    async def version_at(self, connection: AsyncConnection, conversation_id: str, as_of: AsOf) -> int:
        """Return the version for ``as_of``; for a datetime, that of the last event that had occurred by it."""
        if not isinstance(as_of, datetime):
            return as_of
        key = {**self._reader.key(conversation_id), "moment": to_microseconds(as_of)}
        return (await connection.execute(self._statements.version_at, key)).scalar() or 0

    async def version_of(self, connection: AsyncConnection, fork: ForkPoint, head: ConversationHead) -> int | None:
        """Return the version up to which a fork reads; ``None`` where that event is not in this store."""
        if fork.version is not None and (fork.version <= head.version or fork.event_id is None):
            return fork.version
        key = {**self._reader.key(fork.conversation_id), "event": fork.event_id}
        version: int | None = (await connection.execute(self._statements.version, key)).scalar()
        return version

    async def fork_state(
        self, connection: AsyncConnection, conversation_id: str, version: int, head: ConversationHead
    ) -> ConversationState[datetime]:
        """Return the state as of a version; only that of its inheritance is valid."""
        types: tuple[str, ...] = _INHERITANCE_TYPES
        if head.fork is None:
            types = ()
        elif head.inherits and head.inherited_to is None and not head.sight.trimmed:
            types = _START_TYPES  # nothing has changed since
        applied = [
            (event, event.body(self._upcasters))
            async for event in self._events(connection, conversation_id, version, types)
        ]
        appended = await self._appended_at(
            connection,
            conversation_id,
            {body.to_message_id for _, body in applied if isinstance(body, ConversationRewound) and body.to_message_id},
        )
        running = ForkState(is_own=lambda message_id, before: appended.get(message_id, before) < before)
        for event, body in applied:
            running.apply(event, body)
        return running.state

    async def conversation(
        self, connection: AsyncConnection, conversation_id: str, version: int
    ) -> Conversation | None:
        """Return a conversation as of a version; ``None`` where it had not begun. Reads its events in pages."""
        now = await self._reader.conversation(connection, conversation_id)
        if now is None or version == 0:
            return None
        own: set[str] = set()
        running: ForkState | None = None
        sight = Sight.of(now)
        async for event in self._events(connection, conversation_id, version, None):
            event = sight.event(event)
            if running is None:
                state = ConversationState(created_at=event.occurred_at, updated_at=event.occurred_at)
                running = ForkState(is_own=lambda message_id, _: message_id in own, state=state)
            body = event.body(self._upcasters)
            running.apply(event, body)
            if isinstance(body, MessageAppended):
                own.add(body.message.id)
        if running is None:
            return None
        count = await connection.execute(
            self._statements.count, {**self._reader.key(conversation_id), "as_of": version}
        )
        values: dict[str, Any] = {name: getattr(running.state, name) for name in STATE_FIELDS}
        values["message_count"] = count.scalar_one()
        number = None if running.state.owner_id is None else now.number
        return sight.conversation(Conversation(conversation_id=conversation_id, number=number, **values))

    async def messages(
        self, connection: AsyncConnection, conversation_id: str, version: int, window: Window
    ) -> Page[RecordedMessage]:
        """Return the conversation's own messages of a window, in order, as of a version."""
        head = await self.head(connection, conversation_id)
        if head is None:
            return Page(())
        if window.every and await self._was_deleted(connection, conversation_id, version):
            return Page(())  # it shows nothing any more
        key = self._reader.key(conversation_id)
        if (select := self._selects.get(window.shape)) is None:
            select = self._selects[window.shape] = messages_select(window.shape, as_of=True)
        result = await connection.execute(select, {**key, **window.values, "as_of": version})
        rows = result.all()
        then = await self._messages_then(connection, conversation_id, version, rows, head)
        for row in rows:
            message = then[row.m_version]
            message.on_path = row.m_left_at is None or row.m_left_at > version
            message.superseded = row.m_left_at == row.m_version
        return page_of(then, window)

    async def find(
        self, connection: AsyncConnection, conversation_id: str, version: int, message_id: str, upto: int | None = None
    ) -> int | None:
        """Return the version of the newest message of an id that was on the path as of a version."""
        last = version if upto is None else min(version, upto)
        key = {**self._reader.key(conversation_id), "message": message_id, "as_of": version, "upto": last}
        newest: int | None = (await connection.execute(self._statements.find, key)).scalar()
        return newest

    async def _messages_then(
        self,
        connection: AsyncConnection,
        conversation_id: str,
        version: int,
        rows: Sequence[sa.Row[Any]],
        head: ConversationHead,
    ) -> dict[int, RecordedMessage]:
        """Return messages as of a version, by their own versions: from their rows, or folded if they changed since."""
        messages = {row.m_version: self._reader.message(row, conversation_id) for row in rows}
        changed = await self._changed(connection, conversation_id, version, rows, head)
        if not changed:
            return messages
        names = {row.m_message_id for row in rows if row.m_version in changed}
        later = {row.m_version for row in rows if (row.m_redacted_at or 0) > version}
        types = (*_CHANGE_TYPES, ConversationTrimmed.type) if head.sight.trimmed else _CHANGE_TYPES
        log = [appended_event(row._mapping, conversation_id) for row in rows if row.m_version in changed]
        first = min(changed)
        log += [
            event
            async for event in self._events(connection, conversation_id, version, types, after=first)
            if event.type == ConversationTrimmed.type
            or (event.data.get("message_id") in names and not _is_void_reaction(event, rows))
        ]
        folding = Fold(upcasters=self._upcasters)
        for event in sorted(log, key=lambda event: event.version or 0):
            folding.apply(event)
        for message in folding.result().messages:
            if message.version is not None:
                # A message that was reset since keeps its content where forks read it: they read it as it was.
                erased = messages[message.version].redacted and message.version not in later
                if erased and not message.redacted:  # by a reset before, which is not folded here
                    message = without_words(message)
                messages[message.version] = message
        return messages

    async def _changed(
        self,
        connection: AsyncConnection,
        conversation_id: str,
        version: int,
        rows: Sequence[sa.Row[Any]],
        head: ConversationHead,
    ) -> set[int]:
        """Return the versions of messages that may have changed since a version."""
        if not rows or head.version <= version:
            return set()
        everything = {row.m_version for row in rows}
        first = min(everything)
        # What erases removes reactions too. Otherwise those since are read, where that takes fewer events.
        if head.sight.reset_to or head.sight.trimmed or head.version - version > version - first:
            return everything
        since = {
            event.data.get("message_id")
            async for event in self._events(connection, conversation_id, head.version, _REACTION_TYPES, after=version)
        }
        return {
            row.m_version
            for row in rows
            if max(row.m_content_version, row.m_delivery_version or 0, row.m_redacted_at or 0) > version
            or row.m_message_id in since
        }

    async def _was_deleted(self, connection: AsyncConnection, conversation_id: str, version: int) -> bool:
        async for event in self._events(connection, conversation_id, version, (ConversationDeleted.type,)):
            if SUPERSEDED_KEY not in event.metadata:
                return True
        return False

    async def _appended_at(
        self, connection: AsyncConnection, conversation_id: str, message_ids: set[str]
    ) -> Mapping[str, int]:
        """Return the version at which each message was first appended here; others are left out."""
        versions: dict[str, int] = {}
        for part in in_batches(sorted(message_ids)):
            rows = await connection.execute(
                self._statements.appended, {**self._reader.key(conversation_id), "ids": part}
            )
            for row in rows:
                versions[row.message_id] = min(row.version, versions.get(row.message_id, row.version))
        return versions

    async def _events(
        self,
        connection: AsyncConnection,
        conversation_id: str,
        upto: int,
        types: Sequence[str] | None,
        *,
        after: int = 0,
    ) -> AsyncIterator[RecordedEvent]:
        """Yield the events between two versions in order."""
        if types is not None and not types:
            return
        statement = self._statements.all_events if types is None else self._statements.events
        key = {**self._reader.key(conversation_id), "upto": upto}
        if types is not None:
            key["types"] = list(types)
        async for rows in pages(connection, statement, key, size=MAX_EVENTS_PER_PAGE, after=after):
            for row in rows:
                yield recorded_event(row._mapping, forked=True)


def _is_void_reaction(event: RecordedEvent, rows: Sequence[sa.Row[Any]]) -> bool:
    """Return True if an event is a reaction to an erased message off the path, which a partial fold cannot tell."""
    return event.type == ReactionAdded.type and any(
        row.m_message_id == event.data.get("message_id")
        and row.m_left_at is not None
        and row.m_redacted_at is not None
        and max(row.m_left_at, row.m_redacted_at) < (event.version or 0)
        for row in rows
    )


class _Statements:
    """The selects of the past, built and compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        of_events, of_messages = of_conversation(events), of_conversation(messages)
        on_path = (
            messages.c.version <= sa.bindparam("as_of"),
            sa.or_(is_on_path(messages), left_at(messages) > sa.bindparam("as_of")),
        )
        forked = ("forked_from_id", "forked_from_version", "forked_from_event", "inherits", "inherited_to")
        self.head = sa.select(*(conversations.c[name] for name in ("version", "reset_to", "trimmed", *forked))).where(
            *of_conversation(conversations)
        )
        self.version_at = (
            sa.select(events.c.version)
            .where(*of_events, events.c.occurred_at <= sa.bindparam("moment"))
            .order_by(events.c.version.desc())
            .limit(1)
        )
        self.version = sa.select(events.c.version).where(*of_events, events.c.event_id == sa.bindparam("event"))
        self.all_events = (
            sa.select(*event_columns(events))
            .where(*of_events, events.c.version > sa.bindparam("after"), events.c.version <= sa.bindparam("upto"))
            .order_by(events.c.version)
            .limit(MAX_EVENTS_PER_PAGE)
        )
        self.events = self.all_events.where(dialect.among(events.c.type, "types"))
        self.appended = sa.select(messages.c.message_id, messages.c.version).where(
            *of_messages, dialect.among(messages.c.message_id, "ids")
        )
        self.count = sa.select(sa.func.count()).select_from(messages).where(*of_messages, *on_path)
        self.find = sa.select(sa.func.max(messages.c.version)).where(
            *of_messages,
            *on_path,
            messages.c.message_id == sa.bindparam("message"),
            messages.c.version <= sa.bindparam("upto"),
        )
