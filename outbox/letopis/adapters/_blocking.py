"""Let synchronous code wait for a history, from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from threading import Lock
from typing import TypeVar

from letopis.outbox import History
from letopis.outbox.sync.portal import InEventLoop, Portal

T = TypeVar("T")

_lock = Lock()
_portal: Portal | None = None


class InHomeLoop(InEventLoop):
    """A synchronous call in the event loop in which the history is open, where it would deadlock."""

    def __init__(self) -> None:
        RuntimeError.__init__(
            self,
            "called synchronously in the event loop that the history is open in, which would wait for itself: use"
            " asynchronous methods where the framework has them, such as graph.ainvoke(), or open the history with"
            " own_thread=True",
        )


def wait_for(history: History, work: Callable[[], Awaitable[T]]) -> T:
    """Run ``await work()`` in the thread that serves all synchronous calls of this process, and return its result.

    If the history is not open yet, it is opened in that thread, and delivers continuously.

    :raises InHomeLoop: this thread runs the loop in which the history is open.
    """
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is not None and running is history._home.home_loop:
        raise InHomeLoop
    return _shared_portal().call(work)


def _shared_portal() -> Portal:
    global _portal
    with _lock:
        if _portal is None or _portal.forked:
            _portal = Portal(inside_loop="block")
            _portal.start()
        return _portal
