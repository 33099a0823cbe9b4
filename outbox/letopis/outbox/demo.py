"""The demonstration: a scripted bot, an outage, a poisoned conversation, all real, and a check of what came of it."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import anyio

from letopis.outbox.backoff import RetryPolicy
from letopis.outbox.history import History
from letopis.outbox.repair import Selection
from letopis.outbox.verbs import retry
from letopis.store.conversation import Saved
from letopis.store.engines import Timeouts
from letopis.store.history import ConversationStore
from letopis.store.messages import Message

OUTBOX: Final = "bot.outbox.db"
STORE: Final = "bot.history.db"
PATIENCE: Final = 20.0
"""Seconds that any one wait may take, before the demonstration gives up and says so."""

PEOPLE: Final = {"telegram:101": "Anna", "telegram:102": "Boris", "telegram:103": "Vera"}
SCRIPT: Final = (
    ("Hi! Do you remember what we talked about yesterday?", "Of course: the trip in May. You were choosing a train."),
    ("Which one did I like?", "The night train, for the window in the dining car."),
    ("And the price?", "48 for a bed in a shared compartment, 92 for one of your own."),
    ("Tell me something about the town.", "It has a bridge that was built twice, and bakeries that open at four."),
    ("Will it rain?", "In May it rains on eight days of thirty. Take the light coat."),
    ("Спасибо! А по-русски ты тоже понимаешь?", "Конечно. И записываю всё так же дословно. ✍️"),
)
POISONED: Final = "telegram:103"

# A rule in the store itself, as a site may have one; SQLite refuses the row, nothing is pretended.
_POISON: Final = (
    "CREATE TRIGGER letopis_demo BEFORE INSERT ON letopis_events WHEN NEW.conversation_id = 'telegram:103'"
    " BEGIN SELECT RAISE(ABORT, 'this store takes nothing from this conversation'); END"
)

_ATTEMPTS: Final = "SELECT coalesce(sum(attempts), 0) FROM letopis_outbox_lanes"

Say = Callable[[str], None]


class DemoFailed(Exception):
    """Something was not as promised; the text says what."""


@dataclass(slots=True)
class Said:
    """What the bot said and heard, as a memory of its own to hold the history against."""

    lines: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    slowest: float = 0.0
    """Seconds of the slowest append since it was last set to 0."""

    @property
    def total(self) -> int:
        """Messages said and heard."""
        return sum(len(one) for one in self.lines.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the final check found, counted in the store's own file.

    :ivar duplicates: messages of which the store holds more than one.
    """

    said: int
    kept: int
    in_order: int
    duplicates: int

    @property
    def holds(self) -> bool:
        """Whether the history is exactly what was said."""
        return self.said == self.kept == self.in_order and self.duplicates == 0


async def play(folder: Path, say: Say) -> Outcome:
    """Play the whole demonstration in an empty folder, and return what the final check found.

    :param say: is told the story, line by line.
    :raises DemoFailed: something on the way was not as promised.
    """
    said = Said()
    script = islice(cycle(SCRIPT), 10_000)
    store = ConversationStore(folder / STORE, timeouts=Timeouts(lock=0.3))
    try:
        async with History.open(
            folder / OUTBOX, store=store, policy=RetryPolicy(base=0.2, jitter="none", attempts=2)
        ) as history:
            await _talk(history, said, script, rounds=4, people=PEOPLE)
            await _everything_arrives(history)
            say("1. A bot talks to three people.")
            say(f"     {said.total} messages, each safe on disk when append returned; slowest {_ms(said.slowest)}.")
            status = await history.status()
            say(f"     All of it is in the history store: {status.delivered} events, {status.pending} pending.")
            say("")
            await _outage(history, folder, said, script, say)
            await _poison(history, folder, said, script, say)
    finally:
        await store.close()
    outcome = await check(folder, said)
    say("4. Is the history what was said? Read back from the store's file:")
    say(f"     said {outcome.said}, kept {outcome.kept}, in order {outcome.in_order}, doubled {outcome.duplicates}.")
    return outcome


