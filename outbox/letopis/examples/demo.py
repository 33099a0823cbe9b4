"""Play the demonstration: a scripted bot, a real outage, a poisoned conversation, and a check of the result."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Final

import anyio

from letopis.outbox.history.history import History
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.operations.pending_events import Selection
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.timeouts import Timeouts
from letopis.store.model.conversations import Saved
from letopis.store.model.messages import Message

OUTBOX: Final = "bot.outbox.db"
STORE: Final = "bot.history.db"
POLL_SECONDS: Final = 0.02
MAX_POLLS: Final = 1_000
"""Polls of any one wait before the demonstration fails: 20 seconds on an idle machine, and more on a slower one."""

USERS: Final = {"telegram:101": "Anna", "telegram:102": "Boris", "telegram:103": "Vera"}
SCRIPT: Final = (
    ("Hi! Do you remember what we talked about yesterday?", "Of course: the trip in May. You were choosing a train."),
    ("Which one did I like?", "The night train, for the window in the dining car."),
    ("And the price?", "48 for a bed in a shared compartment, 92 for one of your own."),
    ("Tell me something about the town.", "It has a bridge that was built twice, and bakeries that open at four."),
    ("Will it rain?", "In May it rains on eight days of thirty. Take the light coat."),
    ("Спасибо! А по-русски ты тоже понимаешь?", "Конечно. И записываю всё так же дословно. ✍️"),
)
POISONED: Final = "telegram:103"

# A real rule in the store, as a deployment may have one: SQLite refuses the row.
_POISON: Final = (
    "CREATE TRIGGER letopis_demo BEFORE INSERT ON letopis_events WHEN NEW.conversation_id = 'telegram:103'"
    " BEGIN SELECT RAISE(ABORT, 'this store takes nothing from this conversation'); END"
)

_ATTEMPTS: Final = "SELECT coalesce(sum(attempts), 0) FROM letopis_outbox_lanes"

Tell = Callable[[str], None]


class DemoFailed(Exception):
    """A promise did not hold; the text says which."""


@dataclass(slots=True)
class Transcript:
    """What the bot appended, kept in memory to compare the history with."""

    lines: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    """How long each append took since the list was last cleared."""

    @property
    def times(self) -> str:
        """How long appends took, in words."""
        return f"median {median(self.seconds) * 1000:.1f} ms, slowest {max(self.seconds) * 1000:.1f} ms"

    @property
    def total(self) -> int:
        """Messages appended."""
        return sum(len(lines) for lines in self.lines.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOutcome:
    """The result of the final check, counted in the store's own file."""

    appended: int
    stored: int
    in_order: int
    duplicates: int

    def __str__(self) -> str:
        return (
            f"appended {self.appended}, stored {self.stored}, in order {self.in_order}, duplicates {self.duplicates}."
        )

    @property
    def holds(self) -> bool:
        """True if the history is exactly what was appended."""
        return self.appended == self.stored == self.in_order and self.duplicates == 0


async def play(folder: Path, tell: Tell) -> DemoOutcome:
    """Play the demonstration in an empty folder, and return the result of the final check."""
    transcript = Transcript()
    script = islice(cycle(SCRIPT), 10_000)
    store = ConversationStore(folder / STORE, timeouts=Timeouts(lock=0.3))
    try:
        async with History(
            folder / OUTBOX, store=store, policy=RetryPolicy(base=0.2, jitter="none", attempts=2)
        ) as history:
            await _talk(history, transcript, script, rounds=4, users=USERS)
            await _everything_arrives(history)
            tell("1. A bot talks to three people.")
            tell(f"     {transcript.total} messages, each on disk before append returned; {transcript.times}.")
            status = await history.status()
            tell(f"     All of them are in the history store: {status.delivered} events, {status.pending} pending.")
            tell("")
            await _outage(history, folder, transcript, script, tell)
            await _poison(history, folder, transcript, script, tell)
    finally:
        await store.close()
    outcome = await check(folder, transcript)
    tell("4. Does the history hold what was appended? Read back from the store's file:")
    tell(f"     {outcome}")
    return outcome


