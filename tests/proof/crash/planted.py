"""Kill this process just before or after one call of the real code."""

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

from letopis.outbox.event_log.retention import Pruner
from tests.proof.crash.moments import BETWEEN, MOMENTS, Moment, Side

_BY_NAME: Final = {moment.name: moment for moment in MOMENTS}


def die() -> NoReturn:
    """End as by ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def plant(name: str, number: int) -> None:
    """Have this process die at the so manieth call that counts."""
    moment = _BY_NAME[name]
    owner, function_name = found(moment.function)
    real = getattr(owner, function_name)
    setattr(owner, function_name, _between(real) if name == BETWEEN else wrapped(real, moment, number))


def found(function: str) -> tuple[Any, str]:
    """Return the class or module of a function of the real code, and the function's name there."""
    module, _, path = function.rpartition(":")
    owner, _, name = path.rpartition(".")
    return resolve_name(f"{module}:{owner}" if owner else module), name


def wrapped(real: Callable[..., Any], moment: Moment, number: int) -> Callable[..., Any]:
    """Return what does as ``real`` does, and dies at the so manieth call that counts."""
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

    return awaited if inspect.iscoroutinefunction(real) else called


def _between(prune: Callable[..., bool]) -> Callable[..., bool]:
    def watched(statement: str) -> None:
        if statement.startswith("DELETE FROM letopis_outbox_events"):
            die()

    @functools.wraps(prune)
    def pruned(self: Pruner, connection: Any) -> bool:
        driver: sqlite3.Connection = connection.connection.driver_connection
        driver.set_trace_callback(watched)
        return prune(self, connection)

    return pruned
