"""Be the bot or the relay that a test kills, starves or leaves without power; tell each promise before the next step.

The functions with strings and a pipe as arguments are started as processes.
"""

import asyncio
import itertools
import logging
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from letopis.outbox import Bounds, History, Receipt, Relay, UnsentReply
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ABSENT, ConversationStore, Message, MessageRedacted
from tests.campaigns.record_invariants import MESSAGE_TAG, TURNS
from tests.campaigns.states import Ack
from tests.support.defects import plant, plant_weak_durability
from tests.support.path_deeds import LARGE_BYTES, PathKeeper, RecordKeeper, record_ack
from tests.support.promises import (
    BOOKS,
    ENTER,
    MAKE_BOOKS,
    PATH,
    SentPromises,
    WrittenPromises,
    acks_of,
    entry_of,
)

OUTBOX: Final = "bot.outbox.db"
HISTORY: Final = "history.db"
ACKS: Final = "acks"
PRIVATE: Final = "private"  # the conversation with something in it that is to be erased, and the id of that message
SECRET: Final = "quetzalcoatlus"

EARLY: Final = "early"  # a control: what is appended is promised before it is written
APART: Final = "apart"  # a control: the books are kept in a transaction of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """How a bot talks.

    :ivar prefix: of its conversations, of which there are ``conversations``, each with an owner.
    :ivar talkers: appends at a time.
    :ivar appends: after this many it ends; ``None``: it never does.
    :ivar pace: seconds between two appends of a talker.
    :ivar books_every: one in this many appends is entered in the bot's books, in the same transaction; 0: none is.
    :ivar tidy_every: after this many appends the outbox is tidied; 0: never.
    :ivar records_every: one in this many deeds changes a record instead; at least 1 where there is who does.
    :ivar paths_every: one in this many other deeds changes a path instead; at least 1 where there is who does.
    """

    prefix: str = "chat"
    conversations: int = 8
    talkers: int = 4
    appends: int | None = None
    pace: float = 0.0
    books_every: int = 0
    tidy_every: int = 0
    records_every: int = 0
    paths_every: int = 0


class Bot:
    """Appends to a few conversations at once, and keeps each promise before its next append."""

    def __init__(
        self, history: History, promises: SentPromises | WrittenPromises, *, seed: int | str, talk: Talk | None = None
    ) -> None:
        self.history = history
        self._promises = promises
        self._talk = talk or Talk()
        self._seed, self._chance = seed, random.Random(seed)
        self._numbers = itertools.count()

    def keep(self, receipt: Receipt) -> None:
        self._promises.keep(acks_of(receipt))

    async def talk(self, keeper: RecordKeeper | None = None, path: PathKeeper | None = None) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._talk.talkers):
                group.create_task(self._talker(keeper, path))

    async def _talker(self, keeper: RecordKeeper | None, path: PathKeeper | None) -> None:
        how = self._talk
        for number in self._numbers:
            if how.appends is not None and number >= how.appends:
                return
            if how.books_every and number % how.books_every == how.books_every // 2:
                self.keep(await self.append_with_entry(f"{BOOKS}-{number % 2}", f"credit {number}"))
            elif keeper is not None and number % how.records_every == 0:
                await keeper.change()
            elif path is not None and number % how.paths_every == how.paths_every // 2:
                await path.change()
            else:
                self.keep(await self.append(number))
            if how.tidy_every and number % how.tidy_every == how.tidy_every - 1:
                await self.history.outbox.maintain()
            if how.pace:
                await asyncio.sleep(how.pace)

    async def append(self, number: int, *, most: int = 3) -> Receipt:
        name = f"{self._talk.prefix}-{self._chance.randrange(self._talk.conversations)}"
        count = min(most, self._chance.choice((1, 1, 3)))
        messages = [Message.user(f"{self._seed} {number} {'ж' * self._chance.randrange(200)}") for _ in range(count)]
        return await self.history.append(name, *messages, owner=f"owner of {name}")

    async def make_books(self) -> None:
        async with self.history.transaction() as own:
            await own.execute(MAKE_BOOKS)

    async def append_with_entry(self, conversation_id: str, text: str, *, apart: bool = False) -> Receipt:
        """Append a message and enter it in the books, in one transaction."""
        async with self.history.transaction() as own:
            receipt = await own.append(conversation_id, Message.assistant(text))
            if not apart:
                await own.execute(ENTER, entry_of(receipt))
        if apart:
            async with self.history.transaction() as own:
                await own.execute(ENTER, entry_of(receipt))
        return receipt

    async def append_in_own_connection(self, conversation_id: str, text: str) -> Receipt:
        """Append a message and enter it in the books, in a transaction that the bot has begun itself."""
        async with self.history.outbox.engine.connect() as connection:
            receipt = await self.history.append_in(connection, conversation_id, Message.assistant(text))
            await connection.execute(ENTER, entry_of(receipt))
            await connection.commit()
        return receipt

    async def append_early(self, conversation_id: str, what: Message | MessageRedacted) -> None:
        prepared = prepare(conversation_id, [what])
        self._promises.keep([Ack(conversation_id, prepared.events[-1].event_id)])
        await self.history.outbox.append(prepared)


# --- bots that talk without end -------------------------------------------------------------------------------------


def talk(
    outbox: str,
    store: str,
    acks: Connection,
    *,
    seed: int,
    defects: Sequence[str] = (),
    records_every: int = 3,
    paths_every: int = 4,
) -> None:
    """Append, change records and a path without end; send an :class:`Ack` or :class:`RecordAck` for each that returned.

    The path is that of a conversation of this process alone.
    """

    async def live() -> None:
        async with History(Path(outbox), store=store, relay=False) as history:
            promises = SentPromises(acks)
            how = Talk(records_every=records_every, paths_every=paths_every)
            bot = Bot(history, promises, seed=seed, talk=how)
            keeps: Any = {"keep": promises.keep_record, "keep_message": bot.keep}
            keeper = RecordKeeper(history, seed=seed, chance=random.Random(f"records {seed}"), **keeps)
            chance = random.Random(f"path {seed}")
            await bot.talk(keeper, PathKeeper(history, f"path-{seed}", chance=chance, keep=bot.keep))

    logging.disable()
    plant(*defects)
    asyncio.run(live())


async def record(
    folder: str, acks: str, *, seed: int, appends: int | None = None, pace: float = 0.0, pragmas: Sequence[str] = ()
) -> None:
    """Talk, deliver and checkpoint on a disk that is recorded or cut off, and write the promises elsewhere."""
    if pragmas:
        plant_weak_durability(OUTBOX, pragmas)
    how = Talk(conversations=5, talkers=3, books_every=7, tidy_every=20, appends=appends, pace=pace)
    disk, promises = Path(folder), WrittenPromises(Path(acks))

    async def follow(receipt: Receipt) -> None:
        if await receipt.saved(timeout=20):
            promises.keep_saved(receipt)

    try:
        async with History(disk / OUTBOX, store=disk / HISTORY, bounds=Bounds(min_free_bytes=None)) as history:
            bot = Bot(history, promises, seed=seed, talk=how)
            await bot.make_books()
            async with asyncio.TaskGroup() as group:
                group.create_task(bot.talk())
                followed = await history.append("followed", Message.user("is this one saved?"))
                bot.keep(followed)
                group.create_task(follow(followed))
            await history.drained(20)
    finally:
        promises.close()


# --- bots with a script ---------------------------------------------------------------------------------------------


def say_all(outbox: str, store: str, acks: Connection, *, rounds: int, prepare_process: Callable[[], None]) -> None:
    """Say some things, with and without the bot's own books, and send the promises."""

    async def live() -> None:
        async with History(Path(outbox), store=store, relay=False, watch=False) as history:
            promises = SentPromises(acks)
            bot = Bot(history, promises, seed=1)
            for number in range(rounds):
                bot.keep(await history.append("chat", Message.user(f"question {number}")))
                value = f"round {number}".encode()
                for records in (history.records(conversation="chat"), history.records(space="bots")):
                    promises.keep_record(record_ack(await records.put(("round",), "last", value), value))
                bot.keep(await bot.append_with_entry(f"{BOOKS}-1", f"answer {number}"))
                bot.keep(await bot.append_in_own_connection(f"{BOOKS}-2", f"notice {number}"))

    logging.disable()
    prepare_process()
    asyncio.run(live())


