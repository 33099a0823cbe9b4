"""Call the asynchronous history from threads that wait for the answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, ParamSpec, TypeVar, get_args

from letopis.outbox.concurrency.fair_lock import TRANSACTION_TOKEN
from letopis.outbox.concurrency.home_loop import HomeBlock, LoopEnded, NotBegun, RemoteCall, unresolved
from letopis.store.errors import Closed, ConfigurationError, LetopisError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from letopis.outbox.history.sharing import SharedAccess

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F")

InsideLoop = Literal["refuse", "block"]
"""What calls in a thread do that runs an event loop: raise, or block that loop until they are answered."""
_CLOSED_MEANWHILE: Final = "the history was closed meanwhile"


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
    """The way of other threads into a history's event loop, or one of its own; Ctrl-C cancels what is waited for."""

    def __init__(self, access: SharedAccess, *, inside_loop: InsideLoop = "refuse") -> None:
        if inside_loop not in get_args(InsideLoop):
            raise ConfigurationError("inside_loop must be 'refuse' or 'block'")
        self._access = access
        self._may_block = inside_loop == "block"
        self._pid = os.getpid()
        self._closed = False
        self._calls: set[RemoteCall[Any]] = set()
        self._blocks: set[Block[Any, Any]] = set()

    def open(self) -> None:
        self.check()
        self._access.block_until_open()

    def close(self) -> None:
        """End the open blocks and calls as if they had been cancelled, then leave the outbox. Idempotent."""
        if os.getpid() == self._pid:
            self.check(closing=True)
            self._closed = True
            for block in tuple(self._blocks):
                block.abandon()
                block._home.block_until(block.ended)
            for call in tuple(self._calls):
                call.cancel()
                call.home.block_until(call.answer)
            self._access.block_until_closed()

    def check(self, *, closing: bool = False) -> None:
        """Check that this thread may call; ``closing`` allows it after :meth:`close`."""
        if os.getpid() != self._pid:
            raise Closed("opened before this process was forked off: threads do not cross a fork, open again here")
        if (running := _running_loop()) is not None:
            if not self._may_block:
                raise InEventLoop
            if running is self._access.home_loop:
                raise InEventLoop(waits_for_itself=True)
        if self._closed and not closing:
            raise Closed("the history is closed")

    def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``await fn(*args, **kwargs)`` in the event loop, and return or raise what it does."""
        self.check()
        work: Callable[[], Awaitable[T]] = partial(fn, *args, **kwargs)
        block = _current_block()
        if block is not None:
            work = partial(block.run, work)
        while True:
            try:
                call = self._access.block_until_open().begin(work)
                self._calls.add(call)
                try:
                    if self._closed:
                        call.cancel()
                    return call.block()
                finally:
                    self._calls.discard(call)
            except NotBegun:  # the loop has ended: open again
                continue
            except (asyncio.CancelledError, LoopEnded):
                if self._closed or (block is not None and block.over):
                    raise Closed(_CLOSED_MEANWHILE) from None
                raise


class Block(HomeBlock[T], AbstractContextManager[F], Generic[T, F]):
    """A ``with`` block around an asynchronous one, which one task of the event loop enters and leaves."""

    def __init__(
        self, portal: Portal, make: Callable[[], AbstractAsyncContextManager[T]], wrap: Callable[[T], F]
    ) -> None:
        super().__init__(portal._access.prepare, make, holds=True)
        self._portal = portal
        self._wrap = wrap
        self._abandoned = False
        self._task: asyncio.Task[Any] | None = None
        self.over = False  # whether the thread has left it, so that its token names nothing any more
        self.ended: Future[None] = unresolved()

    def __enter__(self) -> F:
        self._portal.check()
        home = self._home = self._portal._access.block_until_open()
        try:
            self._token = TRANSACTION_TOKEN.set(_current_block() or self)
            self._call = home.begin(self._live)
            if home.block_until(self._entered):
                return self._wrap(self._entered.result())
            raise LoopEnded(begun=False)  # noqa: TRY301 - as an error in the block
        except BaseException as error:  # interrupted: without this it would stay open for ever
            self.over = True
            self._forget_token()
            self.abandon()
            if self._portal._closed and isinstance(error, asyncio.CancelledError | LoopEnded | NotBegun):
                raise Closed(_CLOSED_MEANWHILE) from None
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool | None:
        self.over = True
        self._forget_token()
        assert self._call is not None  # noqa: S101 - it was entered
        try:
            self._portal.check(closing=True)
            with suppress(RuntimeError):  # the loop is closed
                self._home.loop.call_soon_threadsafe(self._leave, error)
            raised = self._call.block()
        except (Closed, asyncio.CancelledError, LoopEnded, NotBegun) as lost:
            if error is not None:
                return False  # what ended the block says more
            raise lost if isinstance(lost, Closed) else Closed(_CLOSED_MEANWHILE) from None
        except BaseException:  # interrupted
            self.abandon()
            raise
        return self._left_with(raised, error, traceback)

    def abandon(self) -> None:
        """End the block as if it had been cancelled."""
        self._abandoned = True
        with suppress(RuntimeError):  # the loop is closed
            self._home.loop.call_soon_threadsafe(self._cancel)

    # In the event loop.

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _live(self) -> BaseException | None:
        self._task = asyncio.current_task()
        self._portal._blocks.add(self)
        try:
            if self._abandoned or self._portal._closed:
                raise asyncio.CancelledError
            return await super()._live()
        finally:
            if not self._entered.done():
                self._entered.set_exception(asyncio.CancelledError())
            self._portal._blocks.discard(self)
            self.ended.set_result(None)


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