async def _outage(
    history: History, folder: Path, transcript: Transcript, script: Iterator[tuple[str, str]], tell: Tell
) -> None:
    tell("2. The history store goes down: another program has locked its file.")
    transcript.seconds.clear()
    before = transcript.total
    began = time.monotonic()
    async with _locked(folder / STORE):
        await _talk(history, transcript, script, rounds=5, users=USERS)
        await _until(partial(_tripped, history), "the relay noticed the outage")
        await anyio.sleep(1.5)  # so that it has retried more than once
        status = await history.status()
        attempts = await history.outbox.read(lambda connection: connection.exec_driver_sql(_ATTEMPTS).scalar_one())
        page = await history.messages("telegram:101", last=1)
        if page[0].saved is not Saved.PENDING or attempts:
            raise DemoFailed("what was appended during the outage is not simply pending")
        tell(f"     The bot keeps going: {transcript.total - before} more messages stored, {transcript.times}.")
        tell(f"     {status.pending} events are pending, {attempts} attempts charged: {status.breaker.reason}.")
        tell(f"     Anna can still read the last reply, which is {page[0].saved}: “{page[0].text}”")
        lasted, back = time.monotonic() - began, time.monotonic()
    tell(f"   After {lasted:.1f} s the store is back.")
    await _everything_arrives(history)
    tell(f"     The relay noticed by itself and delivered everything, {time.monotonic() - back:.1f} s later.")
    tell("")


async def _poison(
    history: History, folder: Path, transcript: Transcript, script: Iterator[tuple[str, str]], tell: Tell
) -> None:
    tell("3. The store now refuses events of Vera's conversation, by a rule of its own.")
    _run(folder / STORE, _POISON)
    await _talk(history, transcript, script, rounds=3, users=USERS)
    await _until(partial(_blocked, history), "the poisoned conversation was blocked, and no other")
    pages = {name: await history.messages(name, last=6) for name in USERS}  # three questions, three answers each
    waiting = sum(message.saved is Saved.BLOCKED for message in pages[POISONED])
    through = sum(message.saved is Saved.SAVED for name, page in pages.items() if name != POISONED for message in page)
    if (through, waiting) != (12, 6):
        raise DemoFailed(f"{through} of 12 messages went through, and {waiting} of 6 show as blocked")
    tell(f"     Anna's and Boris's {through} messages were delivered. Vera's {waiting} are blocked, not dropped,")
    tell(f"     and she can read them: “{pages[POISONED][-1].text}”")
    _run(folder / STORE, "DROP TRIGGER letopis_demo")
    await OutboxAdmin(history.outbox).retry(Selection(states=("blocked",)))
    await _everything_arrives(history)
    tell("     An operator fixes the rule and retries: they are delivered too.")
    tell("")


async def check(folder: Path, transcript: Transcript) -> DemoOutcome:
    """Compare the store's file with what was appended, without the bot's own history."""
    stored = in_order = duplicates = 0
    async with ConversationStore.open(folder / STORE, migrate=False) as store:
        for conversation_id, expected in transcript.lines.items():
            stored_messages = list(await store.messages(conversation_id))
            stored += len(stored_messages)
            in_order += sum(
                (message.role, message.text) == line for message, line in zip(stored_messages, expected, strict=False)
            )
            duplicates += len(stored_messages) - len({message.id for message in stored_messages})
    return DemoOutcome(appended=transcript.total, stored=stored, in_order=in_order, duplicates=duplicates)


async def _talk(
    history: History, transcript: Transcript, script: Iterator[tuple[str, str]], *, rounds: int, users: dict[str, str]
) -> None:
    """Let each user ask and the bot answer; a reply is appended before it is sent, and confirmed after."""
    for _ in range(rounds):
        for number, (conversation_id, _) in enumerate(users.items(), start=1):
            question, answer = next(script)
            lines = transcript.lines.setdefault(conversation_id, [])
            for message in (Message.user(question), Message.assistant(answer, tokens=len(answer) // 4)):
                began = time.perf_counter()
                await history.append(conversation_id, message, owner=str(number))
                transcript.seconds.append(time.perf_counter() - began)
                lines.append((message.role, message.text))
            # Here a real bot sends the answer to the chat platform, and then confirms it.
            await history.chat(conversation_id).sent(message.id, platform_ids={"telegram": len(lines)})


@contextlib.asynccontextmanager
async def _locked(store: Path) -> AsyncIterator[None]:
    """Lock the store's file from another connection, as a backup or a stuck program does."""
    connection = sqlite3.connect(store, isolation_level=None, timeout=5, check_same_thread=False)
    try:
        await anyio.to_thread.run_sync(connection.execute, "BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _run(store: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(store, isolation_level=None, timeout=5)) as connection:
        connection.execute(statement)


async def _everything_arrives(history: History) -> None:
    await _until(lambda: history.drained(0), "everything was delivered")


async def _tripped(history: History) -> bool:
    return (await history.status()).breaker.state != "closed"


async def _blocked(history: History) -> bool:
    return (await history.status()).lanes == {"ready": 0, "retrying": 0, "blocked": 1, "paused": 0}


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    began = time.monotonic()
    for _ in range(MAX_POLLS):  # as an operator at a terminal would
        if await condition():
            return
        await anyio.sleep(POLL_SECONDS)
    raise DemoFailed(f"not within {time.monotonic() - began:.0f} s: {what}")
