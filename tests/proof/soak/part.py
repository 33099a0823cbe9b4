"""Run bots, a daemon and faults for twenty minutes: nothing is lost; memory, descriptors and files stay flat."""

import asyncio
import contextlib
import logging
import multiprocessing
import random
import re
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from tests.campaigns.invariants import Ack, check
from tests.campaigns.processes import Probe
from tests.proof.harness import Tally, migrated
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.proof.soak.sampling import LIMITS, TASKS, WARMING, Samples, judge, talk
from tests.support.child import start_piped
from tests.support.daemons import DaemonProcess, ask
from tests.support.peers import Wire
from tests.support.servers import PostgresServer, ServerUnavailable

BOTS: Final = 3
RATE: Final = 50.0
LEAKY: Final = "leaky bot"
DAEMON: Final = "daemon"
BOUND: Final = 60.0
LOST: Final = "bots, a daemon and faults for long: what was promised is there"
FLAT: Final = "bots, a daemon and faults for long: what they use stays flat"


def prove(options: Options) -> Iterator[Row]:
    logging.disable()
    if not Path("/proc/self/status").exists():
        yield Row(what=FLAT, missing="there is no /proc here")
        return
    try:
        server = PostgresServer.find()
    except ServerUnavailable as missing:
        yield Row(what=LOST, missing=str(missing))
        return
    with server:
        soak = Soak(options, server)
        asyncio.run(soak.run())
        yield from soak.rows()


class _Talker:
    """A bot in a process of its own, and what it has said."""

    def __init__(self, name: str, outbox: Path, store: str, *, seed: str, leaks: int = 0) -> None:
        # Everything is imported once, and a new bot is there at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.proof.soak.sampling"])
        self.name, self.outbox = name, outbox
        self._ended = context.Event()
        self.process, ours = start_piped(context, talk, str(outbox), store, self._ended, RATE, seed, leaks)
        self.acks: list[Ack] = []
        self.tasks = 0
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, pipe: Connection) -> None:
        with pipe, contextlib.suppress(EOFError, OSError):
            while True:
                said = pipe.recv()
                if isinstance(said, int):
                    self.tasks = said
                else:
                    self.acks.append(said)

    def end(self) -> int | None:
        self._ended.set()
        self.process.join(20)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self._reader.join(10)
        return self.process.exitcode


