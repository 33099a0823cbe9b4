"""Enter and leave an asynchronous context manager in the loop it lives in, whichever loop the block is written in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Token
from types import TracebackType
from typing import Any, TypeVar

from letopis.outbox.concurrency.fair_lock import TRANSACTION_TOKEN
from letopis.outbox.concurrency.home_loop import HomeLoop, LoopEnded, NotBegun, RemoteCall, unresolved
from letopis.store.cancellation import cancel_after_grace, run_to_completion

T = TypeVar("T")
V = TypeVar("V")


class HomeBlock(AbstractAsyncContextManager[T]):
    """An ``async with`` block; in a foreign loop, one task of the home loop enters and leaves it.

    If the home loop ends meanwhile, the block there ends as if it had been cancelled.

    :param find: returns the home loop, and opens what lives there if needed.
    :param make: makes the context manager, in the home loop.
    :param holds: whether the block holds the write gate: calls inside then carry a token by which it knows them.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[HomeLoop]],
        make: Callable[[], AbstractAsyncContextManager[T]],
        *,
        holds: bool,
    ) -> None:
        self._find = find
        self._make = make
        self._holds = holds
        self._inner: AbstractAsyncContextManager[T] | None = None
        self._call: RemoteCall[BaseException | None] | None = None
        self._entered = unresolved()
        self._left: asyncio.Future[BaseException | None] | None = None
        self._token: Token[object] | None = None
        self._calls: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> T:
        home = self._home = await self._find()
        if home.here:
            self._inner = self._make()
            return await self._inner.__aenter__()
        if self._holds:
            self._token = TRANSACTION_TOKEN.set(TRANSACTION_TOKEN.get() or self)
        try:
            self._call = home.begin(self._live)
            return await cancel_after_grace(self._enter(home), grace=0)
        except NotBegun:
            self._forget_token()
            raise LoopEnded(begun=False) from None
        except BaseException:  # a cancellation too, also one that comes when it has just been entered
            self._forget_token()
            if self._call is not None:
                self._call.cancel()
                with suppress(LoopEnded, NotBegun, asyncio.CancelledError):
                    await run_to_completion(self._call.result())
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool | None:
        if self._inner is not None:
            return await self._inner.__aexit__(kind, error, traceback)
        self._forget_token()
        assert self._call is not None  # noqa: S101 - it was entered
        with suppress(RuntimeError):  # the loop is closed
            self._home.loop.call_soon_threadsafe(self._leave, error)
        try:
            raised = await run_to_completion(self._call.result())
        except (LoopEnded, NotBegun):
            if error is not None:
                return False  # what ended the block says more
            raise LoopEnded(begun=True) from None
        return self._left_with(raised, error, traceback)

    async def _enter(self, home: HomeLoop) -> T:
        if not await home.wait(self._entered):
            raise LoopEnded(begun=False)
        value: T = self._entered.result()
        return value

    def _forget_token(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            with suppress(ValueError):  # left in another context
                TRANSACTION_TOKEN.reset(token)

    def _left_with(
        self, raised: BaseException | None, error: BaseException | None, frames: TracebackType | None
    ) -> bool:
        """Return what ``__exit__`` does, for a block that ``error`` left and that ended with ``raised``."""
        if raised is None:
            return error is not None
        if raised is not error:
            raise raised
        raised.__traceback__ = frames  # without the frames of the home loop
        return False

    # In the home loop.

    async def run(self, work: Callable[[], Awaitable[V]]) -> V:
        """Run a call that is made inside the block, so that the block does not end beneath it."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        self._calls.add(task)
        try:
            return await work()
        finally:
            self._calls.discard(task)

    async def _live(self) -> BaseException | None:
        """Enter the block, wait until it is left, and return the error that leaves it."""
        self._left = asyncio.get_running_loop().create_future()
        error: BaseException | None = None
        try:
            async with self._make() as value:
                if not self._entered.done():
                    self._entered.set_result(value)
                try:
                    error = await self._left
                finally:
                    if self._calls:
                        await run_to_completion(self._end_calls())
                if error is not None:
                    raise error  # noqa: TRY301 - the context manager has to see it
        except BaseException as raised:  # belongs to the task that is in the block
            if not self._entered.done():
                self._entered.set_exception(raised)
            if isinstance(raised, asyncio.CancelledError) and raised is not error:
                raise
            return raised
        return None

    async def _end_calls(self) -> None:
        """Cancel calls that were interrupted, or that the block does not wait for, until they have ended."""
        for call in self._calls:
            if not call.cancelling():  # one that was interrupted cleans up
                call.cancel()
        await asyncio.wait(self._calls)

    def _leave(self, error: BaseException | None) -> None:
        if self._left is not None and not self._left.done():
            self._left.set_result(error)
