"""Be the bots that append, the relays that deliver, and the operator who repairs what is stuck."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History, Relay
from letopis.outbox.alerting.channels import Alert, AlertFailed
from letopis.outbox.alerting.notifications import Incident
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.operations.pending_events import Selection
from letopis.store import ConversationStore, Message
from letopis.store.database.faults import StoreFault
from letopis.store.errors import (
    Closed,
    IdReused,
    InvalidInput,
    NotSaved,
    OutboxFull,
    OutboxUnavailable,
    StoreUnavailable,
    VersionConflict,
)
from letopis.store.model.codec import encode_message
from letopis.store.model.identifiers import derived_event_id
from letopis.store.model.records import Scope
from tests.campaigns.invariants import Ack
from tests.campaigns.record_invariants import RecordAck
from tests.proof.simulation.alarms import Alarms
from tests.proof.simulation.contents import STREAMS, Erased, Stream
from tests.proof.simulation.ledger import OutboxLedger
from tests.proof.simulation.plan import Plan
from tests.proof.simulation.rights import POLICY, Rights
from tests.proof.simulation.subjects import Speaker
from tests.proof.simulation.weather import BAD
from tests.support.content_deeds import ContentKeeper, Gone
from tests.support.path_deeds import Broken, PathKeeper, RecordKeeper
from tests.support.promises import acks_of

REFUSED: Final = (OutboxUnavailable, OutboxFull, Closed)
"""What an append may end in while the outbox's own disk fails; it may have taken effect all the same."""


@dataclass
class Place:
    """One outbox, with all that is known of it."""

    path: Path
    store: Path
    ledger: OutboxLedger
    alarms: Alarms
    plan: Plan
    now: Callable[[], datetime]
    counts: Counter[str]
    say: Callable[[str], None]
    broken: Callable[[str], None]
    acks: list[Ack] = field(default_factory=list)
    record_acks: list[RecordAck] = field(default_factory=list)
    number: int = 0
    bad_wanted: int = 0
    silent: bool = False
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    refused = REFUSED

    @cached_property
    def erased(self) -> Erased:
        return Erased(self.path, self.store)

    @property
    def rights(self) -> Rights:
        return self.ledger.store.rights

    @property
    def delivered_retention(self) -> Retention:
        """How long its outbox keeps what is delivered, and the store the content of some conversations."""
        seconds = timedelta(seconds=self.plan.keep_for)
        return Retention(keep_last=self.plan.keep_last, keep_for=seconds, content=POLICY)

    def conversation(self, chance: random.Random) -> str:
        """Return one of its own conversations, or one that all outboxes write."""
        if chance.random() < 0.25:
            return "shared"
        return f"chat-{self.number}-{chance.randrange(self.plan.conversations)}"


@dataclass
class Operator:
    """A channel to the operators that fails now and then. Has the API of ``channels.Channel``."""

    _place: Place
    _chance: random.Random
    name: str = "operators"
    recipient: str = "operators"

    async def send(self, alert: Alert) -> None:
        await asyncio.sleep(self._chance.uniform(0, 2))
        if self._place.alarms.fails(self._chance):
            raise AlertFailed(self.name, "made-up")
        self._place.alarms.alerted(alert)


