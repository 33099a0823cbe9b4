"""Run functions one after the other in a dedicated thread, for an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from letopis.store.errors import Closed

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]
_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, Done]

_forks = 0
"""How often this process and its ancestors were forked off; cheaper than to ask the system for the process id."""


def _forked() -> None:
    global _forks  # one count per process is the point
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class WorkerThread:
    """One thread for what may be used from one thread only, such as an SQLite connection."""

    # A daemon: a process that ends with the thread open, or in the middle of a function, does not hang.
    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False
        self._forks = _forks
        # The thread holds the queue and not this object, which can therefore be collected, and then ends the thread.
        self._thread = Thread(target=_serve, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[[], Any], done: Done) -> None:
        """Run ``fn``, then ``done(result, None)`` or ``done(None, error)`` in the running event loop."""
        # In the order of submission. ``done`` is not called if the loop has been closed meanwhile.
        if self._closed or self._forks != _forks:
            self.check()
        self._jobs.put((fn, asyncio.get_running_loop(), done))

    def check(self) -> None:
        if self._closed:
            raise Closed("the outbox was closed")
        if self._forks != _forks:
            raise Closed("opened before this process was forked off: threads do not cross a fork, open again here")

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        # A cancelled caller neither interrupts nor withdraws it: the result is dropped.
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        self.submit(lambda: fn(*args), partial(settle, result))
        return await result

    async def close(self) -> None:
        """Let what was submitted finish, end the thread and wait for it. Idempotent."""
        if self._closed or self._forks != _forks:
            self._closed = True
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.submit(lambda: None, lambda _, __: None if ended.done() else ended.set_result(None))
        self._closed = True
        self._jobs.put(None)
        await ended
        self._thread.join()  # it has nothing left to do but return

    def __del__(self) -> None:
        if not self._closed:
            self._jobs.put(None)


def settle(result: asyncio.Future[T], value: T, error: BaseException | None) -> None:
    """Give a future its result or error, unless its caller was cancelled."""
    if result.done():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        fn, loop, done = job
        value, error = None, None
        try:
            value = fn()
        except BaseException as raised:  # whatever it is belongs to the caller, not to this thread
            error = raised
        with suppress(RuntimeError):  # the loop is closed: no task waits any more
            loop.call_soon_threadsafe(done, value, error)
        # Otherwise the last result, or a traceback with its frames, would live until the next job.
        del job, fn, loop, done, value, error
