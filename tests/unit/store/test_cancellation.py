"""Work that is shielded is never torn by a cancellation, and no cancellation is lost."""

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable

import anyio
import pytest

from letopis.store.cancellation import InFlight, cancel_after_grace, run_to_completion

Shield = Callable[[Awaitable[int]], Awaitable[int]]
both = pytest.mark.parametrize("shield", [run_to_completion, cancel_after_grace])


def soon(seconds: float, callback: Callable[..., object], *given: object) -> None:
    asyncio.get_running_loop().call_later(seconds, callback, *given)


async def cancel_three_times(caller: asyncio.Future[int]) -> None:
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)


class Work:
    """Takes a moment, and says whether it came to its end."""

    def __init__(self, *, released: bool = False) -> None:
        self.started, self.release = asyncio.Event(), asyncio.Event()
        self.ended, self.interruptions = False, 0
        if released:
            self.release.set()

    async def run(self) -> int:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.interruptions += 1
            await asyncio.sleep(0.01)  # as a driver closes its connection
            self.ended = True
            raise
        self.ended = True
        return 7


async def test_an_asyncio_cancellation_waits_for_the_end_and_is_raised_then() -> None:
    work = Work()
    caller = asyncio.ensure_future(run_to_completion(work.run()))
    await work.started.wait()
    await cancel_three_times(caller)
    assert not caller.done()
    work.release.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended and not work.interruptions


async def test_an_anyio_scope_waits_for_the_end_and_ends_then() -> None:
    work = Work()
    after = False
    soon(0.1, work.release.set)
    with anyio.move_on_after(0.02) as scope:
        await run_to_completion(work.run())
        after = True

    assert scope.cancelled_caught and work.ended and not work.interruptions
    assert not after


async def test_a_scope_that_is_cancelled_already_still_runs_the_work_to_its_end() -> None:
    work = Work(released=True)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_to_completion(work.run())
    assert scope.cancelled_caught and work.ended


async def test_waiting_under_a_cancelled_scope_does_not_spin_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, handles = list[None](), list[None]()

    async def count() -> int:
        for _ in range(10):
            turns.append(None)
            await asyncio.sleep(0.01)
        return await Work(released=True).run()

    loop = asyncio.get_running_loop()
    call_soon: Callable[..., object] = loop.call_soon

    def counting(*arguments: object, **options: object) -> object:
        handles.append(None)
        return call_soon(*arguments, **options)

    with monkeypatch.context() as patch, anyio.move_on_after(0.01):
        patch.setattr(loop, "call_soon", counting)
        await run_to_completion(count())

    assert len(turns) == 10
    assert len(handles) < 300


async def test_a_cancellation_wins_over_an_error_and_carries_it() -> None:
    started = asyncio.Event()

    async def fail() -> int:
        started.set()
        await asyncio.sleep(0.02)
        raise KeyError("gone")

    caller = asyncio.ensure_future(run_to_completion(fail()))
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await caller

    assert isinstance(caught.value.__cause__, KeyError)


async def test_a_scope_interrupts_once_and_lets_the_work_clean_up() -> None:
    work = Work()
    with anyio.move_on_after(0.02) as scope:
        await cancel_after_grace(work.run(), grace=0.02)
    assert scope.cancelled_caught and work.ended
    assert work.interruptions == 1


async def test_asyncio_interrupts_once_and_lets_the_work_clean_up() -> None:
    work = Work()
    caller = asyncio.ensure_future(cancel_after_grace(work.run(), grace=0.02))
    await work.started.wait()
    await cancel_three_times(caller)
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended and work.interruptions == 1


async def test_work_that_ends_within_the_grace_is_not_interrupted() -> None:
    work = Work()
    soon(0.05, work.release.set)
    with anyio.move_on_after(0.01) as scope:
        await cancel_after_grace(work.run(), grace=10)
    assert scope.cancelled_caught and work.ended and not work.interruptions


@both
async def test_a_caller_that_ends_with_its_scope_gets_its_result(shield: Shield) -> None:
    work = Work(released=True)
    result = None
    with anyio.CancelScope() as scope:
        result = await shield(work.run())
        scope.cancel()
    assert result == 7 and not scope.cancelled_caught


async def test_work_that_a_closing_loop_cancels_before_its_first_step_says_nothing() -> None:
    in_flight = InFlight()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # "coroutine was never awaited" is said when it is collected
        started = in_flight.start(Work().run())
        started.cancel()
        await in_flight.wait(timeout_seconds=10)
        ended_early = started.cancelled()
        del started
        gc.collect()

    assert ended_early and [str(warning.message) for warning in warned] == []
