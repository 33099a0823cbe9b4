"""Keep a bot and a relay running in processes of their own, and start them again after each kill."""

import asyncio
import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.campaigns.invariants import Ack
from tests.campaigns.record_invariants import RecordAck
from tests.support import victim

Context = ForkContext | ForkServerContext | SpawnContext

REPORT_SECONDS = 60.0  # until the next report, on however busy a machine
BOT = "bot"
RELAY = "relay"


def fork_server(*modules: str) -> Context:
    """Return what starts processes that have these modules imported, and what they import.

    A fork server has everything imported and runs no thread: a new process is there at once. There is one a process, so
    what is imported is what the first caller asked for.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(modules))
    return found


def kill_after(
    context: Context, target: Callable[..., None], *given: Any, reports: int, seconds: float, **named: Any
) -> list[Any]:
    """Kill a process that reports through a pipe, its last argument, some time after so many reports; return them all.

    By what it has done, and not by the clock: a busy machine lets it do little.
    """
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*given, theirs), kwargs=named, daemon=True)
    process.start()
    theirs.close()
    found = list[Any]()
    with ours, contextlib.suppress(EOFError, OSError):
        try:
            while len(found) < reports:
                assert ours.poll(REPORT_SECONDS), "it does nothing"
                found.append(ours.recv())
            process.join(seconds)
        finally:
            process.kill()
            process.join()
        while True:
            found.append(ours.recv())
    assert process.exitcode == -9, f"it ended by itself: {process.exitcode}"
    return found


class Victims:
    """A bot and a relay on one outbox and one store."""

    def __init__(
        self,
        outbox: Path,
        store: str,
        *,
        context: Context | None = None,
        defects: Sequence[str] = (),
        records_every: int = 3,
        paths_every: int = 4,
    ) -> None:
        self._context = context or fork_server("tests.support.victim")
        self._outbox, self._store = str(outbox), store
        self._defects = defects
        self._every = {"records_every": records_every, "paths_every": paths_every}
        self._processes: dict[str, BaseProcess] = {}
        self._readers: list[threading.Thread] = []
        self.acks: list[Ack] = []
        self.record_acks: list[RecordAck] = []
        self.starts = 0

    def ensure(self) -> None:
        for name in (BOT, RELAY):
            process = self._processes.get(name)
            if process is not None and process.exitcode is None:
                continue
            assert process is None or process.exitcode == -9, f"the {name} ended by itself: {process.exitcode}"
            self.starts += 1
            self._processes[name] = self._start_bot() if name == BOT else self._process(victim.relay)

    def kill(self, name: str) -> bool:
        """Kill one of them with SIGKILL; whether it was still alive."""
        process = self._processes[name]
        alive = process.exitcode is None
        process.kill()
        process.join()
        return alive and process.exitcode == -9

    @property
    def promised(self) -> int:
        return len(self.acks) + len(self.record_acks)

    @property
    def alive(self) -> bool:
        return any(process.exitcode is None for process in self._processes.values())

    async def until_promised(self, count: int, *, patience: float = 20.0) -> None:
        """Return once this many events were promised to the bots."""
        deadline = time.monotonic() + patience
        while self.promised < count:
            assert time.monotonic() < deadline, f"no more than {self.promised} acknowledgements"
            self.ensure()
            await asyncio.sleep(0.005)

    def close(self) -> list[str]:
        """Kill both, and collect what the bots reported last; return those that were still alive."""
        killed = [name for name in self._processes if self.kill(name)]
        for reader in self._readers:
            reader.join(10)
        return killed

    def _start_bot(self) -> BaseProcess:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._process(victim.talk, theirs, seed=self.starts, **self._every)
        theirs.close()
        reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        reader.start()
        self._readers.append(reader)
        return process

    def _process(self, target: Callable[..., None], *given: Any, **named: Any) -> BaseProcess:
        given, named = (self._outbox, self._store, *given), {"defects": self._defects, **named}
        process = self._context.Process(target=target, args=given, kwargs=named, daemon=True)
        process.start()
        return process

    def _read(self, pipe: Connection) -> None:
        with pipe, contextlib.suppress(EOFError, OSError):
            while True:
                ack = pipe.recv()
                if isinstance(ack, RecordAck):
                    self.record_acks.append(ack)
                else:
                    self.acks.append(ack)
