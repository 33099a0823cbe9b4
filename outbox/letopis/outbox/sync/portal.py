"""Run the asynchronous history in an event loop of its own thread, for threads that call and wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from contextvars import Token
from functools import partial
from threading import RLock, Thread
from types import TracebackType
from typing import Any, Final, Generic, Literal, ParamSpec, TypeVar, get_args

import anyio
from anyio.from_thread import BlockingPortal

from letopis.outbox.concurrency.fair_lock import TRANSACTION_TOKEN
from letopis.store.errors import Closed, ConfigurationError, LetopisError

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F")
V = TypeVar("V")

POLL_INTERVAL_SECONDS: Final = 0.5
"""Seconds that a thread waits at a time: Windows notices Ctrl-C only between two waits."""
_CLOSED: Final = "the history is closed"
_CLOSED_MEANWHILE: Final = "the history was closed meanwhile"


InsideLoop = Literal["refuse", "block"]
"""What calls in a thread do that runs an event loop: raise, or block that loop until they are answered."""


class InEventLoop(LetopisError, RuntimeError):
    """Called in a thread that runs an event loop, which waiting would block: use ``History`` there."""

    def __init__(self, *, waits_for_itself: bool = False) -> None:
        super().__init__(
            "BlockingHistory cannot be used inside the event loop that its outbox is open in, which would wait for"
            " itself: use History with await, or open that history with own_thread=True"
            if waits_for_itself
            else "BlockingHistory cannot be used inside a running event loop; use History with await, or open it with"
            ' inside_loop="block", which blocks the loop during each call.'
        )


class Portal:
    """anyio's :class:`~anyio.from_thread.BlockingPortal` in a daemon thread, for any number of other threads.

    A thread whose wait is interrupted, as by Ctrl-C, cancels what it waited for. Calls run with a copy of the thread's
    context variables, so spans are those of the caller.

    :param inside_loop: ``block`` to let threads that run an event loop call, too.
    """

    def __init__(self, *, inside_loop: InsideLoop = "refuse") -> None:
        if inside_loop not in get_args(InsideLoop):
            raise ConfigurationError("inside_loop must be 'refuse' or 'block'")
        self._may_block = inside_loop == "block"
        self._home_loop: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None
        self._pid = os.getpid()
        self._lock = RLock()  # reentrant, because a signal handler may call too
        self._closed = False
        self._ready: Future[BlockingPortal] = Future()
        self._blocks: set[Block[Any, Any]] = set()
        self._outermost: Block[Any, Any] | None = None
        self._thread = Thread(target=self._serve, name="letopis-portal", daemon=True)

    @property
    def forked(self) -> bool:
        """Whether this is a forked child, in which the thread does not run."""
        return os.getpid() != self._pid

    def open(
        self,
        make: Callable[[], AbstractAsyncContextManager[T]],
        *,
        home_loop: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None,
    ) -> T:
        """Start the thread, and enter the block that ``make`` makes until :meth:`close`.

        :param home_loop: returns the event loop that calls are carried on to, if there is one.
        :raises InEventLoop: this thread runs an event loop, and may not block it.
        """
        self._home_loop = home_loop
        try:
            self.start()
            block = self._outermost = Block[T, T](self, make, lambda value: value, outermost=True)
            return block.__enter__()
        except BaseException:  # the thread must not outlive a failed opening
            self.stop()
            raise

    def close(self) -> None:
        """End the open blocks as if they had been cancelled, then the outermost one, and the thread. Idempotent."""
        if self.forked or (self._closed and not self._thread.is_alive()):
            return
        self.check(closing=True)
        try:
            with self._lock:
                self._closed = True
            self.wait(self.submit(self._abandon_blocks, closing=True))
            if self._outermost is not None:
                self._outermost.__exit__(None, None, None)
        finally:
            self.stop()

    def start(self) -> None:
        """Start the thread, and wait until its event loop runs.

        :raises InEventLoop: this thread runs an event loop, and may not block it.
        """
        self.check()
        self._thread.start()
        self._ready.result()

    def check(self, *, closing: bool = False) -> None:
        """Check that this thread may call.

        :param closing: allow it after :meth:`close`.
        :raises Closed: after :meth:`close`, or in a forked child.
        :raises InEventLoop: this thread runs an event loop, and may not block it.
        """
        if self.forked:
            raise Closed("opened before this process was forked off: threads do not cross a fork, open again here")
        if (running := _running_loop()) is not None:
            if not self._may_block:
                raise InEventLoop
            if running is self._home_loop():
                raise InEventLoop(waits_for_itself=True)
        if self._closed and not closing:
            raise Closed(_CLOSED)

    def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``await fn(*args, **kwargs)`` in the event loop, and return or raise what it does.

        :raises Closed: the portal is closed, or is while this waits.
        :raises InEventLoop: this thread runs an event loop, and may not block it.
        """
        self.check()
        work = partial(fn, *args, **kwargs)
        block = _current_block()
        return self.wait(self.submit(work if block is None else partial(block.run, work)))

    def submit(self, work: Callable[[], Awaitable[T]], *, closing: bool = False) -> Future[T]:
        """Start ``work`` in a task of its own."""
        with self._lock:  # otherwise the loop could end between the check and the call, and this would wait for ever
            if self._closed and not closing:
                raise Closed(_CLOSED)
            try:
                return self._ready.result().start_task_soon(work)
            except RuntimeError:  # anyio's, for an event loop that has ended
                raise Closed(_CLOSED) from None

    def wait(self, future: Future[T]) -> T:
        """Return or raise the result of a future; cancel it if this thread is interrupted."""
        try:
            while not future.done() and self._thread.is_alive():
                with suppress(TimeoutError):
                    future.exception(POLL_INTERVAL_SECONDS)  # only waits
            if not future.done():
                future.cancel()  # the event loop has died
            return future.result()
        except CancelledError:
            raise Closed(_CLOSED_MEANWHILE) from None
        except BaseException:  # an interruption; a future that is done is not changed by this any more
            future.cancel()
            raise

    def stop(self) -> None:
        """Cancel what still runs, and end the thread. Idempotent."""
        with self._lock:
            self._closed = True
            if self._thread.ident is None or self._ready.exception() is not None:
                return
            portal = self._ready.result()
            with suppress(RuntimeError):  # it has stopped already
                portal.call(portal.stop, True)
        while self._thread.is_alive():
            self._thread.join(POLL_INTERVAL_SECONDS)

    def _serve(self) -> None:
        try:
            anyio.run(self._run, backend="asyncio")
        except BaseException as error:  # belongs to the thread that starts it, while that waits
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _run(self) -> None:
        # anyio's `start_blocking_portal` would, in a forked child, wait at the end for a thread that is not there.
        async with BlockingPortal() as portal:
            self._ready.set_result(portal)
            await portal.sleep_until_stopped()

    async def _abandon_blocks(self) -> None:
        blocks = tuple(self._blocks)
        for block in blocks:
            await block.abandon()
        for block in blocks:
            await block.ended.wait()


