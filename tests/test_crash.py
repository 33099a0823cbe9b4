"""A bot and its relay are killed at random, one or both: what was acknowledged is never missed, nothing is doubled."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import pytest

from letopis.outbox import History
from letopis.store import ConversationStore
from tests.campaigns import bot
from tests.campaigns.invariants import Ack, check

KILLS: Final = 20
SEED: Final = 20260501


class Victims:
    """A bot and a relay that live until they are killed, and are started again then."""

    def __init__(self, outbox: Path, store: str) -> None:
        # A fork server has everything imported and runs no thread: a new process is there at once.
        self._context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn")
        if "forkserver" in multiprocessing.get_all_start_methods():
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(["tests.campaigns.bot"])
        self._outbox, self._store = str(outbox), store
        self._processes: dict[str, BaseProcess] = {}
        self._readers: list[threading.Thread] = []
        self.acks: list[Ack] = []
        self.starts = 0

    def ensure(self) -> None:
        """Start whoever is gone."""
        for name in ("bot", "relay"):
            process = self._processes.get(name)
            if process is not None and process.exitcode is None:
                continue
            assert process is None or process.exitcode == -9, f"the {name} ended by itself: {process.exitcode}"
            self.starts += 1
            self._processes[name] = self._bot() if name == "bot" else self._relay()

    def kill(self, name: str) -> None:
        """Kill one of them with SIGKILL."""
        process = self._processes[name]
        process.kill()
        process.join()

    @property
    def alive(self) -> bool:
        """Whether one of them runs."""
        return any(process.exitcode is None for process in self._processes.values())

    def close(self) -> None:
        """Kill both, and take in what the bots have said last."""
        for name in self._processes:
            self.kill(name)
        for reader in self._readers:
            reader.join(10)

    def _bot(self) -> BaseProcess:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=bot.talk, args=(self._outbox, self._store, theirs), kwargs={"seed": self.starts}, daemon=True
        )
        process.start()
        theirs.close()
        reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        reader.start()
        self._readers.append(reader)
        return process

    def _relay(self) -> BaseProcess:
        process = self._context.Process(target=bot.relay, args=(self._outbox, self._store), daemon=True)
        process.start()
        return process

    def _read(self, pipe: Connection) -> None:
        with pipe, contextlib.suppress(EOFError, OSError):
            while True:
                self.acks.append(pipe.recv())


@pytest.mark.slow
async def test_twenty_kills_lose_nothing_double_nothing_and_keep_the_order(tmp_path: Path) -> None:
    outbox, store = tmp_path / "bot.outbox.db", f"sqlite:///{(tmp_path / 'history.db').as_posix()}"
    chance, kills, checks = random.Random(SEED), 0, 0
    async with ConversationStore.open(store):
        pass  # its tables are there before anybody is killed
    victims = Victims(outbox, store)
    try:
        while kills < KILLS:
            victims.ensure()
            await wait_for_acks(victims, len(victims.acks) + chance.randrange(1, 40))
            await asyncio.sleep(chance.uniform(0, 0.1))
            for name in chance.choice((("bot",), ("relay",), ("bot", "relay"), ("relay", "bot"))):
                victims.kill(name)
                kills += 1
            if not victims.alive:
                # Also in the middle: with the relay's last acknowledgement lost, or events still on their way.
                verdict = await check([outbox], store, acknowledged=list(victims.acks))
                assert verdict.ok, verdict
                checks += 1
    finally:
        victims.close()

    async with History.open(outbox, store=store) as history:
        assert await history.drained(timeout=30)
    verdict = await check([outbox], store, acknowledged=victims.acks, drained=True)

    assert verdict.ok, verdict
    assert checks > 0
    assert verdict.acknowledged >= KILLS
    assert verdict.stored >= verdict.acknowledged


async def wait_for_acks(victims: Victims, count: int) -> None:
    """Return once the bots have been promised so many events."""
    deadline = time.monotonic() + 20
    while len(victims.acks) < count:
        assert time.monotonic() < deadline, f"no more than {len(victims.acks)} acknowledgements"
        victims.ensure()
        await asyncio.sleep(0.005)
