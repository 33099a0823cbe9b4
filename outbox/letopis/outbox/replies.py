"""Replies: what a bot is about to send, kept while it is written, appended before it is sent, and confirmed after."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox import drafts
from letopis.outbox.append import prepare
from letopis.outbox.calls import attempt
from letopis.outbox.ending import gone, tend
from letopis.outbox.file import OutboxFile
from letopis.outbox.liveness import Liveness
from letopis.outbox.reading import Reading
from letopis.outbox.relay import Relay
from letopis.outbox.reply import Reply
from letopis.outbox.saying import Saying
from letopis.store.codec import Limits, decode
from letopis.store.errors import ConversationGone, EventIdReused, InvalidInput, LetopisError
from letopis.store.events import Event, from_microseconds
from letopis.store.history import ConversationStore
from letopis.store.identifiers import check_identifier, derived_event_id
from letopis.store.messages import Message
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import MessageAppended, read

logger: Final = logging.getLogger("letopis.outbox.history")

TENDING: Final = 60.0
"""Seconds between two looks for what others have left."""
_TELLING: Final = 600.0
"""Seconds that ``on_unconfirmed`` may take."""

_KNOWN: Final = "SELECT 1 FROM letopis_outbox_events WHERE event_id = ?"
_LANE: Final = "SELECT owner_id, deleted FROM letopis_outbox_lanes WHERE conversation_id = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """A reply that was appended to be sent, and of which nobody has said that it was sent, or was not.

    :ivar appended_at: when it became a message of the history.
    :ivar message: as it was appended; ``None`` where the outbox does not hold it any more.
    :ivar abandoned: whether the one who wrote it is gone: then nobody else confirms it any more.
    """

    conversation_id: str
    message_id: str
    owner_id: str | None
    appended_at: datetime
    message: Message | None
    abandoned: bool

    @property
    def interrupted(self) -> bool:
        """Whether it was cut off while it was written; ``False`` where the message is not known any more."""
        return self.message is not None and self.message.status == "interrupted"


OnUnconfirmed = Callable[[tuple[Unconfirmed, ...]], Awaitable[Any] | Any]
"""What is told of the replies that were never confirmed."""


class Replies(Saying, Reading):
    """The part of a history that writes replies."""

    def __init__(
        self,
        *,
        outbox: OutboxFile,
        store: ConversationStore,
        relay: Relay | None,
        limits: Limits,
        upcasters: Upcasters,
        read_timeout: float,
    ) -> None:
        super().__init__(
            outbox=outbox, store=store, relay=relay, limits=limits, upcasters=upcasters, read_timeout=read_timeout
        )
        self._liveness = Liveness(outbox.path)
        self._writing: dict[drafts.Key, Reply] = {}

    @asynccontextmanager
    async def reply(
        self,
        conversation_id: str,
        *,
        owner: str | None = None,
        message_id: str | None = None,
        role: str = "assistant",
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        every: float | None = 0.3,
    ) -> AsyncIterator[Reply]:
        """Write a reply piece by piece, for the time of an ``async with`` block.

        While it is written, it is kept as a draft in the outbox file, beside the log. Leaving the block well finishes
        it, where the block has not: it is one message then. Leaving it by an exception or a cancellation makes a
        message of what was said so far, with the status ``interrupted``, and the exception goes on. After a crash the
        next history that is opened on the file does so, or one that is open within a minute. Where nothing was said,
        nothing is appended.

        The reply can be confirmed inside the block or after it.

        :param owner: whose conversation it is; said once, it is remembered.
        :param message_id: of the message that it becomes; by default a new one.
        :param role, name, metadata: of the message, as in ``Message``.
        :param every: seconds between two checkpoints of the draft, at least; ``None`` for none, then a crash takes all.
        :raises InvalidInput: an argument is wrong, the conversation has another owner, or another reply is being
            written under this message id.
        :raises EventIdReused: the outbox holds a message of this id already.
        :raises ConversationGone: the conversation was deleted.
        :raises OutboxUnavailable: the outbox file cannot be read, or no file can be made beside it.
        :raises Closed: the history is closed, or was opened before this process was forked off.
        :raises LetopisError: on leaving, what ``Reply.finish()`` raises.
        """
        if every is not None and not (isinstance(every, int | float) and 0 <= every < math.inf):
            raise InvalidInput("every", "must be seconds, zero or more, or None for no checkpoints")
        if message_id is not None:
            check_identifier(message_id, "message_id")
        empty = Message(
            role=role, content="", id=message_id or "", name=name, metadata={} if metadata is None else metadata
        )
        event_id = empty.event_id or derived_event_id(conversation_id, empty.id)
        # Refused now, what would be refused at its end.
        event = Event(type=MessageAppended.type, data=empty.to_data(), event_id=event_id)
        prepare(conversation_id, (event,), owner=owner, limits=self._limits)
        await self.outbox.read(
            lambda connection: _check(
                connection, conversation_id, empty.id, event_id=event_id, owner=owner, chosen=message_id is not None
            )
        )
        key = (conversation_id, empty.id)
        if key in self._writing:
            raise InvalidInput("message_id", "another reply is being written under this id")
        reply = self._writing[key] = Reply(
            self,
            self._deliveries,
            conversation_id=conversation_id,
            owner=owner,
            empty=empty,
            event_id=event_id,
            writer=self._liveness.begin(),
            limits=self._limits,
            every=every,
        )
        try:
            try:
                yield reply
                await reply.leave()
            except BaseException:  # a cancellation too: what was said is not lost by it
                await reply.break_off()
                raise
        finally:
            # Else the history goes on trying.
            if reply.settled:
                self._writing.pop(key, None)

    async def unconfirmed(self, *, owner: str | None = None) -> tuple[Unconfirmed, ...]:
        """Return the replies of which nobody has said that they were sent, or were not, the oldest first.

        Those of this outbox, of one owner or of all; also those that are about to be sent at this moment, by this
        process or another, which are not ``abandoned``. To say ``sent`` or ``failed`` of one takes it off the list.
        One that was not confirmed for 30 days leaves it too, once the outbox does not hold the message any more.

        :raises InvalidInput: the owner is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        if owner is not None:
            check_identifier(owner, "owner")
        owed = await self.outbox.read(lambda connection: _owed(connection, owner))
        lost = set(await gone(self._liveness, sorted({one.writer for one in owed})))
        return tuple(self._unconfirmed(one, abandoned=one.writer in lost) for one in owed)

    def _unconfirmed(self, owed: drafts.Owed, *, abandoned: bool) -> Unconfirmed:
        return Unconfirmed(
            conversation_id=owed.conversation_id,
            message_id=owed.message_id,
            owner_id=owed.owner_id,
            appended_at=from_microseconds(owed.appended_at),
            message=_message(owed, self._upcasters),
            abandoned=abandoned,
        )

    # For `History.open`.

    async def _begin_replies(self) -> None:
        """See to what those who are gone have left."""
        self._liveness.tidy()
        await tend(self.outbox, self._liveness)

    async def _tend_replies(self) -> None:
        """See, again and again, to what those who are gone have left, and to what could not be appended."""
        while True:
            await asyncio.sleep(TENDING)
            await tend(self.outbox, self._liveness)
            await self._retry_replies()

    async def _tell_unconfirmed(self, told: OnUnconfirmed) -> None:
        """Tell once of the replies that those who are gone have not confirmed; from now on they are this history's.

        So of two histories that are opened at the same time only one is told, and if that one ends without confirming
        them, the next one is.
        """
        try:
            owed = await self.outbox.read(lambda connection: _owed(connection, None))
            lost = await gone(self._liveness, sorted({one.writer for one in owed}))
            if not lost:
                return
            writer = self._liveness.begin()
            mine = await self.outbox.write(lambda connection: _adopt(connection, lost, writer))
        except LetopisError as error:
            logger.warning("cannot see which replies were never confirmed: %s", error)
            return
        if not mine:
            return
        outcome = await attempt(told, tuple(self._unconfirmed(one, abandoned=True) for one in mine), seconds=_TELLING)
        if outcome.done is not True:
            logger.error(
                "on_unconfirmed did not take %d replies that were never confirmed: %s",
                len(mine),
                outcome.error or "it did not end in time",
            )

    async def _retry_replies(self) -> None:
        for reply in tuple(self._writing.values()):
            if reply.owed:
                await self._break_off(reply)

    async def _end_replies(self) -> None:
        """Cut off what is still being written."""
        for reply in tuple(self._writing.values()):
            await self._break_off(reply)

    async def _break_off(self, reply: Reply) -> None:
        await reply.break_off()
        if reply.settled:
            self._writing.pop((reply.conversation_id, reply.message_id), None)


