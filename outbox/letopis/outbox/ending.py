"""Ending: a draft becomes a message of the log, once, whether its writer ends it or somebody who finds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox import drafts
from letopis.outbox.append import Appended, Prepared, append_events, prepare
from letopis.outbox.file import OutboxFile
from letopis.outbox.liveness import Liveness
from letopis.store.codec import Limits, decode
from letopis.store.errors import Closed, ConversationGone, EventIdReused, InvalidInput, LetopisError
from letopis.store.events import Event, from_microseconds
from letopis.store.vocabulary import MessageAppended

T = TypeVar("T")
logger: Final = logging.getLogger("letopis.outbox.history")

OUT_OF_MIND: Final = timedelta(days=30)
"""How long a reply waits to be confirmed, at least; then it is let go once the outbox no longer holds its message."""
VAIN: Final = (EventIdReused, ConversationGone)
"""Refusals after which a draft is of no use: its message is in the log already, or its conversation was deleted."""
_WIDEST: Final = Limits(max_bytes=8_388_608, max_depth=200)
_SECOND_LOOK: Final = 0.01
"""Seconds after which those who seem to live are looked at again: another may have looked at the same instant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a reply ends.

    :ivar prepared: the one event that appends the message.
    :ivar writer: who is to confirm that it was sent; ``None`` where nobody is.
    """

    prepared: Prepared
    message_id: str
    writer: str | None


def end(connection: sa.Connection, outbox: OutboxFile, ending: Ending) -> Appended:
    """Append the message, delete its draft, and note that it is to be confirmed; in an open write transaction.

    :raises LetopisError: the append was refused; nothing was written.
    """
    prepared = ending.prepared
    event_id = prepared.events[0].event_id
    cursor = connection.connection.cursor()
    try:
        outbox.check_room(cursor)
        now_us = outbox.now_us()
        (outcome,) = append_events(cursor, (prepared,), now_us=now_us, careful=True)
        if isinstance(outcome, LetopisError):
            raise outcome
        drafts.drop(cursor, prepared.conversation_id, ending.message_id, event_id)
        # Where it was there already, the transaction that wrote it has seen to it, and it may be confirmed since.
        if outcome.written and ending.writer is not None:
            drafts.owe(
                cursor,
                prepared.conversation_id,
                ending.message_id,
                event_id=event_id,
                owner_id=outcome.owner_id,
                writer=ending.writer,
                now_us=now_us,
            )
    finally:
        cursor.close()
    return outcome


async def let_go(outbox: OutboxFile, conversation_id: str, message_id: str, event_id: UUID) -> None:
    """Delete a draft that becomes no message.

    :raises OutboxUnavailable: the file cannot be written.
    """
    await outbox.write(lambda connection: _with(connection, drafts.drop, conversation_id, message_id, event_id))


async def gone(liveness: Liveness, writers: Iterable[str]) -> list[str]:
    """Return which of the writers live no more."""
    found: list[str] = []
    alive: list[str] = []
    for writer in writers:
        if writer == liveness.writer:
            continue
        (found if liveness.gone(writer) else alive).append(writer)
    if alive:
        await asyncio.sleep(_SECOND_LOOK)
        found.extend(writer for writer in alive if liveness.gone(writer))
    return found


async def recover(outbox: OutboxFile, liveness: Liveness) -> int:
    """Make messages of the drafts whose writers are gone, each once, whoever else does so; return how many it made.

    What cannot be appended now, because the outbox is full, stays for the next time.

    :raises LetopisError: the file cannot be read or written, or takes no more.
    """
    recovered = 0
    writers = await outbox.read(lambda connection: _with(connection, drafts.writers))
    for writer in await gone(liveness, writers):
        keys = await outbox.read(lambda connection, one=writer: _with(connection, drafts.keys_of, one))  # type: ignore[misc]
        for key in keys:
            recovered += await _recover(outbox, writer, key)
    return recovered


async def _recover(outbox: OutboxFile, writer: str, key: drafts.Key) -> int:
    conversation_id, message_id = key
    context = {"conversation_id": conversation_id, "message_id": message_id}

    def work(connection: sa.Connection) -> tuple[drafts.Draft, LetopisError | None] | None:
        # Looked at again here: another process may have been faster.
        draft = _with(connection, drafts.find, conversation_id, message_id)
        if draft is None or draft.writer != writer:
            return None
        try:
            end(connection, outbox, _interrupted(draft))
        except VAIN as refused:
            _with(connection, drafts.drop, conversation_id, message_id, draft.event_id)
            return draft, refused
        return draft, None

    try:
        outcome = await outbox.write(work)
    except (InvalidInput, ValueError) as refused:
        # Kept for a person; nothing else is held up by it.
        reason = refused.reason if isinstance(refused, InvalidInput) else "it is damaged in the outbox file"
        # No traceback: it could quote the text.
        logger.error("a reply that was cut off cannot be appended, and stays a draft: %s", reason, extra=context)  # noqa: TRY400
        return 0
    if outcome is None:
        return 0
    draft, refusal = outcome
    context |= {"owner_id": draft.owner_id or "", "event_id": str(draft.event_id)}
    if refusal is not None:
        logger.warning("the draft of a reply was let go: %s", refusal, extra=context)
        return 0
    outbox.appended.ring()
    logger.warning("a reply was cut off when its writer ended: it is in the history, as interrupted", extra=context)
    return 1


def _interrupted(draft: drafts.Draft) -> Ending:
    event = Event(
        type=MessageAppended.type,
        data=decode(draft.data),
        event_id=draft.event_id,
        occurred_at=from_microseconds(draft.updated_at),
    )
    prepared = prepare(draft.conversation_id, (event,), owner=draft.owner_id, limits=_WIDEST)
    return Ending(prepared=prepared, message_id=draft.message_id, writer=draft.writer)


async def tend(outbox: OutboxFile, liveness: Liveness) -> None:
    """Run :func:`recover`, and let go what has waited to be confirmed for too long.

    What cannot be done now is logged, and left for the next time.
    """
    before = outbox.now_us() - OUT_OF_MIND // timedelta(microseconds=1)
    try:
        await recover(outbox, liveness)
        if await outbox.read(lambda connection: _with(connection, drafts.any_before, before)):
            await outbox.write(lambda connection: _with(connection, drafts.let_go, before))
    except Closed:
        raise
    except LetopisError as error:
        logger.warning("replies that were cut off are not in the history yet: %s", error)


def _with(connection: sa.Connection, work: Callable[..., T], *args: object) -> T:
    cursor = connection.connection.cursor()
    try:
        return work(cursor, *args)
    finally:
        cursor.close()
