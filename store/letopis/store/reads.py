"""Reads: conversations, messages and events by key, each page in as few round trips as it takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.asking import (
    EVERYDAY,
    Shape,
    Window,
    check_count,
    check_place,
    check_states,
    conversations_cursor,
    read_conversations_cursor,
)
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.dialects import Dialect, lookups
from letopis.store.errors import InvalidInput
from letopis.store.events import RecordedEvent
from letopis.store.fold import Elsewhere, recorded_message, replace_content, with_delivery
from letopis.store.identifiers import check_identifier, partition_of
from letopis.store.projection import reactions_from_text
from letopis.store.recorded import (
    PlainRow,
    appended_event,
    conversation_of,
    decoded,
    is_plain,
    plain_messages,
    recorded_event,
    unreadable,
)
from letopis.store.schema import conversations, events, lanes, log_heads, messages, owners
from letopis.store.selects import messages_select, plain_select
from letopis.store.upcasters import NO_UPCASTERS, Upcasters
from letopis.store.vocabulary import MessageAppended, MessageEdited, MessageFailed, MessageSent, read

_FIXED: Final = 32
"""Statements of which the limit is written in; those who page with so many different ones have it bound."""
_REMEMBERED: Final = 10_000
"""Conversations of which it is known that their messages have to be read whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreView:
    """What the history store holds of a conversation, to lay what is still pending over.

    :ivar sequence: how far this outbox's lane had got when the messages were read, *or earlier*; 0 if nowhere. So what
        lies beyond it may be in ``messages`` already, and what lies before it is there for certain.
    :ivar next: where the messages go on, as in a page.
    """

    conversation: Conversation | None
    messages: tuple[RecordedMessage, ...]
    sequence: int
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainPage:
    """What nearly every read comes to: messages of which nothing but their appending is recorded, and of no fork.

    :ivar page: at least one message.
    :ivar sequence: as in a view, and of the same moment as the messages. ``version``: the conversation's then.
    """

    page: Page[RecordedMessage]
    sequence: int
    version: int


