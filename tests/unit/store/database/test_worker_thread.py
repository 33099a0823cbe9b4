"""Functions run in order in one thread, and no caller interrupts them."""

import asyncio
import gc
import os
import threading
import time

import pytest

from letopis.store.database.worker_thread import WorkerThread
from letopis.store.errors import Closed
from tests.support.platforms import posix_only
from tests.support.relays import until


def alive(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


async def test_a_cancelled_caller_does_not_interrupt_the_function() -> None:
    thread = WorkerThread("own-cancel")
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(5)
        done.set()

    task = asyncio.ensure_future(thread.run(work))
    assert await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()

    assert await thread.run(done.is_set)
    await thread.close()


async def test_close_finishes_what_was_posted_and_ends_the_thread() -> None:
    thread = WorkerThread("own-close")
    seen: list[int] = []

    def slow(number: int) -> None:
        time.sleep(0.002)
        seen.append(number)

    tasks = [asyncio.ensure_future(thread.run(slow, number)) for number in range(5)]
    await asyncio.sleep(0)

    await thread.close()
    await thread.close()

    assert seen == list(range(5))
    assert alive("own-close") == 0
    await asyncio.gather(*tasks)
    with pytest.raises(Closed):
        await thread.run(int)


async def test_a_forgotten_thread_ends_by_itself() -> None:
    thread = WorkerThread("own-forgotten")
    await thread.run(int)
    del thread
    gc.collect()
    await until(lambda: not alive("own-forgotten"), patience=2)


@posix_only("Windows has no fork")
async def test_after_a_fork_it_says_so_instead_of_waiting_for_ever() -> None:
    thread = WorkerThread("own-fork")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with pytest.raises(Closed, match="fork"):
                thread.check()
            code = 0
        finally:
            os._exit(code)

    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert await thread.run(lambda: 1) == 1
    await thread.close()


def test_a_result_for_a_closed_loop_is_dropped() -> None:
    thread = WorkerThread("own-loop")
    go = threading.Event()

    async def leave() -> None:
        task = asyncio.ensure_future(thread.run(go.wait, 5))
        await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(leave())
    go.set()

    assert asyncio.run(thread.run(lambda: 3)) == 3
    asyncio.run(thread.close())
