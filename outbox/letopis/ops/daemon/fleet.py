"""Give the outbox files of a daemon their turns: a few are open at a time, however many there are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from letopis.ops.daemon.health import OutboxMetrics
from letopis.ops.daemon.outbox_worker import OutboxWorker
from letopis.ops.daemon.store_pool import StoreHandle
from letopis.ops.daemon.timetable import PolledWatch

logger: Final = logging.getLogger("letopis.ops.daemon")

MAX_OPEN_FILES: Final = 10  # open at once, each with a thread of its own; a daemon with no more files keeps all open
QUIET_SECONDS: Final = 3.0  # time with nothing to deliver after which a file is closed, if more exist than may be open
TURN_SECONDS: Final = 1.0  # time after which a busy file gives its turn to one that waits
POLL_SECONDS: Final = 0.25  # time between two looks at the closed files, unless these take more than POLL_SHARE of it
POLL_SHARE: Final = 0.02
SIGN_OF_LIFE_SECONDS: Final = 10.0  # time between two signs of life of the closed files
MAX_FILES_READ: Final = 40  # files that one snapshot of the metrics reads
LOOK_PACE_SECONDS: Final = 1.0  # least time between two looks at closed files for which nothing is urgent
URGENT_PACE_SECONDS: Final = 0.1  # the same for files that are not well, or whose history store was restored


class Fleet:
    """Serves any number of outbox files in turns, first come first served; few files stay open all the time."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        max_open: int = MAX_OPEN_FILES,
        quiet: float = QUIET_SECONDS,
    ) -> None:
        self.polled: set[PolledWatch] = set()
        self.active: dict[OutboxWorker, asyncio.Task[None]] = {}
        self._monotonic = monotonic
        self.max_open = max_open
        self._quiet = quiet
        self._workers: dict[OutboxWorker, None] = {}
        self._queue: dict[OutboxWorker, None] = {}
        self._resting: set[OutboxWorker] = set()
        self._woken = asyncio.Event()
        self._poll_at = self._look_at = self._sign_at = 0.0
        self._polls: dict[PolledWatch, float] = {}
        self._stores: dict[int, tuple[bool, int]] = {}
        self._rewound: dict[OutboxWorker, int] = {}
        self._restored: set[int] = set()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def workers(self) -> tuple[OutboxWorker, ...]:
        """All workers, in the order in which they came."""
        return tuple(self._workers)

    @property
    def crowded(self) -> bool:
        return len(self._workers) > self.max_open

    def add(self, worker: OutboxWorker) -> None:
        self._workers[worker] = None
        self._queue[worker] = None
        self.wake()

    def wake(self) -> None:
        self._woken.set()

    async def metrics(self) -> list[OutboxMetrics]:
        """Return the metrics of all files, and read only some of them: of a closed file nothing changes unseen."""
        workers = self.workers
        known = [worker.known_metrics() for worker in workers]
        unknown = [index for index, metrics in enumerate(known) if metrics is None]
        unknown.sort(key=lambda index: workers[index].read_at)
        read = await asyncio.gather(*(workers[index].metrics() for index in unknown[:MAX_FILES_READ]))
        fresh = dict(zip(unknown, read, strict=False))
        return [metrics or fresh.get(index) or workers[index].last_metrics for index, metrics in enumerate(known)]

    async def remove(self, worker: OutboxWorker) -> None:
        """Serve a file no longer; returns when it is closed."""
        worker.stop()
        if (task := self.active.get(worker)) is not None:
            await asyncio.wait((task,))
        await worker.close()
        for table in (self._workers, self._queue, self._rewound):
            table.pop(worker, None)
        self.wake()

    async def close(self) -> None:
        """Close all files that have no turn, and wait for what is being closed."""
        for worker in self._workers:
            await worker.close()
        if self._closing:
            await asyncio.wait(self._closing)

    async def run(self) -> None:
        """Give turns until cancelled; turns that were given go on."""
        while True:
            self._woken.clear()
            pause = self._round()
            try:
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _round(self) -> float:
        """Look at everything that is due; return the seconds until the next round."""
        now = self._monotonic()
        poll_at = self._poll_open(now)
        if now >= self._sign_at:
            self._sign_at = now + SIGN_OF_LIFE_SECONDS
            for worker in self._closed():
                worker.give_sign_of_life()
        if now >= self._poll_at:
            self._watch_stores()
            self._poll_closed(now)
            took = self._monotonic() - now
            self._poll_at = now + max(POLL_SECONDS, took / POLL_SHARE)
        self._end_turns(now)
        while self._queue and len(self.active) < self.max_open:
            worker = next(iter(self._queue))
            del self._queue[worker]
            task = asyncio.create_task(worker.serve(), name=f"letopis-{worker.path.name}")
            self.active[worker] = task
            task.add_done_callback(lambda done, worker=worker: self._ended(worker, done))  # type: ignore[misc]
        return max(0.001, min(poll_at, self._poll_at) - self._monotonic())

    # Who wants a turn.

    def _closed(self) -> Iterable[OutboxWorker]:
        return [worker for worker in self._workers if worker not in self.active]

    def _poll_open(self, now: float) -> float:
        """Notify the open files of commits; return when that is due again."""
        self._polls = {watch: self._polls.get(watch, now) for watch in self.polled}
        for watch, due in self._polls.items():
            if now >= due:
                self._polls[watch] = now + watch.poll()
        return min(self._polls.values(), default=now + POLL_SECONDS)

    def _poll_closed(self, now: float) -> None:
        """Queue the closed files that have something to do."""
        looks: list[OutboxWorker] = []
        for worker in self._closed():
            if worker in self._queue:
                continue
            if worker.wants_turn():
                self._queue[worker] = None
            elif not worker.timetable.failed and now >= worker.timetable.look_at:
                looks.append(worker)
        looks.sort(key=lambda candidate: candidate.timetable.look_at)
        for worker in looks:
            urgent = worker.timetable.troubled or id(worker.destination) in self._restored
            if now < self._look_at - (0 if not urgent else LOOK_PACE_SECONDS - URGENT_PACE_SECONDS):
                break
            self._look_at = max(now, self._look_at) + (URGENT_PACE_SECONDS if urgent else LOOK_PACE_SECONDS)
            self._queue[worker] = None
        if not looks:
            self._restored.clear()

    def _watch_stores(self) -> None:
        """Give turns to the files of a store that is to be probed, is back, or may have been restored."""
        stores: dict[int, StoreHandle] = {id(worker.destination): worker.destination for worker in self._workers}
        busy = {id(worker.destination) for worker in (*self.active, *self._queue)}
        for key, handle in stores.items():
            closed, generation = handle.breaker.closed, handle.store.runtime.continuity.generation
            was_closed, was_generation = self._stores.get(key, (closed, generation))
            self._stores[key] = closed, generation
            if not closed and key not in busy and handle.breaker.remaining() == 0:
                resting = [worker for worker in self._closed() if id(worker.destination) == key]
                resting = [worker for worker in resting if not worker.timetable.failed]
                for worker in sorted(resting, key=lambda candidate: not candidate.owes)[:1]:
                    self._queue[worker] = None
            if closed and not was_closed:
                for worker in self._workers:
                    if id(worker.destination) == key and worker.owes:
                        worker.timetable.hurry()
            if generation != was_generation and not handle.embedded:
                self._look_at_all_of(key)
        for key in self._stores.keys() - stores.keys():
            del self._stores[key]

    def _look_at_all_of(self, key: int) -> None:
        for worker in self._closed():
            if id(worker.destination) == key:
                worker.timetable.look_soon()

    def _end_turns(self, now: float) -> None:
        """Ask files to rest: those that are quiet, and as many as others wait for."""
        if not self.crowded:
            return
        wanted = len(self._queue) - (self.max_open - len(self.active)) - len(self._resting)
        for worker in sorted(self.active, key=lambda serving: -serving.quiet_for):
            if worker in self._resting:
                continue
            overdue = worker.may_rest and now - worker.turn_began >= TURN_SECONDS
            if worker.quiet_for >= self._quiet or (wanted > 0 and (worker.quiet_for > 0 or overdue)):
                self._resting.add(worker)
                wanted -= 1
                worker.rest()

    def _ended(self, worker: OutboxWorker, task: asyncio.Task[None]) -> None:
        self.active.pop(worker, None)
        self._resting.discard(worker)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the relay of %r ended in %s", worker.path.name, type(error).__name__)
            worker.timetable.fail(1.0)
        rewound = worker.stats.rewound
        if rewound > self._rewound.get(worker, 0) and worker in self._workers:
            # What one file's store has lost, it may have lost of all of them.
            self._restored.add(id(worker.destination))
            self._look_at_all_of(id(worker.destination))
        self._rewound[worker] = rewound
        handle = worker.destination
        if self.crowded and handle.embedded and all(serving.destination is not handle for serving in self.active):
            # A store beside each of very many files would otherwise stay open, each with threads and descriptors.
            closing = asyncio.create_task(handle.rest(), name="letopis-store-rest")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self.wake()
