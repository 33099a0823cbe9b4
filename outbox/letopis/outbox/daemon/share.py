"""Serve one process's share of the outboxes, and report to the process that started it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import orjson

from letopis.outbox.daemon.daemon import Daemon
from letopis.outbox.daemon.health import FileCondition, HealthSnapshot, OutboxMetrics
from letopis.outbox.daemon.instrumented_store import Durations
from letopis.outbox.event_log.bound_store import StoreBinding
from letopis.outbox.relay.stats import RelayStats
from letopis.store.errors import ConfigurationError

STOP: Final = "stop"
RELOAD: Final = "reload"
REPORT: Final = "report"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which outboxes one of several processes serves: each file belongs to exactly one.

    :ivar index: of the process, from 0.
    :ivar count: of processes.
    """

    index: int
    count: int

    def holds(self, path: Path) -> bool:
        """Return True if a file belongs to this share; the same in every process, and for every path to the file."""
        return zlib.crc32(os.fsencode(os.path.realpath(path))) % self.count == self.index

    @classmethod
    def parse(cls, text: str) -> Share:
        """Return the share that ``str(share)`` names.

        :raises ConfigurationError: it names none.
        """
        index, _, count = text.partition("/")
        if len(text) < 10 and index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return cls(index=int(index), count=int(count))
        raise ConfigurationError("--share is for the processes that --processes starts: leave it out")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one process says of its share.

    :ivar live: as :meth:`Daemon.is_live`.
    """

    live: bool
    snapshot: HealthSnapshot

    def encoded(self) -> bytes:
        """Return the report as one line of JSON."""
        found = self.snapshot
        plain = {one.name: getattr(found, one.name) for one in fields(found)}
        plain["relay"] = asdict(found.relay)
        plain["deliveries"] = {name: [one.buckets, one.total] for name, one in found.deliveries.items()}
        plain["listed"] = [asdict(one) for one in found.listed]
        return orjson.dumps({"live": self.live, "snapshot": plain}, option=orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def decoded(cls, line: bytes) -> Report:
        """Return the report of a line.

        :raises ValueError, TypeError, KeyError: the line is no report.
        """
        found = orjson.loads(line)
        plain = found["snapshot"]
        faults = Counter(plain["relay"].pop("faults"))
        plain["relay"] = RelayStats(faults=faults, **plain["relay"])
        plain["deliveries"] = {name: Durations.of(*one) for name, one in plain["deliveries"].items()}
        plain["listed"] = tuple(map(_metrics, plain["listed"]))
        return cls(live=found["live"], snapshot=HealthSnapshot(**plain))


def _metrics(plain: dict[str, Any]) -> OutboxMetrics:
    bound = plain.pop("bound")
    bound["store_id"] = None if bound["store_id"] is None else UUID(bound["store_id"])
    return OutboxMetrics(condition=FileCondition(plain.pop("condition")), bound=StoreBinding(**bound), **plain)


class Requests:
    """Follows what the process above asks for on the standard input; its end, however it came, ends the daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._loop = asyncio.get_running_loop()
        self._answering: set[asyncio.Task[None]] = set()

    def listen(self) -> None:
        """Begin to listen, in a thread: no event loop reads a pipe on every system."""
        threading.Thread(target=self._read, name="letopis-requests", daemon=True).start()

    def _read(self) -> None:
        answers: dict[str, Callable[[], None]] = {
            STOP: self._daemon.stop,
            RELOAD: self._daemon.reload,
            REPORT: self._report,
        }
        try:
            for line in sys.stdin:
                if (answer := answers.get(line.strip())) is not None:
                    self._loop.call_soon_threadsafe(answer)
            self._loop.call_soon_threadsafe(self._daemon.stop)
        except (RuntimeError, ValueError, OSError):
            return  # the loop or the pipe is closed: the process ends

    def _report(self) -> None:
        task = self._loop.create_task(self._answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self) -> None:
        report = Report(live=self._daemon.is_live(), snapshot=await self._daemon.snapshot())
        sys.stdout.buffer.write(report.encoded())
        sys.stdout.buffer.flush()
