"""Plant defects that skip one holder of words or one hold, each of which has to show in a chosen program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.event_log import erasing
from letopis.outbox.event_log.held import HeldSubjects
from letopis.outbox.relay import erasures as carrying
from letopis.store import erasures as register
from letopis.store.database.schema import events
from letopis.store.read.task_marks import Task
from letopis.store.rules.rows import MessageRow
from letopis.store.rules.sight import Sight
from letopis.store.write import erasing as store_erasing
from letopis.store.write.contents import ContentWriter
from letopis.store.write.erasing import Eraser
from tests.support.defects import HOLD_OVERRUN, Replacement, defect, instead, nothing

CAUGHT_BY: Final[dict[str, tuple[str, ...]]] = {HOLD_OVERRUN: ("held",)}
"""The programs that catch each defect."""


def _lame(name: str, owner: Any, attribute: str, *programs: str, done: Any = nothing) -> None:
    """Have a function do nothing, or what else is given."""
    CAUGHT_BY[name] = programs
    instead(name, owner, attribute)(done)


def _skipped(name: str, module: Any, column: Any, *programs: str, erase: Any) -> None:
    """Have the holders of a column, or of a table in the outbox, erase in another way."""
    CAUGHT_BY[name] = programs

    def skipping(real: tuple[Any, ...]) -> tuple[Any, ...]:
        wanted = [holder for holder in real if any(column is one for one in holder.columns)]
        assert wanted, f"no holder of {column}"
        return tuple(replace(holder, erase=erase) if holder in wanted else holder for holder in real)

    @defect(name)
    def _() -> Iterable[Replacement]:
        yield module, "HOLDERS", skipping


async def _done(_: Eraser, __: AsyncConnection, task: Task) -> int:
    return task.upto


@defect(REACTIONS_KEPT := "a store keeps reactions")
def _() -> Iterable[Replacement]:
    async def redact(eraser: Eraser, connection: AsyncConnection, task: Task) -> int:
        span = {"at_partition": task.partition, "at_conversation": task.conversation_id}
        span |= {"at_least": task.after, "at_most": task.upto, "at_event": task.version}
        await connection.execute(eraser._redact, span)
        return task.upto

    yield MessageRow, "erase", lambda _: MessageRow.redact
    yield store_erasing, "HOLDERS", lambda real: (replace(real[0], erase=redact), *real[1:])


CAUGHT_BY[REACTIONS_KEPT] = ("delivered",)
_skipped("an outbox keeps events", erasing, "letopis_outbox_events", "owner", erase=lambda *_: 0)
_skipped("an outbox keeps drafts", erasing, "letopis_outbox_drafts", "draft", erase=lambda *_: 0)
_skipped("a store keeps events", store_erasing, events.c.data, "reset", erase=_done)
_lame("an outbox keeps large content", erasing, "remove_unshown", "reset", done=lambda *_: None)
_lame(
    "an outbox keeps values of records",
    erasing,
    "_DELETE_BODY",
    "everywhere",
    done="DELETE FROM letopis_outbox_record_bodies WHERE position = ?1 AND 0",
)
_lame(
    "an outbox lists what is erased as unconfirmed",
    erasing,
    "_DELETE_REPLIES",
    "reset",
    done=erasing._DELETE_REPLIES[:1],
)
_lame("an outbox overruns a hold", HeldSubjects, "spared", "spared", done=lambda *_: frozenset())
_lame("a store keeps large content", ContentWriter, "sweep", "reset")
_lame("an erasure is recorded in spite of its hold", register, "refuse_held", "refused")
_lame("what a store forgets is not noticed", carrying, "compare_with_store", "restored", done=lambda *_, **__: [])
_lame("who reads a parent sees what forks retain", Sight, "hides", "fork", done=lambda *_: False)