class Bot:
    """Appends, rewinds, retries, reads; and holds Letopis to what it reported."""

    def __init__(self, place: Place, chance: random.Random, closing: asyncio.Event, *, name: str) -> None:
        self._place = place
        self._name = name
        self._chance = chance
        self._closing = closing
        self._said: deque[tuple[str, Message, int]] = deque(maxlen=4)

    async def live(self) -> None:
        """Open the history, talk until told to close, and close it."""
        place, plan = self._place, self._place.plan
        async with History(
            place.path,
            store=place.store,
            relay=plan.embedded,
            retention=place.delivered_retention,
            on_stuck=self._told,
            on_recovered=self._told,
            channels=(Operator(place, self._chance),),
            now=place.now,
        ) as history:
            chance = random.Random(self._chance.randrange(10**6))
            kept: Any = {"chance": chance, "keep": self._acknowledged}
            path = PathKeeper(history, f"path-{self._name}", **kept)
            content = ContentKeeper(history, f"content-{self._name}", **kept, gone=self._erased)
            talking = [
                asyncio.create_task(self._talk(history, path, content), name="talker") for _ in range(plan.talkers)
            ]
            closing = asyncio.create_task(self._closing.wait())
            await asyncio.wait((*talking, closing), return_when=asyncio.FIRST_COMPLETED)
            for task in talking:
                task.cancel()
            for outcome in await asyncio.gather(*talking, return_exceptions=True):
                if isinstance(outcome, Broken):
                    place.broken(str(outcome))
                elif isinstance(outcome, Exception):
                    raise outcome

    async def _told(self, incident: Incident) -> None:
        alarms = self._place.alarms
        alarms.telling(incident)
        await asyncio.sleep(self._chance.uniform(0, 2))
        if alarms.fails(self._chance):
            raise RuntimeError("the bot cannot send at present")
        alarms.told(incident)

    async def _talk(self, history: History, path: PathKeeper, content: ContentKeeper) -> None:
        keeper = RecordKeeper(
            history,
            seed=self._chance.randrange(10**6),
            chance=self._chance,
            keep=self._record_acknowledged,
            keep_message=self._acknowledged,
        )
        speaker = Speaker(self._place, self._chance, self._acknowledged)

        async def change_path(_: History) -> None:
            await path.change()
            self._place.counts["changes of paths"] += 1

        said = (*[self._say] * 3, self._interrupted, self._together, self._answer, self._again, self._read)
        records = (*[lambda _: keeper.change()] * 3, self._read_record)
        paths = (*[change_path] * 3, self._confirmed)
        contents = (*[lambda _: content.change()] * 4, *[self._stream] * 2)
        persons = (*[speaker.say] * 3, speaker.say_kept, speaker.read_kept)
        deeds: Sequence[Callable[[History], Awaitable[object]]] = (*said, *records, *paths, *contents, *persons)
        while True:
            await self._pause()
            if self._place.silent:
                continue
            deed = self._chance.choice(deeds)
            # A talk comes in a rush, so that appends meet.
            for _ in range(self._chance.choice((1, 1, 2, 5))):
                if not self._place.silent:
                    with suppress(*REFUSED, StoreFault):
                        await deed(history)

    async def _pause(self) -> None:
        hurry = self._place.hurry
        with suppress(TimeoutError):
            async with asyncio.timeout(self._chance.expovariate(1 / self._place.plan.pause)):
                await hurry.wait()
        if hurry.is_set():
            await asyncio.sleep(self._chance.uniform(0.1, 3))

    def _message(self) -> Message:
        chance = self._chance
        text = f"{chance.randrange(10**6)} {'ж' * chance.randrange(80)}"
        if chance.random() < 0.3:
            return Message.assistant(text, id=f"m-{chance.randrange(10**12)}")
        return Message.user(text)

    async def _say(self, history: History) -> None:
        place = self._place
        name = place.conversation(self._chance)
        messages = [self._message() for _ in range(self._chance.choice((1, 1, 3)))]
        if place.bad_wanted > 0:
            place.bad_wanted -= 1
            messages.insert(0, Message.user(f"bad {BAD}"))  # and what comes after it has to wait
        await self._until_taken(history, name, messages)

    async def _until_taken(self, history: History, name: str, messages: list[Message]) -> None:
        """Append, and where the outcome is not known or nothing was written, append the same again."""
        for _ in range(self._chance.choice((1, 3, 6))):
            if self._place.silent:
                return
            try:
                self._acknowledged(await history.append(name, *messages, owner=f"owner of {name}"), messages)
            except REFUSED:
                await asyncio.sleep(self._chance.uniform(0.1, 3))
            else:
                return

    def _acknowledged(self, receipt: Receipt, messages: Sequence[Message] = ()) -> None:
        """Check and keep what an append promises, and where its messages are given, that it is of these."""
        place, name = self._place, receipt.conversation_id
        acks = acks_of(receipt)
        for ack, message in zip(acks, messages or [None] * len(acks), strict=True):
            place.ledger.acknowledged(ack, message and encode_message(message, conversation_id=name))
        place.acks += acks
        place.say(f"ack {name} {receipt.sequence} {receipt.event_ids[-1]}")
        if messages:
            self._said.append((name, messages[-1], receipt.sequence))

    def _erased(self, gone: Gone) -> None:
        self._place.say(f"erased {gone.text}")
        self._place.counts["texts erased"] += 1
        self._place.erased.add(gone)

    def _record_acknowledged(self, ack: RecordAck) -> None:
        place = self._place
        place.ledger.acknowledged(Ack(ack.lane, ack.event_id, ack.sequence))
        place.record_acks.append(ack)
        place.counts["changes of records acknowledged"] += 1
        place.say(f"ack {ack.lane!r} {ack.sequence} {ack.event_id}")

    async def _read_record(self, history: History) -> None:
        place, changes = self._place, self._place.ledger.changes
        known = list(changes.of_place)
        if not known or place.plan.outboxes > 1:
            return  # another outbox may have been last
        scope, namespace, key = self._chance.choice(known)
        since = changes.newest((scope, namespace, key))
        with suppress(StoreUnavailable):
            found = await history.records(Scope(scope)).get((namespace.rstrip("/"),), key)
            place.counts["records read"] += 1
            revision = None if found is None else found.revision.bytes
            changes.check_read((scope, namespace, key), revision, since=since)

    async def _interrupted(self, history: History) -> None:
        """Cancel an append somewhere, and append the same again, or leave it at that."""
        name, messages = self._place.conversation(self._chance), [self._message()]
        appending = asyncio.create_task(history.append(name, *messages, owner=f"owner of {name}"))
        await asyncio.sleep(self._chance.choice((0.0, 0.0, 0.0001, 0.001, 0.02)))
        appending.cancel()
        with suppress(asyncio.CancelledError, *REFUSED):
            self._acknowledged(await appending, messages)
            return
        self._place.counts["appends that were cancelled"] += 1
        if self._chance.random() < 0.6:
            await self._until_taken(history, name, messages)

    async def _together(self, history: History) -> None:
        names = [self._place.conversation(self._chance) for _ in range(2)]
        said, taken_back = [self._message() for _ in names], self._chance.random() < 0.3
        receipts: list[Receipt] = []
        try:
            async with history.transaction() as transaction:
                for name, message in zip(names, said, strict=True):
                    receipts.append(await transaction.append(name, message, owner=f"owner of {name}"))
                if taken_back:
                    raise _BrokenOff
        except _BrokenOff:
            for receipt in receipts:
                if (receipt.conversation_id, receipt.event_ids[0].bytes) in self._place.ledger.places:
                    raise Broken(f"{receipt.conversation_id!r}: what was rolled back is in the file") from None
        else:
            for receipt, message in zip(receipts, said, strict=True):
                self._acknowledged(receipt, [message])

    async def _answer(self, history: History) -> None:
        """Read, and append after what was read: one of two who do so at once is refused, or put aside."""
        name, message = "shared", self._message()
        try:
            page = await history.messages(name, last=5)
            await asyncio.sleep(self._chance.choice((0.0, 0.0, 0.5, 5.0)))
            self._acknowledged(await history.append(name, message, owner=f"owner of {name}", after=page), [message])
        except VersionConflict:
            self._place.counts["turns refused"] += 1

    async def _confirmed(self, history: History) -> None:
        """Append on condition that the store says yes: what returns is stored, and what it refused is not written."""
        place, message = self._place, self._message()
        name, counts = place.conversation(self._chance), place.counts
        event_id = message.event_id or derived_event_id(name, message.id)
        try:
            page = await history.messages(name, last=5)
            confirmed: Any = {"confirm": "store", "timeout": self._chance.choice((1, 60))}
            receipt = await history.append(name, message, owner=f"owner of {name}", after=page, **confirmed)
        except NotSaved:
            counts["appends that were not confirmed in time"] += 1
        except (VersionConflict, StoreUnavailable) as refused:
            if not getattr(refused, "set_aside", False) and (name, event_id.bytes) in place.ledger.places:
                raise Broken(f"{name!r}: an append was refused before it was written, and is in the file") from None
            counts["appends that were not to be confirmed"] += 1
        else:
            self._acknowledged(receipt, [message])
            if not place.ledger.store.holds(name, event_id):
                raise Broken(f"{name!r}: confirmed by the store, which does not hold it")
            counts["appends confirmed"] += 1

    async def _stream(self, history: History) -> None:
        """Stream a reply, and finish it, fail in the middle of it, or leave it to the end of its block."""
        place, chance = self._place, self._chance
        name, message_id = f"{STREAMS}-{place.number}", f"r-{chance.randrange(10**12)}"
        stream = place.ledger.streams.begun[message_id] = Stream()
        end = chance.choice(("finish", "finish", "fail", "leave"))
        try:
            async with history.reply(name, owner=f"owner of {name}", message_id=message_id) as reply:
                for _ in range(chance.randrange(6)):
                    piece = f"{chance.randrange(10**6)} {'ж' * chance.randrange(20)} "
                    stream.text += piece
                    await reply.add(piece)
                    await asyncio.sleep(chance.choice((0.0, 0.2, 1.0)))
                if end == "fail":
                    raise _BrokenOff
                stream.finishing = True
                if end == "finish":
                    self._acknowledged(await reply.finish())
        except _BrokenOff:
            place.counts["replies that were cut off"] += 1
        except InvalidInput:
            return
        if reply.receipt is None:
            return
        if end == "fail" and stream.text != place.ledger.streams.appended[message_id][1]:
            raise Broken(f"reply {message_id!r} was cut off, and lost what was added")
        if end != "fail":
            place.ledger.streams.check_finished(message_id)
        place.counts["replies streamed"] += 1

    async def _again(self, history: History) -> None:
        if not self._said:
            return
        name, message, sequence = self._said[-1]
        receipt = await history.append(name, message, owner=f"owner of {name}")
        self._acknowledged(receipt, [message])
        if receipt.sequence != sequence:
            raise Broken(f"{name!r}: appended again, sequence {sequence} has become {receipt.sequence}")
        if message.event_id is not None:
            return  # its id was not the caller's
        other = Message.assistant("something else", id=message.id)
        with suppress(IdReused):
            self._acknowledged(await history.append(name, other, owner=f"owner of {name}"), [other])

    async def _read(self, history: History) -> None:
        """Read what was just said: it must be there, whether delivered or not, whatever the store does."""
        if not self._said:
            return
        name, message, _ = self._said[-1]
        page = await history.messages(name, every=True, last=None)
        # Without the store there is only what the outbox still keeps.
        if page.complete and message.id not in {one.message.id for one in page.items}:
            raise Broken(f"{name!r}: what was said and acknowledged is not read: message {message.id}")


class _BrokenOff(Exception):
    """What ends a transaction or a reply in the middle."""


async def deliver(place: Place, chance: random.Random, closing: asyncio.Event) -> None:
    """Live as a relay in a process of its own, until told to close."""
    async with _opened(place) as outbox, ConversationStore.open(place.store, now=place.now) as store:
        chores = (Pruner(place.delivered_retention, outbox.now_us),)
        relay = Relay(outbox, store, holder="relay", chores=chores, retention=POLICY, now=place.now, random=chance)
        running = asyncio.create_task(relay.run())
        await asyncio.wait((running, asyncio.create_task(closing.wait())), return_when=asyncio.FIRST_COMPLETED)
        relay.stop()
        await running


async def mend(place: Place) -> list[str]:
    """Retry what is blocked, as an operator does who has fixed the cause."""
    async with _opened(place) as outbox:
        return await OutboxAdmin(outbox).retry(Selection())


@asynccontextmanager
async def _opened(place: Place) -> AsyncIterator[OutboxFile]:
    outbox = await OutboxFile.open(place.path, now=place.now)
    try:
        yield outbox
    finally:
        await outbox.close()