class Reader:
    """Reads one history store over connections that it is given; its statements are made once."""

    def __init__(self, dialect: Dialect, *, partitions: int, upcasters: Upcasters) -> None:
        self._partitions = partitions
        self._upcasters = upcasters
        self.plain = upcasters is NO_UPCASTERS
        """Whether what an appended message holds is what it says: no rule reads it as something else."""
        self._statements = _Statements(dialect)
        # Conversations with more to their messages than that they were appended: these are read whole at once.
        self._richer: dict[str, None] = {}
        self._forks: dict[str, None] = {}

    @property
    def conversation_select(self) -> sa.Select[Any]:
        """The select of a conversation."""
        return self._statements.conversation

    @property
    def view_select(self) -> sa.Select[Any]:
        """The select of a conversation and of how far an origin's lane has got in it."""
        return self._statements.view

    async def conversation(self, connection: AsyncConnection, conversation_id: str) -> Conversation | None:
        """Return a conversation, or ``None`` where there is none."""
        key = self.key(conversation_id)
        row = (await connection.execute(self._statements.conversation, key)).first()
        return None if row is None else conversation_of(row._mapping)

    async def conversations(
        self,
        connection: AsyncConnection,
        *,
        owner: str | None,
        after: str | None,
        limit: int,
        states: Collection[str] = EVERYDAY,
    ) -> Page[Conversation]:
        """Return a page of conversations, the newest activity first."""
        parameters: dict[str, Any] = {"limit": check_count(limit, "limit") + 1, "states": check_states(states)}
        if owner is not None:
            parameters["owner"] = check_identifier(owner, "owner")
        if after is not None:
            parameters["updated"], parameters["conversation"] = read_conversations_cursor(after)
        statement = self._statements.conversations(owned=owner is not None, going_on=after is not None)
        rows = (await connection.execute(statement, parameters)).all()
        items = tuple(conversation_of(row._mapping) for row in rows[:limit])
        more = len(rows) > limit
        return Page(
            items,
            next=conversations_cursor(rows[limit - 1].updated_at, rows[limit - 1].conversation_id) if more else None,
        )

    async def messages(
        self, connection: AsyncConnection, conversation_id: str, window: Window
    ) -> Page[RecordedMessage]:
        """Return the messages of a window, in order."""
        parameters = {**self.key(conversation_id), **window.values}
        if self.plain and conversation_id not in self._richer:
            rows = (await connection.execute(self._statements.plain(window), parameters)).all()
            if not any(row.more for row in rows):
                plain = plain_messages(conversation_id, [row[:7] for row in rows])
                if len(plain) == len(rows):
                    return page_of(plain, window)
            # The two are statements of two moments: what this one returned is not used.
            _remember(self._richer, conversation_id)
        rows = (await connection.execute(self._statements.messages(window), parameters)).all()
        plain = self._plain_messages(conversation_id, rows)
        if len(plain) == len(rows):
            self._richer.pop(conversation_id, None)
        return page_of(
            {row.m_version: plain.get(row.m_version) or self.message(row, conversation_id) for row in rows}, window
        )

    async def plain_page(
        self, connection: AsyncConnection, conversation_id: str, *, origin_id: UUID, window: Window
    ) -> PlainPage | None:
        """Return what :meth:`view` is asked for, in one statement; ``None`` where it is more than that."""
        if not self.plain or conversation_id in self._richer or conversation_id in self._forks:
            return None
        rows = (
            await connection.execute(
                self._statements.standing(window), {**self.key(conversation_id), **window.values, "origin": origin_id}
            )
        ).all()
        if not rows:
            return None
        first = rows[0]
        if first.fork:
            _remember(self._forks, conversation_id)
            return None
        found = plain_messages(conversation_id, [row[:7] for row in rows if not row[7]])
        if len(found) < len(rows):
            _remember(self._richer, conversation_id)
            return None
        return PlainPage(page=page_of(found, window), sequence=first.delivered, version=first.seen)

    async def events(
        self, connection: AsyncConnection, conversation_id: str, *, after: int | str, limit: int
    ) -> Page[RecordedEvent]:
        """Return a page of a conversation's events, by version."""
        parameters = self.key(conversation_id)
        parameters["after"] = check_place(after, "after")
        parameters["limit"] = check_count(limit, "limit") + 1
        rows = (await connection.execute(self._statements.events, parameters)).all()
        items = tuple(recorded_event(row) for row in rows[:limit])
        return Page(items, next=str(items[-1].version) if len(rows) > limit else None)

    async def view(
        self, connection: AsyncConnection, conversation_id: str, *, origin_id: UUID, window: Window
    ) -> StoreView:
        """Return a conversation with messages, and how far an origin's lane had got before."""
        # One statement is one snapshot: the conversation's counts are those of the lane's head. The messages come
        # after, so they hold at least what the head says.
        row = (
            await connection.execute(self._statements.view, {**self.key(conversation_id), "origin": origin_id})
        ).first()
        if row is None:
            return StoreView(conversation=None, messages=(), sequence=0)
        page = await self.messages(connection, conversation_id, window)
        return StoreView(
            conversation=conversation_of(row._mapping), messages=page.items, sequence=row.sequence or 0, next=page.next
        )

    async def active(self, connection: AsyncConnection, owner: str) -> Conversation | None:
        """Return an owner's active conversation; ``None`` where there is none."""
        row = (await connection.execute(self._statements.active, {"owner": check_identifier(owner, "owner")})).first()
        return None if row is None else conversation_of(row._mapping)

    async def path_of(
        self, connection: AsyncConnection, conversation_id: str, message_ids: Collection[str]
    ) -> dict[str, Elsewhere]:
        """Return where messages stand on the path; those that are not there are left out.

        :raises InvalidInput: one of the ids cannot be one.
        """
        if isinstance(message_ids, str) or not isinstance(message_ids, Collection):
            raise InvalidInput("message_ids", f"must be a collection of ids, not {type(message_ids).__name__}")
        message_ids = [check_identifier(one, "message_id") for one in message_ids]
        found: dict[str, Elsewhere] = {}
        for part in lookups(dict.fromkeys(message_ids)):
            rows = await connection.execute(self._statements.path_of, {**self.key(conversation_id), "ids": part})
            for row in sorted(rows, key=lambda row: (row.left_at is None, row.version)):
                found[row.message_id] = Elsewhere(
                    version=row.version, on_path=row.left_at is None, count=row.on_path_count
                )
        return found

    async def lane_heads(
        self, connection: AsyncConnection, origin_id: UUID, conversation_ids: Sequence[str]
    ) -> dict[str, int]:
        """Return how far an origin's lanes have got; lanes that are not there are left out.

        :raises InvalidInput: one of the ids cannot be one.
        """
        if not isinstance(origin_id, UUID):
            raise InvalidInput("origin_id", f"must be a UUID, not {type(origin_id).__name__}")
        if isinstance(conversation_ids, str) or not isinstance(conversation_ids, Collection):
            raise InvalidInput("conversation_ids", f"must be a sequence of ids, not {type(conversation_ids).__name__}")
        heads: dict[str, int] = {}
        for part in lookups(dict.fromkeys(check_identifier(name, "conversation_id") for name in conversation_ids)):
            rows = await connection.execute(
                self._statements.lane_heads,
                {
                    "partitions": sorted({partition_of(name, self._partitions) for name in part}),
                    "conversations": part,
                    "origin": origin_id,
                },
            )
            heads.update({row.conversation_id: row.sequence for row in rows})
        return heads

    async def log(self, connection: AsyncConnection, *, partition: int, after: int, limit: int) -> list[RecordedEvent]:
        """Return the next events of a log partition, by position."""
        rows = await connection.execute(self._statements.log, {"partition": partition, "after": after, "limit": limit})
        return [recorded_event(row) for row in rows]

    async def head(self, connection: AsyncConnection, partition: int) -> int:
        """Return the position given out last in a partition."""
        return int((await connection.execute(self._statements.head, {"partition": partition})).scalar_one())

    def key(self, conversation_id: str) -> dict[str, Any]:
        """Return what binds a conversation in a statement."""
        check_identifier(conversation_id, "conversation_id")
        return {"partition": partition_of(conversation_id, self._partitions), "conversation": conversation_id}

    def _plain_messages(self, conversation_id: str, rows: Iterable[sa.Row[Any]]) -> dict[int, RecordedMessage]:
        if not self.plain:
            return {}
        return plain_messages(conversation_id, (_plain_row(row) for row in rows if is_plain(row)))

    def message(self, row: sa.Row[Any], conversation_id: str) -> RecordedMessage:
        """Return the message that a row of a window's select holds."""
        return self.message_of(row._mapping, conversation_id)

    def message_of(self, values: Mapping[Any, Any], conversation_id: str) -> RecordedMessage:
        """Return the message that the values of a row of a window's select come to."""
        event = appended_event(values, conversation_id)
        body = event.body(self._upcasters)
        if not isinstance(body, MessageAppended):
            body = unreadable(values, event.data)
        left_at, redacted_at = values["m_left_at"], values["m_redacted_at"]
        message = replace(
            recorded_message(body, event),
            on_path=left_at is None,
            superseded=left_at == event.version,
            redacted=redacted_at is not None or event.digest is None,
            reactions=reactions_from_text(values["m_reactions"]),
        )
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
        data = decoded(values[f"{prefix}_data"])
        return read(name, *self._upcasters.upcast(name, values[f"{prefix}_schema_version"], data))


