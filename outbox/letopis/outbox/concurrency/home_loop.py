"""Run calls and blocks in the one event loop that an object lives in, whichever loop of the process awaits them."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Token
from functools import partial, wraps
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar

from letopis.outbox.concurrency.fair_lock import TRANSACTION_TOKEN
from letopis.store.cancellation import cancel_after_grace, run_to_completion
from letopis.store.errors import Closed, OutboxUnavailable

T = TypeVar("T")
V = TypeVar("V")
C = TypeVar("C")

POLL_INTERVAL_SECONDS: Final = 0.5  # between two looks at the other loop: one that was closed or stopped never answers


class NotBegun(Exception):
    """The loop ended before the call began there: nothing was done."""


class LoopEnded(OutboxUnavailable):
    """The event loop that the outbox was open in ended, or stands still. The history opens again on its next use."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__(
            "the event loop in which the outbox was open ended during the call: it may have taken effect, and can be"
            " repeated with the same messages"
            if begun
            else "the event loop in which the outbox is open does not run, and nothing was done: close the history"
            " there, or open it with own_thread=True"
        )


class Home(Protocol):
    """Where an object lives."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...

    async def run(self, work: Callable[[], Awaitable[T]], /) -> T:
        """Return or raise what ``await work()`` does in that loop."""
        ...


class HomeLoop:
    """The running event loop, for calls from other loops and threads."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls: set[asyncio.Task[Any]] = set()  # calls in progress: an event loop holds its tasks weakly

    @property
    def running(self) -> bool:
        """Whether the loop runs at this moment."""
        return self.loop.is_running()

    @property
    def here(self) -> bool:
        """Whether it is the loop of the caller."""
        return self.loop is asyncio.get_running_loop()

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return or raise what ``await work()`` does in the loop; a cancellation waits for that to end."""
        if self.here:
            return await work()
        try:
            return await self.begin(work).result()
        except NotBegun:
            raise Closed("the event loop in which the outbox was open has ended, and this with it") from None

    def begin(self, work: Callable[[], Awaitable[T]]) -> RemoteCall[T]:
        """Start ``await work()`` in the loop, from another one."""
        call = RemoteCall(self, work)
        try:
            self.loop.call_soon_threadsafe(call.begin)
        except RuntimeError:  # asyncio's, for a loop that is closed
            raise NotBegun from None
        return call

    async def wait(self, future: Future[Any]) -> bool:
        """Wait in another loop until ``future``, which this one sets, is done. Return False if it never will be."""
        answer = asyncio.wrap_future(future)
        stopped = 0
        try:
            while not answer.done():
                await asyncio.wait((answer,), timeout=POLL_INTERVAL_SECONDS)
                stopped = 0 if self.running else stopped + 1
                # A loop that is run repeatedly stands still in between.
                if not answer.done() and (self.loop.is_closed() or stopped > 1):
                    return False
            return True
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # retrieved, so that asyncio does not report it
            else:
                answer.cancel()

    def block_until(self, future: Future[Any]) -> bool:
        """Do as :meth:`wait` in a thread, which is blocked meanwhile."""
        stopped = 0
        while not future.done():
            with suppress(TimeoutError):
                future.exception(POLL_INTERVAL_SECONDS)  # only waits; Windows notices Ctrl-C only between two waits
            stopped = 0 if self.running else stopped + 1
            if not future.done() and (self.loop.is_closed() or stopped > 1):
                return False
        return True


class RemoteCall(Generic[T]):
    """A call that another loop runs."""

    def __init__(self, home: HomeLoop, work: Callable[[], Awaitable[T]]) -> None:
        self.home = home
        self.answer: Future[T] = unresolved()  # what the call returned or raised; a cancellation if it was cancelled
        # Taken by whichever is first: the loop that starts it, or the caller that gives up.
        self._waiting = deque((work,))
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False

    async def result(self) -> T:
        """Wait for the call, and return or raise what it does."""
        return await cancel_after_grace(self._result(), grace=0)

    def cancel(self) -> None:
        """Cancel the call, from any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self.home.loop.call_soon_threadsafe(self._cancel)

    def block(self) -> T:
        """Do as :meth:`result` in a thread, which is blocked meanwhile; if it is interrupted, cancel the call."""
        try:
            ended = self.home.block_until(self.answer)
        except BaseException:  # an interruption, as by Ctrl-C
            self.cancel()
            raise
        return self._outcome(ended=ended)

    async def _result(self) -> T:
        try:
            ended = await self.home.wait(self.answer)
        except asyncio.CancelledError:
            self.cancel()
            await self.home.wait(self.answer)
            raise
        return self._outcome(ended=ended)

    def _outcome(self, *, ended: bool) -> T:
        if not ended:
            try:
                self._waiting.pop()  # had it not begun, it never will
                begun = False
            except IndexError:
                begun = True
            if not begun and self.home.loop.is_closed():
                raise NotBegun
            raise LoopEnded(begun=begun)
        return self.answer.result()

    # In the home loop.

    def begin(self) -> None:
        """Begin the call; in the loop that it is for."""
        try:
            work = self._waiting.pop()
        except IndexError:
            return
        self._task = asyncio.get_running_loop().create_task(_awaited(work), name="letopis-call")
        self.home.calls.add(self._task)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        self.home.calls.discard(task)
        if task.cancelled():
            # Not by its caller: by the end of this loop.
            self.answer.set_exception(asyncio.CancelledError() if self._cancelled else LoopEnded(begun=True))
        elif (error := task.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(task.result())


def unresolved() -> Future[Any]:
    """Return a future between threads that a waiter cannot cancel for the others."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def at_home(*, besides: Collection[str] = ()) -> Callable[[type[C]], type[C]]:
    """Decorate a class: its coroutine methods but ``besides`` run in its ``_home``'s loop, wherever awaited."""

    def decorate(cls: type[C]) -> type[C]:
        for name, method in tuple(vars(cls).items()):
            if not name.startswith("_") and name not in besides and inspect.iscoroutinefunction(method):
                setattr(cls, name, _forwarded(method))
        return cls

    return decorate


def _forwarded(method: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., Coroutine[Any, Any, T]]:
    @wraps(method)
    async def call(self: Any, *args: Any, **kwargs: Any) -> T:
        home: Home = self._home
        if home.loop is asyncio.get_running_loop():
            return await method(self, *args, **kwargs)
        return await home.run(partial(method, self, *args, **kwargs))

    return call


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


class HomeBlock(AbstractAsyncContextManager[T]):
    """An ``async with`` block; in a foreign loop, one task of the home loop enters and leaves it."""

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
                    calls = set(self._calls)  # those that end before the wait begins leave the other set
                    for call in calls:
                        if not call.cancelling():  # one that was interrupted cleans up
                            call.cancel()
                    if calls:
                        await run_to_completion(asyncio.wait(calls))
                if error is not None:
                    raise error  # noqa: TRY301 - the context manager has to see it
        except BaseException as raised:  # belongs to the task that is in the block
            if not self._entered.done():
                self._entered.set_exception(raised)
            if isinstance(raised, asyncio.CancelledError) and raised is not error:
                raise
            return raised
        return None

    def _leave(self, error: BaseException | None) -> None:
        if self._left is not None and not self._left.done():
            self._left.set_result(error)