class Block(AbstractContextManager[F], Generic[T, F]):
    """A ``with`` block around an asynchronous one, which is entered and left in one task of the event loop.

    A block that is interrupted while it is entered, or that is open when the portal is closed, ends as if it had been
    cancelled. What the thread calls inside it carries the token of the block, by which a lock knows its holder.

    :param make: makes the asynchronous context manager, in the event loop.
    :param wrap: makes the value of the block of that of the asynchronous one.
    """

    def __init__(
        self,
        portal: Portal,
        make: Callable[[], AbstractAsyncContextManager[T]],
        wrap: Callable[[T], F],
        *,
        outermost: bool = False,
    ) -> None:
        self._portal = portal
        self._make = make
        self._wrap = wrap
        self._outermost = outermost
        self._entered: Future[T] = Future()
        self._life: Future[BaseException | None] | None = None
        self._scope: anyio.CancelScope | None = None
        self._abandoned = False
        self._left = asyncio.Event()
        self._error: BaseException | None = None
        self._token: Token[object] | None = None
        self._calling = asyncio.Lock()
        self._call_scope: anyio.CancelScope | None = None
        self.over = False
        """Whether the thread has left it, so that its token names nothing any more."""
        self.ended = asyncio.Event()
        """Set when the block has ended."""

    def __enter__(self) -> F:
        self._portal.check()
        try:
            if not self._outermost:
                self._token = TRANSACTION_TOKEN.set(_current_block() or self)
            self._life = self._portal.submit(self._live)
            return self._wrap(self._portal.wait(self._entered))
        except BaseException:  # interrupted: without this it would stay open for ever
            self.over = True
            self._leave_token()
            self._cancel()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool | None:
        self.over = True
        self._leave_token()
        try:
            self._portal.check(closing=True)
            assert self._life is not None  # noqa: S101 - it was entered
            self._portal.submit(partial(self._leave, error), closing=True)
            raised = self._portal.wait(self._life)
        except Closed:
            if error is not None:
                return False  # what ended the block says more
            raise
        except BaseException:  # interrupted
            self._cancel()
            raise
        if raised is None:
            return error is not None
        if raised is not error:
            raise raised
        raised.__traceback__ = traceback  # without the frames of the event loop
        return False

    def _leave_token(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            with suppress(ValueError):  # left by another thread
                TRANSACTION_TOKEN.reset(token)

    def _cancel(self) -> None:
        with suppress(Closed):  # it has ended with the portal
            self._portal.submit(self.abandon, closing=True)

    # In the event loop.

    async def abandon(self) -> None:
        """End the block as if it had been cancelled."""
        self._abandoned = True
        if self._scope is not None:
            self._scope.cancel()

    async def run(self, work: Callable[[], Awaitable[V]]) -> V:
        """Run a call of the thread that is in the block, so that the block does not end beneath it."""
        async with self._calling:
            with anyio.CancelScope() as self._call_scope:
                return await work()
        raise Closed(_CLOSED_MEANWHILE)

    async def _end_call(self) -> None:
        """Cancel a call that was interrupted, or that the block does not wait for, until it has ended."""
        if self._call_scope is not None:
            self._call_scope.cancel()
        with anyio.CancelScope(shield=True):
            async with self._calling:
                pass

    async def _leave(self, error: BaseException | None) -> None:
        self._error = error
        self._left.set()

    async def _live(self) -> BaseException | None:
        """Enter the block, wait until it is left, and return the error that leaves it."""
        if not self._outermost:
            self._portal._blocks.add(self)
        try:
            with anyio.CancelScope() as self._scope:
                if self._abandoned:
                    self._scope.cancel()
                return await self._enter_and_leave()
            raise Closed(_CLOSED_MEANWHILE)
        finally:
            self._entered.cancel()  # has no effect once it was entered
            self._portal._blocks.discard(self)
            self.ended.set()

    async def _enter_and_leave(self) -> BaseException | None:
        try:
            async with self._make() as value:
                if self._entered.set_running_or_notify_cancel():  # otherwise `abandon` is on its way
                    self._entered.set_result(value)
                try:
                    await self._left.wait()
                finally:
                    await self._end_call()
                if self._error is not None:
                    raise self._error  # noqa: TRY301 - the context manager has to see it
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # belongs to the thread that waits
            if not self._entered.done() and self._entered.set_running_or_notify_cancel():
                self._entered.set_exception(error)
            return error
        return None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _current_block() -> Block[Any, Any] | None:
    """Return the block that this thread is in, and forget one whose leaving was interrupted."""
    block = TRANSACTION_TOKEN.get()
    if not isinstance(block, Block):
        return None
    if block.over:
        TRANSACTION_TOKEN.set(None)
        return None
    return block
