"""Give fresh events their positions and append them to the log."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect
from letopis.store.database.log_state import check_counters
from letopis.store.database.schema import events, log_heads
from letopis.store.rules.apply_plan import TableRow
from letopis.store.write.lanes import AcceptedLane
from letopis.store.write.transaction import ApplyTransaction


class LogWriter:
    """Appends to the log; the statement is compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        self._heads = dialect.locked(
            sa.select(log_heads)
            .where(dialect.among(log_heads.c.partition, "partitions"))
            .order_by(log_heads.c.partition)
        )

    async def append(
        self, transaction: ApplyTransaction, accepted: Sequence[AcceptedLane], projected: Sequence[AcceptedLane]
    ) -> list[TableRow]:
        """Write the events and return their rows.

        All writers share the counter of a partition, so that it is locked last and held only until the commit.
        """
        # Also if nothing of a lane is new to the log: a closed log lets no lane change.
        wanted = sorted({lane.partition for lane in accepted if lane.moves})
        if not wanted:
            return []
        found = (await transaction.execute(self._heads, partitions=wanted)).all()
        heads: dict[int, int] = {row.partition: row.position for row in found}
        check_counters([row.closed for row in found], expected=len(wanted))
        recorded, origin_id, now = list[TableRow](), transaction.origin.origin_id, transaction.now
        for lane in projected:
            result = lane.result
            position = heads[lane.partition]
            for decoded, event, version in zip(lane.fresh, result.events, result.versions, strict=True):
                position += 1
                recorded.append(
                    (
                        lane.partition,
                        position,
                        event.conversation_id,
                        version,
                        event.event_id,
                        origin_id,
                        decoded.delivery.sequence,
                        event.type,
                        event.schema_version,
                        event.data,
                        event.metadata,
                        event.digest,
                        event.salt,
                        event.occurred_at,
                        now,
                    )
                )
            heads[lane.partition] = position
        await transaction.dialect.insert(transaction.connection, events, recorded)
        await transaction.dialect.overwrite(
            transaction.connection, log_heads, [(partition, head, 0) for partition, head in sorted(heads.items())]
        )
        return recorded
