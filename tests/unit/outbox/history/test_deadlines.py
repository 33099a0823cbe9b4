"""A server that falls silent never holds anything up: every way to one has a deadline, and the event loop runs on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store import FaultClass, StoreFault, Timeouts
from letopis.store.database.engines import create_store_engine
from letopis.store.database.fault_classification import translated
from tests.support import peers
from tests.support.relays import end
from tests.support.sayings import present

SHORT = Timeouts(connect=1.0, statement=0.5, lock=1.0)
ENOUGH = 30.0
"""Seconds that no way may take: many times the deadlines together, for a machine that is busy."""


@pytest.fixture(params=["postgresql", "mariadb"])
async def wire(
    request: pytest.FixtureRequest, new_store_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[peers.Wire, AsyncEngine]]:
    """A server behind a wire, and an engine that reaches it."""
    monkeypatch.setattr("letopis.store.database.failover.ANSWER_MARGIN_SECONDS", 0.5)
    url = make_url(new_store_url(request.param))
    wire = peers.Wire(url.port or 0)
    async with wire.open() as port:
        through = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        engine = create_store_engine(through, timeouts=SHORT, pool_size=1)
        yield wire, engine
        wire.flowing.set()
        await engine.dispose()


async def fault_of(work: Awaitable[object]) -> StoreFault | None:
    """Return the fault in which ``work`` ends by its own clock, while the event loop runs on; ``None`` for none."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    try:
        async with asyncio.timeout(ENOUGH):
            await work
    except StoreFault as fault:
        assert ticks > 2
        return fault
    finally:
        await end(ticking)
    return None


@pytest.mark.parametrize("stage", ["connect", "begin", "statement", "trickle", "commit", "rollback", "close"])
async def test_a_black_hole_ends_by_our_own_clock(wire: tuple[peers.Wire, AsyncEngine], stage: str) -> None:
    """Also one in which each byte comes in time and the answer never does."""
    line, engine = wire
    hole = line.flowing

    def at(reached: str) -> None:
        if stage == reached:
            hole.clear()

    async def work() -> None:
        with translated():
            at("connect")
            connection = await engine.connect()
            try:
                at("begin")
                await connection.exec_driver_sql("SELECT 1")
                at("statement")
                line.pace = 0.1 if stage == "trickle" else None
                await connection.exec_driver_sql("SELECT REPEAT('x', 4000)")
                hole.clear()
                if stage == "commit":
                    with translated(committing=True):
                        await connection.commit()
                elif stage == "rollback":
                    await connection.rollback()
            finally:
                await connection.close()
            await engine.dispose()

    fault = await fault_of(work())

    if stage != "close":  # what is closed may be lost: it need not be reported
        expected = FaultClass.UNKNOWN_OUTCOME if stage == "commit" else FaultClass.UNAVAILABLE
        assert present(fault).fault_class is expected
    hole.set()
    line.pace = None
    async with engine.connect() as connection:
        assert (await connection.execute(sa.text("SELECT 3"))).scalar_one() == 3


async def test_a_cancelled_statement_in_a_black_hole_lets_go_soon(wire: tuple[peers.Wire, AsyncEngine]) -> None:
    line, engine = wire

    async def work() -> None:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("SELECT 1")
            line.flowing.clear()
            await connection.exec_driver_sql("SELECT 2")

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.wait((task,), timeout=ENOUGH)

    assert task.cancelled()
