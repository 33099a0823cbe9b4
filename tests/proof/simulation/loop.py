"""Run an event loop in virtual time in which chance decides the order, and whose processes can be killed."""

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, cast

TURN: Final = 20e-6  # seconds that one turn of the loop takes, so that polling comes to an end
LAG: Final = 0.05  # seconds, at most, that a thread is late, and ``LAGS``: how often it is
LAGS: Final = 0.03
_KEPT: Final = 1000


class Process:
    """A process of the simulation: what runs in its context ends all at once, wherever it is, without notice.

    :ivar alive: until it is killed.
    :ivar stopped: as by SIGSTOP: it holds what it holds, and does nothing.
    :ivar steps_left: it is killed after this many more turns; ``None`` for no such end.
    :ivar statements_left: the same, counted in SQL statements, so in the middle of a transaction; or it is stopped
        then, where ``stops`` is set.
    :ivar on_kill: what the system does then: closes its connections, releases its locks.
    :ivar outboxes: what the library keeps once a process.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.steps_left: int | None = None
        self.statements_left: int | None = None
        self.stops = False
        self.on_kill: list[Callable[[], None]] = []
        self.held: list[asyncio.Handle] = []
        self.outboxes: Any = None
        # What is abandoned in the middle must not be collected: that would run its cleaning up, which no kill does.
        self._remains: list[Any] = []
        self._most = _KEPT

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        context = copy_context()
        context.run(PROCESS.set, self)
        return asyncio.get_running_loop().create_task(work, name=self.name, context=context)

    def keep(self, one: Any) -> None:
        """Keep a task, a strand or a handle until it is done."""
        self._remains.append(one)
        if self.alive and len(self._remains) > self._most:
            self._remains = [one for one in self._remains if not one.done()]
            self._most = max(_KEPT, 2 * len(self._remains))

    def kill(self) -> None:
        """End it, as ``kill -9`` does."""
        if self.alive:
            self.alive = False
            for act in self.on_kill:
                act()


PROCESS: Final[ContextVar[Process | None]] = ContextVar("process", default=None)
"""The process that the code at hand belongs to; ``None`` for the world around them."""


class Deadlock(Exception):
    """Nothing is left that could ever happen."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what is ready in an order that chance gives, and where nothing is ready, goes to the next moment at once."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self.now = 1_000.0
        self.turns = 0
        self.alone = False
        self._idle_work: list[asyncio.Handle] = []
        self.set_task_factory(cast("Any", _keeping))

    def time(self) -> float:
        return self.now

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let only the world continue meanwhile."""
        self.alone = True
        try:
            yield
        finally:
            self.alone = False
            self._queue().extend(self._idle_work)
            self._idle_work.clear()

    def resume(self, process: Process) -> None:
        process.stopped = False
        self._queue().extend(process.held)
        process.held.clear()

    def lag(self) -> float:
        """Return how long a thread of a process takes to notice that there is work; mostly no time at all."""
        if PROCESS.get() is None or self._chance.random() >= LAGS:
            return 0.0
        return self._chance.uniform(0.0, LAG)

    def _queue(self) -> Any:
        return self._ready  # type: ignore[attr-defined]

    def _run_once(self) -> None:
        ready, scheduled = self._queue(), self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        self.now += TURN
        if not ready:
            if not scheduled:
                raise Deadlock("nothing is left that could happen")
            self.now = max(self.now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self.now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        turn = list(ready)
        ready.clear()
        if len(turn) > 1:
            self._chance.shuffle(turn)
        for handle in turn:
            if not handle._cancelled:
                self._run(handle)

    def _run(self, handle: asyncio.Handle) -> None:
        context: Context = handle._context  # type: ignore[attr-defined]
        process = context.get(PROCESS)
        if process is not None:
            if not process.alive:
                process.keep(handle)
                return
            if process.stopped:
                process.held.append(handle)
                return
            if self.alone:
                self._idle_work.append(handle)
                return
        self.turns += 1
        handle._run()
        if process is not None and process.steps_left is not None:
            process.steps_left -= 1
            if process.steps_left <= 0:
                process.kill()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        from tests.proof.simulation.strands import Strand

        future = self.create_future()

        def work() -> None:
            try:
                value = func(*args)
            except BaseException as error:  # it belongs to the one who waits
                self.call_soon_threadsafe(_end, future, future.set_exception, error)
            else:
                self.call_soon_threadsafe(_end, future, future.set_result, value)

        Strand(target=work, name="executor").start()
        return future

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        from tests.proof.simulation.strands import current

        strand = current()
        if strand is None:
            return self.call_soon(callback, *args, context=context)
        # Shuffled or not, what one thread hands over arrives in its order: each handle takes the first that waits.
        strand.outgoing.append((callback, args))
        return self.call_soon(_next_of, strand.outgoing, context=context)

    def _process_events(self, event_list: Any) -> None:
        """Do nothing: there is no input and output."""

    def _write_to_self(self) -> None:
        """Do nothing: no task waits in a selector."""


def _next_of(outgoing: Any) -> None:
    callback, args = outgoing.popleft()
    callback(*args)


def _end(future: asyncio.Future[Any], how: Callable[[Any], None], value: Any) -> None:
    if not future.done():
        how(value)


def _keeping(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], context: Context | None = None
) -> asyncio.Task[Any]:
    """Make a task that is kept by its process until it is done."""
    task = asyncio.Task(work, loop=loop, context=context)
    process = PROCESS.get() if context is None else context.get(PROCESS)
    if process is not None:
        process.keep(task)
    return task
