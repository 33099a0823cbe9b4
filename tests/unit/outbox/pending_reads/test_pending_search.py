"""What a search reads of the file: the newest conversations first, and the verdicts of the history store."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from letopis.outbox.event_log.acknowledge import acknowledge
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads import pending_search
from letopis.outbox.pending_reads.pending_search import pending_of, snapshot
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


async def test_the_conversation_with_the_newest_event_is_read_where_not_all_fit(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("newest", "longest ago", "newest"):
        await say(outbox, name)
    monkeypatch.setattr(pending_search, "MAX_SEARCHED_EVENTS", 4)

    found = await outbox.read(partial(snapshot, origin_id=outbox.origin.origin_id, conversation=None))

    assert (list(found.conversations), found.complete) == (["newest"], False)
