"""Call the user's functions with a timeout, so that one that fails or hangs disturbs nothing else."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from letopis.store.database.worker_thread import WorkerThread
from letopis.store.errors import LetopisError

# The event loop holds tasks weakly; an abandoned one that still runs must not be collected in the middle.
_abandoned: Final[set[asyncio.Future[Any]]] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """The outcome of a call."""

    done: bool | None  # ``False`` if it raised, ``None`` if it did not end in time, so that it may have done its work
    error: str | None = None  # of ours the text; of any other only the type, because its text may quote anything
    value: Any = None  # what it returned
    exception: BaseException | None = None  # what it raised


async def call_with_timeout(fn: Callable[..., Any], *args: Any, seconds: float) -> CallOutcome:
    """Call ``fn(*args)``, in a daemon thread unless it is ``async``; raise nothing but a cancellation."""
    task = asyncio.ensure_future(_run(fn, *args))
    try:
        await asyncio.wait((task,), timeout=seconds)
    finally:
        if not task.done():
            _abandoned.add(task)
            task.add_done_callback(_discard)
            task.cancel()
    if not task.done():
        return CallOutcome(done=None)
    if task.cancelled():
        return CallOutcome(done=False, error="CancelledError")
    error = task.exception()
    if error is None:
        return CallOutcome(done=True, value=task.result())
    text = str(error) if isinstance(error, LetopisError) else type(error).__name__
    return CallOutcome(done=False, error=text, exception=error)


async def run_in_daemon_thread(fn: Callable[..., Any], *args: Any, name: str = "letopis-call") -> Any:
    """Return or raise what ``fn(*args)`` does in a daemon thread, which never keeps the process from ending."""
    return await WorkerThread(name).run(fn, *args)


async def _run(fn: Callable[..., Any], *args: Any) -> Any:
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004
        return await fn(*args)
    result = await run_in_daemon_thread(fn, *args)
    if isinstance(result, Awaitable):  # a plain function that returns a coroutine, such as a partial or a lambda
        return await result
    return result


def _discard(task: asyncio.Future[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # retrieved, so that the event loop does not print it
