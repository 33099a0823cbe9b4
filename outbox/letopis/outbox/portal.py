"""The portal: one event loop in a thread of its own, into which plain functions call and wait for the answer."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from functools import partial
from threading import RLock, Thread, local
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from letopis.store.errors import Closed, LetopisError

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F")

SLICE: Final = 0.5
"""Seconds that a thread waits before it looks around: on Windows, Ctrl-C is only noticed between two waits."""
_CLOSED: Final = "the history is closed"
_MEANWHILE: Final = "the history was closed meanwhile"


class InEventLoop(LetopisError, RuntimeError):
    """Called in a thread that runs an event loop, which waiting would hold up: use ``History`` there."""

    def __init__(self) -> None:
        super().__init__(
            "this thread runs an event loop, which waiting would hold up: use History with await there, and give"
            " plain functions, not async ones, where they are to use this history"
        )


class Portal:
    """Runs an event loop in a daemon thread, for any number of other threads.

    A thread that waits and is interrupted, as by Ctrl-C, cancels what it waited for. What it called runs with a copy of
    its context variables, so spans are those of the caller.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        # Reentrant for the sake of signal handlers.
        self._lock = RLock()
        self._closed = False
        self._ready: Future[BlockingPortal] = Future()
        self._inside = local()
        self._blocks: set[Block[Any, Any]] = set()
        self._thread = Thread(target=self._serve, name="letopis-portal", daemon=True)

    @property
    def forked(self) -> bool:
        """Whether this is a process that was forked off since: its thread is not here."""
        return os.getpid() != self._pid

    def start(self) -> None:
        """Start the thread, and wait until its event loop runs.

        :raises InEventLoop: this thread runs an event loop.
        """
        self.check()
        self._thread.start()
        self._ready.result()

    def check(self) -> None:
        """Do nothing where this thread may call.

        :raises Closed: after :meth:`refuse`, or in a process that was forked off.
        :raises InEventLoop: this thread runs an event loop.
        """
        self.check_here()
        if self._closed:
            raise Closed(_CLOSED)

    def check_here(self) -> None:
        """Do nothing where this thread may wait for the event loop.

        :raises Closed: in a process that was forked off.
        :raises InEventLoop: this thread runs an event loop.
        """
        if self.forked:
            raise Closed("opened before this process was forked off: threads do not cross a fork, open again here")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise InEventLoop

    def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``await fn(*args, **kwargs)`` in the event loop, and return or raise what it does.

        Inside a block of this thread it runs in the block's task, as it would with asyncio.

        :raises Closed: the portal is closed, or is while this waits.
        :raises InEventLoop: this thread runs an event loop.
        """
        self.check()
        return self.wait(self.submit(self.inside(partial(fn, *args, **kwargs))))

    def submit(self, work: Callable[[], Awaitable[T]], *, closing: bool = False) -> Future[T]:
        """Start ``work`` in a task of its own.

        :param closing: whether it belongs to closing, and is done all the same.
        """
        with self._lock:  # else the loop could end between the look and the hop, and this would wait for ever
            if self._closed and not closing:
                raise Closed(_CLOSED)
            try:
                return self._ready.result().start_task_soon(work)
            except RuntimeError:  # anyio's, for an event loop that has ended
                raise Closed(_CLOSED) from None

    def wait(self, future: Future[T]) -> T:
        """Return or raise what comes of a future; cancel it where this thread is interrupted."""
        try:
            while not future.done() and self._thread.is_alive():
                with suppress(TimeoutError):
                    future.exception(SLICE)  # only waits
            if not future.done():
                future.cancel()  # the event loop has died
            return future.result()
        except CancelledError:
            raise Closed(_MEANWHILE) from None
        except BaseException:  # an interruption; what came of the future is not changed by this any more
            future.cancel()
            raise

    def refuse(self) -> None:
        """Let nobody begin anything any more, and end the blocks that are open as if they had been cancelled."""
        with self._lock:
            self._closed = True
        self.wait(self.submit(self._end_blocks, closing=True))

    def stop(self) -> None:
        """Cancel what still runs, and end the thread. Again does nothing."""
        with self._lock:
            self._closed = True
            if self._thread.ident is None or self._ready.exception() is not None:
                return
            portal = self._ready.result()
            with suppress(RuntimeError):  # it has stopped already
                portal.call(portal.stop, True)
        while self._thread.is_alive():
            self._thread.join(SLICE)

    def enter(self, block: Block[Any, Any]) -> None:
        """Have what this thread calls run in the task of ``block``."""
        self._inside.__dict__.setdefault("blocks", []).append(block)

    def leave(self, block: Block[Any, Any]) -> None:
        """Take back what :meth:`enter` did; from another thread it does nothing."""
        blocks: list[Block[Any, Any]] = getattr(self._inside, "blocks", [])
        if block in blocks:
            blocks.remove(block)

    def inside(self, work: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
        """Return what does ``work`` in the task of the block that this thread is in; ``work`` itself where in none."""
        blocks: list[Block[Any, Any]] = getattr(self._inside, "blocks", [])
        while blocks and blocks[-1].over:  # it was left by another thread
            blocks.pop()
        return partial(blocks[-1].run, work) if blocks else work

    def _serve(self) -> None:
        try:
            anyio.run(self._run, backend="asyncio")
        except BaseException as error:  # it belongs to the one who starts it, while there is one
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _run(self) -> None:
        # anyio's `start_blocking_portal` would, in a forked child, wait at the end for a thread that is not there.
        async with BlockingPortal() as portal:
            self._ready.set_result(portal)
            await portal.sleep_until_stopped()

    # In the event loop.

    def opened(self, block: Block[Any, Any]) -> None:
        """Keep a block, to end it where it is still open at the end."""
        self._blocks.add(block)

    def ended(self, block: Block[Any, Any]) -> None:
        """Forget a block."""
        self._blocks.discard(block)

    async def _end_blocks(self) -> None:
        blocks = tuple(self._blocks)
        for block in blocks:
            await block.abandon()
        for block in blocks:
            await block.gone.wait()


class _Work:
    """What a thread calls inside its block."""

    def __init__(self, fn: Callable[[], Awaitable[Any]]) -> None:
        self._fn = fn
        self._context = contextvars.copy_context()
        self._scope: anyio.CancelScope | None = None
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def refuse(self) -> None:
        if not self.answer.done():
            self.answer.set_exception(Closed(_MEANWHILE))

    async def run(self) -> None:
        """Run it in this task."""
        if self.answer.done():
            return  # given up before it began
        for variable, value in self._context.items():
            variable.set(value)
        with anyio.CancelScope() as self._scope:
            try:
                value = await self._fn()
            except asyncio.CancelledError:
                self.refuse()
                raise
            except BaseException as error:  # it belongs to the one who waits
                if not self.answer.done():
                    self.answer.set_exception(error)
            else:
                if not self.answer.done():
                    self.answer.set_result(value)


class Block(AbstractContextManager[F], Generic[T, F]):
    """A ``with`` block around an asynchronous one, which is entered and left in one task of the event loop.

    What the thread calls inside it is run by that task too, so that who holds what is known by the task, as with
    asyncio. A block that is interrupted while it is entered, or that is open when the portal is closed, ends as if it
    had been cancelled.

    :param make: makes the asynchronous context manager, in the event loop.
    :param face: makes of its value what the block gives.
    """

    def __init__(
        self,
        portal: Portal,
        make: Callable[[], AbstractAsyncContextManager[T]],
        face: Callable[[T], F],
        *,
        outermost: bool = False,
    ) -> None:
        self._portal = portal
        self._make = make
        self._face = face
        self._outermost = outermost
        self._entered: Future[T] = Future()
        self._life: Future[bool | None] | None = None
        self._abandoned = False
        self._scope: anyio.CancelScope | None = None
        self._works: asyncio.Queue[_Work | None] | None = None
        self._working: _Work | None = None
        self._left_by: BaseException | None = None
        self.over = False
        """Whether nothing can be done inside it any more."""
        self.gone = asyncio.Event()
        """Set when it has ended."""

    def __enter__(self) -> F:
        self._portal.check()
        try:
            self._life = self._portal.submit(self._portal.inside(self._live))
            face = self._face(self._portal.wait(self._entered))
            if not self._outermost:
                self._portal.enter(self)
        except BaseException:  # interrupted: else it would stay open for ever
            self._let_go()
            raise
        return face

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool | None:
        self._portal.leave(self)
        try:
            self._portal.check_here()
            assert self._life is not None  # noqa: S101 - it was entered
            self._portal.submit(partial(self._leave, error), closing=True)
            return self._portal.wait(self._life)
        except Closed:
            if error is not None:
                return False  # what ended the block says more
            raise
        except BaseException:  # interrupted, or what leaving it raised: then there is nothing to let go
            self._let_go()
            raise

    def _let_go(self) -> None:
        with suppress(Closed):  # it has ended with the portal
            self._portal.submit(self.abandon, closing=True)

    # In the event loop.

    async def abandon(self) -> None:
        """End the block as if it had been cancelled."""
        self._abandoned = True
        if self._scope is not None:
            self._scope.cancel()

    async def run(self, fn: Callable[[], Awaitable[Any]]) -> Any:
        """Have ``fn`` run by the block's task, and return or raise what it does."""
        if self.over or self._works is None:
            raise Closed(_MEANWHILE)
        work = _Work(fn)
        self._works.put_nowait(work)
        try:
            return await work.answer
        except asyncio.CancelledError:
            work.cancel()
            raise

    async def _leave(self, error: BaseException | None) -> None:
        self._left_by = error
        if self._working is not None:
            self._working.cancel()  # a block inside that is left after this one, or what was interrupted
        if self._works is not None:
            self._works.put_nowait(None)

    async def _live(self) -> bool | None:
        if not self._outermost:
            self._portal.opened(self)
        try:
            with anyio.CancelScope() as self._scope:
                if self._abandoned:
                    self._scope.cancel()
                return await self._enter_and_leave()
            raise Closed(_MEANWHILE)
        finally:
            self.over = True
            self._entered.cancel()  # nothing where it was entered
            self._portal.ended(self)
            self.gone.set()

    async def _enter_and_leave(self) -> bool | None:
        manager = self._make()
        try:
            value = await manager.__aenter__()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # it belongs to the one who waits
            if self._entered.set_running_or_notify_cancel():
                self._entered.set_exception(error)
            return None
        works = self._works = asyncio.Queue()
        try:
            # Where the wait was interrupted, `abandon` is on its way.
            if self._entered.set_running_or_notify_cancel():
                self._entered.set_result(value)
            while (work := await works.get()) is not None:
                self._working = work
                await work.run()
                self._working = None
        except asyncio.CancelledError as cancelled:
            if not await manager.__aexit__(type(cancelled), cancelled, cancelled.__traceback__):
                raise
            return None
        finally:
            self.over = True
            while not works.empty():
                if (work := works.get_nowait()) is not None:
                    work.refuse()
        left = self._left_by
        if left is None:
            return await manager.__aexit__(None, None, None)
        return await manager.__aexit__(type(left), left, left.__traceback__)


class Opening(AbstractContextManager[F], Generic[T, F]):
    """A ``with`` block that has a portal of its own, around an asynchronous one.

    :param make: makes the asynchronous context manager, in the event loop.
    :param face: makes of the portal and of its value what the block gives.
    """

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]], face: Callable[[Portal, T], F]) -> None:
        self._make = make
        self._face = face

    def __enter__(self) -> F:
        portal = self._portal = Portal()
        try:
            portal.start()
            self._block = Block(portal, self._make, partial(self._face, portal), outermost=True)
            return self._block.__enter__()
        except BaseException:  # the thread must not outlive a failed opening
            portal.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool | None:
        if self._portal.forked:
            return None  # it is the parent's
        try:
            self._portal.refuse()
            return self._block.__exit__(kind, error, traceback)
        finally:
            self._portal.stop()
