"""Write projected rows, the owners' rows, and take redacted content out of stored events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import conversations, messages
from letopis.store.read.task_marks import write_marks
from letopis.store.rules.apply_plan import TableRow
from letopis.store.write.lanes import AcceptedLane
from letopis.store.write.owners import Owners, OwnerStatements
from letopis.store.write.redaction import Eraser
from letopis.store.write.removed_messages import removal_tasks
from letopis.store.write.transaction import ApplyTransaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What a transaction erased.

    :ivar content: True if content was taken out of what is stored.
    :ivar released: True if conversations may retain content that no fork reads any more.
    """

    content: bool
    released: bool


class RowWriter:
    """Writes the rows of a batch; the statements are compiled once."""

    def __init__(self, dialect: Dialect, eraser: Eraser) -> None:
        self._eraser = eraser
        self._owners = dialect.shared(OwnerStatements)

    async def write(self, transaction: ApplyTransaction, projected: Sequence[AcceptedLane]) -> Erasure:
        """Write what a batch makes of its conversations, messages and owners."""
        results = [one.result for one in projected]
        owners = Owners(transaction, self._owners)
        rows = await owners.lock_and_number(results)
        await self._write_rows(transaction, projected)
        await owners.write(results, rows)
        return await self._erase(transaction, projected)

    async def _write_rows(self, transaction: ApplyTransaction, projected: Sequence[AcceptedLane]) -> None:
        new_rows, old_rows = list[TableRow](), list[TableRow]()
        new_messages, old_messages = list[TableRow](), list[TableRow]()
        for one in sorted(projected, key=lambda one: transaction.lock_order(one.conversation_id)):
            row = one.result.row
            (new_rows if row.new else old_rows).append(row.as_row())
            for message in one.result.messages:
                rows = new_messages if message.new else old_messages
                rows.append(message.as_row(one.partition, row.conversation_id))
        dialect, connection = transaction.dialect, transaction.connection
        await dialect.insert(connection, conversations, new_rows)
        await dialect.overwrite(connection, conversations, old_rows)
        await dialect.insert(connection, messages, new_messages)
        await dialect.overwrite(connection, messages, old_messages)

    async def _erase(self, transaction: ApplyTransaction, projected: Sequence[AcceptedLane]) -> Erasure:
        """Take the content of redacted messages and erased conversations out of stored events, or mark it as erased."""
        content = released = False
        connection, now = transaction.connection, transaction.now
        for one in projected:
            result, retained = one.result, one.result.row.retained
            place, before = (connection, one.partition, one.conversation_id), result.versions.start - 1
            await write_marks(connection, transaction.dialect, removal_tasks(one.partition, result, now))
            everything = result.deleted or result.reset_at is not None
            if everything and result.cuts:
                await self._eraser.mark_erased(*place, after=retained, upto=before, now=now)
            elif everything:
                await self._eraser.erase_messages(*place, upto=before, reset_at=result.reset_at)
                await self._eraser.strip(*place, after=retained, upto=before)
            if result.redactions and (retained > 0 or not everything):  # also in what is retained for forks
                await self._eraser.strip_messages(*place, result.redactions, upto=before)
            # Retained content is checked again afterwards: only then is all of this batch there to look at.
            released = released or result.released or (everything and retained > 0)
            content = content or everything or bool(result.redactions)
        return Erasure(content=content, released=released)
