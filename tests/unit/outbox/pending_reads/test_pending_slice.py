"""A slice of the file has the conflicts that the history store has found."""

from __future__ import annotations

from functools import partial

from letopis.outbox.event_log.acknowledge import acknowledge
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads.pending_slice import read_slice
from letopis.store.rules.preconditions import Conflict
from tests.support.relays import say


async def test_slice_of_delivered_events_has_their_conflicts(outbox: OutboxFile) -> None:
    await say(outbox, "a", 3)
    conflict = Conflict(expected=2, actual=7)
    verdicts = {"a": {3: conflict}}
    await outbox.write(partial(acknowledge, delivered={"a": 3}, now_us=1, superseded=verdicts))

    read = partial(read_slice, conversation_id="a", origin_id=outbox.origin.origin_id)
    assert (await outbox.read(partial(read, since=2))).conflicts == {3: conflict}
    assert (await outbox.read(partial(read, since=3))).conflicts == {}
