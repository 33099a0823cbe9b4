"""What the tests of the relay share: events in an outbox file, a store that does what it is told, and clocks to set."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import sqlalchemy as sa

from letopis.outbox.append import prepare
from letopis.outbox.backoff import RetryPolicy
from letopis.outbox.file import OutboxFile
from letopis.outbox.lanes import Counts, Lane, counts, find_lane
from letopis.outbox.relay import Relay
from letopis.store.errors import BatchRefused, HistoryDiverged, SequenceGap
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.history import ConversationStore
from letopis.store.messages import Message
from letopis.store.plan import ApplyResult, LaneApplied, LaneBatch, Origin

QUICK = RetryPolicy(base=0.01, factor=2, cap=0.1, jitter="none", attempts=3)
"""For tests that wait for a refused event to be given up."""


class Hands:
    """Both clocks of a machine, moved by hand."""

    def __init__(self) -> None:
        self.wall = datetime(2026, 11, 25, tzinfo=UTC)
        self.ticks = 1_000.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.ticks

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += timedelta(seconds=seconds)
        self.ticks += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock, with no time passing."""
        self.wall += timedelta(seconds=seconds)


def fault(fault_class: FaultClass, code: str = "made-up") -> StoreFault:
    return StoreFault(fault_class=fault_class, code=code, reason="a fault of the test")


DOWN = fault(FaultClass.UNAVAILABLE, "refused")
POISON = fault(FaultClass.POISON, "22021")


class ToldStore:
    """A history store in memory that fails as it is told, and keeps the rules of the real one otherwise.

    :ivar refuse: called with every batch; a fault that it returns is raised and nothing is taken.
    """

    def __init__(self, refuse: Callable[[Sequence[LaneBatch]], BaseException | None] = lambda _: None) -> None:
        self.refuse = refuse
        self.lanes: dict[str, list[tuple[Any, bytes]]] = {}
        self.batches: list[tuple[LaneBatch, ...]] = []
        self.pings = 0
        self.before: Callable[[], Awaitable[None]] = _at_once
        """Awaited before a batch is looked at."""
        self.after: Callable[[], BaseException | None] = lambda: None
        """Called when a batch was taken; what it returns is raised, as when an answer is lost."""

    async def prepare(self) -> None:
        await asyncio.sleep(0)

    async def ping(self) -> None:
        self.pings += 1
        if (error := self.refuse(())) is not None:
            raise error

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        await self.before()
        self.batches.append(tuple(batch))
        if (refusal := self.refuse(batch)) is not None:
            raise refusal
        applied: list[LaneApplied] = []
        refused: list[BatchRefused] = []
        for lane in batch:
            held = self.lanes.setdefault(lane.conversation_id, [])
            try:
                applied.append(_take(lane, held))
            except (SequenceGap, HistoryDiverged) as error:
                refused.append(error)
        if (lost := self.after()) is not None:
            raise lost
        return ApplyResult(applied=tuple(applied), refused=tuple(refused))

    async def lane_heads(self, origin_id: object, conversation_ids: Sequence[str]) -> dict[str, int]:
        return {one: len(self.lanes[one]) for one in conversation_ids if self.lanes.get(one)}

    def held(self, conversation_id: str) -> int:
        return len(self.lanes.get(conversation_id, ()))


async def _at_once() -> None:
    await asyncio.sleep(0)


def _take(lane: LaneBatch, held: list[tuple[Any, bytes]]) -> LaneApplied:
    first = lane.deliveries[0].sequence
    if first > len(held) + 1:
        raise SequenceGap(conversation_id=lane.conversation_id, head=len(held), first=first)
    duplicates = 0
    for one in lane.deliveries:
        content = (one.event.event_id, one.event.digest)
        if one.sequence <= len(held):
            if held[one.sequence - 1] != content:
                raise HistoryDiverged(
                    conversation_id=lane.conversation_id, sequence=one.sequence, event_id=one.event.event_id
                )
            duplicates += 1
    held.extend((one.event.event_id, one.event.digest) for one in lane.deliveries[duplicates:])
    return LaneApplied(
        conversation_id=lane.conversation_id,
        head=len(held),
        inserted=len(lane.deliveries) - duplicates,
        duplicates=duplicates,
    )


def relay_on(outbox: OutboxFile, store: ToldStore | ConversationStore, **options: Any) -> Relay:
    """A relay with chance that is the same in every run."""
    options.setdefault("policy", QUICK)
    options.setdefault("random", random.Random(7))
    return Relay(outbox, cast("ConversationStore", store), **options)


async def say(outbox: OutboxFile, conversation_id: str, count: int = 1, *, owner: str | None = None) -> None:
    """Append ``count`` messages; the first append of a conversation adds ``conversation.started`` before them."""
    messages = [Message.user(f"{conversation_id} says {number}") for number in range(count)]
    await outbox.append(prepare(conversation_id, messages, owner=owner))


async def figures(outbox: OutboxFile) -> Counts:
    return await outbox.read(counts)


async def lane(outbox: OutboxFile, conversation_id: str) -> Lane:
    found = await outbox.read(lambda connection: find_lane(connection, conversation_id))
    assert found is not None
    return found


async def until(true: Callable[[], Any], *, patience: float = 15.0) -> None:
    """Wait until ``true()``, which may be a coroutine function, says so."""
    async with asyncio.timeout(patience):
        while True:
            value = true()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.005)


async def drained(outbox: OutboxFile, *, patience: float = 30.0) -> None:
    """Wait until nothing is pending."""

    async def nothing() -> bool:
        return (await figures(outbox)).pending == 0

    await until(nothing, patience=patience)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def sql(outbox: OutboxFile, statement: str, parameters: tuple[Any, ...] = ()) -> Any:
    """Run a statement on the outbox file, in a write transaction, and return its rows, if it has any."""

    def run(connection: sa.Connection) -> list[Any]:
        result = connection.exec_driver_sql(statement, parameters)
        return [tuple(row) for row in result.fetchall()] if result.returns_rows else []

    return outbox.write(run)
