"""Read conversations, messages and events by key, each page in as few round trips as possible."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.row_mapping import (
    MARKED,
    PLAIN_COLUMNS,
    appended_event,
    decode_object,
    is_plain,
    plain_messages,
    plain_row,
    recorded_conversation,
    recorded_event,
    unreadable_message,
)
from letopis.store.database.store_identity import LogState, check_counters
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.event_types import MessageAppended, MessageEdited, MessageFailed, MessageSent, read
from letopis.store.model.events import NO_UPCASTERS, RecordedEvent, Upcasters
from letopis.store.model.identifiers import check_identifier, partition_of
from letopis.store.model.records import is_record_lane, lane_partition
from letopis.store.read.paging import (
    DEFAULT_STATES,
    Window,
    bounded,
    check_count,
    check_place,
    check_states,
    conversations_cursor,
    page_of,
    read_conversations_cursor,
)
from letopis.store.read.records import RecordReader
from letopis.store.read.statements import ReadStatements, positions_from_rows
from letopis.store.read.task_marks import ErasedMessages
from letopis.store.rules.fold import PathPosition, recorded_message, redacted, replace_content, with_delivery
from letopis.store.rules.rows import reactions_from_text

MAX_REMEMBERED_CONVERSATIONS: Final = 10_000
"""Conversations remembered as forks, or as having messages that changed after they were appended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreView:
    """What the history store holds of a conversation at one moment, to merge pending events with."""

    conversation: Conversation | None  # None where there is none, or the view is ``plain``
    messages: tuple[RecordedMessage, ...]
    sequence: int  # the last of this outbox's lane that was applied; 0 for none
    version: int = 0  # 0 where there is no conversation
    next: str | None = None  # where the messages go on, as in a page
    places: Mapping[str, PathPosition] = field(default_factory=dict)  # by id, of the messages asked for that are there
    beyond: int | None = None  # messages on the path after the first bound that was asked for, unless that is 0
    plain: bool = False  # not read, but has messages on its path: neither deleted nor a fork

    @property
    def inherits(self) -> bool:
        """Whether the conversation is a fork that reads its parent."""
        return self.conversation is not None and self.conversation.inherits


