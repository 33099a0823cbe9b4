"""Write what a batch comes to: rows, content that is erased, and the events at their positions in the log."""

from __future__ import annotations

import time
from collections.abc import Sequence

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import conversations, messages
from letopis.store.read.task_marks import LEAVE, RESET, Task, write_marks
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.projection import Projected
from letopis.store.write.lanes import AcceptedLane
from letopis.store.write.owners import OwnerStatements, lock_owners, write_owners
from letopis.store.write.redaction import Eraser
from letopis.store.write.transaction import ApplyTransaction


class RowWriter:
    """Writes the rows of a batch; the statements are compiled once."""

    def __init__(self, dialect: Dialect, eraser: Eraser) -> None:
        self._eraser = eraser
        self._owners = dialect.shared(OwnerStatements)

    async def write(
        self, transaction: ApplyTransaction, lanes: Sequence[AcceptedLane], *, delivered: Sequence[AcceptedLane]
    ) -> None:
        """Write what a batch makes of its conversations, messages and owners.

        :param lanes: in the order of their locks.
        :param delivered: the same in the order of the batch, in which conversations are numbered and activated.
        """
        concerned = [lane.result for lane in delivered if lane.result.concerns_owner]
        owners = await lock_owners(transaction, self._owners, concerned) if concerned else {}
        new_rows, old_rows = list[TableRow](), list[TableRow]()
        new_messages, old_messages = list[TableRow](), list[TableRow]()
        for lane in lanes:
            row = lane.result.row
            (new_rows if row.new else old_rows).append(row.as_row())
            for message in lane.result.messages:
                rows = new_messages if message.new else old_messages
                rows.append(message.as_row(lane.partition, row.conversation_id))
        dialect, connection = transaction.dialect, transaction.connection
        await dialect.write(connection, conversations, new_rows, old_rows)
        await dialect.write(connection, messages, new_messages, old_messages)
        if owners:
            await write_owners(transaction, self._owners, [lane.result for lane in delivered], owners)
        for lane in lanes:
            if not lane.plain:
                await self._erase(transaction, lane)

    async def _erase(self, transaction: ApplyTransaction, lane: AcceptedLane) -> None:
        """Take the content of redacted messages and erased conversations out of stored events, or mark it as erased."""
        connection, now = transaction.connection, transaction.now
        result, retained = lane.result, lane.result.row.retained
        place, before = (connection, lane.partition, lane.conversation_id), result.versions.start - 1
        await write_marks(connection, transaction.dialect, _removal_tasks(lane.partition, result, now))
        everything = result.deleted or result.reset_at is not None
        if everything and result.cuts:
            await self._eraser.mark_erased(*place, after=retained, upto=before, now=now)
        elif everything:
            await self._eraser.erase_messages(*place, upto=before, reset_at=result.reset_at)
            await self._eraser.strip(*place, after=retained, upto=before)
        if result.redactions and (retained > 0 or not everything):  # also in what is retained for forks
            await self._eraser.strip_messages(*place, result.redactions, upto=before)
        # Retained content is checked again afterwards: only then is all of this batch there to look at.
        transaction.released |= result.released or (everything and retained > 0)
        transaction.erased |= everything or bool(result.redactions)


async def append_to_log(transaction: ApplyTransaction, accepted: Sequence[AcceptedLane]) -> None:
    """Give fresh events their positions, in the order of the batch, and write them.

    The counters are locked last, and held only until the commit.
    """
    # Also if nothing of a lane is new to the log: a closed log lets no lane change.
    added = {lane.partition: 0 for lane in accepted if lane.moves}
    if not added:
        return
    rows, origin_id, now = list[TableRow](), transaction.origin.origin_id, transaction.now
    for lane in accepted:
        if not lane.fresh:
            continue
        position, version = added[lane.partition], lane.result.first
        for decoded, event in zip(lane.fresh, lane.result.events, strict=True):
            position += 1
            rows.append(
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
            version += 1
        added[lane.partition] = position
    transaction.log_locked_at = time.monotonic()
    transaction.appended = rows
    transaction.counters = await transaction.dialect.append_to_log(transaction.connection, added, rows)


def _removal_tasks(partition: int, projected: Projected, now: int) -> list[Task]:
    """Return the tasks for messages that left the path, or were reset, without being loaded."""
    marks = [(LEAVE, after, version) for after, version in projected.cuts]
    if projected.cuts and projected.reset_at is not None:
        marks.append((RESET, 0, projected.reset_at))
    return [
        Task(
            partition=partition,
            conversation_id=projected.row.conversation_id,
            kind=kind,
            version=version,
            after=after,
            upto=projected.versions.start - 1,
            created_at=now,
        )
        for kind, after, version in marks
    ]