async def say_and_deliver(folder: Path, *, without: str = "") -> None:
    """Say each kind of thing once and deliver it; write the promises to a file of the folder."""
    async with History(folder / OUTBOX, store=url_of(folder), relay=False, watch=False) as history:
        promises = WrittenPromises(folder / ACKS)
        bot = Bot(history, promises, seed=1)
        await bot.make_books()
        if without == EARLY:
            await bot.append_early("chat", Message.user("question"))
        else:
            bot.keep(await history.append("chat", Message.user("question")))
        bot.keep(await bot.append_with_entry(f"{BOOKS}-1", "answer", apart=without == APART))
        bot.keep(await bot.append_in_own_connection(f"{BOOKS}-2", "notice"))
        group = (history.append(f"group-{place}", Message.user("at once"), Message.user("with it")) for place in (1, 2))
        for receipt in await asyncio.gather(*group):
            bot.keep(receipt)
        await change_records(history, promises, bot)
        await change_path(history, promises, bot)
        await Relay(history.outbox, history.store).drain()


async def change_records(history: History, promises: SentPromises | WrittenPromises, bot: Bot) -> None:
    """Put, replace and delete a record, one in parts, one with a condition, and one together with a message."""
    records = history.records(space="bots")
    large = bytes(LARGE_BYTES)
    for key, value in (("a", b"1"), ("a", b"2"), ("b", large)):
        promises.keep_record(record_ack(await records.put(("state",), key, value), value))
    found = await records.get(("state",), "a")
    expected = ABSENT if found is None else found.revision
    promises.keep_record(record_ack(await records.put(("state",), "a", b"3", expected=expected), b"3"))
    async with history.transaction() as own:
        said = await own.append(f"{TURNS}-1", Message.assistant("a turn"))
        receipt = await own.put(records, (TURNS,), "1", b"turn", tags={MESSAGE_TAG: said.event_ids[-1].hex})
    bot.keep(said)
    promises.keep_record(record_ack(receipt, b"turn"))
    promises.keep_record(record_ack(await records.delete(("state",), "b"), None))


