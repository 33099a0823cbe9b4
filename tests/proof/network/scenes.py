"""Do something to a real server while bots deliver to it, several times each, and count how often it was done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tests.proof.network.wards import Ward


class Stage(Protocol):
    """Where a scene is played."""

    ward: Ward

    def seen(self, about: str) -> int:
        """How many refusals of this kind the bots' stores have met so far."""
        ...

    async def well(self) -> None:
        """Wait until everything works, and it has been noticed that it does."""
        ...

    def speak_up(self, length: int) -> None:
        """Have the bots say something longer."""
        ...


Play = Callable[[Stage, int], Awaitable[int]]
"""From the stage and how many rounds, or connections, to how often the fault was met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One thing that happens to a server."""

    name: str
    play: Play
    unit: str
    rounds: int
    short: int
    least: int


async def _terminate(stage: Stage, rounds: int) -> int:
    cut = tries = 0
    while cut < rounds and tries < 10 * rounds:
        tries += 1
        await asyncio.sleep(0.15)
        cut += await asyncio.to_thread(stage.ward.server.terminate_connections, stage.ward.url)
    return cut


async def _crash(stage: Stage, rounds: int) -> int:
    for _ in range(rounds):
        await stage.well()
        await asyncio.to_thread(stage.ward.crash)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(stage.ward.server.start)
    return rounds


async def _restart(stage: Stage, rounds: int) -> int:
    for _ in range(rounds):
        await stage.well()
        await asyncio.to_thread(stage.ward.server.restart, "fast")
    return rounds


async def _read_only(stage: Stage, rounds: int) -> int:
    before = stage.seen("read-only")
    for _ in range(rounds):
        await asyncio.to_thread(stage.ward.read_only, True)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(stage.ward.read_only, False)
        await asyncio.sleep(1.0)
    return stage.seen("read-only") - before


async def _crowd(stage: Stage, rounds: int) -> int:
    before = stage.seen("connections")
    for _ in range(rounds):
        held = await stage.ward.occupy()
        await asyncio.sleep(1.0)
        for one in held:
            with suppress(DBAPIError, OSError):
                await one.close()
        await asyncio.sleep(1.0)
    return stage.seen("connections") - before


async def _hold(stage: Stage, rounds: int, about: str) -> int:
    before, number = stage.seen(about), 0
    engine = stage.ward.engine(admin=True)
    # The bots may rest just then: held again, until it was met as often as that.
    while number < rounds or (stage.seen(about) - before < rounds and number < 5 * rounds):
        table = ("letopis_log_heads", "letopis_conversations", "letopis_lanes")[number % 3]
        number += 1
        async with engine.connect() as connection:
            # A deadlock may be resolved at the holder's expense.
            with suppress(DBAPIError):
                await connection.execute(sa.text(f"SELECT * FROM {table} FOR UPDATE"))
                await asyncio.sleep(2.2)
        await asyncio.sleep(0.5)
    return stage.seen(about) - before


async def _lock(stage: Stage, rounds: int) -> int:
    return await _hold(stage, rounds, "lock")


async def _slow(stage: Stage, rounds: int) -> int:
    return await _hold(stage, rounds, "statement")


async def _deadlock(stage: Stage, rounds: int) -> int:
    """Take the log's counter, which a relay takes last, and then the conversations, which it holds by then."""
    before = stage.seen("deadlock")
    engine = stage.ward.engine(admin=True)
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE weight (number INTEGER)"))
    for _ in range(rounds):
        async with engine.connect() as connection:
            with suppress(DBAPIError):
                # Who has written much is spared by MariaDB.
                await connection.execute(sa.text(f"INSERT INTO weight {stage.ward.many_rows}"))
                await connection.execute(sa.text("SELECT * FROM letopis_log_heads FOR UPDATE"))
                await asyncio.sleep(0.06)
                await connection.execute(sa.text("SELECT conversation_id FROM letopis_conversations FOR UPDATE"))
            await connection.rollback()
        await asyncio.sleep(0.1)
    return stage.seen("deadlock") - before


async def _full(stage: Stage, rounds: int) -> int:
    before = stage.seen("full")
    disk = stage.ward.disk
    assert disk is not None
    stage.speak_up(4_000)
    try:
        for _ in range(rounds):
            await asyncio.to_thread(disk.fill)
            for _ in range(60):
                if stage.seen("full") > before:
                    break
                await asyncio.sleep(0.1)
            await asyncio.sleep(1.0)
            await asyncio.to_thread(disk.free)
            await asyncio.sleep(0.5)
    finally:
        stage.speak_up(0)
        await asyncio.to_thread(disk.free)
    return stage.seen("full") - before


FULL: Final = "the server's disk is full"
SCENES: Final[Sequence[Scene]] = (
    Scene(name="connections cut by an operator", play=_terminate, unit="connections", rounds=40, short=3, least=40),
    Scene(name="the server is read-only", play=_read_only, unit="refusals", rounds=2, short=0, least=2),
    Scene(name="no connection left", play=_crowd, unit="refusals", rounds=2, short=0, least=2),
    Scene(name="rows locked for too long", play=_lock, unit="lock timeouts", rounds=2, short=0, least=2),
    Scene(name="statements take too long", play=_slow, unit="statements cancelled", rounds=2, short=0, least=2),
    Scene(name="deadlocks", play=_deadlock, unit="deadlocks", rounds=15, short=0, least=3),
    Scene(name=FULL, play=_full, unit="refusals", rounds=2, short=0, least=2),
    Scene(name="the server is restarted", play=_restart, unit="restarts", rounds=2, short=0, least=2),
    Scene(name="the server crashes", play=_crash, unit="crashes", rounds=3, short=1, least=3),
)