async def _outage(history: History, folder: Path, said: Said, script: Iterator[tuple[str, str]], say: Say) -> None:
    say("2. The history store goes down: another program has locked its file.")
    said.slowest = 0.0
    before = said.total
    began = time.monotonic()
    async with _locked(folder / STORE):
        await _talk(history, said, script, rounds=5, people=PEOPLE)
        await _until(partial(_tripped, history), "the relay noticed the outage")
        await anyio.sleep(1.5)  # so that it has asked in vain more than once
        status = await history.status()
        attempts = await history.outbox.read(lambda connection: connection.exec_driver_sql(_ATTEMPTS).scalar_one())
        page = await history.messages("telegram:101", last=1)
        if page[0].saved is not Saved.PENDING or attempts:
            raise DemoFailed("what was said during the outage does not simply wait")
        say(f"     The bot goes on: {said.total - before} more messages kept, slowest {_ms(said.slowest)}.")
        say(
            f"     {status.pending} events wait, {attempts} attempts charged; the relay notes: {status.breaker.reason}."
        )
        say(f"     Anna can still read the last reply, marked {page[0].saved}: “{page[0].text}”")
        lasted, back = time.monotonic() - began, time.monotonic()
    say(f"   After {lasted:.1f} s the store is back.")
    await _everything_arrives(history)
    say(f"     The relay found out by itself and delivered everything, {time.monotonic() - back:.1f} s later.")
    say("")


async def _poison(history: History, folder: Path, said: Said, script: Iterator[tuple[str, str]], say: Say) -> None:
    say("3. The store now refuses whatever comes from Vera's conversation, for a rule of its own.")
    _run(folder / STORE, _POISON)
    await _talk(history, said, script, rounds=3, people=PEOPLE)
    await _until(partial(_blocked, history), "the poisoned conversation was blocked, and no other")
    pages = {name: await history.messages(name, last=6) for name in PEOPLE}  # three questions, three answers each
    waiting = sum(one.saved is Saved.BLOCKED for one in pages[POISONED])
    through = sum(one.saved is Saved.SAVED for name, page in pages.items() if name != POISONED for one in page)
    if (through, waiting) != (12, 6):
        raise DemoFailed(f"{through} of 12 messages went through, and {waiting} of 6 show as blocked")
    say(f"     Anna's and Boris's {through} messages went through. Vera's {waiting} wait, blocked, not dropped,")
    say(f"     and she can read them: “{pages[POISONED][-1].text}”")
    _run(folder / STORE, "DROP TRIGGER letopis_demo")
    await retry(history.outbox, Selection(states=("blocked",)))
    await _everything_arrives(history)
    say("     Somebody mends the rule and says retry: they are delivered too.")
    say("")


async def check(folder: Path, said: Said) -> Outcome:
    """Hold the store's file against what was said, with nothing of the bot's in between."""
    kept = in_order = duplicates = 0
    async with ConversationStore.open(folder / STORE, migrate=False) as store:
        for conversation_id, expected in said.lines.items():
            found = list(await store.messages(conversation_id))
            kept += len(found)
            in_order += sum((one.role, one.text) == line for one, line in zip(found, expected, strict=False))
            duplicates += len(found) - len({one.id for one in found})
    return Outcome(said=said.total, kept=kept, in_order=in_order, duplicates=duplicates)


async def _talk(
    history: History, said: Said, script: Iterator[tuple[str, str]], *, rounds: int, people: dict[str, str]
) -> None:
    """Let everybody ask, and the bot answer: appended before it is sent, confirmed after."""
    for _ in range(rounds):
        for number, (conversation_id, _) in enumerate(people.items(), start=1):
            question, answer = next(script)
            lines = said.lines.setdefault(conversation_id, [])
            for message in (Message.user(question), Message.assistant(answer, tokens=len(answer) // 4)):
                began = time.perf_counter()
                await history.append(conversation_id, message, owner=str(number))
                said.slowest = max(said.slowest, time.perf_counter() - began)
                lines.append((message.role, message.text))
            # Here a real bot sends the answer to the chat platform, and says so.
            await history.sent(conversation_id, message.id, platform_ids={"telegram": len(lines)})


@contextlib.asynccontextmanager
async def _locked(store: Path) -> AsyncIterator[None]:
    """Keep the store's file locked by a connection of its own, as a backup or a stuck program does."""
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
    if not await history.drained(PATIENCE):
        raise DemoFailed(f"not everything was delivered within {PATIENCE:.0f} s")


async def _tripped(history: History) -> bool:
    return (await history.status()).breaker.state != "closed"


async def _blocked(history: History) -> bool:
    return (await history.status()).lanes == {"ready": 0, "retrying": 0, "blocked": 1, "paused": 0}


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    with anyio.move_on_after(PATIENCE):
        while not await condition():  # noqa: ASYNC110  # as a person at a terminal would look again and again
            await anyio.sleep(0.02)
        return
    raise DemoFailed(f"within {PATIENCE:.0f} s it was not so that {what}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