EMPTY_VIEW: Final = StoreView(conversation=None, messages=(), sequence=0)
"""The view of a conversation that the history store does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewQuery:
    """What a view is to hold."""

    conversation_id: str
    origin_id: UUID  # the outbox whose lane is read
    window: Window | None = None  # of the conversation's own messages; None for none
    names: Collection[str] = ()  # ids of messages whose position on the path is read too
    # From the view, the versions after which and up to which messages are read.
    bound: Callable[[StoreView], tuple[int, int | None]] | None = None
    whole: bool = False  # the conversation itself is needed, so that a plain view does not answer

    @property
    def counted(self) -> bool:
        """Whether the positions must say how many messages are on the path, which the conversation counts."""
        return self.whole or self.window is None

    @property
    def bounded(self) -> bool:
        """Whether answering it takes more than one statement."""
        return self.bound is not None or bool(self.names)


class Reader:
    """Reads one history store over connections that it is given."""

    def __init__(self, dialect: Dialect, *, partitions: int, upcasters: Upcasters) -> None:
        self._partitions = partitions
        self._upcasters = upcasters
        self.records = RecordReader(dialect, self.lanes, partitions=partitions)
        self.reads_as_stored = upcasters is NO_UPCASTERS
        """Whether messages are returned as they were appended, with no upcaster in between."""
        self._statements = dialect.shared(ReadStatements)
        self._erased = dialect.shared(ErasedMessages)
        # Conversations with messages that changed after they were appended: the plain select would be in vain.
        self._changed: set[str] = set()
        self._known_forks: set[str] = set()

    async def conversation(self, connection: AsyncConnection, conversation_id: str) -> Conversation | None:
        key = self.key(conversation_id)
        row = (await connection.execute(self._statements.conversation, key)).first()
        return None if row is None else (await self._with_markers(connection, [row]))[0]

    async def conversations(
        self,
        connection: AsyncConnection,
        *,
        owner: str | None,
        after: str | None,
        limit: int,
        states: Collection[str] = DEFAULT_STATES,
        oldest_first: bool = False,
    ) -> Page[Conversation]:
        parameters: dict[str, Any] = {"limit": check_count(limit, "limit") + 1, "states": check_states(states)}
        if owner is not None:
            parameters["owner"] = check_identifier(owner, "owner")
        if after is not None:
            parameters["updated"], parameters["conversation"] = read_conversations_cursor(after)
        statement = self._statements.conversations(
            owned=owner is not None, going_on=after is not None, oldest_first=oldest_first
        )
        rows = (await connection.execute(statement, parameters)).all()
        items = tuple(await self._with_markers(connection, rows[:limit]))
        more = len(rows) > limit
        return Page(
            items,
            next=conversations_cursor(rows[limit - 1].updated_at, rows[limit - 1].conversation_id) if more else None,
        )

    async def owned(self, connection: AsyncConnection, owner: str, names: Collection[str]) -> dict[str, int]:
        """Return those of some conversations that belong to an owner, with the time of their last activity."""
        updated: dict[str, int] = {}
        for part in in_batches(names):
            partitions = sorted({partition_of(name, self._partitions) for name in part})
            values = {"partitions": partitions, "conversations": part, "owner": owner}
            updated |= {row[0]: row[1] for row in await connection.execute(self._statements.owned, values)}
        return updated

    async def messages(
        self, connection: AsyncConnection, conversation_id: str, window: Window
    ) -> Page[RecordedMessage]:
        """Return the messages of a window, in order."""
        messages, _ = await self._window(connection, conversation_id, window)
        return page_of(messages, window)

    async def view_in_one(self, connection: AsyncConnection, query: ViewQuery) -> StoreView | None:
        """Return what :meth:`view` does, in one statement; ``None`` where one statement cannot answer it."""
        conversation_id, window = query.conversation_id, query.window
        if window is None or conversation_id in self._known_forks:
            return None
        messages, head = await self._window(connection, conversation_id, window, origin_id=query.origin_id)
        if head is None:
            # Read after the messages: where there is no conversation now, there was none then.
            view = await self.head_view(connection, query)
            return EMPTY_VIEW if view.conversation is None else None
        if head.fork:
            _remember(self._known_forks, conversation_id)
            return None
        page = page_of(messages, window)
        place = {"sequence": head.delivered, "version": head.seen, "next": page.next}
        return StoreView(conversation=None, messages=page.items, **place, plain=True)

    async def _window(
        self, connection: AsyncConnection, conversation_id: str, window: Window, *, origin_id: UUID | None = None
    ) -> tuple[dict[int, RecordedMessage], Any]:
        """Return the messages of a window by version, and a row with the head of the conversation."""
        parameters = {**self.key(conversation_id), **window.values}
        with_head = origin_id is not None
        if with_head:
            parameters["origin"] = origin_id
        if self.reads_as_stored and conversation_id not in self._changed:
            statement = self._statements.plain_window(window, with_head=with_head)
            rows = (await connection.execute(statement, parameters)).all()
            marked = bool(rows) and rows[0].more == MARKED
            messages = {} if marked else plain_messages(conversation_id, [row[:PLAIN_COLUMNS] for row in rows])
            if len(messages) == len(rows):
                return messages, rows[0] if rows else None
            # The two statements see two moments: what the first one returned is not used.
            _remember(self._changed, conversation_id)
        rows = (await connection.execute(self._statements.window(window, with_head=with_head), parameters)).all()
        plain = (plain_row(row) for row in rows if is_plain(row)) if self.reads_as_stored else ()
        messages = plain_messages(conversation_id, plain)
        if len(messages) == len(rows):
            self._changed.discard(conversation_id)
        messages |= {row.m_version: self.message(row, conversation_id) for row in rows if row.m_version not in messages}
        return messages, rows[0] if rows else None

    async def events(
        self,
        connection: AsyncConnection,
        conversation_id: str,
        *,
        after: int | str,
        limit: int,
        before: int | None = None,
        newest: bool = False,
        types: Sequence[str] | None = None,
    ) -> Page[RecordedEvent]:
        parameters = self.key(conversation_id)
        parameters["after"] = check_place(after, "after")
        parameters["before"] = INTEGER_MAX if before is None else before
        parameters["limit"] = check_count(limit, "limit") + 1
        if types is not None:
            parameters["types"] = list(types)
        statement = self._statements.events(newest=newest, typed=types is not None)
        rows = (await connection.execute(statement, parameters)).all()
        items = await self._recorded(connection, rows[:limit])
        following = str(items[-1].version) if len(rows) > limit else None
        return Page(tuple(reversed(items) if newest else items), next=following)

    async def named(
        self, connection: AsyncConnection, conversation_id: str, message_ids: Collection[str]
    ) -> tuple[RecordedMessage, ...]:
        """Return the messages of some ids, on the path and off it, in order."""
        messages: list[RecordedMessage] = []
        for part in in_batches(list(message_ids)):
            rows = await connection.execute(self._statements.named, {**self.key(conversation_id), "ids": part})
            messages += [self.message(row, conversation_id) for row in rows]
        return tuple(sorted(messages, key=lambda message: message.version or 0))

    async def last_messages(self, connection: AsyncConnection, names: Collection[str]) -> list[RecordedMessage]:
        """Return the last message on the path of each of some conversations, without inherited ones."""
        messages: list[RecordedMessage] = []
        for part in in_batches(names):
            values = {"partitions": sorted({partition_of(name, self._partitions) for name in part})}
            rows = await connection.execute(self._statements.last_messages, {**values, "conversations": part})
            messages += [self.message(row, row.m_conversation_id) for row in rows]
        return messages

    async def authored(
        self, connection: AsyncConnection, author: str, *, after: tuple[str, int] | None, limit: int
    ) -> list[RecordedMessage]:
        """Return the next messages of an author after a conversation and a version in it, on the path and off it."""
        name, version = after or ("", 0)
        place = {"partition": partition_of(name, self._partitions) if after else -1, "conversation": name}
        values = {**place, "version": version, "author": check_identifier(author, "author"), "limit": limit}
        rows = (await connection.execute(self._statements.authored, values)).all()
        found = [self.message(row, row.m_conversation_id) for row in rows]
        return sorted(found, key=self._log_order)

    def _log_order(self, message: RecordedMessage) -> tuple[int, bytes, int]:
        name = message.conversation_id
        return partition_of(name, self._partitions), name.encode(), message.version or 0

    async def conversations_of(self, connection: AsyncConnection, message_id: str, *, limit: int) -> list[str]:
        """Return some conversations that have a message of an id."""
        values = {"message": check_identifier(message_id, "message_id"), "limit": limit}
        return list((await connection.execute(self._statements.conversations_of, values)).scalars())

    async def head_view(self, connection: AsyncConnection, query: ViewQuery) -> StoreView:
        """Return the view without messages."""
        parameters = {**self.key(query.conversation_id), "origin": query.origin_id}
        row = (await connection.execute(self._statements.view, parameters)).first()
        return EMPTY_VIEW if row is None else _head_view(row, (await self._with_markers(connection, [row]))[0])

    async def view(self, connection: AsyncConnection, query: ViewQuery) -> StoreView:
        """Return the view with messages, over a connection in a snapshot."""
        view = await self.head_view(connection, query)
        if view.conversation is None:
            return view
        if query.names:
            places = await self.path_of(connection, query.conversation_id, query.names, counted=query.counted)
            view = replace(view, places=places)
        after, upto = (0, None) if query.bound is None else query.bound(view)
        if after:
            key = {**self.key(query.conversation_id), "after": after}
            view = replace(view, beyond=(await connection.execute(self._statements.beyond, key)).scalar())
        if query.window is None:
            return view
        window = bounded(query.window, upto, after=after)
        page = await self.messages(connection, query.conversation_id, window)
        return replace(view, messages=page.items, next=page.next)

    async def view_of(self, connection: AsyncConnection, query: ViewQuery) -> StoreView:
        """Return a plain view where that answers the query, and the view otherwise."""
        return await self.view(connection, query)

    async def active_view(self, connection: AsyncConnection, owner: str, *, origin_id: UUID) -> StoreView:
        """Return the view of an owner's active conversation, without messages."""
        row = await self._active_row(connection, owner, self._statements.view, origin=origin_id)
        return EMPTY_VIEW if row is None else _head_view(row, recorded_conversation(row._mapping, active=True))

    async def active(self, connection: AsyncConnection, owner: str) -> Conversation | None:
        row = await self._active_row(connection, owner, self._statements.conversation)
        return None if row is None else recorded_conversation(row._mapping, active=True)

    async def _active_row(
        self, connection: AsyncConnection, owner: str, select: sa.Select[Any], **parameters: Any
    ) -> sa.Row[Any] | None:
        """Return the row of an owner's active conversation: two reads, as a join may look into each partition."""
        check_identifier(owner, "owner")
        name, before = (await self._markers(connection, [owner])).get(owner), None
        while name is not None and name != before:
            row: sa.Row[Any] | None = (await connection.execute(select, {**self.key(name), **parameters})).first()
            if row is not None and row.owner_id == owner and row.state != "deleted":
                return row
            # It left between the two reads, and its owner's row names another one since.
            name, before = (await self._markers(connection, [owner])).get(owner), name
        return None

    async def _with_markers(self, connection: AsyncConnection, rows: Sequence[sa.Row[Any]]) -> list[Conversation]:
        """Return the conversations in rows; which are the active ones of their owners is read here."""
        marked = await self._markers(connection, {row.owner_id for row in rows} - {None})
        return [
            recorded_conversation(row._mapping, active=marked.get(row.owner_id) == row.conversation_id) for row in rows
        ]

    async def _markers(self, connection: AsyncConnection, owners: Collection[str]) -> dict[str, str | None]:
        """Return the active conversation of each owner that has a row."""
        markers: dict[str, str | None] = {}
        for part in in_batches(owners):
            values = {"partitions": sorted({partition_of(owner, self._partitions) for owner in part}), "owners": part}
            rows = await connection.execute(self._statements.markers, values)
            markers |= {row.owner_id: row.active_conversation_id for row in rows}
        return markers

    async def path_of(
        self, connection: AsyncConnection, conversation_id: str, message_ids: Collection[str], *, counted: bool = True
    ) -> dict[str, PathPosition]:
        """Return the positions of messages on the path, by id; ids that are not there are left out."""
        if isinstance(message_ids, str) or not isinstance(message_ids, Collection):
            raise InvalidInput("message_ids", f"must be a collection of ids, not {type(message_ids).__name__}")
        message_ids = [check_identifier(message_id, "message_id") for message_id in message_ids]
        positions: dict[str, PathPosition] = {}
        statement = self._statements.path_of if counted else self._statements.places_of
        for part in in_batches(dict.fromkeys(message_ids)):
            rows = await connection.execute(statement, {**self.key(conversation_id), "ids": part})
            positions |= positions_from_rows(tuple(row) for row in rows)
        return positions

    async def digests(
        self, connection: AsyncConnection, conversation_id: str, event_ids: Collection[UUID]
    ) -> dict[UUID, tuple[bytes, bytes | None]]:
        """Return digest and salt of those events that are there; an erased one has no salt."""
        statement, key = self._statements.digests, self.key(conversation_id)
        parts = [await connection.execute(statement, {**key, "ids": part}) for part in in_batches(event_ids)]
        return {row.event_id: (row.digest, row.salt) for rows in parts for row in rows}

    async def lane_heads(
        self, connection: AsyncConnection, origin_id: UUID, conversation_ids: Sequence[str]
    ) -> dict[str, int]:
        if not isinstance(origin_id, UUID):
            raise InvalidInput("origin_id", f"must be a UUID, not {type(origin_id).__name__}")
        if isinstance(conversation_ids, str) or not isinstance(conversation_ids, Collection):
            raise InvalidInput("conversation_ids", f"must be a sequence of ids, not {type(conversation_ids).__name__}")
        for name in conversation_ids:
            if not (isinstance(name, str) and is_record_lane(name)):
                check_identifier(name, "conversation_id")
        lanes = await self.lanes(connection, origin_id, conversation_ids)
        return {name: row.sequence for name, row in lanes.items()}

    async def lanes(
        self, connection: AsyncConnection, origin_id: UUID, names: Collection[str]
    ) -> dict[str, sa.Row[Any]]:
        """Return the sequence and the floor of an origin's lanes, by name; unknown lanes are left out."""
        lanes: dict[str, sa.Row[Any]] = {}
        for part in in_batches(dict.fromkeys(names)):
            partitions = sorted({lane_partition(name, self._partitions) for name in part})
            values = {"partitions": partitions, "conversations": part, "origin": origin_id}
            lanes |= {row.conversation_id: row for row in await connection.execute(self._statements.lanes, values)}
        return lanes

    async def log(self, connection: AsyncConnection, *, partition: int, after: int, limit: int) -> list[RecordedEvent]:
        rows = await connection.execute(self._statements.log, {"partition": partition, "after": after, "limit": limit})
        return await self._recorded(connection, rows.all())

    async def _recorded(self, connection: AsyncConnection, rows: Sequence[sa.Row[Any]]) -> list[RecordedEvent]:
        """Return the events of rows of the log as those see them who read them in their own conversations."""
        marked = [index for index, row in enumerate(rows) if row.changes is not None]
        erased = await self._erased.changed_by(connection, [rows[index] for index in marked]) if marked else ()
        hidden = {marked[index] for index in erased}
        return [recorded_event(row._mapping, hidden=index in hidden) for index, row in enumerate(rows)]

    async def heads(self, connection: AsyncConnection, partitions: Collection[int] | None = None) -> dict[int, int]:
        """Return the last position of each partition of the log, or of some."""
        if partitions is None:
            partitions = range(self._partitions)
        rows = (await connection.execute(self._statements.heads, {"partitions": list(partitions)})).all()
        check_counters([LogState.OPEN] * len(rows), expected=len(partitions))
        return {row.partition: row.position for row in rows}

    def key(self, conversation_id: str) -> dict[str, Any]:
        """Return the parameters that bind a conversation in a statement."""
        check_identifier(conversation_id, "conversation_id")
        return {"partition": partition_of(conversation_id, self._partitions), "conversation": conversation_id}

    def message(self, row: sa.Row[Any], conversation_id: str) -> RecordedMessage:
        """Return the message that a row of a window's select holds."""
        values: Mapping[Any, Any] = row._mapping
        event = appended_event(values, conversation_id)
        body = event.body(self._upcasters)
        if not isinstance(body, MessageAppended):
            body = unreadable_message(values, event.data)
        left_at, redacted_at = values["m_left_at"], values["m_redacted_at"]
        message = replace(
            recorded_message(body, event),
            on_path=left_at is None,
            superseded=left_at == event.version,
            redacted=redacted_at is not None or event.digest is None,
            reactions=reactions_from_text(values["m_reactions"]),
        )
        if redacted_at is not None and event.digest is not None:
            message = redacted(message)  # reset: the content is kept for forks that read it
        if values["c_digest"] is not None:
            edit = self._body(values, "c")
            if isinstance(edit, MessageEdited):
                message = replace_content(message, edit)
        if values["d_data"] is not None:
            delivery = self._body(values, "d")
            if isinstance(delivery, MessageSent | MessageFailed):
                message = with_delivery(message, delivery, redacted=message.redacted)
        return message

    def _body(self, values: Mapping[Any, Any], prefix: str) -> object:
        name = values[f"{prefix}_type"]
        data = decode_object(values[f"{prefix}_data"])
        return read(name, *self._upcasters.upcast(name, values[f"{prefix}_schema_version"], data))


def _head_view(row: sa.Row[Any], conversation: Conversation) -> StoreView:
    return StoreView(conversation=conversation, messages=(), sequence=row.sequence or 0, version=row.version)


def _remember(names: set[str], name: str) -> None:
    if len(names) >= MAX_REMEMBERED_CONVERSATIONS:
        names.clear()
    names.add(name)
