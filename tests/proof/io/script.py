"""Run a bot on a failing disk: open, append, a transaction, deliver, and retry what was refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, TypeVar

import sqlalchemy as sa

from letopis.outbox import History
from letopis.store import ConversationStore, Event, Message
from letopis.store.errors import LetopisError
from tests.support.promises import line_of
from tests.support.victim import HISTORY, OUTBOX

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
        """Live through it."""
        async with AsyncExitStack() as stack:
            history = await self._again("open", lambda: self._open(stack))
            if history is not None:
                await self._talk(history)
                # What it says at its end, on a disk that is broken still, is no promise; but it is ours.
                try:
                    await stack.aclose()
                except LetopisError as error:
                    self.refused.append(type(error).__name__)
        os.close(self._acks)

    async def _open(self, stack: AsyncExitStack) -> History:
        return await stack.enter_async_context(
            History(self._folder / OUTBOX, store=self._folder / HISTORY, watch=False, min_free_bytes=None)
        )

    async def _talk(self, history: History) -> None:
        refused: list[tuple[str, Event]] = []
        for number in range(2):
            name = f"chat-{number}"
            event = Event.of(Message.user(f"message {number} " + "x" * 300), conversation_id=name)
            if not await self._append(history, name, event):
                refused.append((name, event))
        await self._attempt(lambda: self._in_transaction(history))
        with contextlib.suppress(LetopisError):
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


def live(folder: Path, *, once: bool, careless: bool) -> tuple[list[str], list[str]]:
    """Run the script; return the names of the errors that it was given, and what should not have been."""
    script = Script(folder, once=once, careless=careless)
    asyncio.run(script.run())
    return script.refused, script.problems


async def make(folder: Path) -> None:
    """Make an outbox and a store that were used and closed, for scripts to begin with."""
    async with ConversationStore.open(folder / HISTORY):
        pass
    async with History(folder / OUTBOX, store=folder / HISTORY, watch=False, min_free_bytes=None) as history:
        async with history.transaction() as transaction:
            await transaction.execute(sa.text("CREATE TABLE credits (number INTEGER)"))
        await history.append("chat-0", Message.user("before all of it"))
        await history.drained(DRAINED)
