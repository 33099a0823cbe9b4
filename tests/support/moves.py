"""Fill a store with everything a move has to carry, and stop a move at chosen moments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from letopis.ops.cli.verify import problems_of_store
from letopis.store import (
    ConversationActivated,
    ConversationDeleted,
    ConversationStarted,
    ConversationStore,
    Event,
    EventSkipped,
    FaultClass,
    File,
    Message,
    Projection,
    RecordedEvent,
    StoreFault,
    Text,
    ToolCall,
)
from letopis.store.database import schema
from letopis.store.database.schema import checkpoints, metadata
from letopis.store.database.urls import normalise_url
from letopis.store.model.records import Scope
from letopis.store.ops.move import handover, mover
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.random_events import Talk
from letopis.store.testing.record_changes import CP, put
from tests.support.store_changes import run_there as run_sql

PARTITIONS: Final = 3
LIVE: Final = 5  # conversations of a writer, which says this much at the most:
MOST: Final = 300
APART: Final = ("letopis_search", "letopis_store", "letopis_log_heads")
"""Tables that a move does not make equal row by row."""
HARD: Final = "emoji 🧑‍🚀 \u202eright-to-left\u202c trailing space \t\n \\ \" ' {} [] null é e\u0301 \U0010fffd"


class Counting(Projection):
    name = "counting"
    version = 2

    async def apply(self, connection: Any, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        """Write nothing."""


async def fill(url: str, *, talks: int = 6, each: int = 40) -> list[Outbox]:
    """Make a history of several partitions that holds what there can be; return the outboxes that delivered it."""
    first, second = Outbox("a.outbox.db"), Outbox("b.outbox.db", epoch=3)
    async with ConversationStore.open(url, migrate=True, partitions=PARTITIONS) as store:
        for outbox in (first, second):
            talk = Talk(7, elsewhere=("talk 0-3", "talk 1-5"))
            for number in range(talks):
                name = f"talk {number}"
                outbox.append(name, ConversationStarted(owner_id=f"owner {number % 3}", title=HARD))
                outbox.append(name, *(talk.next(name) for _ in range(each)))
                outbox.append(name, ConversationActivated())
            await outbox.deliver(store)
        parts = [Text(text=HARD), ToolCall(call_id="1", name="f", arguments={"b": 1, "a": [1.5, None, {"z": "я"}]})]
        first.append("чат №1 ", Message.user(HARD * 50), Message.assistant(parts, metadata={"k": HARD}))
        first.append("чат №1 ", Message.user([File(uri="https://example.org/a", media_type="image/png")]))
        # Two pages by their bytes; no messages, since those would be indexed.
        big = ({"n": number, "x": "я" * 150_000} for number in range(16))
        first.append("big", *(Event(type="custom.big", data=data) for data in big))
        first.append("raw", Event(type="custom.raw", data={"z": 1, "a": [0.1, 1e300, -0.0, 2**63 - 1], "": {}}))
        skipped = {"skipped_event_id": "1", "skipped_type": "message.appended", "digest": "00", "reason": "a test"}
        first.append("raw", EventSkipped(**skipped))
        # A deleted parent that keeps what its fork reads, and a fork of a fork.
        first.append("parent", ConversationStarted(owner_id="owner 0"), *(Message.user(f"p{i}") for i in range(9)))
        first.append("fork", ConversationStarted(forked_from={"conversation_id": "parent", "version": 4}))
        first.append("fork", Message.user("mine"))
        first.append("fork 2", ConversationStarted(forked_from={"conversation_id": "fork", "version": 2}))
        for scope in (Scope.conversation("talk 1"), Scope.owner("owner 1"), Scope.space("app")):
            lane = scope.lane(CP)
            changes = [put(lane, f"{number}", bytes([number]) * 10, tags={"n": number}) for number in range(5)]
            changes += [put(lane, "large", bytes(range(256)) * 9_000), put(lane, "0", b"late", expected="absent")]
            first.append_encoded(lane, changes)
        await first.deliver(store)
        first.append("parent", ConversationDeleted(reason="a test"))
        first.append("talk 0", ConversationDeleted())
        await first.deliver(store)
        await store.projector(Counting()).catch_up()
        while await store.catch_up_search():
            pass
    return [first, second]


async def dump(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of the tables that a move makes equal, by table."""
    found = {}
    for table in metadata.sorted_tables:
        if table.name not in APART:
            rows = sa.select(table)
            if table is checkpoints:
                rows = rows.where(checkpoints.c.name != "search")
            found[table.name] = sorted(map(tuple, await run_sql(url, rows)), key=repr)
    return found


