"""Rebirth: give a copied outbox file an identity of its own, so that it may live on beside its original."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from letopis.outbox.clock import Clock
from letopis.outbox.file import OutboxFile
from letopis.outbox.identity import renew
from letopis.outbox.lease import Lease
from letopis.store.errors import OutboxUnavailable
from letopis.store.plan import Origin
from letopis.store.shield import uninterrupted

# What the old identity delivered stays in the history store under it. Here it goes: the new one starts every lane at 1.
_FORGET_DELIVERED: Final = (
    "DELETE FROM letopis_outbox_events WHERE sequence <= (SELECT delivered FROM letopis_outbox_lanes AS l"
    " WHERE l.conversation_id = letopis_outbox_events.conversation_id)"
)
# In two steps, since SQLite checks that sequences are unique row by row: below zero, where nothing is, then back.
_RENUMBER: Final = (
    (
        "UPDATE letopis_outbox_events SET sequence = (SELECT delivered FROM letopis_outbox_lanes AS l"
        " WHERE l.conversation_id = letopis_outbox_events.conversation_id) - sequence"
    ),
    "UPDATE letopis_outbox_events SET sequence = -sequence WHERE sequence < 0",
)
# An open incident of a conversation names the sequence whose delivery ends it.
_SHIFT_MARKS: Final = (
    "UPDATE letopis_outbox_incidents SET mark = mark - (SELECT delivered FROM letopis_outbox_lanes AS l"
    " WHERE l.conversation_id = letopis_outbox_incidents.conversation_id)"
    " WHERE resolved_at IS NULL AND conversation_id IN (SELECT conversation_id FROM letopis_outbox_lanes)"
)
# What a pending event's writer had seen of this outbox is numbered anew too. What of it was delivered, the history
# store knows as the original's: to have seen that is to have seen nothing of one's own.
_SHIFT_CONDITIONS: Final = (
    """UPDATE letopis_outbox_events SET metadata = json_set(metadata, '$."letopis.expects".sequence', max(0,"""
    """ json_extract(metadata, '$."letopis.expects".sequence') - (SELECT delivered FROM letopis_outbox_lanes AS l"""
    """ WHERE l.conversation_id = letopis_outbox_events.conversation_id)))"""
    """ WHERE iif(json_valid(metadata), json_type(metadata, '$."letopis.expects".sequence'), NULL) = 'integer'"""
)
_FORGET_VERDICTS: Final = "DELETE FROM letopis_outbox_superseded"
# A conversation that was deleted stays known as that, so that nothing more is appended to it.
_FORGET_LANES: Final = "DELETE FROM letopis_outbox_lanes WHERE delivered = head AND deleted = 0"
_RESTART_LANES: Final = (
    "UPDATE letopis_outbox_lanes SET head = head - delivered, delivered = 0, pruned = 0,"
    " deleted = iif(deleted = 0, 0, max(1, deleted - delivered))"
)
_COUNT: Final = "SELECT count(*), coalesce(sum(head - delivered), 0) FROM letopis_outbox_lanes WHERE delivered < head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reborn:
    """What became of the file.

    :ivar origin: the new identity, at epoch 1.
    :ivar pending: events that will be delivered under it, in ``conversations``.
    """

    origin: Origin
    pending: int
    conversations: int


async def give_new_origin(path: str | os.PathLike[str]) -> Reborn:
    """Give an outbox file a new identity, in one transaction.

    What is pending is kept, in order, and numbered anew from 1; what the history store holds of it already, because the
    original delivered it, is recognised there by its event ids. The retained tail of delivered events goes, so reads
    during an outage show only what is said from now on, and no store can be healed from it.

    :raises ConfigurationError: there is no outbox.
    :raises OutboxUnavailable: a relay has the file; nothing was changed.
    """
    outbox = await OutboxFile.open(path, create=False)
    try:
        # With the lease in hand no relay delivers under the old identity, and what one that stood still may yet write
        # back is refused. Who only appends is not in the way.
        lease = Lease(outbox, clock=Clock(), holder="letopis init --new-origin")
        if not await lease.take():
            raise OutboxUnavailable(
                "a relay is at work on this outbox: stop it, and the bot that runs it, then try again"
            )
        try:
            return await outbox.write(lambda connection: _renew(connection, outbox.path, outbox.now_us()))
        finally:
            await uninterrupted(lease.release())
    finally:
        await outbox.close()


def _renew(connection: sa.Connection, path: Path, now_us: int) -> Reborn:
    conversations, pending = connection.exec_driver_sql(_COUNT).one()
    for statement in (
        _FORGET_DELIVERED,
        _FORGET_VERDICTS,
        _SHIFT_CONDITIONS,
        *_RENUMBER,
        _SHIFT_MARKS,
        _FORGET_LANES,
        _RESTART_LANES,
    ):
        connection.exec_driver_sql(statement)
    return Reborn(origin=renew(connection, path, now_us=now_us), pending=pending, conversations=conversations)
