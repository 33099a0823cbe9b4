"""One writer at a time, first come, first served; the lock is never lost."""

import asyncio
import random
from unittest.mock import Mock

from letopis.outbox.concurrency.fair_lock import FairLock


async def test_the_lock_is_granted_in_the_order_of_asking() -> None:
    lock = FairLock()
    order: list[int] = []

    async def write(number: int) -> None:
        await lock.acquire()
        order.append(number)
        await asyncio.sleep(0)
        lock.release()

    await asyncio.gather(*(write(number) for number in range(20)))
    assert (order, lock.taken) == (list(range(20)), False)


async def test_a_free_lock_calls_at_once() -> None:
    lock, begin = FairLock(), Mock(return_value=True)
    lock.call_when_free(begin)
    begin.assert_called_once_with()
    assert lock.taken


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
