"""Let one process after the other die on one outbox and one store that a surviving bot keeps using."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from letopis import ConversationStore, History, Message
from letopis.outbox import Relay
from letopis.outbox.alerting.channels import AppriseChannel
from letopis.outbox.alerting.monitor import AlertMonitor
from tests.campaigns.invariants import read_outbox, read_store, read_whole_store
from tests.campaigns.record_invariants import RecordAck, read_record_outbox
from tests.proof.crash import moments
from tests.proof.crash.gate import NET_CALLS, Call
from tests.proof.crash.moments import SHOWS, Left, Moment, Who
from tests.proof.harness import Tally, World
from tests.support import victim
from tests.support.child import start, start_piped
from tests.support.defects import DUPLICATES_TAKEN, planted
from tests.support.path_deeds import record_ack
from tests.support.promises import MAKE_BOOKS, half_kept
from tests.support.webhook import Site

TIMEOUT_SECONDS: Final = 20.0
CONVERSATIONS: Final = 3
SAID: Final = 4
LOOKS: Final = 8  # how often a watch still looks after the last notification, for any that should not follow


class Field:
    def __init__(self, world: World, bot: History, hook: Site, *, without: bool) -> None:
        self.world = world
        self.bot = bot
        self._hook = hook
        self._without = without

    @classmethod
    @asynccontextmanager
    async def open(cls, outbox: Path, url: str, hook: Site, *, without: bool = False) -> AsyncIterator[Field]:
        world = World(outbox.parent, url, name=outbox.name)
        async with (
            ConversationStore.open(url, migrate=True) as store,
            History(outbox, store=store, relay=False, watch=False) as bot,
        ):
            async with bot.transaction() as own:
                await own.execute(MAKE_BOOKS)
            field = cls(world, bot, hook, without=without)
            await field.say()
            await field._deliver()
            yield field

    async def die(self, moment: Moment, number: int) -> Tally:
        """Have a process die at a moment, the n-th time that it gets there; continue, and check."""
        shows = SHOWS[moment.shows] if number == 1 else None
        name = f"{moment.name}, {number}"
        return await self._death(lambda: self._life(moment, number), name=name, who=moment.who, shows=shows)

    async def die_at_call(self, number: int) -> Tally:
        """Have a relay die at one of its calls to the server, if it makes that many this time; continue, and check."""

        async def life() -> int | None:
            _, code = await self.deliver_gated(kill_at=number)
            return code

        return await self._death(life, name=f"call {number} to the server", who=Who.RELAY, may_end=True)

    async def deliver_gated(self, *, kill_at: int = 0) -> tuple[list[Call], int | None]:
        """Have a relay deliver all there is; return its calls to the server, and its exit code."""
        how: dict[str, Any] = {"leave": True, "batch": moments.BATCH_EVENTS, "prune": True}
        work = partial(victim.deliver, self.world.outbox, self.world.url, **how)
        guard: dict[str, Any] = {"counts": _to_a_server, "kill_at": kill_at, "patience": TIMEOUT_SECONDS}
        calls, code, _ = await asyncio.to_thread(moments.guarded, moments.gated, NET_CALLS, work, **guard)
        return calls, code

    async def _death(
        self,
        life: Callable[[], Awaitable[int | None]],
        *,
        name: str,
        who: Who,
        shows: Callable[[Left], bool] | None = None,
        may_end: bool = False,
    ) -> Tally:
        death = Tally()
        try:
            owed = 0
            if who is not Who.BOT:
                await self.say()
                owed = CONVERSATIONS * SAID
            before = await self._figures()
            code = await life()
            # In the middle, with the dead one's debts still open.
            death.take(await self.world.examine(drained=False, settling=True))
            left = {"owed": owed} | {name: figure - before[name] for name, figure in (await self._figures()).items()}
            if code != -9 and not (may_end and code == 0):
                death.problems.append(f"did not die there, but ended with {code}")
            elif shows is not None and not shows(left):
                death.problems.append(f"died elsewhere: {left}")

            await self.say(1)
            if who is Who.WATCH:
                # What the dead one had claimed is not told a second time, but the reminder comes.
                await self._watch(death, since=before["alerts"], due=left["alerts"] + 1)
            death.figures["doubled"] = await self._deliver()
            if who is Who.WATCH:
                await self._watch(death, since=before["alerts"], due=1, over=True)
            death.take(await self.world.examine(settling=True))
            death.blame(half_kept(self.world.outbox, await read_store(self.world.url)))
            death.count = int(code == -9)
            death.figures["stored"] = int(left["stored"] > left["written_off"])
        except Exception as error:  # that the others cannot continue is the worst possible result
            death.problems = [f"{type(error).__name__}: {error}"]
        death.problems = [f"{name}: {problem}" for problem in death.problems]
        return death

    async def _life(self, moment: Moment, number: int) -> int | None:
        """Run a process until it dies, and return its exit code; take in what it was promised."""
        outbox, url = str(self.world.outbox), self.world.url
        named: dict[str, Any] = {"moment": moment.name, "number": number}
        match moment.who:
            case Who.BOT:
                process, ours = start_piped(moments.context(), moments.bot, outbox, url, **named)
                with ours, suppress(EOFError):
                    code = await _end(process)
                    while ours.poll(1):
                        ack = ours.recv()
                        (self.world.records if isinstance(ack, RecordAck) else self.world.acks).append(ack)
                return code
            case Who.WATCH:
                process = start(moments.context(), moments.watch, outbox, self._channel, **named)
            case _:
                how = {"leave": moment.who is Who.LEAVING, "without": self._without, **named}
                process = start(moments.context(), moments.relay, outbox, url, **how)
        return await _end(process)

    async def say(self, count: int = SAID) -> None:
        """Have the bot that survives say a little in each conversation, and put two records."""
        for place in range(CONVERSATIONS):
            said = [Message.user(f"{place} {number}") for number in range(count)]
            self.world.keep(await self.bot.append(f"talk-{place}", *said))
        for records in (self.bot.records(conversation="talk-0"), self.bot.records(space="bots")):
            value = f"{len(self.world.records)}".encode()
            self.world.records.append(record_ack(await records.put(("talk",), "last", value), value))

    async def _deliver(self) -> int:
        """Take the dead one's lease over and deliver all; return how many events the store knew already."""
        with planted(DUPLICATES_TAKEN if self._without else ""):
            relay = Relay(self.bot.outbox, self.bot.store, random=random.Random(1))
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not await self.bot.drained(0):
                    await relay.drain()
        return relay.stats.duplicates

    @property
    def _channel(self) -> str:
        return f"http://{self._hook.url}/hook"

    async def _watch(self, death: Tally, *, since: int, due: int, over: bool = False) -> None:
        """Watch until the operator was alerted, or told that it is over, as often as is due; it may not be oftener."""
        channels, deadline = (AppriseChannel(self._channel, private=True),), time.monotonic() + TIMEOUT_SECONDS

        async def look(watching: AlertMonitor) -> int:
            await watching.observe_once()
            await asyncio.sleep(moments.LOOK_INTERVAL_SECONDS)
            return sum((one["type"] == "success") is over for one in self._hook.alerts[since:])

        watching = AlertMonitor(self.bot.outbox, channels=channels, rules=moments.RULES)
        while (told := await look(watching)) < due and time.monotonic() < deadline:
            pass
        watching = AlertMonitor(self.bot.outbox, channels=channels, rules=moments.REMINDED_ALREADY)
        for _ in range(LOOKS):
            told = await look(watching)
        death.require(told == due, f"{told} alerts{' that it is over' if over else ''} where {due} had to be")

    async def _figures(self) -> dict[str, int]:
        """Return what is counted before and after a death: of what is there, and of what was promised."""
        outbox = await asyncio.to_thread(read_outbox, self.world.outbox)
        changes = await asyncio.to_thread(read_record_outbox, self.world.outbox)
        store, records = await read_whole_store(self.world.url)
        lanes = outbox.lanes.values()
        return {
            "kept": sum(event.type == "message.appended" for event in outbox.events),
            "stored": sum(store.lanes.values()),
            "written_off": sum(lane.delivered for lane in lanes),  # what the outbox counts as delivered
            "pruned": sum(lane.pruned for lane in lanes),
            "changes": sum(lane.head for lane in changes.lanes.values()),  # of records
            "changes_applied": sum(head for head, _ in records.heads.values()),
            "answered": len(self.world.acks),  # messages that the victim was promised
            "changes_answered": len(self.world.records),
            "alerts": len(self._hook.alerts),
        }


def _to_a_server(call: Call) -> bool:
    """Return True if a call is for a server: an event loop wakes itself through a socket too, by single bytes."""
    return call.size not in (1, 4096)


async def _end(process: BaseProcess) -> int | None:
    """Wait for a process to die; one that does not is killed, and has no exit code."""
    await asyncio.to_thread(process.join, TIMEOUT_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode
