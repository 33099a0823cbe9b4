"""Keep the large content of messages: as records of their conversation, written and removed with the events."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.cancellation import off_the_loop
from letopis.store.database.dialects import Dialect, in_batches, pages
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.schema import events, of_conversation, record_parts, records
from letopis.store.model.codec import EncodedEvent
from letopis.store.model.large_content import LIKE_REFERENCE, content_name, references_in
from letopis.store.model.records import RECORD_PUT, Media, Scope
from letopis.store.rules.apply_plan import Origin
from letopis.store.rules.record_plan import RecordChange, record_id
from letopis.store.write.lanes import AcceptedLane
from letopis.store.write.records import RecordWriter
from letopis.store.write.transaction import ApplyTransaction

_EVENTS_PER_READ: Final = 500


class ContentWriter:
    """Writes and removes large content under the lock of its conversation; the statements are compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        self._records = dialect.shared(RecordWriter)
        at = records.c.partition == sa.bindparam("partition")
        self._held = sa.select(records.c.record_id).where(at, dialect.among(records.c.record_id, "ids"))
        self._all = sa.select(records.c.record_id, records.c.record_key).where(
            at, records.c.scope == sa.bindparam("scope")
        )
        self._shown = (
            sa.select(events.c.version, events.c.type, events.c.data)
            .where(
                *of_conversation(events),
                events.c.version > sa.bindparam("after"),
                events.c.salt.is_not(None),
                events.c.data.contains(LIKE_REFERENCE),
            )
            .order_by(events.c.version)
            .limit(sa.literal_column(str(_EVENTS_PER_READ)))
        )

    async def write(self, transaction: ApplyTransaction, lane: AcceptedLane) -> None:
        """Write the content that fresh events show and the store does not hold, each read from the outbox."""
        # With the events as they are written: one that is erased in the same batch shows nothing any more.
        shown = {name: event for event in lane.result.events for name in _names(event)}
        scope, partition = Scope.content(lane.conversation_id), lane.partition
        ids = {record_id(scope, (b"", name.encode())): name for name in shown}
        for part in in_batches(sorted(ids, key=lambda record: record.bytes)):
            held = set((await transaction.execute(self._held, partition=partition, ids=part)).scalars())
            for record in part:
                if record not in held:
                    name = ids[record]
                    change = await _read(transaction.origin, lane.conversation_id, name, shown[name])
                    await self._records.insert(transaction, scope, partition, change)

    async def sweep(self, connection: AsyncConnection, partition: int, conversation_id: str) -> None:
        """Remove the content of a conversation that no event of the log shows any more."""
        # What an event shows that is not in the log yet is read from the outbox again, by the same transaction.
        values = {"partition": partition, "scope": Scope.content(conversation_id).name}
        held = {bytes(key).decode(): record for record, key in await connection.execute(self._all, values)}
        if held:
            key = {"partition": partition, "conversation": conversation_id}
            async for rows in pages(connection, self._shown, key, size=_EVENTS_PER_READ):
                for name in {name for row in rows for name in _names(row)}:
                    held.pop(name, None)
        ids = sorted(held.values(), key=lambda record: record.bytes)
        await self._records.remove(connection, partition, ids, (records, record_parts))


def _names(event: Any) -> set[str]:
    return references_in(event.type, event.data)


async def _read(origin: Origin, conversation_id: str, name: str, event: EncodedEvent) -> RecordChange:
    body = (event.contents or {}).get(name)
    if body is None and origin.read_content is not None:
        body = await off_the_loop(origin.read_content, conversation_id, name)
    if body == b"":
        reason = "large content was erased, or the outbox file could not be read, during the delivery: it is repeated"
        raise StoreFault(fault_class=FaultClass.CONFLICT, code="content-erased", reason=reason)
    checksum = "" if body is None else sha256(body).hexdigest()
    if body is None or content_name(conversation_id, checksum) != name:
        state = "is missing" if body is None else "is not what was appended"
        reason = f"large content of the message {state} in the outbox file: `letopis outbox verify` tells more"
        raise StoreFault(fault_class=FaultClass.POISON, code="content", reason=reason)
    return RecordChange(
        sequence=0,
        event_id=event.event_id,
        type=RECORD_PUT,
        key=name.encode(),
        media=Media.BYTES,
        size=len(body),
        occurred_at=event.occurred_at,
        checksum=checksum,
        salt=event.salt,
        body=body,
    )
