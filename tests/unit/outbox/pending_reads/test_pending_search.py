"""What a search reads of the file marks the events that the history store has set aside."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from letopis.outbox.event_log.acknowledge import acknowledge
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads.pending_search import pending_of
from letopis.store.rules.preconditions import SUPERSEDED_KEY, Conflict
from tests.support.relays import lane, say


async def test_events_that_the_store_set_aside_are_marked(outbox: OutboxFile) -> None:
    await say(outbox, "a", 3)
    verdicts = {"a": {3: Conflict(expected=2, actual=7)}}
    await outbox.write(partial(acknowledge, delivered={"a": 3}, now_us=1, superseded=verdicts))
    before = replace(await lane(outbox, "a"), delivered=1)

    found = await outbox.read(partial(pending_of, lanes=[before], origin_id=outbox.origin.origin_id))

    marked = {event.sequence: SUPERSEDED_KEY in event.metadata for event in found["a"].events}
    assert marked == {2: False, 3: True, 4: False}