class Soak:
    def __init__(self, options: Options, server: PostgresServer) -> None:
        self._options = options
        self._server = server
        self._folder = options.folder
        self._seconds = options.many(1200, 9)
        self._every = 0.4 if options.short else 5.0
        self._chance = random.Random(f"{options.seed} soak")
        self.samples = Samples(list)
        self.tally = Tally()
        self.figures: dict[str, str] = {}
        self.talkers: list[_Talker] = []

    async def run(self) -> None:
        url = await asyncio.to_thread(self._server.create_database, "letopis_proof_soak")
        try:
            await migrated(url)
            wire = Wire(self._server.port)
            async with wire.open() as port:
                through = make_url(url).set(host="127.0.0.1", port=port, query={"sslmode": "disable"})
                await self._live(url, through.render_as_string(hide_password=False), wire)
            acks = [ack for one in self._sound() for ack in one.acks]
            outboxes = [one.outbox for one in self._sound()]
            self.tally.take(await check(outboxes, url, acknowledged=acks, drained=True))
        finally:
            for one in self.talkers:
                one.end()
            await asyncio.to_thread(self._server.drop_database, url)

    def _sound(self) -> list[_Talker]:
        return [one for one in self.talkers if one.name != LEAKY]

    async def _live(self, url: str, through: str, wire: Wire) -> None:
        hours = 0.0003 if self._options.short else 0.01
        settings = self._folder / "letopis.toml"
        settings.write_text(f"[retention]\nkeep_last = 50\nkeep_hours = {hours}\n", encoding="utf-8")
        for number in range(BOTS):
            path = self._folder / f"bot-{number}.outbox.db"
            self.talkers.append(_Talker(f"bot {number}", path, through, seed=f"{self._options.seed} {number}"))
        beside, leaks = f"sqlite:///{(self._folder / 'leaky.history.db').as_posix()}", self._options.many(100, 10)
        self.talkers.append(_Talker(LEAKY, self._folder / "leaky.db", beside, seed="leaky", leaks=leaks))
        words = [word for one in self._sound() for word in ("--outbox", str(one.outbox))]
        listen = ("--listen", "127.0.0.1:0", "--config", str(settings))
        how = {"folder": self._folder, "LETOPIS_STORE": through}
        with await asyncio.to_thread(lambda: DaemonProcess(*words, *listen, **how)) as daemon:
            try:
                await self._begin()
                await self._go_on(url, daemon, wire)
            finally:
                wire.flowing.set()
                wire.cut_at = None
            for one in self.talkers:
                code = await asyncio.to_thread(one.end)
                self.tally.require(code == 0, f"{one.name} ended with {code}")
            await self._drain()
            self._read_metrics(daemon)
            daemon.signal(signal.SIGTERM)
            code = await asyncio.to_thread(daemon.wait)
            self.tally.require(code == 0, f"the daemon ended with {code}")

    async def _begin(self) -> None:
        """Wait until each bot talks, and something of each was delivered."""
        waiting = {one.outbox for one in self._sound()}
        deadline = time.monotonic() + BOUND
        while waiting or not all(one.tasks for one in self.talkers):
            for path in [path for path in waiting if path.exists()]:
                if (probe := Probe.of(path)) is not None:
                    with contextlib.closing(probe):
                        waiting -= {path} if probe.look().delivered else set()
            if time.monotonic() > deadline:
                self.tally.problems.append(f"not everybody was at work within {BOUND:g} s")
                return
            await asyncio.sleep(0.2)

    async def _go_on(self, url: str, daemon: DaemonProcess, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._seconds
        harming = asyncio.create_task(self._harm(url, wire))
        try:
            while (left := end - loop.time()) > 0:
                await asyncio.sleep(min(self._every, left))
                self._sample(daemon)
        finally:
            harming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await harming

    def _sample(self, daemon: DaemonProcess) -> None:
        self.samples.process(DAEMON, daemon.pid)
        for one in self.talkers:
            if one.process.pid is not None:
                self.samples.process(one.name, one.process.pid)
            self.samples[one.name, TASKS].append(one.tasks)
            if one.name != LEAKY:  # nothing delivers that one, so none of it may be pruned
                self.samples.outbox(one.name, one.outbox)

    async def _harm(self, url: str, wire: Wire) -> None:
        pause = (0.5, 2.0) if self._options.short else (4.0, 16.0)
        while True:
            await asyncio.sleep(self._chance.uniform(*pause))
            match self._chance.choice(("cut", "answer lost", "black hole")):
                case "cut":
                    cut = await asyncio.to_thread(self._server.terminate_connections, url)
                    self.tally.figures["connections cut"] += cut
                case "answer lost":
                    before = wire.cuts
                    wire.heard, wire.cut_at = True, b"COMMIT;"
                    await asyncio.sleep(0.5)
                    wire.cut_at = None
                    self.tally.figures["answers to COMMIT lost"] += wire.cuts - before
                case "black hole":
                    self.tally.figures["black holes"] += 1
                    wire.flowing.clear()
                    await asyncio.sleep(self._chance.uniform(0.5, 1.0 if self._options.short else 8.0))
                    wire.flowing.set()

    async def _drain(self) -> None:
        begun = time.monotonic()
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(contextlib.closing(Probe(one.outbox))) for one in self._sound()]
            while pending := sum(one.look().pending for one in probes):
                if time.monotonic() > begun + BOUND:
                    self.tally.problems.append(f"{pending} events pending {BOUND:g} s after the last fault")
                    return
                await asyncio.sleep(0.1)
        self.figures["drained after"] = f"{time.monotonic() - begun:.1f} s"

    def _read_metrics(self, daemon: DaemonProcess) -> None:
        _, text = ask(daemon.port(), "/metrics")
        wanted = {
            "duplicates absorbed": r"^letopis_relay_duplicates_absorbed_total (\S+)",
            "faults seen": r'^letopis_relay_faults_total\{class="unavailable"\} (\S+)',
            "unknown outcomes seen": r'^letopis_relay_faults_total\{class="unknown_outcome"\} (\S+)',
            "blocked": r"^letopis_relay_blocked_total (\S+)",
            "errors that the relay did not know": r"^letopis_relay_loop_errors_total (\S+)",
        }
        for name, pattern in wanted.items():
            found = re.search(pattern, text, re.MULTILINE)
            self.figures[name] = "?" if found is None else f"{float(found.group(1)):,.0f}"

    def rows(self) -> Iterator[Row]:
        tally, where = self.tally, f"PostgreSQL, {BOTS} bots, 1 daemon, {self._seconds} s"
        figures = ", ".join(f"{name} {value}" for name, value in self.figures.items())
        tally.count = tally.acknowledged
        tally.notes = f"{tally.acknowledged:,} acknowledged, {tally.stored:,} stored; {tally.told()}; {figures}"
        yield tally.row(LOST, where, "events", 100_000)
        yield self._flatness(leaky=False).row(FLAT, where, "samples", 2_000)
        leaky = self._flatness(leaky=True)
        yield leaky.row("a bot that keeps receipts and descriptors", "1 bot", "samples", control=True)

    def _flatness(self, *, leaky: bool) -> Tally:
        notes, tally = defaultdict[str, list[str]](list), Tally()
        limits = WARMING if self._options.short else LIMITS
        for (name, series), samples in self.samples.items():
            if (name == LEAKY) == leaky:
                judged = judge(samples, limits[series])
                tally.count += len(samples)
                tally.require(not judged.problem, f"{name}: {series} {judged.problem}")
                notes[series].append(f"{name} {judged.before:,.0f} to {judged.after:,.0f}")
        told = "; ".join(f"{series}: {', '.join(names)}" for series, names in notes.items())
        tally.notes = f"medians of the second and the last third: {told}"
        return tally
