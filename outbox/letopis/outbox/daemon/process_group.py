"""Spread the outboxes of one daemon over several processes: start them, restart them, and report of all together."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess  # nosec B404 - starts this program itself
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, Final

from letopis.outbox.daemon.daemon import STALL_TIMEOUT_SECONDS, STATUS_INTERVAL_SECONDS, DaemonSettings
from letopis.outbox.daemon.health import HealthSnapshot, join_snapshots
from letopis.outbox.daemon.http import ListenAddress, serve_http
from letopis.outbox.daemon.share import RELOAD, REPORT, STOP, Report, Share
from letopis.outbox.daemon.systemd import Notifier
from letopis.outbox.retry.policy import RetryPolicy
from letopis.outbox.telemetry.logging import configure_logging

logger: Final = logging.getLogger("letopis.outbox.daemon")

REPORT_INTERVAL_SECONDS: Final = 1.0
"""Time between two questions to a process."""
ANSWER_TIMEOUT_SECONDS: Final = 5.0
"""Age of the last answer beyond which a process's files count as not reported of."""
RESTART_POLICY: Final = RetryPolicy(base=0.5, factor=2.0, cap=15.0)
"""Waits before a process that ended is started again."""
STABLE_AFTER_SECONDS: Final = 60.0
"""Time of work after which the next end counts as the first."""
START_TIMEOUT_SECONDS: Final = 30.0
"""Time that the processes have for their first report before READY is sent all the same."""
LINE_LIMIT_BYTES: Final = 16 * 1024**2
CONFIGURATION_EXIT: Final = 78
"""The exit code of a process that no restart helps."""


class Member:
    """One process and the share of the outboxes that it serves, over all its restarts.

    :ivar report: the last one; ``None`` before the first.
    :ivar reported_at: when it came, by the monotonic clock.
    """

    def __init__(self, share: Share, command: Sequence[str]) -> None:
        self.share = share
        self.report: Report | None = None
        self.reported_at = time.monotonic()
        self._command = [*command, "--share", str(share)]
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = 0

    @property
    def current(self) -> bool:
        """Whether its last report is of now."""
        return self.report is not None and time.monotonic() - self.reported_at < ANSWER_TIMEOUT_SECONDS

    async def run(self) -> int:
        """Keep the process running until it is stopped; return its exit code if no restart helps, otherwise 0."""
        failures = 0
        while not self._stopping:
            began = time.monotonic()
            process = await self._start()
            reading = asyncio.create_task(self._read(process))
            try:
                code = await process.wait()
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                self._process = None
            if self._stopping or code == CONFIGURATION_EXIT:
                return code
            failures = 1 if time.monotonic() - began > STABLE_AFTER_SECONDS else failures + 1
            wait = RESTART_POLICY.delay(failures, uniform=random.uniform)
            logger.error("process %s ended with %d; it is started again in %.1f s", self.share, code, wait)
            await asyncio.sleep(wait)
        return 0

    async def ask_forever(self) -> None:
        """Ask for a report at regular intervals."""
        while True:
            self.ask(REPORT)
            await asyncio.sleep(REPORT_INTERVAL_SECONDS)

    def ask(self, what: str) -> None:
        """Ask the process for something, if it runs."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError, RuntimeError):  # it has just ended
                self._process.stdin.write(f"{what}\n".encode())

    def stop(self) -> None:
        """Have the process end after the batches in flight, or at once when called again."""
        self._stopping += 1
        self.ask(STOP)

    def kill(self) -> None:
        """End a process that does not end."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _start(self) -> asyncio.subprocess.Process:
        # Apart from the terminal's group: this process passes the signals on, once.
        apart: dict[str, Any] = (
            {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
            if os.name == "nt"
            else {"start_new_session": True}
        )
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            limit=LINE_LIMIT_BYTES,
            **apart,
        )
        if self._stopping:
            self.ask(STOP)
        return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - a pipe, see above
        while line := await process.stdout.readline():
            try:
                self.report, self.reported_at = Report.decoded(line), time.monotonic()
            except Exception as error:  # something else printed a line
                logger.warning("process %s said something unexpected: %s", self.share, type(error).__name__)


