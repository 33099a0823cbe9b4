"""Planted deaths: a process kills itself just before or after one call of the real code."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import signal
import sqlite3
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any, Final, NoReturn

from letopis.outbox.tail import Pruner
from tests.proof.crash.moments import BETWEEN, MOMENTS, Side

_BY_NAME: Final = {moment.name: moment for moment in MOMENTS}


def die() -> NoReturn:
    """End as by ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def plant(name: str, number: int) -> None:
    """Have this process die at the so manieth call that counts."""
    moment = _BY_NAME[name]
    path, _, attribute = moment.function.rpartition(":")
    owner_name, _, function_name = attribute.rpartition(".")
    owner = resolve_name(f"{path}:{owner_name}" if owner_name else path)
    real = getattr(owner, function_name)
    if name == BETWEEN:
        setattr(owner, function_name, _between(real))
        return
    calls = itertools.count(1)

    def reach(given: tuple[Any, ...], result: Any, side: Side) -> None:
        if moment.side is side and moment.counts(given, result) and next(calls) == number:
            die()

    @functools.wraps(real)
    async def awaited(*given: Any, **named: Any) -> Any:
        reach(given, None, Side.BEFORE)
        result = await real(*given, **named)
        reach(given, result, Side.AFTER)
        return result

    @functools.wraps(real)
    def called(*given: Any, **named: Any) -> Any:
        reach(given, None, Side.BEFORE)
        result = real(*given, **named)
        reach(given, result, Side.AFTER)
        return result

    setattr(owner, function_name, awaited if inspect.iscoroutinefunction(real) else called)


def _between(prune: Callable[..., bool]) -> Callable[..., bool]:
    """Return what prunes and dies when SQLite is about to begin with the deletion, inside the function."""

    def watched(statement: str) -> None:
        if statement.startswith("DELETE FROM letopis_outbox_events"):
            die()

    @functools.wraps(prune)
    def pruned(self: Pruner, connection: Any) -> bool:
        driver: sqlite3.Connection = connection.connection.driver_connection
        driver.set_trace_callback(watched)
        return prune(self, connection)

    return pruned