async def states(url: str) -> set[int]:
    return {row[0] for row in await run_sql(url, "SELECT closed FROM letopis_log_heads")}


async def identity(url: str) -> tuple[Any, ...]:
    return tuple(
        (await run_sql(url, sa.select(schema.store.c.store_id, schema.store.c.moved_to, schema.store.c.moved_at)))[0]
    )


async def sound(url: str) -> list[str]:
    return await problems_of_store(normalise_url(url))


async def open_ones(*urls: str) -> list[str]:
    """Which of the stores take deliveries under the identity of the first, by what they say of themselves."""
    store_id, found = (await identity(urls[0]))[0], []
    for url in urls:
        with suppress(DatabaseError):  # it has no tables yet
            if (await identity(url))[0] == store_id and await states(url) == {0}:
                found.append(url)
    return found


async def takes_deliveries(url: str) -> bool:
    """Return True if a store takes one, tried with an outbox of its own."""
    outbox = Outbox("probe")
    outbox.append("probe", Message.user("probe"))
    try:
        async with ConversationStore.open(url, migrate=False) as store:
            await outbox.deliver(store)
    except StoreFault as fault:
        if fault.fault_class not in (FaultClass.WRONG_STORE, FaultClass.MISCONFIGURED):
            raise
        return False
    return True


class Writer:
    """A relay in small: delivers one event after the other to whichever store takes it, as relays do that follow."""

    def __init__(self, *urls: str) -> None:
        self.outbox = Outbox("writer.outbox.db")
        self.refused = 0
        self._urls = urls
        self._ending = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Writer]:
        """Write until the end of the block; then until all is delivered."""
        task = asyncio.create_task(self._run())
        try:
            yield self
            self._ending.set()
            await asyncio.wait([task], timeout=120)
            assert task.done(), f"{sum(len(lane.deliveries) for lane in self.outbox.pending())} events are pending"
            await task
        finally:
            task.cancel()

    async def _run(self) -> None:
        stores = [ConversationStore(url, migrate=False) for url in self._urls]
        said = 0
        try:
            while not (self._ending.is_set() and not self.outbox.pending()):
                if not self._ending.is_set() and said < MOST:
                    name = f"live {said % LIVE}"
                    said += 1
                    self.outbox.append(name, Message.user(f"live {said}", id=f"live-{said}"))
                    if said % 7 == 3:
                        redact = Event(type="message.redacted", data={"message_id": f"live-{said - 5}"})
                        self.outbox.append(f"live {(said - 6) % LIVE}", redact)
                await self._deliver(stores)
                await asyncio.sleep(0.005)
        finally:
            for store in stores:
                await store.close()

    async def _deliver(self, stores: list[ConversationStore]) -> None:
        for store in stores:
            try:
                result = await self.outbox.deliver(store)
            except StoreFault as fault:
                if fault.fault_class not in (FaultClass.WRONG_STORE, FaultClass.MISCONFIGURED):
                    raise
                self.refused += 1
            else:
                if not result.refused:
                    return
                self.refused += 1  # the old store lacks what the new one has taken since: a gap, and nothing to take

    def said(self) -> Mapping[str, list[Any]]:
        return {name: [event.event_id for event in lane] for name, lane in self.outbox.lanes.items()}


async def held(url: str, *names: str) -> dict[str, list[Any]]:
    async with ConversationStore.open(url, migrate=False) as store:
        return {name: [event.event_id for event in await store.events(name, first=10_000)] for name in names}


def hold_handover(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold a move back before its handover; return what is set once it has come so far, and what lets it go on."""
    reached, go = asyncio.Event(), asyncio.Event()
    real = handover.commit_handover

    async def held_back(*given: Any) -> None:
        reached.set()
        await go.wait()
        await real(*given)

    monkeypatch.setattr(mover, "commit_handover", held_back)
    return reached, go
