"""Write replies piece by piece, recover those that were cut off, and list those that were never confirmed."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.concurrency.callbacks import call_with_timeout
from letopis.outbox.drafts.completion import find_abandoned, run_maintenance
from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.lookups import holds_event
from letopis.outbox.event_log.statements import fetch_one, on_cursor
from letopis.outbox.history.append import Appender
from letopis.outbox.history.find_message import MessageFinder
from letopis.outbox.history.options import OnUnconfirmed, Unconfirmed
from letopis.outbox.history.reply import Reply
from letopis.store.errors import ConversationGone, IdReused, InvalidInput, LetopisError
from letopis.store.model.conversations import Saved
from letopis.store.model.event_types import MessageAppended
from letopis.store.model.events import Event, from_microseconds
from letopis.store.model.identifiers import check_identifier, derived_event_id
from letopis.store.model.messages import Message, Role

logger: Final = logging.getLogger("letopis.outbox.history")

MAINTENANCE_INTERVAL_SECONDS: Final = 60.0  # seconds between two searches for drafts of writers that have ended
_CALLBACK_TIMEOUT_SECONDS: Final = 600.0  # seconds that ``on_unconfirmed`` may take

_LANE: Final = "SELECT owner_id, deleted_at FROM letopis_outbox_lanes WHERE conversation_id = ?"


class Replies:
    """Keeps the replies that this history writes."""

    def __init__(self, appender: Appender, finder: MessageFinder) -> None:
        self._outbox = appender.outbox
        self._finder = finder
        self._appender = appender
        self.writer_lock = appender.writer_lock
        self.writing: dict[drafts.DraftKey, Reply] = {}
        self.hand_over: Callable[[str, str], Awaitable[bool]] = _no_sender

    @asynccontextmanager
    async def reply(
        self,
        conversation_id: str,
        *,
        owner: str | None,
        message_id: str | None,
        role: Role,
        name: str | None,
        metadata: Mapping[str, Any] | None,
        every: float | None,
        confirm: bool,
    ) -> AsyncIterator[Reply]:
        if every is not None and not (isinstance(every, int | float) and 0 <= every < math.inf):
            raise InvalidInput("every", "must be seconds, zero or more, or None for no checkpoints")
        if not isinstance(confirm, bool):
            raise InvalidInput("confirm", f"must be True or False, not {type(confirm).__name__}")
        if message_id is not None:
            check_identifier(message_id, "message_id")
        empty = Message(
            role=role, content="", id=message_id or "", name=name, metadata={} if metadata is None else metadata
        )
        event_id = empty.event_id or derived_event_id(conversation_id, empty.id)
        # Refuse now what would be refused at the end.
        event = Event(type=MessageAppended.type, data=empty.to_data(), event_id=event_id)
        prepare(conversation_id, (event,), owner=owner, limits=self._appender.limits)
        key = (conversation_id, empty.id)
        if key in self.writing:
            raise InvalidInput("message_id", "another reply is being written under this id")
        writer = self.writer_lock.acquire()
        reply = self.writing[key] = Reply(
            self._appender,
            conversation_id,
            empty,
            owner,
            event_id=event_id,
            writer=writer,
            every=every,
            confirm=confirm,
            hand_over=self.hand_over,
        )
        try:
            await reply._begin(partial(_check, key=key, event_id=event_id, owner=owner, chosen=message_id is not None))
            yield reply
            await reply._leave()
        except BaseException:  # a cancellation too: what was written is not lost by it
            await reply._interrupt()
            raise
        finally:
            self._forget_settled(reply)

    async def unconfirmed(self, *, owner: str | None) -> tuple[Unconfirmed, ...]:
        pending = await self.list_unconfirmed(owner)
        abandoned = set(await find_abandoned(self.writer_lock, sorted({draft.writer for draft in pending})))
        return tuple([await self.describe(draft, abandoned=draft.writer in abandoned) for draft in pending])

    async def list_unconfirmed(self, owner: str | None = None) -> list[drafts.UnconfirmedDraft]:
        return await self._outbox.read(lambda connection: on_cursor(connection, drafts.list_unconfirmed, owner))

    async def adopt(self) -> list[drafts.UnconfirmedDraft]:
        """Take over the unconfirmed replies of ended writers, and return them; each goes to one process."""
        pending = await self.list_unconfirmed()
        abandoned = await find_abandoned(self.writer_lock, sorted({draft.writer for draft in pending}))
        if not abandoned:
            return []
        writer = self.writer_lock.acquire()
        return await self._outbox.write(lambda connection: on_cursor(connection, drafts.adopt, abandoned, writer))

    async def release(self, conversation_id: str, message_id: str) -> bool:
        """Leave an unconfirmed reply of this process to whoever adopts it. Return False if there is none."""
        release = (conversation_id, message_id, self.writer_lock.writer or "")
        return await self._outbox.write(lambda connection: on_cursor(connection, drafts.release, *release))

    async def begin(self) -> None:
        """Recover what writers that have ended left behind."""
        self.writer_lock.remove_stale()
        await run_maintenance(self._outbox, self.writer_lock)

    async def maintain(self) -> None:
        """Periodically recover drafts of writers that have ended, and retry failed appends, until cancelled."""
        while True:
            await asyncio.sleep(MAINTENANCE_INTERVAL_SECONDS)
            await run_maintenance(self._outbox, self.writer_lock)
            await self.retry()

    async def retry(self) -> None:
        """Append interrupted replies that could not be appended before."""
        for reply in tuple(self.writing.values()):
            if reply._needs_retry:
                await reply._interrupt()
                self._forget_settled(reply)

    async def interrupt_all(self) -> None:
        """Cut off all replies that are being written."""
        for reply in tuple(self.writing.values()):
            await reply._interrupt()
            self._forget_settled(reply)

    async def report_unconfirmed(self, callback: OnUnconfirmed) -> None:
        """Call ``callback`` with the unconfirmed replies of ended writers, and take them over."""
        try:
            adopted = await self.adopt()
        except LetopisError as error:
            logger.warning("cannot see which replies were never confirmed: %s", error)
            return
        if adopted:
            await self.report(callback, *[await self.describe(draft, abandoned=True) for draft in adopted])

    async def report(self, callback: OnUnconfirmed, *replies: Unconfirmed) -> None:
        """Call ``callback``, and log it if that fails."""
        outcome = await call_with_timeout(callback, replies, seconds=_CALLBACK_TIMEOUT_SECONDS)
        if outcome.done is not True:
            logger.error(
                "on_unconfirmed did not take %d replies that were never confirmed: %s",
                len(replies),
                outcome.error or "it did not end in time",
            )

    def _forget_settled(self, reply: Reply) -> None:
        if reply._settled:  # the others are retried
            self.writing.pop((reply.conversation_id, reply.message_id), None)

    async def describe(self, draft: drafts.UnconfirmedDraft, *, abandoned: bool) -> Unconfirmed:
        return Unconfirmed(
            conversation_id=draft.conversation_id,
            message_id=draft.message_id,
            owner_id=draft.owner_id,
            appended_at=from_microseconds(draft.appended_at),
            message=await self._shown(draft),
            abandoned=abandoned,
        )

    async def _shown(self, draft: drafts.UnconfirmedDraft) -> Message | None:
        """Return the message, unless it was erased, here or through another outbox, or may have been."""
        try:
            named, complete = await self._finder.named(draft.conversation_id, (draft.message_id,))
        except LetopisError as error:
            logger.warning("the text of a reply that was never confirmed cannot be read: %s", error)
            return None
        message = named.get(draft.message_id)
        if message is None or message.redacted or not (complete or message.saved is not Saved.SAVED):
            return None
        return message.message


def _check(connection: sa.Connection, *, key: drafts.DraftKey, event_id: UUID, owner: str | None, chosen: bool) -> None:
    """Refuse a reply that could not be appended, before it is written."""
    conversation_id, message_id = key
    lane_owner, deleted = fetch_one(connection, _LANE, (conversation_id,)) or (None, 0)
    if deleted > 0:
        raise ConversationGone(conversation_id=conversation_id)
    if None not in (lane_owner, owner) and lane_owner != owner:
        raise InvalidInput("owner", "the conversation already belongs to another owner")
    if not chosen:
        return
    if holds_event(connection, event_id):
        raise IdReused(conversation_id=conversation_id, event_id=event_id, message_id=message_id)
    if on_cursor(connection, drafts.find, conversation_id, message_id) is not None:
        raise InvalidInput("message_id", "another reply is being written under this id")


async def _no_sender(_: str, __: str) -> bool:
    """Leave no reply to a sender."""
    return False