async def change_path(history: History, promises: WrittenPromises, bot: Bot) -> None:
    """Bring a path to each of ``PATHS``: replaced, popped, said anew, replaced."""
    one, two, three = (Message.user(f"words {key}", id=key) for key in ("1", "2", "3"))

    def keep(receipt: Receipt | None) -> None:
        if receipt is not None:
            bot.keep(receipt)
        promises.keep_path()

    keep(await history.chat(PATH).replace([one, two]))
    await history.chat(PATH).pop()
    promises.keep_path()
    keep(await history.append(PATH, Message.user("words 2")))
    keep(await history.chat(PATH).replace([two, three]))


async def erase_and_deliver(folder: Path, *, without: str = "") -> None:
    """Take the content of the secret message away, and deliver that; write the promise to a file of the folder."""
    async with History(folder / OUTBOX, store=url_of(folder), relay=False, watch=False) as history:
        bot = Bot(history, WrittenPromises(folder / ACKS), seed=1)
        if without == EARLY:
            await bot.append_early(PRIVATE, MessageRedacted(message_id=PRIVATE))
        else:
            bot.keep(await history.chat(PRIVATE).redact(PRIVATE))
        await Relay(history.outbox, history.store).drain()


async def tell_secret(folder: Path) -> None:
    async with History(folder / OUTBOX, store=url_of(folder), watch=False) as history:
        await history.append(PRIVATE, Message.user("about something else"))
        receipt = await history.append(PRIVATE, Message.user(f"{SECRET} " * 40, id=PRIVATE))
        await history.append(PRIVATE, Message.user("and that was it"))
        assert await receipt.saved(20)
        assert await history.drained(20)


def url_of(folder: Path) -> str:
    return f"sqlite:///{(folder / HISTORY).as_posix()}"


