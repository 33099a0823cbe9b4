"""Call what is not ours, with a deadline, so that it can fail or hang without disturbing anybody."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from threading import Thread
from typing import Any, Final

from letopis.store.errors import LetopisError

logger: Final = logging.getLogger(__name__)

# The event loop holds tasks weakly; what was given up but still runs must not be collected in the middle.
_given_up: Final[set[asyncio.Future[Any]]] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a call.

    :ivar done: ``True`` it returned, ``False`` it raised, ``None`` it may have done its work: it did not end in time,
        or raised an error with a true ``unsure``.
    :ivar error: what was raised: an error of ours as it is, of any other only the type, since its text may quote
        anything.
    """

    done: bool | None
    error: str | None = None


async def attempt(fn: Callable[..., Any], *args: Any, seconds: float) -> Outcome:
    """Call ``fn(*args)`` and wait for it for so many ``seconds`` at most. Never raises but for a cancellation.

    An ``async`` function runs in a task of its own, which is cancelled and left to itself when it is late; any other
    runs in a daemon thread, since it may block. One that is cancelled with us is treated as one that is late. Not
    promised: anything about an ``async`` function that blocks the event loop.
    """
    task = asyncio.ensure_future(_run(fn, *args))
    try:
        await asyncio.wait((task,), timeout=seconds)
    finally:
        if not task.done():
            _given_up.add(task)
            task.add_done_callback(_bury)
            task.cancel()
    if not task.done():
        return Outcome(done=None)
    if task.cancelled():
        return Outcome(done=False, error="CancelledError")
    error = task.exception()
    if error is None:
        return Outcome(done=True)
    said = str(error) if isinstance(error, LetopisError) else type(error).__name__
    return Outcome(done=None if getattr(error, "unsure", False) is True else False, error=said)


async def in_thread(fn: Callable[..., Any], *args: Any, name: str = "letopis-call") -> Any:
    """Return what ``fn(*args)`` returns or raises, run in a daemon thread of its own.

    Cancelling the caller does not stop the thread, nor does a hanging thread keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if result.done():
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = fn(*args)
        except BaseException as raised:  # it belongs to the one who waits, not to this thread
            error = raised
        try:
            loop.call_soon_threadsafe(settle, value, error)
        except RuntimeError:
            logger.debug("a call ended after its event loop")

    Thread(target=work, name=name, daemon=True).start()
    return await result


async def _run(fn: Callable[..., Any], *args: Any) -> None:
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004
        await fn(*args)
        return
    result = await in_thread(fn, *args)
    if isinstance(result, Awaitable):  # a plain function that returns a coroutine, such as a partial or a lambda
        await result


def _bury(task: asyncio.Future[Any]) -> None:
    _given_up.discard(task)
    if not task.cancelled():
        task.exception()  # looked at, so that the event loop does not print it
