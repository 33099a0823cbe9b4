"""Replace clocks, chance, threads, locks and files of this Python process by simulated ones."""

from __future__ import annotations

import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import Context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

import aiosqlite.core
import filelock

import letopis.outbox.drafts.writer_lock
import letopis.outbox.file.change_watcher
import letopis.outbox.history.history
import letopis.outbox.history.sharing
import letopis.outbox.relay.lease
import letopis.outbox.relay.relay
import letopis.store.database.sqlite_file
import letopis.store.database.worker_thread
import letopis.store.model.codec
import letopis.store.model.events
import letopis.store.model.large_content
import letopis.store.write.contents
from tests.proof.simulation import strands
from tests.proof.simulation.driver import Disk
from tests.proof.simulation.loop import PROCESS, Process, VirtualLoop

LARGE_BYTES: Final = 600
"""A string of a message that is longer is kept apart from its event."""
START: Final = datetime(2026, 11, 25, 12, tzinfo=UTC)


class Wall:
    """The wall clock of the whole machine; it may be set."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.ahead = 0.0

    def seconds(self) -> float:
        return START.timestamp() + self._loop.now + self.ahead

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.now + self.ahead)


class Lock:
    """A lock of the operating system on a file: gone with the process that held it. Has the API of ``FileLock``."""

    held: Final[dict[str, Lock]] = {}

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self._path = os.fspath(path)
        self._process: Process | None = None

    @property
    def lock_file(self) -> str:
        return self._path

    @property
    def is_locked(self) -> bool:
        return self.held.get(self._path) is self

    def acquire(self, **options: Any) -> None:
        if self._path in self.held:
            raise filelock.Timeout(self._path)
        Path(self._path).touch(0o600)
        self.held[self._path] = self
        self._process = PROCESS.get()
        if self._process is not None:
            self._process.on_kill.append(self._let_go)

    def release(self, force: bool = False) -> None:
        if self.is_locked:
            self._let_go()
            if self._process is not None:
                self._process.on_kill.remove(self._let_go)

    def _let_go(self) -> None:
        self.held.pop(self._path, None)


def take_over(loop: VirtualLoop, chance: random.Random, disk: Disk) -> Wall:
    """Give this Python process a machine that is made up. There is no way back: meant for a fork of its own."""
    wall = Wall(loop)
    monotonic = time.monotonic
    utc_now = letopis.store.model.events.utc_now
    time.monotonic = loop.time
    time.monotonic_ns = lambda: round(loop.now * 1e9)
    time.perf_counter = loop.time
    time.time = wall.seconds
    time.time_ns = lambda: round(wall.seconds() * 1e9)
    time.sleep = strands.wait
    os.urandom = chance.randbytes
    put_in_place(utc_now, wall.now)
    put_in_place(monotonic, loop.time)
    jitter: random.Random = defaults_of(letopis.outbox.relay.relay.Relay)["random"]
    jitter.seed(chance.random())
    sqlite3.connect = sqlite3.dbapi2.connect = disk.connect  # type: ignore[assignment]
    threads: Any
    for threads in (letopis.store.database.worker_thread, aiosqlite.core):
        threads.Thread, threads.SimpleQueue = strands.Strand, strands.SimpleQueue
    threads = letopis.outbox.file.change_watcher
    threads.Thread, threads.Event = strands.Strand, strands.Event
    letopis.store.database.sqlite_file._here = strands.Local()  # type: ignore[assignment]
    for place in (letopis.outbox.relay.lease, letopis.outbox.drafts.writer_lock):
        assert hasattr(place, "FileLock")
        place.FileLock = Lock  # type: ignore[misc,assignment]
    letopis.store.write.contents.off_the_loop = _at_once
    for module in (letopis.store.model.codec, letopis.store.model.large_content):
        module.LARGE_BYTES = LARGE_BYTES  # type: ignore[attr-defined]
    _open_outboxes_by_process()
    return wall


async def _at_once(read: Callable[..., Any], *values: Any) -> Any:
    return read(*values)


def _open_outboxes_by_process() -> None:
    sharing: Any = letopis.outbox.history.sharing
    access, registry = sharing.SharedAccess.__init__, sharing.Registry

    def own_access(self: Any, settings: Any, shared: Any = None) -> None:
        process = PROCESS.get()
        if process is not None and process.outboxes is None:
            process.outboxes = registry()
        access(self, settings, sharing.REGISTRY if process is None else process.outboxes)

    def own_context() -> Context:
        made = Context()
        made.run(PROCESS.set, PROCESS.get())
        return made

    sharing.SharedAccess.__init__ = own_access
    sharing.Context = own_context


def defaults_of(kind: type) -> dict[str, Any]:
    """Return the defaults of what a class is made with, to be changed."""
    found = kind.__init__.__kwdefaults__  # type: ignore[misc]
    assert found is not None
    return found  # type: ignore[no-any-return]


def put_in_place(real: object, made_up: object) -> None:
    """Replace a function wherever the library holds it: by name, and as a default of an argument."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "letopis":
            continue
        for key, value in list(vars(module).items()):
            if value is real:
                setattr(module, key, made_up)
        for function in _functions_of(module):
            named, given = function.__kwdefaults__ or {}, function.__defaults__ or ()
            named.update({key: made_up for key, value in named.items() if value is real})
            if any(value is real for value in given):
                function.__defaults__ = tuple(made_up if value is real else value for value in given)


def _functions_of(module: ModuleType) -> Iterator[FunctionType]:
    for value in list(vars(module).values()):
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, type) and value.__module__ == module.__name__:
            for inner in vars(value).values():
                under: Callable[..., Any] = getattr(inner, "__func__", inner)
                while under is not None and not isinstance(under, FunctionType):
                    under = getattr(under, "__wrapped__", None)  # type: ignore[assignment]
                while isinstance(under, FunctionType):
                    yield under
                    under = getattr(under, "__wrapped__", None)  # type: ignore[assignment]