def _check(
    connection: sa.Connection,
    conversation_id: str,
    message_id: str,
    *,
    event_id: UUID,
    owner: str | None,
    chosen: bool,
) -> None:
    """Refuse a reply that could not be appended, before anybody has written it."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_LANE, (conversation_id,))
        lane = cursor.fetchone() or (None, 0)
        if lane[1] > 0:
            raise ConversationGone(conversation_id=conversation_id)
        if None not in (lane[0], owner) and lane[0] != owner:
            raise InvalidInput("owner", "the conversation belongs to another owner already")
        if not chosen:
            return
        cursor.execute(_KNOWN, (event_id.bytes,))
        if cursor.fetchone() is not None:
            raise EventIdReused(conversation_id=conversation_id, event_id=event_id, message_id=message_id)
        if drafts.find(cursor, conversation_id, message_id) is not None:
            raise InvalidInput("message_id", "another reply is being written under this id")
    finally:
        cursor.close()


def _owed(connection: sa.Connection, owner: str | None) -> list[drafts.Owed]:
    cursor = connection.connection.cursor()
    try:
        return drafts.unconfirmed(cursor, owner)
    finally:
        cursor.close()


def _adopt(connection: sa.Connection, lost: list[str], writer: str) -> list[drafts.Owed]:
    cursor = connection.connection.cursor()
    try:
        return drafts.adopt(cursor, lost, writer)
    finally:
        cursor.close()


def _message(owed: drafts.Owed, upcasters: Upcasters) -> Message | None:
    if owed.data is None or owed.schema_version is None:
        return None
    try:
        version, data = upcasters.upcast(MessageAppended.type, owed.schema_version, decode(owed.data))
    except ValueError:
        return None  # damaged
    body = read(MessageAppended.type, version, data)
    return body.message if isinstance(body, MessageAppended) else None
