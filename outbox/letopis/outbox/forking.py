"""Forking: a new conversation that goes on from another one, without a copy of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.lanes import find_lane
from letopis.outbox.reading import Reading
from letopis.outbox.receipts import Receipt
from letopis.outbox.saying import Saying
from letopis.store.codec import INTEGER_MAX
from letopis.store.conversation import Conversation
from letopis.store.errors import ConversationGone, InvalidInput
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.identifiers import check_identifier, uuid7
from letopis.store.vocabulary import (
    Body,
    ConversationActivated,
    ConversationRewound,
    ConversationStarted,
    ForkPoint,
)

_EVENT_AT: Final = "SELECT event_id FROM letopis_outbox_events WHERE conversation_id = ? AND sequence = ?"
FEWEST: Final = 64
"""Messages of the first page in which a message is looked for; each one after it is twice as long."""
MOST: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The last event of a conversation in the outbox; ``event_id`` is ``None`` where it was let go."""

    event_id: UUID | None
    pending: bool


class Forking(Saying, Reading):
    """The part of a history that forks conversations."""

    async def fork(
        self,
        conversation_id: str | None = None,
        *,
        of: str,
        at: int | str | None = None,
        owner: str | None = None,
        title: str | None = None,
        activate: bool = False,
    ) -> Receipt:
        """Begin a conversation that reads another one up to a point; the receipt holds its id.

        Nothing is copied: ``messages`` of the fork shows those of its parent first. What is said, edited, rewound or
        reacted to in the parent after that point does not show in the fork; what is redacted there is gone here too.
        Where the parent is deleted, the fork keeps what it reads, once the history store has both.

        :param conversation_id: of the fork; by default a new UUIDv7.
        :param of: the parent, which may be a fork.
        :param at: up to where it is read: now (``None``), a version, or the id of the last message that is on the path
            of the fork; the fork point is now then.
        :param owner: by default the parent's.
        :param activate: whether the fork becomes its owner's active conversation.
        :raises InvalidInput: there is no such parent, version or message, or the fork's id is in use; nothing was
            written.
        :raises ConversationGone: the parent was deleted; nothing was written.
        :raises StoreFault: the history store is away, and the outbox alone does not know the parent's last event.
        """
        check_identifier(of, "of")
        if conversation_id is not None:
            check_identifier(conversation_id, "conversation_id")
        if owner is not None:
            check_identifier(owner, "owner")
        if isinstance(at, bool) or not isinstance(at, int | str | None):
            raise InvalidInput("at", "must be a version, the id of a message, or None for now")
        parent = await self.conversation(of)
        if parent is None:
            raise self._unknown(InvalidInput("of", "there is no such conversation"))
        if parent.state == "deleted":
            raise ConversationGone(conversation_id=of)
        point = await self._at_version(of, at) if isinstance(at, int) else await self._fork_point(parent)
        started = ConversationStarted(
            owner_id=parent.owner_id if owner is None else owner, title=title, forked_from=point.to_data()
        )
        said: list[Body] = [started]
        if isinstance(at, str):
            await self._check_message(of, at)
            said.append(ConversationRewound(to_message_id=at))
        if activate:
            said.append(ConversationActivated())
        name = str(uuid7()) if conversation_id is None else conversation_id
        if conversation_id is not None and await self.conversation(name) is not None:
            raise InvalidInput("conversation_id", "is in use already: a conversation is a fork from its beginning")
        return await self.append(name, *said, owner=started.owner_id)

    async def _fork_point(self, parent: Conversation) -> ForkPoint:
        """Return the point after all that was said in a conversation so far."""
        name = parent.conversation_id
        head = await self.outbox.read(lambda connection: _head(connection, name))
        if head is not None and head.pending and head.event_id is not None:
            return ForkPoint(conversation_id=name, event_id=head.event_id)
        after = max(parent.version - 1, 0)
        page = await self._reach.read(lambda store: store.events(name, after=after))
        if page:
            # More may have come meanwhile; that is now, too.
            return ForkPoint(conversation_id=name, version=page[-1].version, event_id=page[-1].event_id)
        if head is not None and head.event_id is not None:
            return ForkPoint(conversation_id=name, event_id=head.event_id)
        raise self._unknown(InvalidInput("of", "nothing was said in it"))

    async def _at_version(self, name: str, version: int) -> ForkPoint:
        if not 1 <= version <= INTEGER_MAX:
            raise InvalidInput("at", "must be a version, which is a whole number from 1")
        page = await self._reach.read(lambda store: store.events(name, after=version - 1, limit=1))
        if not page:
            raise self._unknown(InvalidInput("at", "the history store holds no such version of the conversation"))
        return ForkPoint(conversation_id=name, version=version, event_id=page[0].event_id)

    async def _check_message(self, name: str, message_id: str) -> None:
        """Make sure that a message is on the path; what is not known while the store is away is taken for granted."""
        check_identifier(message_id, "at")
        before, size, complete = None, FEWEST, True
        while True:
            page = await self.messages(name, last=size, before=before)
            complete = complete and page.complete
            if any(one.id == message_id for one in page):
                return
            if (before := page.next) is None:
                break
            size = min(size * 2, MOST)
        if complete:
            raise InvalidInput("at", "no message on the path of the conversation has this id")

    def _unknown(self, otherwise: InvalidInput) -> Exception:
        """Return the reason why something is not known: the store cannot be asked, else ``otherwise``."""
        if not self._reach.away:
            return otherwise
        return StoreFault(
            fault_class=FaultClass.UNAVAILABLE,
            code="away",
            reason="the history store cannot be read, and the outbox does not hold what a fork has to name",
        )


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