class ProcessGroup:
    """Several processes, each of which serves its share of the outboxes, as one daemon.

    A process that ends is started again; until then its files are not served, and the group is not ready. When this
    process ends, however it ends, the others do.

    :param configure: reads the settings; the processes read them on their own.
    :param command: starts one of the processes, and passes it its share.
    """

    def __init__(
        self, configure: Callable[[], DaemonSettings], command: Sequence[str], *, notifier: Notifier | None = None
    ) -> None:
        self._configure = configure
        self._command = command
        self._notifier = notifier or Notifier()
        self._stopping = asyncio.Event()
        self._members: tuple[Member, ...] = ()
        self._ready = False
        self.address: ListenAddress | None = None

    # For signals, in the thread of the event loop.

    def stop(self) -> None:
        """End after the batches in flight, or at once when called again."""
        self._stopping.set()
        for member in self._members:
            member.stop()

    def reload(self) -> None:
        """Have every process read its settings again."""
        self._notifier.reloading()
        for member in self._members:
            member.ask(RELOAD)
        self._notifier.ready()

    async def run(self) -> int:
        """Serve until :meth:`stop`; return the exit code.

        :raises OSError: another process listens at the address.
        """
        settings = await asyncio.to_thread(self._configure)
        configure_logging(level=settings.log_level, style=settings.log_format)
        count = settings.processes
        self._members = tuple(Member(Share(index=one, count=count), self._command) for one in range(count))
        async with AsyncExitStack() as stack:
            console = None if settings.console is None else await stack.enter_async_context(settings.console(settings))
            if settings.listen is not None:
                self.address = await stack.enter_async_context(
                    serve_http(settings.listen, live=self.is_live, snapshot=self.snapshot, console=console)
                )
            running = [asyncio.create_task(one.run()) for one in self._members]
            asking = [asyncio.create_task(one.ask_forever()) for one in self._members]
            asking.append(asyncio.create_task(self._notify()))
            stack.callback(lambda: [one.cancel() for one in asking])
            stopped = asyncio.create_task(self._stopping.wait())
            # A process ends for good only if it was stopped, or if no restart helps: then none of the others is of use.
            await asyncio.wait((*running, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            self._ready = False
            self._notifier.stopping()
            if not self._stopping.is_set():
                self.stop()
            _, left = await asyncio.wait(running, timeout=settings.stop_timeout + STALL_TIMEOUT_SECONDS / 4)
            for member in self._members:
                member.kill()
            if left:
                await asyncio.wait(left, timeout=ANSWER_TIMEOUT_SECONDS)
            codes = [0 if one.cancelled() or not one.done() else one.result() for one in running]
        return max(codes, key=lambda code: code == CONFIGURATION_EXIT, default=0)

    def is_live(self) -> bool:
        """Return True unless a process is stuck; one that is being started again is not."""
        now = time.monotonic()
        return all(
            now - one.reported_at < STALL_TIMEOUT_SECONDS and (one.report is None or one.report.live)
            for one in self._members
        )

    async def snapshot(self) -> HealthSnapshot:
        """Return the state of all processes together, as they last reported it."""
        joined = join_snapshots([one.report.snapshot for one in self._members if one.report is not None])
        return joined if all(one.current for one in self._members) else replace(joined, ready=False)

    async def _notify(self) -> None:
        """Send READY, feed the watchdog, and report the status."""
        began = time.monotonic()
        interval = self._notifier.watchdog_interval
        while True:
            ready = all(one.report is not None and one.report.snapshot.ready for one in self._members)
            if not self._ready and (ready or time.monotonic() - began > START_TIMEOUT_SECONDS):
                self._ready = True
                self._notifier.ready()
            if self.is_live():
                self._notifier.alive()
            if self._ready and self._notifier.listening:
                self._notifier.status((await self.snapshot()).summary())
            await asyncio.sleep(1.0 if interval is None else min(1.0, STATUS_INTERVAL_SECONDS, interval / 2))
