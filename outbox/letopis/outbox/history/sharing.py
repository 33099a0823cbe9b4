"""Open an outbox once in a process, in one event loop, for all histories on its file."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from threading import Lock, Thread
from typing import Final, TypeVar
from weakref import WeakSet

from letopis.outbox.concurrency.home_loop import POLL_INTERVAL_SECONDS, HomeLoop, LoopEnded, NotBegun, unresolved
from letopis.outbox.file.identity import FileId, file_id_of
from letopis.outbox.history.opening import HistorySettings, Parts, open_parts
from letopis.outbox.telemetry.logging import describe_failure
from letopis.store.cancellation import run_to_completion
from letopis.store.errors import Closed, InvalidInput

T = TypeVar("T")
logger = logging.getLogger("letopis.outbox.history")

CLEANUP_SECONDS: Final = 5.0  # seconds that an ending event loop's other tasks have for what they still append

_KEEPER: Final = "letopis-outbox"
_NOT_OPEN: Final = "the history is not open yet: await history.prepare(), or enter it with `async with`"


class SharedOutbox:
    """An open outbox, kept by a task of its loop; it closes with its last history, or with the loop."""

    def __init__(self, registry: Registry, settings: HistorySettings) -> None:
        self.settings = settings
        self.histories: WeakSet[SharedAccess] = WeakSet()
        self.home: HomeLoop | None = None
        self.parts: Parts | None = None
        self._begun: Future[None] = unresolved()
        self.opened: Future[None] = unresolved()
        self.ended: Future[None] = unresolved()
        self.ending = False
        self.pid = os.getpid()
        self._registry = registry
        self._path = os.path.realpath(settings.path)
        self._file_id: FileId | None = None
        self._stop: asyncio.Event | None = None
        self._thread: Thread | None = None

    # In any thread, with the lock of the registry.

    @property
    def orphaned(self) -> bool:
        """Whether its loop was closed without cancelling its tasks."""
        return self.home is not None and self.home.loop.is_closed() and not self.ended.done()

    def is_on(self, settings: HistorySettings) -> bool:
        """Return True if it is on the same file, by whatever path."""
        try:
            file_id = file_id_of(settings.path)
        except OSError:
            file_id = None
        if self._file_id is not None:
            return file_id == self._file_id
        return os.path.realpath(settings.path) == self._path

    def start(self, *, own_thread: bool) -> None:
        """Begin to open it, in the running event loop or in a thread of its own."""
        if own_thread or self.settings.options.own_thread:
            self._thread = Thread(target=partial(asyncio.run, self._keep()), name=_KEEPER, daemon=True)
            self._thread.start()
        else:
            self.home = HomeLoop()
            self._begun.set_result(None)
            # In an empty context: it belongs to no request, span or transaction.
            self._keeper = self.home.loop.create_task(self._keep(), name=_KEEPER, context=Context())
            self._keeper.add_done_callback(self._end_unbegun)

    def stop(self) -> None:
        """Begin to close it."""
        self.ending = True
        if self._stop is not None and self.home is not None and not self.home.loop.is_closed():
            self.home.loop.call_soon_threadsafe(self._stop.set)

    def abandon(self) -> None:
        self._detach()
        _left.append(self)
        if self.parts is not None:
            self.parts.abandon()

    # In any event loop.

    async def wait(self, future: Future[None]) -> None:
        """Wait until it has been opened, or has ended, well or not."""
        if not self._begun.done():
            await asyncio.wait((asyncio.wrap_future(self._begun),))
        if not future.done() and self.home is not None and not await self.home.wait(future):
            raise LoopEnded(begun=False)

    def block_until(self, future: Future[None]) -> None:
        """Do as :meth:`wait` in a thread, which is blocked meanwhile."""
        self._begun.result()
        if not future.done() and self.home is not None and not self.home.block_until(future):
            raise LoopEnded(begun=False)

    def join_thread(self) -> None:
        """Wait until the thread of its own has ended, if it has one."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(POLL_INTERVAL_SECONDS)

    # In its own loop.

    async def _keep(self) -> None:
        failure: BaseException | None = None
        try:
            with self._registry.lock:
                self._stop = asyncio.Event()
                if self.home is None:
                    self.home = HomeLoop()
                    self._begun.set_result(None)
            async with open_parts(self.settings) as parts:
                with self._registry.lock:
                    self.parts = parts
                    self._file_id = parts.outbox.file_id
                    for history in self.histories:
                        history.enter(self)
                self.opened.set_result(None)
                try:
                    if not self.ending:
                        await self._stop.wait()
                except asyncio.CancelledError:
                    await _others_cleaned_up()
                    raise
                finally:
                    with self._registry.lock:
                        self._detach()
        except BaseException as error:  # belongs to those who wait for it
            failure = error
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._end(failure)

    def _end_unbegun(self, _keeper: asyncio.Task[None]) -> None:
        """End what a loop that ends has cancelled before its first step."""
        if not self.ended.done():
            self._end(asyncio.CancelledError())

    def _end(self, failure: BaseException | None) -> None:
        with self._registry.lock:
            self._detach()
            self._registry.remove(self)
        cancelled = isinstance(failure, asyncio.CancelledError)
        if not self.opened.done():
            self.opened.set_exception(LoopEnded(begun=False) if failure is None or cancelled else failure)
            failure = None
        if failure is None or cancelled:
            self.ended.set_result(None)
        else:
            logger.error("an outbox could not be closed properly: %s", describe_failure(failure))
            self.ended.set_exception(failure)

    def _detach(self) -> None:
        self.ending = True
        for history in self.histories:
            history.loop = None


