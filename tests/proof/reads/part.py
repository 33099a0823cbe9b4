"""Compare reads with earlier acknowledgements under deliveries, rewinds, forks, prunes and restores."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any, Final

from letopis.outbox import History, Receipt, Retention
from letopis.outbox.relay.relay import Relay
from letopis.store import (
    Conversation,
    ConversationGone,
    ConversationStore,
    IdReused,
    InvalidInput,
    LetopisError,
    Message,
    Page,
)
from tests.proof.harness import Experiment, Setting, Tally, migrated
from tests.proof.reads.client import Client
from tests.support.sayings import all_pages
from tests.support.store_changes import copied, put_back_beside

CHATS: Final = 5
REMOVALS: Final = ("pop", "undo", "clear", "replace", "redact", "reset", "delete", "nothing")
WRITERS: Final = 8
LISTERS: Final = 2
KEYS: Final = 30
PUTS_PER_WRITER: Final = 10_000  # more than any run needs: the listers end it


async def deliver(*histories: History) -> None:
    for history in histories:
        await Relay(history.outbox, history.store).drain_once()


@dataclass
class Pair:
    """Two histories with an outbox each, on one store; each case has an owner of its own."""

    _one: History
    _two: History
    _store: ConversationStore
    _random: Random
    _reads: Tally

    async def case(self, number: int) -> None:
        """Run one case, and count what it read."""
        owner, chats = f"o{number}", [f"c{number}-{one}" for one in range(CHATS)]
        for chat in chats:
            await self._one.start(owner, conversation_id=chat, activate=chat == chats[-1])
        await deliver(self._one)
        await self._appended_again(chats[0])
        await self._listed(owner)
        await self._left(owner)

    async def _appended_again(self, chat: str) -> None:
        question, answer = Message.user("what?", id="q"), Message.assistant("the words", id="m")
        await self._two.append(chat, question, answer)
        await deliver(self._two)
        how = self._random.choice(REMOVALS)
        match how:
            case "replace":
                await self._one.chat(chat).replace([question])
            case "redact":
                await self._one.chat(chat).redact("m")
            case "clear":
                await self._one.chat(chat).rewind(to=None)
            case "pop" | "undo" | "reset" | "delete":
                await getattr(self._one.chat(chat), how)()
        if self._random.random() < 0.8:
            await deliver(self._one)
        receipt: Receipt | None = None
        try:
            if self._random.random() < 0.5:
                receipt = await self._two.append(chat, answer)
            else:
                async with self._two.transaction() as transaction:
                    receipt = await transaction.append(chat, answer)
        except (IdReused, ConversationGone):
            pass  # refused: nothing was written
        await deliver(self._two)
        await deliver(self._one)
        shown = any(one.id == "m" for one in await self._store.messages(chat))
        gone = receipt is None or await receipt.superseded(0)
        self._took(gone != shown, f"{how}: superseded or refused {gone}, shown {shown}")

    async def _listed(self, owner: str) -> None:
        """The second outbox does not know the owner of what it appends to."""
        living = _names(await self._store.conversations(owner=owner))
        await self._two.append(self._random.choice(living), Message.user("more"))

        async def page(**place: Any) -> Page[Conversation]:
            if place and self._random.random() < 0.5:
                await deliver(self._two)
            return await self._two.conversations(owner=owner, limit=2, **place)

        found = _names(await all_pages(page))
        self._took(sorted(found) == sorted(living), f"listed {found} of {living}")
        await deliver(self._two)

    async def _left(self, owner: str) -> None:
        for _ in range(self._random.randint(1, 4)):
            living = _names(await self._one.conversations(owner=owner))
            if len(living) < 2:
                break
            chat = self._random.choice(living)
            if self._random.random() < 0.5:
                await self._one.append(chat, Message.user("on"))
            else:
                await self._one.chat(living[0]).archive()
            if self._random.random() < 0.2:
                await deliver(self._one)
        before = _names([await self._one.active(owner, create=False)])
        await deliver(self._one)
        after = _names([await self._store.active(owner)])
        self._took(before == after, f"active {before} before the delivery, {after} after it")

    def _took(self, right: bool, problem: str) -> None:
        self._reads.count += 1
        self._reads.require(right, problem)


def _names(conversations: Iterable[Conversation | None]) -> list[str]:
    return [one.conversation_id for one in conversations if one is not None]


async def share(setting: Setting) -> Tally:
    """Run cases until there were enough reads; with a defect, until one of them is wrong."""
    reads, number, many = Tally(), 0, setting.many(3_000, 20)
    async with ConversationStore.open(setting.url, migrate=True) as store, AsyncExitStack() as stack:
        opened = partial(History, store=store, relay=False, watch=False, read_timeout=30)
        one, two = [await stack.enter_async_context(opened(setting.folder / name)) for name in ("one.db", "two.db")]
        pair = Pair(one, two, store, Random(setting.seed), reads)
        while reads.count < many and not (setting.control and reads.problems):
            await pair.case(number)
            number += 1
    return reads


async def list_records(setting: Setting) -> Tally:
    """List records while others put them and a relay delivers; each key is listed once, with a whole value."""
    reads, many = Tally(), setting.many(2_000, 50)
    await migrated(setting.url)

    def enough() -> bool:
        return reads.count >= many or (setting.control and bool(reads.problems))

    async with History(setting.folder / "records.db", store=setting.url, watch=False, read_timeout=30) as history:
        records = history.records(space="shared")

        async def put(writer: int) -> None:
            random = Random(writer)
            for number in range(PUTS_PER_WRITER):
                if enough():
                    return
                await records.put(("k",), f"{random.randrange(KEYS):02}", {"text": f"{number} " * 50})

        async def lists() -> None:
            while not enough():
                try:
                    page = await records.list(("k",), limit=KEYS)
                except LetopisError as error:
                    reads.problems.append(str(error))
                else:
                    keys = [one.key for one in page]
                    whole = len(set(keys)) == len(keys) and all(one.value["text"] for one in page)
                    reads.require(whole, f"{len(keys)} records, {len(set(keys))} keys")
                reads.count += 1

        await asyncio.gather(*map(put, range(WRITERS)), *(lists() for _ in range(LISTERS)))
    return reads


CLIENTS: Final = 6
TRIES: Final = 50  # to put a store back beside deliveries
TIMEOUT_SECONDS: Final = 1_200.0  # seconds after which it is not waited for more reads


async def read(setting: Setting, *, restored: bool = False) -> Tally:
    """Have clients speak and read until there were enough reads; with the defect, until one of them is wrong."""
    many = 20_000 if setting.control else setting.many(6_000, 50) if restored else setting.many(28_000, 100)
    await migrated(setting.url)
    reads, random, begun = Tally(), Random(setting.seed + restored), time.monotonic()

    def enough() -> bool:
        late = time.monotonic() - begun > TIMEOUT_SECONDS
        return reads.count >= many or late or len(reads.problems) > (0 if setting.control else 50)

    # What is pruned at once has to be in the store; what the store lost has to be in the file.
    retention = Retention() if restored else Retention(keep_last=0, keep_for=timedelta(0))
    opened = partial(History, setting.folder / "reads.db", retention=retention, watch=False, read_timeout=30)
    async with opened(store=setting.url) as history:

        async def live(number: int) -> None:
            try:
                await Client(history, f"o{number}", Random(random.random()), reads, restored=restored).live(enough)
            except InvalidInput as error:
                if not setting.control:
                    raise
                # What it has just said is not there for it: the planted defect shows in its next word as well.
                reads.problems.append(str(error))

        restoring = [_restoring(setting.url, enough, every=0.3)] if restored else []
        _, *restores = await asyncio.gather(asyncio.gather(*map(live, range(CLIENTS))), *restoring)
        told = f"{restores[0]:,} restores" if restored else await history.outbox.read(_told)
        reads.notes = f"{reads.figures['not complete']:,} not complete, {told}"
        return reads


def _told(connection: Any) -> str:
    said, pruned = connection.exec_driver_sql("SELECT sum(head), sum(pruned) FROM letopis_outbox_lanes").one()
    return f"{said:,} events, {pruned:,} pruned"


async def _restoring(url: str, until: Callable[[], bool], *, every: float) -> int:
    """Keep a copy of all tables, and put it back a little later, again and again; return how often."""
    done = 0
    while not until():
        copy = await copied(url)
        await asyncio.sleep(every)
        done += await put_back_beside(url, copy, tries=TRIES)
        await asyncio.sleep(every)
    return done


PRUNED: Final = "reads while all is delivered, rewound, forked and pruned: what was acknowledged before, once, in order"
RESTORED: Final = "the same, while the store is put back to an earlier state again and again"
SHARED: Final = (
    "two outboxes share conversations: what is superseded is not shown, each is listed, the active one is one"
)
CONTROL: Final = partial(Experiment, short=("sqlite",))
TABLE: Final = (
    Experiment(PRUNED, read, "reads", 28_000),
    Experiment(RESTORED, partial(read, restored=True), "reads", 6_000),
    CONTROL(
        "the same, with the store read before the outbox",
        *(read, "reads"),
        defect="a read asks the store before the outbox",
    ),
    Experiment(SHARED, share, "reads", 3_000),
    CONTROL(
        "the same, with receipts that do not look for their messages",
        *(share, "reads"),
        defect="a receipt does not look whether its message has left the path",
    ),
    Experiment("records are listed while eight writers put them", list_records, "lists", 2_000),
    CONTROL(
        "the same, with values that are read after the list",
        *(list_records, "lists"),
        defect="the values of a list of records are read after it",
    ),
)
