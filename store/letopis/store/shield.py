"""Shields: keep a cancellation from tearing a database transaction in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

# The event loop holds tasks weakly; a caller that is closed while it waits must not let its work be collected.
_running: set[asyncio.Future[Any]] = set()


class UnderWay:
    """What its owner has begun and not ended: whoever closes what that works on lets it end first."""

    def __init__(self) -> None:
        self._works: set[asyncio.Future[Any]] = set()

    def begin(self, work: Awaitable[T]) -> asyncio.Future[T]:
        """Run ``work`` in a task of its own, and know it until it ends."""
        begun = asyncio.ensure_future(work)
        self._works.add(begun)
        begun.add_done_callback(self._works.discard)
        return begun

    async def end(self, *, patience: float) -> None:
        """Wait until all of it has ended, whatever with, for so many seconds at most."""
        if self._works:
            await asyncio.wait(self._works, timeout=patience)


async def uninterrupted(awaitable: Awaitable[T]) -> T:
    """Run ``awaitable`` to its end even if the caller is cancelled meanwhile, then let the cancellation go on.

    Holds for ``Task.cancel()``, once or often, and for anyio's cancel scopes. A cancelled caller never learns the
    result: the cancellation wins over a value and over an error. The work runs in a task of its own with a copy of the
    caller's context, outside the caller's cancel scopes and deadlines, so whatever may hang needs its own deadline.

    Not promised: an end when the event loop itself is shut down, which cancels the inner task too.
    """
    return await _outlive(awaitable, grace=None)


async def interrupted_once(awaitable: Awaitable[T], *, grace: float = 0.5) -> T:
    """Run ``awaitable`` so that a cancellation reaches it late and at most once, and wait until it has cleaned up.

    Nearly all work ends by itself within ``grace`` seconds: a connection that is cut off in mid answer is lost, and
    drivers complain about it. After that the work sees one plain asyncio cancellation. (An anyio cancel scope would
    interrupt *every* await until it is left, also those by which a driver closes its connection; what leaks then is a
    socket or a task.) Otherwise as :func:`uninterrupted`.
    """
    return await _outlive(awaitable, grace=grace)


async def _outlive(awaitable: Awaitable[T], *, grace: float | None) -> T:
    work = asyncio.ensure_future(awaitable)
    _running.add(work)
    work.add_done_callback(_running.discard)
    interruption: asyncio.CancelledError | None = None
    try:
        # A scope that is cancelled already, or during the wait, interrupts this await alone.
        await asyncio.wait((work,))
    except asyncio.CancelledError as cancelled:
        interruption = cancelled
    # The scope keeps anyio from delivering its cancellation again at every turn of the loop.
    with anyio.CancelScope(shield=True):
        last_call = (
            None if grace is None or interruption is None else asyncio.get_running_loop().call_later(grace, work.cancel)
        )
        while not work.done():
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError as cancelled:
                interruption = cancelled
        if last_call is not None:
            last_call.cancel()
    if interruption is None:
        return work.result()
    raise interruption from (None if work.cancelled() else work.exception())
