"""Check that an outbox file holds the values of its records, and compare its record lanes with the history store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing
from hashlib import sha256
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.diagnostics.reference import ReferenceLog
from letopis.store.database.schema import record_lanes, record_ledger
from letopis.store.model.codec import decode
from letopis.store.model.records import is_record_lane, shown_lane

_PUTS: Final = (
    "SELECT l.conversation_id, e.sequence, e.data, b.size, b.body FROM letopis_outbox_events AS e"
    " JOIN letopis_outbox_lanes AS l ON l.lane = e.lane"
    " LEFT JOIN letopis_outbox_record_bodies AS b ON b.position = e.position"
    " WHERE e.type = 'record.put' AND e.redacted = 0"
)
_STRAYS: Final = (
    "SELECT count(*) FROM letopis_outbox_record_bodies AS b"
    " WHERE NOT EXISTS (SELECT 1 FROM letopis_outbox_events AS e WHERE e.position = b.position)"
)
_LOOSE: Final = (
    "SELECT count(*) FROM letopis_outbox_records AS r WHERE NOT EXISTS (SELECT 1 FROM letopis_outbox_events AS e"
    " WHERE e.lane = r.lane AND e.sequence = r.sequence AND e.position = r.position)"
)


def record_problems(connection: sa.Connection) -> Iterator[str]:
    """the values of records"""
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(_PUTS)
        while (row := cursor.fetchone()) is not None:
            lane, sequence, data, size, body = row
            if body is None:
                yield f"{shown_lane(lane)}: the value of event {sequence} is missing"
            elif len(body) != size or sha256(body).hexdigest() != decode(data).get("sha256"):
                yield f"{shown_lane(lane)}: the value of event {sequence} is not what was put"
    if count := connection.exec_driver_sql(_STRAYS).scalar_one():
        yield f"{count} values of records belong to no event"
    if count := connection.exec_driver_sql(_LOOSE).scalar_one():
        yield f"{count} records are not found in the log"


async def record_differences(
    kept: ReferenceLog, connection: AsyncConnection, heads: Mapping[str, int]
) -> AsyncIterator[str]:
    """Yield the contradictions between the record lanes of an outbox and the ledger of its history store."""
    floors = {
        row.lane: row.floor
        for row in await connection.execute(
            sa.select(record_lanes.c.lane, record_lanes.c.floor).where(record_lanes.c.origin_id == kept.origin_id)
        )
    }
    one = record_ledger
    seen = set[tuple[str, int]]()
    statement = sa.select(one.c.lane, one.c.sequence, one.c.event_id, one.c.digest).where(
        one.c.origin_id == kept.origin_id
    )
    async for row in await connection.stream(statement):
        ours = kept.events.get((row.lane, row.sequence))
        if ours is None:
            continue
        seen.add((row.lane, row.sequence))
        changed = row.digest is not None and not ours[3] and bytes(row.digest) != ours[1]
        if changed or ours[0] != row.event_id.bytes:
            yield f"event {row.sequence} of {shown_lane(row.lane)} differs in the history store"
    for lane, sequence in kept.events:
        if not is_record_lane(lane) or (lane, sequence) in seen:
            continue
        delivered = min(kept.lanes.get(lane, (0, 0))[1], heads.get(lane, 0))
        if floors.get(lane, 0) < sequence <= delivered:
            yield f"event {sequence} of {shown_lane(lane)} counts as delivered, and no ledger has it"