# --- bots that stream a reply ---------------------------------------------------------------------------------------


def chunks(seed: int, count: int) -> list[str]:
    chance = random.Random(seed)
    return [f"{number}{'ж' * chance.randrange(12)} " for number in range(count)]


def stream(outbox: str, store: str, report: Connection, *, seed: int, count: int, every: float | None) -> None:
    """Stream one reply, and send ``(message id, chunks said, characters kept)`` before the first chunk and after each.

    Waits to be killed then, so that the reply is never finished.
    """

    async def live() -> None:
        chance = random.Random(-seed)
        async with (
            History(Path(outbox), store=store, relay=False) as history,
            history.reply("chat", owner="42", every=every) as reply,
        ):
            report.send((reply.message_id, 0, 0))
            for number, chunk in enumerate(chunks(seed, count), start=1):
                await reply.add(chunk)
                report.send((reply.message_id, number, reply.kept))
                await asyncio.sleep(chance.choice((0, 0, 0.001, 0.004)))
            await asyncio.Event().wait()

    logging.disable()
    asyncio.run(live())


def relay(outbox: str, store: str, *, defects: Sequence[str] = ()) -> None:
    logging.disable()
    plant(*defects)
    asyncio.run(deliver(Path(outbox), store))


async def deliver(outbox: Path, store: str, *, leave: bool = False, batch: int = 500, prune: bool = False) -> None:
    async with ConversationStore.open(store) as history_store:
        file = await OutboxFile.open(outbox)
        chores = (Pruner(Retention(keep_last=1, keep_for=timedelta(0)), file.now_us),) if prune else ()
        working = Relay(file, history_store, batch=batch, chores=chores, random=random.Random(1))
        await (working.drain() if leave else working.run())
        await file.close()


class FilePlatform:
    """Accepts a reply by one write at the end of a file, which no kill of the writer takes back."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._path = path

    def accept(self, key: str) -> int:
        os.write(self._descriptor, f"{key}\n".encode())
        return os.fstat(self._descriptor).st_size

    @property
    def accepted(self) -> list[str]:
        return self._path.read_text().split()


def sender_to(platform: FilePlatform, pause: Callable[[], Any]) -> Callable[[UnsentReply], Any]:
    async def send(reply: UnsentReply) -> dict[str, int]:
        await pause()
        number = platform.accept(reply.idempotency_key)
        await pause()
        return {"file": number}

    return send


WAYS: Final = ("reply", "append", "transaction")
"""How a bot appends what it is to send."""


async def append_reply(history: History, chat: str, text: str, way: str) -> tuple[str, str]:
    """Append a reply that is to be sent; return its key and its message id."""
    if way == "reply":
        async with history.reply(chat, owner="42", every=None) as reply:
            await reply.add(text)
        return str(reply.event_id), reply.message_id
    message = Message.assistant(text)
    if way == "append":
        receipt = await history.append(chat, message, owner="42", confirm=True)
    else:
        async with history.transaction() as tx:
            receipt = await tx.append(chat, message, owner="42", confirm=True)
    return str(receipt.event_ids[0]), message.id


def answer(outbox: str, accepted: str, steps: Connection, *, seed: int, again: bool, way: str = "reply") -> None:
    """Send replies without end: in ``live`` the bot itself, in ``left`` its history's sender. Report each step."""
    chance = random.Random(seed)

    async def pause() -> None:
        steps.send(None)
        await asyncio.sleep(chance.choice((0, 0.001, 0.004)))

    async def live() -> None:
        platform = FilePlatform(Path(accepted))
        sender = sender_to(platform, pause) if again else None
        async with History(Path(outbox), relay=False, sender=sender) as history:
            for number in range(10**9):
                for chat in ("live", "left"):
                    key, message_id = await append_reply(history, chat, f"{seed} {number}", way)
                    await pause()
                    if chat == "live":
                        position = platform.accept(key)
                        await pause()
                        await history.chat(chat).sent(message_id, platform_ids={"file": position})
                    else:
                        await history.chat(chat).send(message_id)

    logging.disable()
    asyncio.run(live())