def page_of(found: Mapping[int, RecordedMessage], window: Window) -> Page[RecordedMessage]:
    """Return what was found in a window, by version, as its page; one more than asked for tells that there are more."""
    order = sorted(found, reverse=window.last is not None)
    place = None
    if window.limit is not None and len(order) > window.limit:
        del order[window.limit :]
        place = str(order[-1])
    if window.last is not None:
        order.reverse()
    return Page(tuple([found[version] for version in order]), next=place)


def _remember(names: dict[str, None], name: str) -> None:
    if len(names) >= _REMEMBERED:
        del names[next(iter(names))]
    names[name] = None


def _plain_row(row: sa.Row[Any]) -> PlainRow:
    return (
        row.m_version,
        row.e_event_id,
        row.e_origin_id,
        row.e_sequence,
        row.e_data,
        row.e_occurred_at,
        row.e_recorded_at,
    )


class _Statements:
    """The selects of a reader, compiled once each."""

    def __init__(self, dialect: Dialect) -> None:
        of_owner = conversations.outerjoin(owners, owners.c.owner_id == conversations.c.owner_id)
        self.conversation = (
            sa.select(conversations, owners.c.active_conversation_id)
            .select_from(of_owner)
            .where(
                conversations.c.partition == sa.bindparam("partition"),
                conversations.c.conversation_id == sa.bindparam("conversation"),
            )
        )
        self.active = (
            sa.select(conversations, owners.c.active_conversation_id)
            .select_from(
                owners.join(
                    conversations,
                    sa.and_(
                        conversations.c.owner_id == owners.c.owner_id,
                        conversations.c.conversation_id == owners.c.active_conversation_id,
                    ),
                )
            )
            .where(owners.c.owner_id == sa.bindparam("owner"))
        )
        earlier = messages.alias("earlier")
        self.path_of = sa.select(
            messages.c.message_id,
            messages.c.version,
            messages.c.left_at,
            sa.select(sa.func.count())
            .select_from(earlier)
            .where(
                earlier.c.partition == messages.c.partition,
                earlier.c.conversation_id == messages.c.conversation_id,
                earlier.c.version <= messages.c.version,
                earlier.c.left_at.is_(None),
            )
            .scalar_subquery()
            .label("on_path_count"),
        ).where(
            messages.c.partition == sa.bindparam("partition"),
            messages.c.conversation_id == sa.bindparam("conversation"),
            dialect.among(messages.c.message_id, "ids"),
        )
        self._among_states = dialect.among(conversations.c.state, "states")
        self.view = (
            sa.select(conversations, owners.c.active_conversation_id, lanes.c.sequence)
            .select_from(
                of_owner.outerjoin(
                    lanes,
                    sa.and_(
                        lanes.c.partition == conversations.c.partition,
                        lanes.c.conversation_id == conversations.c.conversation_id,
                        lanes.c.origin_id == sa.bindparam("origin"),
                    ),
                )
            )
            .where(
                conversations.c.partition == sa.bindparam("partition"),
                conversations.c.conversation_id == sa.bindparam("conversation"),
            )
        )
        self.events = (
            sa.select(events)
            .where(
                events.c.partition == sa.bindparam("partition"),
                events.c.conversation_id == sa.bindparam("conversation"),
                events.c.version > sa.bindparam("after"),
            )
            .order_by(events.c.version)
            .limit(sa.bindparam("limit"))
        )
        self.log = (
            sa.select(events)
            .where(events.c.partition == sa.bindparam("partition"), events.c.position > sa.bindparam("after"))
            .order_by(events.c.position)
            .limit(sa.bindparam("limit"))
        )
        self.head = sa.select(log_heads.c.position).where(log_heads.c.partition == sa.bindparam("partition"))
        self.lane_heads = sa.select(lanes.c.conversation_id, lanes.c.sequence).where(
            dialect.among(lanes.c.partition, "partitions"),
            dialect.among(lanes.c.conversation_id, "conversations"),
            lanes.c.origin_id == sa.bindparam("origin"),
        )
        self._messages: dict[Shape, sa.Select[Any]] = {}
        self._plain: dict[Shape, sa.Select[Any]] = {}
        self._standing: dict[Shape, sa.Select[Any]] = {}

    def conversations(self, *, owned: bool, going_on: bool) -> sa.Executable:
        """Return the select of a page of conversations."""
        updated, name = conversations.c.updated_at, conversations.c.conversation_id
        statement = (
            sa.select(conversations, owners.c.active_conversation_id)
            .select_from(conversations.outerjoin(owners, owners.c.owner_id == conversations.c.owner_id))
            .where(self._among_states)
        )
        if owned:
            statement = statement.where(conversations.c.owner_id == sa.bindparam("owner"))
        if going_on:
            # The first condition is what an index can use; MariaDB makes no range of a comparison of pairs.
            statement = statement.where(
                updated <= sa.bindparam("updated"),
                sa.or_(
                    updated < sa.bindparam("updated"),
                    sa.and_(updated == sa.bindparam("updated"), name < sa.bindparam("conversation")),
                ),
            )
        return statement.order_by(updated.desc(), name.desc()).limit(sa.bindparam("limit"))

    def messages(self, window: Window) -> sa.Executable:
        """Return the select of a window: each message with the events of its origin, content and delivery."""
        shape = window.shape
        if (found := self._messages.get(shape)) is None:
            found = self._messages[shape] = messages_select(shape)
        return found

    def plain(self, window: Window) -> sa.Executable:
        """Return the select of a window, each message with what most have."""
        shape = self._fixed(window, self._plain)
        if (found := self._plain.get(shape)) is None:
            found = self._plain[shape] = plain_select(shape)
        return found

    def standing(self, window: Window) -> sa.Executable:
        """Return the same, with how the conversation stands."""
        shape = self._fixed(window, self._standing)
        if (found := self._standing.get(shape)) is None:
            found = self._standing[shape] = plain_select(shape, stands=True)
        return found

    @staticmethod
    def _fixed(window: Window, made: Mapping[Shape, object]) -> Shape:
        """Return the shape of a window with its limit in it: PostgreSQL plans anew each time what has any other."""
        fixed = window.shape._replace(limit=window.values.get("limit"))
        return fixed if fixed in made or len(made) < _FIXED else window.shape
