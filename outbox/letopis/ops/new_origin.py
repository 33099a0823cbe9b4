"""Give a copied outbox file an identity of its own, so that it can be used beside its original."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.contents import remove_pruned
from letopis.outbox.event_log.event_ids import RECOUNT, index_event_ids
from letopis.outbox.event_log.statements import on_cursor
from letopis.outbox.file.identity import assign_new_identity
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.lease import Lease
from letopis.store.cancellation import run_to_completion
from letopis.store.errors import OutboxUnavailable
from letopis.store.rules.apply_plan import Origin

# Events delivered under the old identity stay in the history store. They are deleted here: each lane restarts at 1.
_FORGET_DELIVERED: Final = (
    "DELETE FROM letopis_outbox_events WHERE sequence <= (SELECT delivered FROM letopis_outbox_lanes AS l"
    " WHERE l.lane = letopis_outbox_events.lane)"
)
_FORGET_IDS: Final = (
    "DELETE FROM letopis_outbox_event_ids WHERE position NOT IN (SELECT position FROM letopis_outbox_events)"
)
# In two steps, since SQLite checks that sequences are unique row by row: below zero, where nothing is, then back.
_RENUMBER: Final = (
    (
        "UPDATE letopis_outbox_events SET sequence = (SELECT delivered FROM letopis_outbox_lanes AS l"
        " WHERE l.lane = letopis_outbox_events.lane) - sequence"
    ),
    "UPDATE letopis_outbox_events SET sequence = -sequence WHERE sequence < 0",
)
# An open incident of a conversation names the sequence whose delivery ends it.
_SHIFT_MARKS: Final = (
    "UPDATE letopis_outbox_incidents SET mark = mark - (SELECT delivered FROM letopis_outbox_lanes AS l"
    " WHERE l.conversation_id = letopis_outbox_incidents.conversation_id)"
    " WHERE resolved_at IS NULL AND conversation_id IN (SELECT conversation_id FROM letopis_outbox_lanes)"
)
# Preconditions of pending events are renumbered too. Delivered events belong to the original in the history store, so
# a precondition on one of them becomes one on nothing.
_SHIFT_CONDITIONS: Final = (
    """UPDATE letopis_outbox_events SET metadata = json_set(metadata, '$."letopis.expects".sequence', max(0,"""
    """ json_extract(metadata, '$."letopis.expects".sequence') - (SELECT delivered FROM letopis_outbox_lanes AS l"""
    """ WHERE l.lane = letopis_outbox_events.lane)))"""
    """ WHERE iif(json_valid(metadata), json_type(metadata, '$."letopis.expects".sequence'), NULL) = 'integer'"""
)
_FORGET_VERDICTS: Final = "DELETE FROM letopis_outbox_superseded"
# A deleted conversation is kept as deleted, so that nothing more is appended to it.
_FORGET_LANES: Final = "DELETE FROM letopis_outbox_lanes WHERE delivered = head AND deleted_at = 0"
_RESTART_LANES: Final = (
    "UPDATE letopis_outbox_lanes SET head = head - delivered, delivered = 0, pruned = 0, erased_before = 0,"
    " deleted_at = iif(deleted_at > 0, max(1, deleted_at - delivered), 0), reset_at = max(0, reset_at - delivered),"
    " trim_before = 0,"
    # Faults belong to the old identity. Only a lane that an operator paused stays paused.
    " state = iif(state = 'paused', state, 'ready'), attempts = 0, due_at = 0, fault_class = NULL, fault = NULL"
)
_COUNT: Final = (
    "SELECT count(*), coalesce(sum(head - delivered), 0), coalesce(sum(state = 'paused'), 0)"
    " FROM letopis_outbox_lanes WHERE pending_since IS NOT NULL AND delivered < head"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginReset:
    origin: Origin
    pending: int
    conversations: int
    paused: int


async def assign_new_origin(path: str | os.PathLike[str]) -> OriginReset:
    """Give an outbox file a new identity, renumber pending events from 1, and drop the delivered tail."""
    outbox = await OutboxFile.open(path, create=False)
    try:
        # While this holds the lease no relay delivers under the old identity, and late acknowledgements are refused.
        # Processes that only append do no harm.
        lease = Lease(outbox, clock=Clock(), holder="letopis init --new-origin")
        if not await lease.acquire():
            raise OutboxUnavailable("a relay runs on this outbox: stop it, or the bot that runs it, then try again")
        try:
            return await outbox.write(lambda connection: _renew(connection, outbox.path, outbox.now_us()))
        finally:
            await run_to_completion(lease.release())
    finally:
        await outbox.close()


def _renew(connection: sa.Connection, path: Path, now_us: int) -> OriginReset:
    conversations, pending, paused = connection.exec_driver_sql(_COUNT).one()
    on_cursor(connection, index_event_ids)
    forget, restart = (_FORGET_DELIVERED, _FORGET_IDS, _FORGET_VERDICTS), (_FORGET_LANES, _RESTART_LANES, RECOUNT)
    for statement in (*forget, _SHIFT_CONDITIONS, *_RENUMBER, _SHIFT_MARKS, *restart):
        connection.exec_driver_sql(statement)
    on_cursor(connection, remove_pruned)
    origin = assign_new_identity(connection, path, now_us=now_us)
    return OriginReset(origin=origin, pending=pending, conversations=conversations, paused=paused)
