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
from typing import Any, Final, NamedTuple

from letopis.outbox import History, Relay
from letopis.outbox.alerting.channels import AppriseChannel
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.store import ConversationStore, Message
from tests.campaigns.invariants import Ack, Verdict, examine, read_outbox, read_whole_store, with_records
from tests.campaigns.record_invariants import RecordAck, RecordOutbox, RecordStore, read_record_outbox
from tests.campaigns.states import OutboxState, StoreState
from tests.campaigns.victims import Context
from tests.proof.crash import moments
from tests.proof.crash.gate import NET_CALLS, Call, guard
from tests.proof.crash.moments import SHOWS, Left, Moment, Who
from tests.proof.harness import SETTLING_SECONDS, Tally
from tests.support import victim
from tests.support.child import start, start_piped
from tests.support.defects import DUPLICATES_TAKEN, planted
from tests.support.promises import MAKE_BOOKS, acks_of, half_kept
from tests.support.record_deeds import record_ack
from tests.support.webhook import Site

TIMEOUT_SECONDS: Final = 20.0
CONVERSATIONS: Final = 3
SAID: Final = 4
LOOKS: Final = 8  # how often a watch still looks after the last notification, for any that should not follow


class State(NamedTuple):
    """All that is there."""

    store: StoreState
    outbox: OutboxState
    records: RecordStore
    changes: RecordOutbox


