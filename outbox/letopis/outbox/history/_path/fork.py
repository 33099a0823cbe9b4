"""Begin a conversation that goes on from another one, without copying it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.event_log.lanes import find_lane
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history._append import Appender
from letopis.outbox.history._path.rewind import Rewinder
from letopis.outbox.history._read import HistoryReader
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.errors import ConversationGone, InvalidInput, StoreUnavailable
from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.conversations import Conversation
from letopis.store.model.event_types import (
    Body,
    ConversationActivated,
    ConversationRewound,
    ConversationStarted,
    ForkPoint,
)
from letopis.store.model.identifiers import check_identifier, uuid7

_EVENT_AT: Final = "SELECT event_id FROM letopis_outbox_log WHERE conversation_id = ? AND sequence = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The last event of a conversation in the outbox; ``event_id`` is ``None`` if it was pruned."""

    event_id: UUID | None
    pending: bool


class Forker:
    def __init__(
        self,
        *,
        outbox: OutboxFile,
        gateway: StoreGateway,
        reader: HistoryReader,
        appender: Appender,
        rewinder: Rewinder,
    ) -> None:
        self._outbox = outbox
        self._gateway = gateway
        self._reader = reader
        self._appender = appender
        self._rewinder = rewinder

    async def fork(
        self,
        conversation_id: str | None,
        *,
        of: str,
        at: int | str | None,
        owner: str | None,
        title: str | None,
        activate: bool,
    ) -> Receipt:
        check_identifier(of, "conversation_id")
        if conversation_id is not None:
            check_identifier(conversation_id, "fork_id")
        if isinstance(at, bool) or not isinstance(at, int | str | None):
            raise InvalidInput("at", "must be a version, the id of a message, or None for now")
        parent = await self._reader.conversation(of)
        if parent is None:
            raise self._unknown(InvalidInput("conversation_id", "there is no such conversation"))
        if parent.state == "deleted":
            raise ConversationGone(conversation_id=of)
        point = await self._at_version(of, at) if isinstance(at, int) else await self._fork_point(parent)
        started = ConversationStarted(
            owner_id=parent.owner_id if owner is None else owner, title=title, forked_from=point.to_data()
        )
        bodies: list[Body] = [started]
        if isinstance(at, str):
            await self._check_message(of, at)
            bodies.append(ConversationRewound(to_message_id=at))
        if activate:
            bodies.append(ConversationActivated())
        name = str(uuid7()) if conversation_id is None else conversation_id
        if conversation_id is not None and await self._reader.conversation(name) is not None:
            raise InvalidInput("fork_id", "is in use already: a fork needs a new id")
        return await self._appender.write(name, *bodies, owner=started.owner_id)

    async def _fork_point(self, parent: Conversation) -> ForkPoint:
        """Return the point after all events of a conversation so far."""
        name = parent.conversation_id
        head = await self._outbox.read(lambda connection: _head(connection, name))
        if head is not None and head.pending and head.event_id is not None:
            return ForkPoint(conversation_id=name, event_id=head.event_id)
        after = max(parent.version - 1, 0)
        page = await self._gateway.read(lambda store: store.events(name, after=after))
        if page:
            # Events that came meanwhile belong to "now" too.
            return ForkPoint(conversation_id=name, version=page[-1].version, event_id=page[-1].event_id)
        if head is not None and head.event_id is not None:
            return ForkPoint(conversation_id=name, event_id=head.event_id)
        raise self._unknown(InvalidInput("conversation_id", "the conversation is empty"))

    async def _at_version(self, name: str, version: int) -> ForkPoint:
        if not 1 <= version <= INTEGER_MAX:
            raise InvalidInput("at", "must be a version, which is a whole number from 1")
        page = await self._gateway.read(lambda store: store.events(name, after=version - 1, limit=1))
        if not page:
            raise self._unknown(InvalidInput("at", "the history store holds no such version of the conversation"))
        return ForkPoint(conversation_id=name, version=version, event_id=page[0].event_id)

    async def _check_message(self, name: str, message_id: str) -> None:
        """Check that a message is on the path, as far as that is known while the store is unavailable."""
        check_identifier(message_id, "at")
        if await self._rewinder.is_on_path(name, message_id) is False:
            raise InvalidInput("at", "no message on the path of the conversation has this id")

    def _unknown(self, otherwise: InvalidInput) -> Exception:
        """Return the reason why something is not known: the store is unreachable, or ``otherwise``."""
        return StoreUnavailable("what a fork has to name") if self._gateway.unavailable else otherwise


def _head(connection: sa.Connection, conversation_id: str) -> _Head | None:
    lane = find_lane(connection, conversation_id)
    if lane is None:
        return None
    cursor: Any = connection.connection.cursor()
    try:
        row = cursor.execute(_EVENT_AT, (conversation_id, lane.head)).fetchone()
    finally:
        cursor.close()
    return _Head(event_id=None if row is None else UUID(bytes=row[0]), pending=lane.pending > 0)
