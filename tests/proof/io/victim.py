"""Fork a child for each order, in which strace makes a chosen call of a scripted bot fail.

    strace ... -e inject=pwrite64:error=EIO:when=400 python ...

strace counts in each thread separately, and knows one number for as long as it runs. So a thread of a child that is to
fail first makes idle calls, until the K-th that matters is the one that fails: to start the library anew for each would
take most of the time. Orders come as lines of JSON on standard input, answers go to standard output.
"""

import asyncio
import itertools
import json
import os
import select
import signal
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from letopis import Event, History, LetopisError, Message
from tests.proof.harness import World, migrated
from tests.support.promises import line_of

T = TypeVar("T")

TRIES: Final = 4  # how often what was refused is tried again, on a disk that failed once
DRAINED: Final = 15.0
"""Seconds for what is pending to be delivered, on a disk that failed once: the relay waits longer after each error."""


class Script:
    """A bot that continues after any error, and records what it was promised and how it was refused."""

    def __init__(self, folder: Path, *, once: bool, careless: bool = False) -> None:
        self._folder = folder
        self._once = once
        self._careless = careless
        self._acks = os.open(folder / "acks", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self.refused: list[str] = []
        self.problems: list[str] = []

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            world = World(self._folder)
            history = await self._again("open", lambda: stack.enter_async_context(world.open()))
            if history is not None:
                await self._talk(history)
                # What it says at its end, on a disk that is broken still, is no promise; but it is ours.
                try:
                    await stack.aclose()
                except LetopisError as error:
                    self.refused.append(type(error).__name__)
        os.close(self._acks)

    async def _talk(self, history: History) -> None:
        refused: list[tuple[str, Event]] = []
        for number in range(2):
            name = f"chat-{number}"
            event = Event.of(Message.user(f"message {number} " + "x" * 300), conversation_id=name)
            if not await self._append(history, name, event):
                refused.append((name, event))
        await self._attempt(lambda: self._in_transaction(history))
        with suppress(LetopisError):
            await history.drained(DRAINED if self._once else 0.2)
        for name, event in refused:  # a second time under the same id, as one does when the outcome is not known
            if self._once and not await self._append(history, name, event, tries=TRIES):
                self.problems.append("an append is refused still, long after the disk failed once")
        last = Event.of(Message.user("the last one"), conversation_id="chat-0")
        if not await self._append(history, "chat-0", last, tries=TRIES if self._once else 1) and self._once:
            self.problems.append("the outbox is of no use after the disk failed once")
        if self._once and not await self._again("drain", lambda: history.drained(DRAINED)):
            self.problems.append("what is pending is not delivered after the disk failed once")
        await self._attempt(lambda: history.messages("chat-0", last=10))

    async def _append(self, history: History, name: str, event: Event, *, tries: int = 1) -> bool:
        for _ in range(tries):
            if (receipt := await self._attempt(lambda: history.append(name, event))) is not None:
                os.write(self._acks, line_of(name, event.event_id, receipt.sequence))
                return True
        if self._careless:
            os.write(self._acks, line_of(name, event.event_id, None))
        return False

    async def _in_transaction(self, history: History) -> None:
        async with history.transaction() as transaction:
            await transaction.execute(sa.text("INSERT INTO credits VALUES (1)"))
            receipt = await transaction.append("till", Message.assistant("one credit"))
        os.write(self._acks, line_of("till", receipt.event_ids[-1], receipt.sequence))

    async def _again(self, what: str, work: Callable[[], Awaitable[T]]) -> T | None:
        for _ in range(TRIES if self._once else 1):
            if (value := await self._attempt(work)) is not None:
                return value
        if self._once:
            self.problems.append(f"{what} does not work any more after the disk failed once")
        return None

    async def _attempt(self, work: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return await work()
        except LetopisError as error:
            self.refused.append(type(error).__name__)
        except Exception as error:  # anything else is not what the documentation names
            self.problems.append(f"raised {type(error).__module__}.{type(error).__name__}: {str(error)[:120]}")
        return None


async def make(folder: Path) -> None:
    """Make an outbox and a store that were used and closed, for scripts to begin with."""
    world = World(folder)
    await migrated(world.url)
    async with world.open() as history:
        async with history.transaction() as transaction:
            await transaction.execute(sa.text("CREATE TABLE credits (number INTEGER)"))
        await history.append("chat-0", Message.user("before all of it"))
        await history.drained(DRAINED)


# --- the process that forks -----------------------------------------------------------------------------------------

LIMIT: Final = 40.0  # seconds after which a child that has not ended hangs
_NOWHERE: Final = os.open(os.devnull, os.O_RDWR)


IDLE: Final[dict[str, Callable[[], object]]] = {
    "pwrite64": lambda: os.pwrite(_NOWHERE, b"", 0),
    "fdatasync": lambda: os.fdatasync(_NOWHERE),
    "ftruncate": lambda: os.ftruncate(_NOWHERE, 0),
}


def prepare_threads(order: dict[str, Any], call: str, number: int) -> None:
    """Number the threads, this one is 0, and have those that the order names make idle calls before they begin.

    An order without a thread is for all of them; one with K 0 is for none.
    """
    ours, numbers = threading.Thread.run, itertools.count()
    k, chosen = order["k"], order["thread"]

    def begin() -> None:
        mine = next(numbers)
        say(f"thread {mine}")
        if k and chosen in (mine, None):
            for _ in range(number - k - (call == "pwrite64")):
                with suppress(OSError):
                    IDLE[call]()

    def run(self: threading.Thread) -> None:
        begin()
        ours(self)

    threading.Thread.run = run  # type: ignore[method-assign]
    begin()


def say(words: str) -> None:
    with suppress(OSError):  # it may be the one that fails: strace writes it down all the same
        os.pwrite(_NOWHERE, words.encode(), 0)


def child(order: dict[str, Any], call: str, number: int, answer: int) -> None:
    prepare_threads(order, call, number)
    script = Script(Path(order["folder"]), once=order["once"], careless=order["careless"])
    try:
        asyncio.run(script.run())
    except BaseException as error:  # whatever it is: it came out of the library
        script.problems.append(f"died of {type(error).__name__}: {str(error)[:200]}")
    os.write(answer, json.dumps({"refused": script.refused, "problems": script.problems}).encode())


def carry_out(order: dict[str, Any], call: str, number: int) -> dict[str, Any]:
    ours, theirs = os.pipe()
    say(f"order {order['number']}")
    pid = os.fork()
    if pid == 0:
        child(order, call, number, theirs)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as told:
        if not select.select([told], [], [], LIMIT)[0]:
            os.kill(pid, signal.SIGKILL)
        text = told.read()
    _, status = os.waitpid(pid, 0)
    answer: dict[str, Any] = json.loads(text or f'{{"refused": [], "problems": ["hung, or ended with {status}"]}}')
    return answer


def obey(call: str, number: int) -> None:
    """Carry out one order after the other, with the call of that number made to fail."""
    with tempfile.TemporaryDirectory() as folder:
        # What is imported late is imported now.
        asyncio.run(make(Path(folder)))
        asyncio.run(Script(Path(folder), once=True).run())
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(carry_out(order, call, number) | {"number": order["number"]}), flush=True)
