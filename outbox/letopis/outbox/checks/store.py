"""Store: whether the history store can be reached and written, by a write that is rolled back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.engine import URL

from letopis.outbox.checks.finding import Finding, fail, ok, skipped, warn
from letopis.outbox.checks.peek import SQLITE_ERRORS, code_of, peek
from letopis.store.engines import Timeouts, create_store_engine
from letopis.store.errors import ConfigurationError
from letopis.store.faults import FaultClass, StoreFault, translated
from letopis.store.migration import STORE, Revision, State, revision_state
from letopis.store.schema import conversations, events, lanes, log_heads, messages, origins, owners
from letopis.store.urls import normalise_url, safe_url

DEADLINE: Final = 20.0
"""Seconds for everything that is asked of the store."""
SKEW: Final = 5.0
"""Seconds between the two clocks from which on people are confused by times."""

_NOW: Final = {
    "postgresql": "SELECT CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)",
    "mariadb": "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) AS DOUBLE)",
    "mysql": "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) AS DOUBLE)",
}
_WRITTEN: Final = (conversations, events, lanes, log_heads, messages, owners)


async def check_store(where: str | Path, *, origin: tuple[UUID, int] | None = None) -> AsyncIterator[Finding]:
    """Yield what is found about the history store. A missing SQLite file is not made.

    :param where: its URL or path.
    :param origin: the outbox's identity and epoch, to be compared with what the store knows of it.
    """
    try:
        url = normalise_url(where)
    except ConfigurationError as error:
        yield fail("store", str(error), "correct the URL")
        return
    name = safe_url(url)
    if url.get_backend_name() == "sqlite":
        found = await asyncio.to_thread(_sqlite_file, Path(str(url.database)), name)
        if found is not None:
            yield found
            return
    try:
        async with asyncio.timeout(DEADLINE):
            results = await _ask(url, name, origin)
    except StoreFault as fault:
        yield fail("store", f"{name}: {fault}", _hint(fault))
    except TimeoutError:
        yield fail("store", f"{name} did not answer within {DEADLINE:.0f} s", "check host, port and network")
    else:
        for one in results:
            yield one


def _hint(fault: StoreFault) -> str:
    if fault.fault_class is FaultClass.MISCONFIGURED:
        return "change what it names; nothing is lost meanwhile"
    return "nothing is lost while it is away: the outbox keeps what is said"


def _sqlite_file(path: Path, name: str) -> Finding | None:
    """Return what keeps a SQLite store from being asked any further; ``None`` where nothing does."""
    if not path.exists():
        if not path.parent.is_dir():
            return fail("store", f"{name}: its folder does not exist", "create the folder, or correct the path")
        return skipped("store", f"{name} does not exist yet: the relay makes it")
    try:
        with peek(path) as connection:
            found = revision_state(connection, STORE)
    except SQLITE_ERRORS as error:
        return fail("store", f"{name} cannot be read [{code_of(error)}]", "check the path and the file's mode")
    return None if found.state is State.CURRENT else _migrations(found)


def _migrations(found: Revision) -> Finding:
    check = "store_migrations"
    if found.state is State.CURRENT:
        return ok(check, f"revision {found.revision}")
    return fail(check, found.advice(STORE, command="letopis db upgrade"), "see `letopis db check`")


async def _ask(url: URL, name: str, origin: tuple[UUID, int] | None) -> list[Finding]:
    engine = create_store_engine(url, timeouts=Timeouts(connect=5.0, statement=8.0, lock=5.0), pool_size=1)
    results: list[Finding] = []
    try:
        with translated():
            started = time.monotonic()
            async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
                found = await connection.run_sync(revision_state, STORE)
                results.append(ok("store", f"{name} answers, {(time.monotonic() - started) * 1000:.0f} ms"))
                results.append(_migrations(found))
                if found.state is not State.CURRENT:
                    return results
                results.append(await _compare_clocks(connection))
                if origin is not None:
                    results.append(await _compare_epochs(connection, *origin))
                await connection.rollback()
        results.append(await _write(engine))
    finally:
        await engine.dispose()
    return results


async def _compare_clocks(connection: Any) -> Finding:
    check = "store_clock"
    statement = _NOW.get(connection.dialect.name)
    if statement is None:
        return skipped(check, "the store lies on this machine")
    before = time.time()
    theirs = float((await connection.execute(sa.text(statement))).scalar_one())
    # Half of the way there and back is the store's own time.
    skew = theirs - (before + time.time()) / 2
    if abs(skew) > SKEW:
        said = f"the store's clock and this machine's are {abs(skew):.0f} s apart"
        return warn(check, said, "synchronise both (NTP); no order depends on it, but times that are shown do")
    return ok(check, f"{abs(skew):.2f} s apart")


async def _compare_epochs(connection: Any, origin_id: UUID, epoch: int) -> Finding:
    check = "store_origin"
    known = (
        await connection.execute(sa.select(origins.c.epoch).where(origins.c.origin_id == origin_id))
    ).scalar_one_or_none()
    if known is None:
        return ok(check, "the store has not met this outbox yet")
    if known > epoch:
        return fail(
            check,
            f"a copy of this outbox delivers at epoch {known}, this one is at {epoch} and will be refused",
            "stop one of the two; to keep both, give this one its own identity with `letopis init --new-origin`",
        )
    return ok(check, f"known at epoch {known}")


async def _write(engine: Any) -> Finding:
    """Write, and roll it back: the only way to know about rights, a read-only replica and a full disk."""
    check = "store_writable"
    try:
        with translated():
            async with engine.connect() as connection:
                await _touch_everything(connection)
                await connection.rollback()
    except StoreFault as fault:
        return fail(check, f"the store answers, but takes no write: {fault}", _hint(fault))
    return ok(check, "a write was taken, and rolled back")


async def _touch_everything(connection: Any) -> None:
    moment = time.time_ns() // 1_000
    await connection.execute(
        sa.insert(origins).values(
            origin_id=uuid4(), epoch=1, name="letopis doctor", first_seen_at=moment, last_seen_at=moment
        )
    )
    # Rights on the other tables, of which no row is touched.
    for table in _WRITTEN:
        column = next(iter(table.columns))
        await connection.execute(sa.update(table).values({column: column}).where(sa.false()))
        names = [one.name for one in table.columns]
        await connection.execute(sa.insert(table).from_select(names, sa.select(table).where(sa.false())))
