"""Set up a bot and several databases, with its relay, the command and moves in processes of their own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from letopis.outbox import History
from letopis.outbox.cli import cli
from letopis.outbox.cli.interface.exit_codes import run
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.destination import destination_of
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.relay.relay import Relay
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store import ConversationStore, Message
from tests.campaigns.invariants import check, read_outbox
from tests.campaigns.states import Ack
from tests.proof.restored import world as worlds
from tests.proof.stores import fresh
from tests.support.moves import dump
from tests.support.relays import end

CHILD: Final = Path(__file__).with_name("child.py")
DEFECT = ""  # of the processes that are started; set for a control
WAIT: Final = 120.0  # seconds after which a process that does not end is killed
_PROBES: Final = RetryPolicy(base=0.05, factor=2, cap=0.2, jitter="none", attempts=1)
CONVERSATIONS: Final = 8


@dataclass(slots=True)
class Scene:
    """A bot that names ``url`` as its history store, and does not deliver itself."""

    kind: str
    url: str
    folder: Path
    chance: Random
    history: History
    stack: ExitStack
    acks: list[Ack] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.history.outbox.path

    def database(self, kind: str) -> str:
        """Return the URL of another database, which is empty; of SQLite, of a file that is not there."""
        name = f"other-{self.chance.getrandbits(48):012x}"
        return self.stack.enter_context(fresh(kind, self.folder, name)).url

    async def say(self, events: int) -> None:
        for _ in range(events):
            name = f"chat-{self.chance.randrange(CONVERSATIONS)}"
            receipt = await self.history.append(name, Message.user(f"message {len(self.acks)}"))
            self.acks += [Ack(name, one) for one in receipt.event_ids]
            self.receipts.append(receipt)

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """Have the bot talk for the time of a block."""

        async def talk() -> None:
            while True:
                await self.say(self.chance.randrange(1, 4))
                await asyncio.sleep(self.chance.uniform(0, 0.2))

        task = asyncio.create_task(talk())
        try:
            yield
            if task.done():
                task.result()
        finally:
            await end(task)

    @asynccontextmanager
    async def delivering(self, url: str) -> AsyncIterator[Relay]:
        """Have a relay deliver to a store for the time of a block."""
        async with AsyncExitStack() as stack:
            outbox = await OutboxFile.open(self.path)
            stack.push_async_callback(outbox.close)
            store = await stack.enter_async_context(ConversationStore.open(url, migrate=True))
            breaker = Breaker(clock=Clock(), uniform=self.chance.uniform, probes=_PROBES)
            relay = Relay(outbox, store, random=self.chance, breaker=breaker)
            stack.push_async_callback(end, asyncio.create_task(relay.run()))
            yield relay

    async def prune(self) -> None:
        """Prune everything that was delivered."""
        outbox = self.history.outbox
        prune = Pruner(Retention(keep_last=0, keep_for=timedelta(0)), outbox.now_us)
        while await outbox.write(prune):
            pass

    async def whole(self, url: str) -> list[str]:
        """Wait until a store holds everything, once and in order; return what it lacks then, or what else is wrong."""
        problems: list[str] = []
        try:
            async with asyncio.timeout(worlds.TIMEOUT_SECONDS):
                while True:
                    verdict = await check([self.path], url, acknowledged=self.acks, drained=True)
                    problems[:] = verdict.problems[:3]
                    if verdict.ok:
                        return []
                    await asyncio.sleep(0.2)  # a look reads all of both
        except TimeoutError:
            return problems or ["it did not come to rest"]

    def process(self, *words: str, store: str | None) -> subprocess.Popen[str]:
        """Start the command in a process of its own, in an empty environment."""
        named = () if store is None else ("--store", store)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("LETOPIS_")}
        return subprocess.Popen(
            [sys.executable, "-P", str(CHILD), DEFECT, "--outbox", str(self.path), *named, *words],
            cwd=self.folder,
            env=clean,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    async def ended(self, *words: str, store: str | None) -> int:
        """Run the command in a process of its own, and return its exit code."""
        with running(self.process(*words, store=store)) as process:
            return await asyncio.to_thread(process.wait, WAIT)

    async def said(self, *words: str, store: str | None) -> tuple[int, Any]:
        """Run a command that prints JSON, here; return its exit code and what it printed."""
        named = () if store is None else ("--store", store)

        def call() -> tuple[int, Any]:
            out = io.BytesIO()
            with redirect_stdout(io.TextIOWrapper(out, write_through=True)):
                code = run(cli, ["--outbox", str(self.path), *named, *words])
                return code, json.loads(out.getvalue() or "null")

        return await asyncio.to_thread(call)

    async def untrue(self, wrong: str | None) -> list[str]:
        problems = []
        lanes = (await asyncio.to_thread(read_outbox, self.path)).lanes.values()
        pending = sum(one.head - one.delivered for one in lanes)
        _, status = await self.said("status", "--json", store=None)
        if status["pending"] != pending:
            problems.append(f"status counts {status['pending']} events as pending, they are {pending}")
        if status["store"]["destination"] != destination_of(self.url):
            problems.append("status names another store than the bot's")
        for url in (wrong, self.url):
            code, report = await self.said("doctor", "--json", store=url)
            levels = [one["level"] for one in report["checks"] if one["check"] == "store_identity"]
            if url == self.url and levels != ["ok"]:
                problems.append(f"doctor says {levels} of the right store")
            if url == wrong and (code != 1 or report["healthy"]):
                problems.append("doctor says of the wrong store that nothing is wrong")
        return problems


async def rows(url: str) -> Any:
    """Return what a store holds; ``None`` where there is no such file."""
    if url.startswith("sqlite") and not Path(url.removeprefix("sqlite:///")).exists():
        return None
    try:
        return {name: held for name, held in (await dump(url)).items() if held}
    except DBAPIError:  # it has no tables
        return {}


@contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Have a process for the time of a block, and not longer."""
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@asynccontextmanager
async def scene(kind: str, url: str, folder: Path, chance: Random) -> AsyncIterator[Scene]:
    """Open one, whose bot has said nothing yet."""
    with ExitStack() as stack:
        path = folder / "bot.outbox.db"
        async with ConversationStore.open(url, migrate=True):
            pass
        async with History.open(path, store=url, relay=False) as history:
            yield Scene(kind, url, folder, chance, history, stack)