class Registry:
    """The outboxes that are open in this process."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.outboxes: list[SharedOutbox] = []

    def find(self, settings: HistorySettings) -> SharedOutbox | None:
        """Return the outbox that is open on a file; with the lock held."""
        outbox = next((outbox for outbox in self.outboxes if outbox.is_on(settings)), None)
        if outbox is not None and outbox.orphaned:
            self.remove(outbox)
            outbox.abandon()
            return None
        return outbox

    def begin(self, settings: HistorySettings, *, own_thread: bool) -> SharedOutbox:
        """Begin to open an outbox in this process; with the lock held."""
        outbox = SharedOutbox(self, settings)
        self.outboxes.append(outbox)
        try:
            outbox.start(own_thread=own_thread)
        except BaseException:  # no thread could be started
            self.outboxes.remove(outbox)
            raise
        return outbox

    def remove(self, outbox: SharedOutbox) -> None:
        """Forget an outbox. Idempotent; with the lock held."""
        if outbox in self.outboxes:
            self.outboxes.remove(outbox)


REGISTRY: Final = Registry()
_left: Final[list[SharedOutbox]] = []
"""Outboxes of a parent process, or of a loop that was closed beneath them. Collecting one would begin to close it."""


def _forked() -> None:
    _left.extend(REGISTRY.outboxes)
    REGISTRY.outboxes.clear()
    REGISTRY.lock = Lock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class SharedAccess:
    """What one history has of the outbox on its file: opened on first use, shared with others."""

    def __init__(self, settings: HistorySettings, registry: Registry = REGISTRY) -> None:
        self.settings = settings
        self.registry = registry
        self.loop: asyncio.AbstractEventLoop | None = None
        self._outbox: SharedOutbox | None = None
        self._parts: Parts | None = None
        self._opening = 0  # calls that wait for it
        self._closed = False

    @property
    def parts(self) -> Parts:
        if self._parts is None:
            raise Closed(_NOT_OPEN)
        return self._parts

    @property
    def home_loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop in which the file is open or being opened, by this history or another one."""
        with self.registry.lock:
            outbox = self.registry.find(self.settings)
            return None if outbox is None or outbox.home is None else outbox.home.loop

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return or raise what ``await work()`` does in the loop of the outbox; open it if needed."""

        async def checked() -> T:
            if self.loop is not asyncio.get_running_loop():
                raise NotBegun  # closed meanwhile
            return await work()

        while True:
            home = await self.prepare()
            try:
                return await (checked() if home.here else home.begin(checked).result())
            except NotBegun:
                continue

    async def prepare(self) -> HomeLoop:
        """Open the outbox if it is not open, and return its loop."""
        while True:
            outbox, joined = self._join()
            if not joined:
                await outbox.wait(outbox.ended)  # one that is closing: the next one is opened after it
                continue
            self._opening += 1
            try:
                await outbox.wait(outbox.opened)
                outbox.opened.result()
            except BaseException:  # a cancellation too: without a waiting caller, nothing is opened
                if self._opening == 1 and self.loop is None:
                    await run_to_completion(self._leave(outbox))
                raise
            finally:
                self._opening -= 1
            if self.loop is not None and outbox.home is not None:
                return outbox.home

    def block_until_open(self) -> HomeLoop:
        """Do as :meth:`prepare` in a thread, which is blocked meanwhile; what it opens has a loop of its own."""
        while True:
            outbox, joined = self._join(own_thread=True)
            if self.loop is not None and joined and outbox.home is not None:
                return outbox.home
            if not joined:
                outbox.block_until(outbox.ended)
                continue
            self._opening += 1
            try:
                outbox.block_until(outbox.opened)
                outbox.opened.result()
            except BaseException:  # an interruption too
                if self._opening == 1 and self.loop is None and not self._release(outbox):
                    outbox.block_until(outbox.ended)
                    outbox.join_thread()
                raise
            finally:
                self._opening -= 1

    def block_until_closed(self) -> None:
        """Do as :meth:`close` in a thread, which is blocked meanwhile, for a history whose calls have ended."""
        with self.registry.lock:
            self._closed = True
            outbox = self._outbox
        if outbox is not None and outbox.pid == os.getpid() and not self._release(outbox):
            outbox.block_until(outbox.ended)
            outbox.join_thread()
            outbox.ended.result()

    async def open_here(self, method: str) -> None:
        """Open the outbox if needed, for a method that works in its loop only."""
        if not (await self.prepare()).here:
            raise InvalidInput(
                "connection",
                f"belongs to this event loop, and the outbox is open in another one: {method} works in the loop that"
                " used the outbox first; here, use history.transaction()",
            )

    async def close(self) -> None:
        """Leave the outbox, which closes it if no other history is in it. Idempotent."""
        if self.loop is asyncio.get_running_loop():
            self.parts.outbox.gate.refuse_holder("this task holds a transaction on the outbox: end it before closing")
        with self.registry.lock:
            self._closed = True
            outbox = self._outbox
        if outbox is not None and outbox.pid == os.getpid():
            await run_to_completion(self._leave(outbox))

    def enter(self, outbox: SharedOutbox) -> None:
        """Take what was opened; with the lock held."""
        self._parts = outbox.parts
        self.loop = None if outbox.home is None else outbox.home.loop

    def _join(self, *, own_thread: bool = False) -> tuple[SharedOutbox, bool]:
        """Join the outbox on the file, or begin to open it. Return False with one that is ending."""
        with self.registry.lock:
            if self._closed:
                raise Closed("the history is closed")
            if self._outbox is not None and self._outbox.pid != os.getpid():
                raise Closed("opened before this process was forked off: open another history here")
            if self._outbox is not None and self.loop is not None and not self.loop.is_closed():
                return self._outbox, True
            outbox = self.registry.find(self.settings)
            if outbox is None:
                outbox = self.registry.begin(self.settings, own_thread=own_thread)
            elif outbox.ending:
                return outbox, False
            else:
                outbox.settings.check_same(self.settings)
            outbox.histories.add(self)
            self._outbox = outbox
            if outbox.parts is not None:
                self.enter(outbox)
            return outbox, True

    async def _leave(self, outbox: SharedOutbox) -> None:
        if not self._release(outbox):
            await outbox.wait(outbox.ended)
            outbox.ended.result()

    def _release(self, outbox: SharedOutbox) -> bool:
        """Leave the outbox; return False if it ends now, which has to be waited for."""
        with self.registry.lock:
            outbox.histories.discard(self)
            if outbox is self._outbox:
                self.loop = None
            if outbox.histories:
                return True
            outbox.stop()
        if outbox.orphaned:
            outbox.abandon()
            return True
        return False


async def _others_cleaned_up() -> None:
    """Wait for the tasks that are cancelled together with this one, because they may append something yet."""
    others = [task for task in asyncio.all_tasks() if task.cancelling() and not task.get_name().startswith("letopis-")]
    if others:
        await asyncio.wait(others, timeout=CLEANUP_SECONDS)