class Field:
    """Where processes die."""

    def __init__(self, bot: History, url: str, hook: Site, context: Context, *, without: bool) -> None:
        self.bot = bot
        self._url = url
        self._hook = hook
        self._context = context
        self._without = without
        self._acks: list[Ack] = []
        self._record_acks: list[RecordAck] = []
        self._outbox = bot.outbox.path
        self._last: State

    @classmethod
    @asynccontextmanager
    async def open(
        cls, outbox: Path, url: str, hook: Site, context: Context, *, without: bool = False
    ) -> AsyncIterator[Field]:
        async with (
            ConversationStore.open(url, migrate=True) as store,
            History(outbox, store=store, relay=False, watch=False) as bot,
        ):
            async with bot.transaction() as own:
                await own.execute(MAKE_BOOKS)
            field = cls(bot, url, hook, context, without=without)
            await field.say()
            await field._deliver()
            await field._look(drained=True)
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
        work = partial(victim.deliver, self._outbox, self._url, **how)
        process, ours = start_piped(self._context, moments.gated, NET_CALLS, work, duplex=True)
        with ours:
            assert process.pid is not None
            calls = await asyncio.to_thread(
                guard, ours, process.pid, _to_a_server, kill_at=kill_at, patience=TIMEOUT_SECONDS
            )
            return calls, await _end(process)

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
            before = self._figures()
            code = await life()
            # In the middle, with the dead one's debts still open.
            death.take(await self._look(drained=False))
            left = {"owed": owed} | {name: figure - before[name] for name, figure in self._figures().items()}
            if code != -9 and not (may_end and code == 0):
                death.problems.append(f"did not die there, but ended with {code}")
            elif shows is not None and not shows(left):
                death.problems.append(f"died elsewhere: {left}")

            await self.say(1)
            if who is Who.WATCH:
                death.blame(await self._watch(since=before["alerts"], told=left["alerts"]))
            death.figures["doubled"] = await self._deliver()
            if who is Who.WATCH:
                death.blame(await self._watch_the_end(since=before["alerts"]))
            death.take(await self._look(drained=True))
            death.blame(half_kept(self._outbox, self._last.store))
            death.count = int(code == -9)
            death.figures["stored"] = int(left["stored"] > left["written_off"])
        except Exception as error:  # that the others cannot continue is the worst possible result
            death.problems = [f"{type(error).__name__}: {error}"]
        death.problems = [f"{name}: {problem}" for problem in death.problems]
        return death

    async def _life(self, moment: Moment, number: int) -> int | None:
        """Run a process until it dies, and return its exit code; take in what it was promised."""
        outbox = str(self._outbox)
        named: dict[str, Any] = {"moment": moment.name, "number": number}
        match moment.who:
            case Who.BOT:
                process, ours = start_piped(self._context, moments.bot, outbox, self._url, **named)
                with ours, suppress(EOFError):
                    code = await _end(process)
                    while ours.poll(1):
                        ack = ours.recv()
                        (self._record_acks if isinstance(ack, RecordAck) else self._acks).append(ack)
                return code
            case Who.WATCH:
                process = start(self._context, moments.watch, outbox, f"http://{self._hook.url}/hook", **named)
            case _:
                how = {"leave": moment.who is Who.LEAVING, "without": self._without, **named}
                process = start(self._context, moments.relay, outbox, self._url, **how)
        return await _end(process)

    async def say(self, count: int = SAID) -> None:
        """Have the bot that survives say a little in each conversation, and put two records."""
        for place in range(CONVERSATIONS):
            said = [Message.user(f"{place} {number}") for number in range(count)]
            self._acks += acks_of(await self.bot.append(f"talk-{place}", *said))
        for records in (self.bot.records(conversation="talk-0"), self.bot.records(space="bots")):
            value = f"{len(self._record_acks)}".encode()
            self._record_acks.append(record_ack(await records.put(("talk",), "last", value), value))

    async def _deliver(self) -> int:
        """Take the dead one's lease over and deliver all; return how many events the store knew already."""
        with planted(DUPLICATES_TAKEN if self._without else ""):
            relay = Relay(self.bot.outbox, self.bot.store, random=random.Random(1))
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not await self.bot.drained(0):
                    await relay.drain()
        return relay.stats.duplicates

    async def _watch(self, *, since: int, told: int) -> list[str]:
        # What the dead one had claimed is not told a second time, but the reminder comes.
        if not await self._heard(told + 1, since=since):
            return [f"{len(self._alerts(since))} alerts in {TIMEOUT_SECONDS:g} s"]
        await self._look_on(self._watching(moments.REMINDED_ALREADY))
        alerts = len(self._alerts(since))
        return [] if alerts == told + 1 else [f"a flood: {alerts} alerts where {told + 1} had to be"]

    async def _watch_the_end(self, *, since: int) -> list[str]:
        if not await self._heard(1, since=since, recovered=True):
            return [f"nobody was told in {TIMEOUT_SECONDS:g} s that it is over"]
        await self._look_on(self._watching())
        ends = len(self._alerts(since, recovered=True))
        return [] if ends == 1 else [f"told {ends} times that it is over"]

    async def _heard(self, count: int, *, since: int, recovered: bool = False) -> bool:
        """Watch until there were this many alerts; return False if they do not come."""
        watching, deadline = self._watching(), time.monotonic() + TIMEOUT_SECONDS
        while len(self._alerts(since, recovered=recovered)) < count:
            if time.monotonic() > deadline:
                return False
            await self._look_on(watching, 1)
        return True

    def _watching(self, rules: Rules = moments.RULES) -> AlertMonitor:
        return AlertMonitor(
            self.bot.outbox, channels=(AppriseChannel(f"http://{self._hook.url}/hook", private=True),), rules=rules
        )

    async def _look_on(self, watching: AlertMonitor, looks: int = LOOKS) -> None:
        for _ in range(looks):
            await watching.observe_once()
            await asyncio.sleep(moments.LOOK_INTERVAL_SECONDS)

    def _alerts(self, since: int, *, recovered: bool = False) -> list[dict[str, Any]]:
        return [one for one in self._hook.alerts[since:] if (one["type"] == "success") is recovered]

    async def _look(self, *, drained: bool) -> Verdict:
        """Read both files and examine them; once more if a server is just committing for a dead process."""
        verdict = await self._read(drained=drained)
        if not verdict.ok:
            await asyncio.sleep(SETTLING_SECONDS)
            verdict = await self._read(drained=drained)
        return verdict

    async def _read(self, *, drained: bool) -> Verdict:
        outbox = await asyncio.to_thread(read_outbox, self._outbox)
        changes = await asyncio.to_thread(read_record_outbox, self._outbox)
        store, records = await read_whole_store(self._url)
        self._last = State(store, outbox, records, changes)
        verdict = examine(store, [outbox], acknowledged=self._acks, drained=drained)
        return with_records(
            verdict, store, [outbox], records, [changes], acknowledged=self._record_acks, drained=drained
        )

    def _figures(self) -> dict[str, int]:
        """Return what is counted before and after a death: by the last look, and of what was promised."""
        state, lanes = self._last, self._last.outbox.lanes.values()
        return {
            "kept": sum(event.type == "message.appended" for event in state.outbox.events),
            "stored": sum(state.store.lanes.values()),
            "written_off": sum(lane.delivered for lane in lanes),  # what the outbox counts as delivered
            "pruned": sum(lane.pruned for lane in lanes),
            "changes": sum(lane.head for lane in state.changes.lanes.values()),  # of records
            "changes_applied": sum(head for head, _ in state.records.heads.values()),
            "answered": len(self._acks),  # messages that the victim was promised
            "changes_answered": len(self._record_acks),
            "alerts": len(self._hook.alerts),
        }


def _to_a_server(call: Call) -> bool:
    """Return True if a call is for a server: an event loop wakes itself through a socket too, by single bytes."""
    return call.size not in (1, 4096)


async def _end(process: BaseProcess) -> int | None:
    """Wait for a process to die; one that does not is killed, and has no exit code."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while process.exitcode is None:
        if time.monotonic() > deadline:
            process.kill()
            process.join()
            return None
        await asyncio.sleep(0.003)
    return process.exitcode
