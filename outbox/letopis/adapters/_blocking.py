"""Let synchronous code wait for a history, from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from letopis.outbox import History
from letopis.outbox.sync.portal import InEventLoop, Portal

T = TypeVar("T")


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
    """Run ``await work()`` in the event loop that the history is open in, and return its result.

    If it is not open yet, it is opened in a thread of its own, and delivers continuously.

    :raises InHomeLoop: this thread runs the loop in which the history is open.
    """
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is not None and running is history._home.home_loop:
        raise InHomeLoop
    return Portal(history._home, inside_loop="block").call(work)
