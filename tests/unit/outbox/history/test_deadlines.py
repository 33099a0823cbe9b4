"""A server that falls silent never holds anything up: every way to one has a deadline, and the event loop runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.retry.circuit_breaker import BreakerState
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.engines import create_store_engine
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.timeouts import Timeouts
from letopis.store.errors import LetopisError
from tests.campaigns.invariants import check
from tests.support import peers
from tests.support.relays import drained, end, figures, relay_on, say, until

SHORT = Timeouts(connect=1.0, statement=0.5, lock=1.0)
ENOUGH = 12.0
"""Seconds that no way may take: the deadlines together, and room for a machine that is busy."""
STALL = 2.0
"""Seconds that the event loop may stand still on a busy machine."""


@dataclass
class Line:
    """A server behind a wire."""

    kind: str
    url: str
    through: str
    wire: peers.Wire
    engines: list[AsyncEngine] = field(default_factory=list)

    def engine(self) -> AsyncEngine:
        engine = create_store_engine(self.through, timeouts=SHORT, pool_size=1)
        self.engines.append(engine)
        return engine


@pytest.fixture(params=["postgresql", "mariadb"])
async def line(
    request: pytest.FixtureRequest, new_store_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Line]:
    monkeypatch.setattr("letopis.store.database.failover.ANSWER_MARGIN_SECONDS", 0.5)
    url = make_url(new_store_url(request.param))
    wire = peers.Wire(url.port or 0)
    async with wire.open() as port:
        through = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        found = Line(request.param, url.render_as_string(hide_password=False), through, wire)
        yield found
        wire.flowing.set()
        for engine in found.engines:
            await engine.dispose()


async def timed(work: Awaitable[object]) -> tuple[float, float, BaseException | None]:
    """Return how long ``work`` took, the longest time that the event loop stood still meanwhile, and its error."""
    loop = asyncio.get_running_loop()
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            worst = max(worst, loop.time() - before)

    ticking = asyncio.create_task(tick())
    begun = loop.time()
    error: BaseException | None = None
    try:
        async with asyncio.timeout(30):
            await work
    except (LetopisError, StoreFault, TimeoutError) as raised:
        error = raised
    took = loop.time() - begun
    await end(ticking)
    return took, worst, error


@pytest.mark.parametrize("stage", ["connect", "begin", "statement", "commit", "rollback", "close"])
async def test_a_black_hole_ends_by_our_own_clock(line: Line, stage: str) -> None:
    engine = line.engine()
    hole = line.wire.flowing

    async def work() -> None:
        with translated():
            if stage == "connect":
                hole.clear()
            connection = await engine.connect()
            try:
                if stage == "begin":
                    hole.clear()
                await connection.exec_driver_sql("SELECT 1")
                if stage == "statement":
                    hole.clear()
                await connection.exec_driver_sql("SELECT 2")
                hole.clear()
                if stage == "commit":
                    with translated(committing=True):
                        await connection.commit()
                elif stage == "rollback":
                    await connection.rollback()
            finally:
                await connection.close()
            await engine.dispose()

    took, worst, error = await timed(work())
    expected = {"commit": FaultClass.UNKNOWN_OUTCOME}.get(stage, FaultClass.UNAVAILABLE)

    assert took < ENOUGH
    assert worst < STALL
    if stage == "close":  # what is closed may be lost: it need not be reported
        assert error is None or isinstance(error, StoreFault)
    else:
        assert isinstance(error, StoreFault), error
        assert error.fault_class is expected
    hole.set()
    async with engine.connect() as connection:
        assert (await connection.execute(sa.text("SELECT 3"))).scalar_one() == 3


async def test_a_cancelled_statement_in_a_black_hole_lets_go_soon(line: Line) -> None:
    engine = line.engine()

    async def work() -> None:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("SELECT 1")
            line.wire.flowing.clear()
            await connection.exec_driver_sql("SELECT 2")

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    task.cancel()
    done, _ = await asyncio.wait((task,), timeout=ENOUGH)

    assert done
    assert task.cancelled()


async def test_an_answer_that_trickles_byte_by_byte_is_given_up(line: Line) -> None:
    """Each byte comes in time, the answer never does."""
    engine = line.engine()

    async def work() -> None:
        with translated():
            async with engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")
                line.wire.pace = 0.1
                await connection.exec_driver_sql("SELECT REPEAT('x', 4000)")

    took, worst, error = await timed(work())
    line.wire.pace = None

    assert isinstance(error, StoreFault), error
    assert error.fault_class is FaultClass.UNAVAILABLE
    assert took < ENOUGH
    assert worst < STALL


@pytest.mark.parametrize("heard", [True, False])
async def test_a_commit_whose_answer_is_lost_is_sent_again_and_stored_once(
    line: Line, tmp_path_factory: pytest.TempPathFactory, heard: bool
) -> None:
    folder = tmp_path_factory.mktemp("bot")
    outbox = await OutboxFile.open(folder / "bot.outbox.db")
    async with ConversationStore.open(line.url, migrate=True):
        pass
    store = ConversationStore(line.through, timeouts=SHORT)
    relay = relay_on(outbox, store)
    task = asyncio.create_task(relay.run())
    await say(outbox, "warm up")
    await drained(outbox)
    for number in range(5):
        line.wire.heard = heard
        line.wire.cut_at = b"COMMIT;" if line.kind == "postgresql" else b"COMMIT"  # not READ COMMITTED
        await say(outbox, f"c{number}", 3)
        await drained(outbox)
    await end(task)
    await store.close()
    verdict = await check([outbox.path], line.url, drained=True)
    await outbox.close()

    assert verdict.ok, verdict
    assert verdict.stored == 2 + 5 * 4
    assert line.wire.cuts == 5
    assert relay.stats.faults[FaultClass.UNKNOWN_OUTCOME] == 5
    assert (relay.stats.duplicates > 0) is heard
    assert relay.stats.blocked == 0


async def test_a_store_that_accepts_and_never_answers_counts_as_away(
    line: Line, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outbox = await OutboxFile.open(tmp_path_factory.mktemp("bot") / "bot.outbox.db")
    async with ConversationStore.open(line.url, migrate=True):
        pass
    store = ConversationStore(line.through, timeouts=SHORT)
    relay = relay_on(outbox, store)
    task = asyncio.create_task(relay.run())
    await say(outbox, "warm up")
    await drained(outbox)
    line.wire.flowing.clear()
    await say(outbox, "c", 3)
    took, worst, error = await timed(until(lambda: relay.breaker.state is BreakerState.OPEN))

    assert error is None
    assert took < ENOUGH
    assert worst < STALL
    assert (await figures(outbox)).lanes["ready"] == 1  # waits, and is charged nothing
    line.wire.flowing.set()
    await drained(outbox)
    await end(task)
    took, _, _ = await timed(store.close())
    assert took < ENOUGH
    await outbox.close()
