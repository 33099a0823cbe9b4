"""Define what takes a message and answers once it is kept, so that all subjects are driven the same way."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from benchmarks.figures import Durability, Figure, percentile
from benchmarks.witness import Witness, watching

TEXT = ("what a person says, " * 60)[:900]
"""Of one message: with what a store writes around it, 1 KB of JSON."""


class Missed(Exception):
    """A subject cannot be measured here; the message says why."""


class Subject(ABC):
    """Keeps messages of chats in files of its own.

    :cvar title: for display; ``key`` for figures.
    :cvar blocks: whether a call holds the event loop until the disk has answered.
    :cvar reads: whether it can be asked for the last messages of a chat.
    """

    title: ClassVar[str]
    key: ClassVar[str]
    blocks: ClassVar[bool] = False
    reads: ClassVar[bool] = True

    @abstractmethod
    async def open(self, folder: Path) -> None:
        """Open files in this folder.

        :raises Missed: what it needs is not installed.
        """

    @abstractmethod
    async def say(self, chat: str, text: str) -> None:
        """Keep one message, and return when it is kept."""

    async def last(self, chat: str, count: int) -> Sequence[str]:
        """Return the texts of the newest messages of a chat, oldest first."""
        raise NotImplementedError

    async def close(self) -> None:  # noqa: B027 - not all have something to close
        """Let the files go."""

    def objections(self) -> tuple[str, ...]:
        """What speaks against comparing it, found out by trying."""
        return ()


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast it went in one round: messages a second, and seconds until each was kept."""

    rate: float
    p50: float
    p99: float
    count: int


async def pace(subject: Subject, *, at_once: int, seconds: float, round_number: int) -> Pace:
    """Let ``at_once`` users talk to a subject, each in their own chat, for some seconds."""
    waits: list[float] = []
    clock = time.perf_counter
    begun = clock()
    until = begun + seconds

    async def talk(number: int) -> None:
        chat = f"chat-{at_once}-{round_number}-{number}"
        while (before := clock()) < until:
            await subject.say(chat, TEXT)
            waits.append(clock() - before)

    if at_once == 1:
        await talk(0)
    else:
        await asyncio.gather(*(talk(number) for number in range(at_once)))
    return Pace(len(waits) / (clock() - begun), percentile(waits, 0.5), percentile(waits, 0.99), len(waits))


@dataclass(slots=True)
class Seat:
    """A subject with its folder, its witness and what was measured of it."""

    subject: Subject
    witness: Witness
    variant: str
    paces: dict[int, list[Pace]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The subject's title with the settings it was given."""
        return self.subject.title if not self.variant else f"{self.subject.title}, {self.variant}"

    def figure(self, prefix: str, at_once: int) -> Figure:
        """Return the result with this many at once."""
        found = self.paces[at_once]
        return Figure(
            key=f"{prefix}.{self.subject.key}{'.' + self.variant if self.variant else ''}",
            name=self.name,
            unit="messages/s",
            samples=tuple(one.rate for one in found),
            durability=self.durability(),
            objections=self.subject.objections(),
            details={
                "p50 ms": sorted(one.p50 for one in found)[len(found) // 2] * 1000,
                # The middle of the rounds, not the best: one bad round is bad luck, three are how it is.
                "p99 ms": sorted(one.p99 for one in found)[len(found) // 2] * 1000,
                "messages": sum(one.count for one in found),
                "blocks the loop": float(self.subject.blocks),
            },
        )

    def durability(self) -> Durability | None:
        """What its connections say of themselves."""
        return self.witness.durability()


async def in_rounds(
    seats: Sequence[Seat],
    *,
    at_once: int,
    rounds: int,
    seconds: float,
    chance: random.Random,
) -> None:
    """Measure all seats, one after the other in each round, in another order each time."""
    for round_number in range(rounds):
        order = list(seats)
        chance.shuffle(order)
        for seat in order:
            seat.paces.setdefault(at_once, []).append(
                await pace(seat.subject, at_once=at_once, seconds=seconds, round_number=round_number)
            )


async def warm_up(seat: Seat) -> None:
    """Have everything made that the first message makes, then set again what the subject may have set itself."""
    for number in range(3):
        await seat.subject.say(f"warm-up-{number}", TEXT)
    seat.witness.enforce()


__all__ = ("TEXT", "Missed", "Pace", "Seat", "Subject", "in_rounds", "pace", "warm_up", "watching")
