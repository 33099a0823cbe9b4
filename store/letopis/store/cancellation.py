"""Keep a cancellation from interrupting a database transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

# The event loop holds tasks weakly; a caller that is closed while it waits must not let its work be collected.
_running: set[asyncio.Future[Any]] = set()


class InFlight:
    """Work that was started and has not ended, so that a close can wait for it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start ``work``, which is tracked until it ends."""
        # The task's own coroutine: one inside it stays unawaited if the loop is shut down before the first step.
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self, *, timeout_seconds: float) -> None:
        """Wait until all of it has ended, with whatever result, for at most ``timeout_seconds``."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_seconds)


async def off_the_loop(work: Callable[..., T], *args: Any) -> T:
    """Return what ``work`` returns, run in another thread unless this is none with an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work(*args)
    return await asyncio.to_thread(work, *args)


async def run_to_completion(awaitable: Awaitable[T]) -> T:
    """Run ``awaitable`` to completion even if the caller is cancelled meanwhile, then raise the cancellation."""
    # Also if it is cancelled repeatedly, or by an anyio scope. The work runs outside the caller's scopes and deadlines,
    # so that it needs one of its own. A loop that is shut down cancels it too.
    return await _await_shielded(awaitable, grace=None)


async def cancel_after_grace(awaitable: Awaitable[T], *, grace: float = 0.5) -> T:
    """Run ``awaitable``; pass a cancellation on after ``grace`` seconds, once, and wait until it has cleaned up."""
    # Interrupted at once, most work would lose a connection in the middle of an answer. An anyio scope would interrupt
    # every later await too, also those by which a driver closes its connection, and leak a socket or a task.
    return await _await_shielded(awaitable, grace=grace)


async def _await_shielded(awaitable: Awaitable[T], *, grace: float | None) -> T:
    work = asyncio.ensure_future(awaitable)
    _running.add(work)
    work.add_done_callback(_running.discard)
    interruption: asyncio.CancelledError | None = None
    try:
        # A scope that is cancelled already, or during the wait, interrupts this await alone.
        await asyncio.wait((work,))
    except asyncio.CancelledError as cancelled:
        interruption = cancelled
    # The scope keeps anyio from delivering its cancellation again in each iteration of the event loop.
    with anyio.CancelScope(shield=True):
        late_cancel = (
            None if grace is None or interruption is None else asyncio.get_running_loop().call_later(grace, work.cancel)
        )
        while not work.done():
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError as cancelled:
                interruption = cancelled
        if late_cancel is not None:
            late_cancel.cancel()
    if interruption is None:
        return work.result()
    raise interruption from (None if work.cancelled() else work.exception())
