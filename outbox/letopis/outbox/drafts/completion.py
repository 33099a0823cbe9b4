"""Turn a draft into one message of the log, by its writer or by a process that recovers it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.append import append_events
from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.event_log.statements import on_cursor
from letopis.store.errors import Closed, ConversationGone, IdReused, InvalidInput, LetopisError
from letopis.store.model.codec import Limits, decode
from letopis.store.model.event_types import MessageAppended
from letopis.store.model.events import Event, from_microseconds

if TYPE_CHECKING:
    from letopis.outbox.drafts.writer_lock import WriterLock
    from letopis.outbox.file.outbox_file import OutboxFile

logger: Final = logging.getLogger("letopis.outbox.history")

UNCONFIRMED_TTL: Final = timedelta(days=30)
"""How long a reply waits to be confirmed, at least; it is forgotten once the outbox no longer holds its message."""
_WIDEST_LIMITS: Final = Limits(max_bytes=8_388_608, max_depth=200)
_RECHECK_SECONDS: Final = 0.01  # live writers are checked again: another process may have checked just then


FINAL_REFUSALS: Final = (IdReused, ConversationGone, drafts.Erased)
"""Refusals that make a draft useless: its message is in the log already, or its conversation was erased."""


def complete(connection: sa.Connection, outbox: OutboxFile, prepared: Prepared) -> Appended:
    """Append the message of a reply and delete its draft, in an open write transaction."""
    with closing(connection.connection.cursor()) as cursor:
        outbox.gate.check_room(cursor)
        (outcome,) = append_events(cursor, (prepared,), now_us=outbox.now_us())
        if isinstance(outcome, LetopisError):
            raise outcome
        delete_draft(cursor, prepared)
    return outcome


def delete_draft(cursor: Any, prepared: Prepared) -> None:
    """Delete the draft of a message that has just been appended."""
    drafts.delete(cursor, prepared.conversation_id, str(prepared.message_ids[0]), prepared.events[0].event_id)


async def find_abandoned(lock: WriterLock, writers: Iterable[str]) -> list[str]:
    ended: list[str] = []
    alive: list[str] = []
    for writer in writers:
        if writer == lock.writer:
            continue
        (ended if lock.is_abandoned(writer) else alive).append(writer)
    if alive:
        await asyncio.sleep(_RECHECK_SECONDS)
        ended.extend(writer for writer in alive if lock.is_abandoned(writer))
    return ended


async def recover(outbox: OutboxFile, lock: WriterLock) -> int:
    """Turn the drafts of ended writers into messages, each once; return how many this call turned."""
    recovered = 0
    writers = await outbox.read(lambda connection: on_cursor(connection, drafts.list_writers))
    for writer in await find_abandoned(lock, writers):
        keys = await outbox.read(lambda connection, name=writer: on_cursor(connection, drafts.list_keys, name))  # type: ignore[misc]
        for key in keys:
            recovered += await _recover(outbox, writer, key)
    return recovered


async def _recover(outbox: OutboxFile, writer: str, key: drafts.DraftKey) -> int:
    conversation_id, message_id = key
    context = {"conversation_id": conversation_id, "message_id": message_id}

    def work(connection: sa.Connection) -> tuple[drafts.Draft, LetopisError | None] | None:
        # Read again in the transaction: another process may have been faster.
        draft = on_cursor(connection, drafts.find, conversation_id, message_id)
        if draft is None or draft.writer != writer:
            return None
        if not draft.data:
            on_cursor(connection, drafts.delete, conversation_id, message_id, draft.event_id)
            return None
        try:
            complete(connection, outbox, _interrupted(draft))
        except FINAL_REFUSALS as refused:
            on_cursor(connection, drafts.delete, conversation_id, message_id, draft.event_id)
            return draft, refused
        return draft, None

    try:
        outcome = await outbox.write(work)
    except (InvalidInput, ValueError) as refused:
        # Kept for the operator; other drafts go on.
        reason = refused.reason if isinstance(refused, InvalidInput) else "it is damaged in the outbox file"
        # No traceback: it could quote the text.
        logger.error("a reply that was cut off cannot be appended, and stays a draft: %s", reason, extra=context)  # noqa: TRY400
        return 0
    if outcome is None:
        return 0
    draft, refusal = outcome
    context |= {"owner_id": draft.owner_id or "", "event_id": str(draft.event_id)}
    if refusal is not None:
        logger.warning("the draft of a reply was discarded: %s", refusal, extra=context)
        return 0
    outbox.appended.notify()
    logger.warning("a reply was cut off when its writer ended: it is in the history, as interrupted", extra=context)
    return 1


def _interrupted(draft: drafts.Draft) -> Prepared:
    data = dict(decode(draft.data))
    confirm = data.pop(drafts.CONFIRM, True)
    event = Event(
        type=MessageAppended.type, data=data, event_id=draft.event_id, occurred_at=from_microseconds(draft.updated_at)
    )
    prepared = prepare(draft.conversation_id, (event,), owner=draft.owner_id, limits=_WIDEST_LIMITS)
    if confirm:
        prepared.to_confirm, prepared.writer = {draft.event_id: draft.message_id}, draft.writer
    return prepared


async def run_maintenance(outbox: OutboxFile, lock: WriterLock) -> None:
    """Run :func:`recover`, and forget replies that have waited to be confirmed for too long."""
    before = outbox.now_us() - UNCONFIRMED_TTL // timedelta(microseconds=1)
    try:
        await recover(outbox, lock)
        if await outbox.read(lambda connection: on_cursor(connection, drafts.has_expired, before)):
            await outbox.write(lambda connection: on_cursor(connection, drafts.delete_expired, before))
    except Closed:
        raise
    except LetopisError as error:
        logger.warning("replies that were cut off are not in the history yet: %s", error)
