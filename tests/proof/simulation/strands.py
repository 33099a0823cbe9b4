"""Run what would be threads in the event loop's thread, giving way where a thread would wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from typing import Any, ClassVar, cast

from greenlet import getcurrent, greenlet

from tests.proof.simulation.loop import PROCESS, VirtualLoop


class _Greenlet(greenlet):
    strand: Strand


def current() -> Strand | None:
    """Return the strand that runs; ``None`` in the event loop itself, and in what SQLAlchemy runs there."""
    here = getcurrent()
    return here.strand if isinstance(here, _Greenlet) else None


def running_loop() -> VirtualLoop:
    return cast("VirtualLoop", asyncio.get_running_loop())


def wait(seconds: float) -> None:
    """Let virtual time pass, in a strand; elsewhere nothing waits, and neither does this."""
    strand = current()
    if strand is not None:
        strand.sleep(seconds)


class Strand:
    """Has the used part of the API of ``threading.Thread``."""

    def __init__(
        self, *, target: Callable[..., Any], name: str = "strand", args: Iterable[Any] = (), daemon: bool | None = None
    ) -> None:
        self.name = name
        self._run = partial(target, *args)
        self.outgoing: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.values: dict[str, Any] = {}
        self._greenlet: _Greenlet | None = None
        self._ticket = 0

    def start(self) -> None:
        """Begin, at some turn of the loop."""
        process = PROCESS.get()
        self._greenlet = _Greenlet(self._run)
        self._greenlet.strand = self
        self._greenlet.gr_context = copy_context()
        if process is not None:
            process.keep(self)
        self._loop = running_loop()
        self._loop.call_soon(self.go_on, self._ticket)

    def is_alive(self) -> bool:
        """Return True if it has begun and not ended."""
        return self._greenlet is not None and not self._greenlet.dead

    def done(self) -> bool:
        """Return True if it has ended."""
        return self._greenlet is not None and self._greenlet.dead

    def join(self, timeout: float | None = None) -> None:
        """Run it to its end at once; it must have been asked to end."""
        for _ in range(1000):
            if not self.is_alive():
                return
            self._switch()
        raise RuntimeError(f"the strand {self.name} does not end")

    def sleep(self, seconds: float) -> None:
        """Yield for this long; from inside."""
        self._loop.call_later(seconds, self.go_on, self._ticket)
        self.park()

    def park(self) -> None:
        """Yield until it is woken; from inside."""
        parent = getcurrent().parent
        assert parent is not None
        parent.switch()

    def wake(self) -> Callable[[], None]:
        """Return what wakes it from the wait that comes next, once."""
        ticket = self._ticket

        def act() -> None:
            if lag := self._loop.lag():
                self._loop.call_later(lag, self.go_on, ticket)
            else:
                self._loop.call_soon(self.go_on, ticket)

        return act

    def go_on(self, ticket: int) -> None:
        """Continue, unless that was done already; in the loop."""
        if ticket == self._ticket and self.is_alive():
            self._switch()

    def _switch(self) -> None:
        self._ticket += 1
        inside = self._greenlet
        assert inside is not None
        inside.parent = getcurrent()
        inside.switch()


class Local:
    """Has the API of ``threading.local``: strands share a thread, and each has its own values."""

    _outside: ClassVar[dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values()[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._values()[name] = value

    def __delattr__(self, name: str) -> None:
        del self._values()[name]

    def _values(self) -> dict[str, Any]:
        strand = current()
        return self._outside if strand is None else strand.values


class Event:
    """Has the API of ``threading.Event``."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[Callable[[], None]] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def wait(self, timeout: float | None = None) -> bool:
        strand = current()
        if not self._set and strand is not None:
            wake = strand.wake()
            self._waiting.append(wake)
            if timeout is None:
                strand.park()
            else:
                strand.sleep(timeout)
            if wake in self._waiting:
                self._waiting.remove(wake)
        return self._set


class SimpleQueue:
    """Has the API of ``queue.SimpleQueue``."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiting: Callable[[], None] | None = None

    def __class_getitem__(cls, item: object) -> type[SimpleQueue]:
        return cls

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self._items.append(item)
        if self._waiting is not None:
            wake, self._waiting = self._waiting, None
            wake()

    put_nowait = put

    def get(self) -> Any:
        while not self._items:
            strand = current()
            assert strand is not None
            self._waiting = strand.wake()
            strand.park()
        return self._items.popleft()
