"""Verbs: what a person does about an outbox that is stuck, on an open file, with the relay woken afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox import hold, repair
from letopis.outbox.file import OutboxFile
from letopis.outbox.repair import Entry, NotRepairable, Selection, checked_reason
from letopis.store.codec import DEFAULT_LIMITS, Limits
from letopis.store.history import ConversationStore

T = TypeVar("T")


async def retry(outbox: OutboxFile, selection: Selection) -> list[str]:
    """Have blocked and retrying conversations tried again now; return them. See :func:`~letopis.outbox.repair.retry`.

    :raises OutboxUnavailable: the file cannot be written.
    """
    return await _done(outbox, partial(repair.retry, selection=selection))


async def pause(outbox: OutboxFile, selection: Selection) -> list[str]:
    """Hold conversations back; return them. See :func:`~letopis.outbox.repair.pause`.

    :raises OutboxUnavailable: the file cannot be written.
    """
    return await _done(outbox, partial(repair.pause, selection=selection))


async def resume(outbox: OutboxFile, selection: Selection) -> list[str]:
    """Let paused conversations go on; return them.

    :raises OutboxUnavailable: the file cannot be written.
    """
    return await _done(outbox, partial(repair.resume, selection=selection))


async def pause_relay(outbox: OutboxFile, *, reason: str | None = None, by: str | None = None) -> None:
    """Hold the whole relay back, in whichever process it runs. See :func:`~letopis.outbox.hold.hold`.

    :raises InvalidInput: the reason is empty or too long.
    :raises OutboxUnavailable: the file cannot be written.
    """
    said = None if reason is None else checked_reason(reason)
    await _done(outbox, partial(hold.hold, now_us=outbox.now_us(), reason=said, by=by))


async def resume_relay(outbox: OutboxFile) -> bool:
    """Let the relay go on; whether it was held back.

    :raises OutboxUnavailable: the file cannot be written.
    """
    return await _done(outbox, hold.release)


async def skip(outbox: OutboxFile, event_id: UUID, *, reason: str, by: str | None = None) -> Entry:
    """Let an event go: the history gets a tombstone in its place. See :func:`~letopis.outbox.repair.skip`.

    :raises NotRepairable: the event is not one that holds up its conversation.
    :raises InvalidInput: the reason is empty or too long.
    :raises OutboxUnavailable: the file cannot be written.
    """
    work = partial(repair.skip, event_id=event_id, reason=reason, now_us=outbox.now_us(), by=by)
    return await _done(outbox, work)


async def skip_missing(
    outbox: OutboxFile, store: ConversationStore, conversation_id: str, *, reason: str
) -> tuple[int, ...]:
    """Put tombstones where neither the file nor the history store holds an event; return their sequences.

    :raises NotRepairable: the conversation is not blocked, or nothing is missing.
    :raises StoreFault: the store, which has to be asked how far it holds the conversation, cannot be.
    :raises InvalidInput: the reason is empty or too long.
    :raises OutboxUnavailable: the file cannot be written.
    """
    heads = await store.lane_heads(outbox.origin.origin_id, [conversation_id])
    work = partial(
        repair.skip_missing,
        conversation_id=conversation_id,
        held=heads.get(conversation_id, 0),
        reason=reason,
        now_us=outbox.now_us(),
    )
    return await _done(outbox, work)


async def fix(
    outbox: OutboxFile,
    event_id: UUID,
    data: Mapping[str, Any] | None,
    *,
    reason: str,
    metadata: Mapping[str, Any] | None = None,
    by: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Entry:
    """Give an event corrected data; the original is kept. See :func:`~letopis.outbox.repair.fix`.

    :raises NotRepairable: the event is not one that holds up its conversation.
    :raises InvalidInput: the data is not what the event needs, or would be refused again; or the reason is empty.
    :raises OutboxUnavailable: the file cannot be written.
    """
    work = partial(
        repair.fix,
        event_id=event_id,
        data=data,
        metadata=metadata,
        reason=reason,
        now_us=outbox.now_us(),
        by=by,
        limits=limits,
    )
    return await _done(outbox, work)


async def restore(outbox: OutboxFile, event_id: UUID, *, reason: str, by: str | None = None) -> Entry:
    """Put an event back as it was appended. See :func:`~letopis.outbox.repair.restore`.

    :raises NotRepairable: the event is not one that holds up its conversation, or was never repaired.
    :raises InvalidInput: the reason is empty or too long.
    :raises OutboxUnavailable: the file cannot be written.
    """
    work = partial(repair.restore, event_id=event_id, reason=reason, now_us=outbox.now_us(), by=by)
    return await _done(outbox, work)


async def _done(outbox: OutboxFile, work: Callable[[sa.Connection], T]) -> T:
    result = await outbox.write(work)
    outbox.appended.ring()  # a relay of this process looks at once; one elsewhere sees the file change
    return result


__all__ = (
    "NotRepairable",
    "Selection",
    "fix",
    "pause",
    "pause_relay",
    "restore",
    "resume",
    "resume_relay",
    "retry",
    "skip",
    "skip_missing",
)
