"""Deliver events of an outbox file to a scripted store, with a clock that can be set."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.bound_store import rebind_store
from letopis.outbox.event_log.lanes import Lane, LaneCounts, count_lanes, find_lane
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.outbox.relay.store_binding import destination_of
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.store_identity import StoreIdentity
from letopis.store.errors import BatchRefused, HistoryDiverged, SequenceGap
from letopis.store.maintenance.continuity import LogCount
from letopis.store.model.messages import Message
from letopis.store.read.task_marks import PendingTasks
from letopis.store.rules.apply_plan import ApplyResult, LaneApplied, LaneBatch, Origin
from letopis.store.write.applier import trial_batches
from letopis.testing import ManualClock
from letopis.testing import deliver_all as deliver_all

QUICK = RetryPolicy(base=0.01, factor=2, cap=0.1, jitter="none", attempts=3)
"""For tests that wait for a refused event to be given up."""


Hands = ManualClock


def fault(fault_class: FaultClass, code: str = "made-up") -> StoreFault:
    return StoreFault(fault_class=fault_class, code=code, reason="a fault of the test")


DOWN = fault(FaultClass.UNAVAILABLE, "refused")
POISON = fault(FaultClass.POISON, "22021")


class ToldStore:
    """A history store in memory that fails on request, and otherwise keeps the rules of the real one."""

    url = make_url("postgresql://told/history")
    told_identity = StoreIdentity(store_id=UUID(int=7))
    """Of all of them: a second one is the first, restored."""

    def __init__(self, refuse: Callable[[Sequence[LaneBatch]], BaseException | None] = lambda _: None) -> None:
        self.refuse = refuse
        self.lanes: dict[str, list[tuple[Any, bytes]]] = {}
        self.batches: list[tuple[LaneBatch, ...]] = []
        self.pings = 0
        self.continuity = ToldContinuity()
        self.runtime = self
        self.known_partitions = 1
        self.trials = 0
        self.before: Callable[[], Awaitable[None]] = _at_once
        """Awaited before a batch is looked at."""
        self.after: Callable[[], BaseException | None] = lambda: None
        """Called when a batch was taken; what it returns is raised, as when an answer is lost."""

    def hold(self, seconds: float) -> asyncio.Event:
        """Have every batch take so long; return what is set once one has come."""
        entered = asyncio.Event()

        async def wait() -> None:
            entered.set()
            await asyncio.sleep(seconds)

        self.before = wait
        return entered

    async def prepare(self) -> None:
        await asyncio.sleep(0)

    async def identity(self) -> StoreIdentity:
        await asyncio.sleep(0)
        return self.told_identity

    async def ping(self) -> None:
        self.pings += 1
        if (error := self.refuse(())) is not None:
            raise error

    async def try_out(self, conversation_id: str = "") -> None:
        """Refuse an ordinary event if everything is refused."""
        await asyncio.sleep(0)
        self.trials += 1
        if (error := self.refuse((trial_batches(partition=0, partitions=1)[0],))) is not None:
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

    async def run_pending_tasks(self) -> bool:
        return False

    async def pending_tasks(self) -> PendingTasks:
        return PendingTasks()

    def held(self, conversation_id: str) -> int:
        return len(self.lanes.get(conversation_id, ()))


class ToldContinuity:
    """What a store in memory reports about its connections and its log."""

    def __init__(self) -> None:
        self.generation = 0
        self.look = LogCount()

    async def count(self, after: int = 0) -> LogCount:
        return self.look


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


def relay_on(
    outbox: OutboxFile, store: ToldStore | ConversationStore, *, hands: Hands | None = None, **options: Any
) -> Relay:
    """A relay with chance that is the same in every run, and clocks that are moved by hand if they are given."""
    if hands is not None:
        options |= {"now": hands.now, "monotonic": hands.monotonic}
    options.setdefault("policy", QUICK)
    options.setdefault("random", random.Random(7))
    return Relay(outbox, cast("ConversationStore", store), **options)


async def say(outbox: OutboxFile, conversation_id: str, count: int = 1, *, owner: str | None = None) -> None:
    """Append ``count`` messages; the first append of a conversation adds ``conversation.started`` before them."""
    messages = [Message.user(f"{conversation_id} says {number}") for number in range(count)]
    await outbox.append(prepare(conversation_id, messages, owner=owner))


async def bind_to(outbox: OutboxFile, store: ToldStore) -> None:
    store_id = (await store.identity()).store_id
    await outbox.write(
        lambda connection: rebind_store(connection, store_id=store_id, destination=destination_of(store.url))
    )


async def figures(outbox: OutboxFile) -> LaneCounts:
    return await outbox.read(count_lanes)


async def lane(outbox: OutboxFile, conversation_id: str) -> Lane:
    found = await outbox.read(lambda connection: find_lane(connection, conversation_id))
    assert found is not None
    return found


async def until(true: Callable[[], Any], *, patience: float = 60.0) -> None:
    """Wait until ``true()``, which may be a coroutine function, says so."""
    async with asyncio.timeout(patience):
        while True:
            value = true()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.005)


async def comes_true(true: Callable[[], Any], *, patience: float) -> bool:
    """Wait for the same; return False if it does not come."""
    with suppress(TimeoutError):
        await until(true, patience=patience)
        return True
    return False


async def drained(outbox: OutboxFile, *, patience: float = 60.0) -> None:
    async def nothing() -> bool:
        return (await figures(outbox)).pending == 0

    await until(nothing, patience=patience)


async def end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class Lingering:
    """Work that never ends by itself, and takes some turns of the loop to end once it is cancelled."""

    def __init__(self) -> None:
        self.began, self.ended = asyncio.Event(), asyncio.Event()

    async def __call__(self, *_: object) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _turn in range(9):
                await asyncio.sleep(0)
            self.ended.set()


async def end_all(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


def sql(outbox: OutboxFile, statement: str, parameters: tuple[Any, ...] = ()) -> Any:
    def run(connection: sa.Connection) -> list[Any]:
        result = connection.exec_driver_sql(statement, parameters)
        return [tuple(row) for row in result.fetchall()] if result.returns_rows else []

    return outbox.write(run)


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[Relay]:
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        await end(task)
