"""Waits under clocks that jump, a lock that is never lost, and blocks that outlive the calls inside them."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import Mock

import pytest

from letopis.outbox.concurrency.clock import Clock, RetryTimers
from letopis.outbox.concurrency.fair_lock import FairLock
from letopis.outbox.concurrency.home_loop import HomeBlock
from tests.support.relays import Hands


def made() -> tuple[Hands, Clock]:
    hands = Hands()
    return hands, Clock(now=hands.now, monotonic=hands.monotonic)


@pytest.mark.parametrize(
    ("jump", "seconds", "remaining"),
    [
        (0, 0, 10),
        (0, 4, 6),
        (0, 11, 0),
        (-3_600, 4, 6),  # a clock set back an hour does not stretch a wait
        (24 * 3_600, 0, 0),  # the monotonic clock stands still in suspend; the wall clock tells
    ],
)
def test_a_deadline_comes_when_its_time_has_passed_by_either_clock(
    jump: float, seconds: float, remaining: float
) -> None:
    hands, clock = made()
    deadline = clock.after(10)
    hands.jump(jump)
    hands.advance(seconds)
    assert deadline.remaining(clock) == remaining


@pytest.mark.parametrize(
    ("after", "jump", "seconds", "remaining"),
    [
        ("", -3_600, 3, 47),  # by both clocks, where this process set the wait
        ("a restart", 0, 20, 30),
        ("a restart", -3_600, 0, 0),  # further off than any wait: it comes from a wrong clock
        ("it is forgotten", -3_600, 0, 0),
        ("an operator's retry, in the file alone", 0, 0, 0),
    ],
)
def test_a_lane_waits_by_the_stored_moment_where_nothing_else_is_known(
    after: str, jump: float, seconds: float, remaining: float
) -> None:
    hands, clock = made()
    waits = RetryTimers(clock, longest=60)
    due_at = waits.set("c", 50)
    hands.jump(jump)
    hands.advance(seconds)
    if after == "a restart":
        waits = RetryTimers(clock, longest=60)
    elif after.startswith("an operator"):
        due_at = 0
    elif after:
        waits.forget("c")

    assert waits.remaining("c", due_at) == remaining


async def test_the_lock_is_granted_in_the_order_of_asking() -> None:
    lock, begin = FairLock(), Mock(return_value=False)
    lock.call_when_free(begin)
    begin.assert_called_once_with()
    order: list[int] = []

    async def write(number: int) -> None:
        await lock.acquire()
        order.append(number)
        await asyncio.sleep(0)
        lock.release()

    await asyncio.gather(*(write(number) for number in range(20)))
    assert (order, lock.taken) == (list(range(20)), False)


async def test_cancelled_waits_pass_the_lock_on() -> None:
    """A wait that is cancelled, even just as it is being granted, neither loses the lock nor grants it twice."""
    chance = random.Random(7)
    lock = FairLock()
    inside = 0

    async def write() -> None:
        nonlocal inside
        await lock.acquire()
        try:
            inside += 1
            assert inside == 1
            await asyncio.sleep(chance.choice((0, 0, 0.0005)))
        finally:
            inside -= 1
            lock.release()

    for _ in range(60):
        tasks = [asyncio.ensure_future(write()) for _ in range(8)]
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        for task in chance.sample(tasks, 4):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)

    assert not lock.taken and not lock._callbacks


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("turns", range(4))
async def test_a_call_may_end_just_as_its_block_is_left(turns: int) -> None:
    """After Ctrl-C, the interrupted call and its block end in neighbouring turns of the loop."""
    block: HomeBlock[None] = HomeBlock(Mock(), _nothing, holds=False)
    leave = asyncio.Event()

    async def call() -> None:
        await leave.wait()
        for _ in range(turns):
            await asyncio.sleep(0)

    life = asyncio.create_task(block._live())
    await asyncio.sleep(0)
    inside = asyncio.create_task(block.run(call))
    await asyncio.sleep(0)
    block._leave(None)
    leave.set()

    assert await life is None
    assert inside.done()
