"""Check that the history store can be reached and written, by a write that is rolled back."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from letopis.ops.doctor.check_hosts import check_hosts
from letopis.ops.doctor.check_spread import check_spread
from letopis.ops.doctor.finding import Finding, Severity, fail, ok, skipped, warn
from letopis.ops.verify import ReferenceLog, stored_epoch, stored_heads
from letopis.outbox.event_log.bound_store import UNBOUND, StoreBinding
from letopis.outbox.file.opening import open_read_only
from letopis.outbox.file.sqlite_errors import error_name
from letopis.outbox.relay.store_binding import check_destination, destination_of
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.engines import create_store_engine
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.migrations import STORE, Revision, SchemaState, revision_state
from letopis.store.database.schema import (
    conversations,
    erasures,
    events,
    lanes,
    log_heads,
    messages,
    origins,
    owners,
    tasks,
)
from letopis.store.database.store_identity import StoreIdentity, read_identity, short_id
from letopis.store.database.timeouts import Timeouts
from letopis.store.database.urls import normalise_url, safe_url
from letopis.store.erasures import read_unacknowledged
from letopis.store.errors import ConfigurationError
from letopis.store.maintenance.continuity import count_log

TIMEOUT_SECONDS: Final = 20.0  # for all queries together
TRIAL_ROWS: Final = 1_500
TRIAL_ROW_CHARACTERS: Final = 200  # written to see whether the disk has room; some 300 kB, rolled back
COUNTED_POSITIONS: Final = 50_000  # counted at each end of the log; `letopis db verify` counts all
LATE_TASK_SECONDS: Final = 3600.0  # an unfinished rewind or deletion that is older is worth a warning
MAX_SKEW_SECONDS: Final = 5.0  # a larger difference between the two clocks makes displayed times confusing

_TIMEOUTS: Final = Timeouts(connect=5.0, statement=8.0, lock=5.0)

_NOW: Final = {
    "postgresql": "SELECT CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)",
    "mariadb": "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) AS DOUBLE)",
    "mysql": "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) AS DOUBLE)",
}
_WRITTEN: Final = (conversations, events, lanes, log_heads, messages, owners)


async def check_store(where: str | Path, outbox: ReferenceLog | None = None) -> AsyncIterator[Finding]:
    """Yield findings about the history store. A missing SQLite file is not created."""
    bound = UNBOUND if outbox is None else outbox.bound
    try:
        url = normalise_url(where)
    except ConfigurationError as error:
        yield fail("store", str(error), "correct the URL")
        return
    name = safe_url(url)
    if (elsewhere := _check_destination(bound, destination_of(url))) is not None:
        yield elsewhere
    if url.get_backend_name() == "sqlite":
        finding = await asyncio.to_thread(_sqlite_file, Path(str(url.database)), name, bound)
        if finding is not None:
            yield finding
            return
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            for finding in await check_hosts(url):
                yield finding
            results = await _query(url, name, outbox)
    except StoreFault as fault:
        yield fail("store", f"{name}: {fault}", _hint(fault))
    except TimeoutError:
        yield fail("store", f"{name} did not answer within {TIMEOUT_SECONDS:.0f} s", "check host, port and network")
    else:
        for result in results:
            yield result


def _hint(fault: StoreFault) -> str:
    if fault.fault_class is FaultClass.MISCONFIGURED:
        return "change what it names; nothing is lost meanwhile"
    return "nothing is lost while it is unavailable: events wait in the outbox"


def _sqlite_file(path: Path, name: str, bound: StoreBinding) -> Finding | None:
    """Return why a SQLite store cannot be checked any further, or ``None``."""
    if not path.exists():
        if not path.parent.is_dir():
            return fail("store", f"{name}: its folder does not exist", "create the folder, or correct the path")
        if bound.store_id is not None:
            said = f"{name} does not exist, and the outbox is bound to history store {short_id(bound.store_id)}"
            return fail("store", said, f"{_place_of(bound)}; only if it is gone for good, `letopis outbox rebind`")
        return skipped("store", f"{name} does not exist yet: the relay creates it")
    try:
        with open_read_only(path) as connection:
            revision = revision_state(connection, STORE)
    except (DBAPIError, sqlite3.Error) as error:
        return fail("store", f"{name} cannot be read [{error_name(error)}]", "check the path and the file's mode")
    return None if revision.state is SchemaState.CURRENT else _migrations(revision)


def _migrations(revision: Revision) -> Finding:
    check = "store_migrations"
    if revision.state is SchemaState.CURRENT:
        return ok(check, f"revision {revision.revision}")
    return fail(check, revision.advice(STORE, command="letopis db upgrade"), "see `letopis db check`")


async def _query(url: URL, name: str, outbox: ReferenceLog | None) -> list[Finding]:
    engine = create_store_engine(url, timeouts=_TIMEOUTS, pool_size=1)
    results: list[Finding] = []
    try:
        with translated():
            started = time.monotonic()
            async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
                revision = await connection.run_sync(revision_state, STORE)
                results.append(ok("store", f"{name} answers, {(time.monotonic() - started) * 1000:.0f} ms"))
                results.append(_migrations(revision))
                if revision.state is not SchemaState.CURRENT:
                    return results
                results.append(identity := _compare_identities(await read_identity(connection), outbox))
                if identity.level is Severity.FAIL:
                    return results  # what another store knows of this outbox means nothing
                results.append(await _compare_clocks(connection))
                if (spread := await check_spread(connection)) is not None:
                    results.append(spread)
                results.append(await _look_at_tasks(connection))
                results.append(await _look_at_erasures(connection, {} if outbox is None else outbox.erasures))
                if outbox is not None:
                    results.append(await _compare_epochs(connection, outbox))
                    results.append(await _compare_heads(connection, outbox))
                results.append(await _count_log(connection))
                await connection.rollback()
        results.append(await _write(engine))
    finally:
        await engine.dispose()
    if results[-1].level is not Severity.FAIL:
        results.append(await _try_out(url))
    return results


def _check_destination(bound: StoreBinding, destination: str) -> Finding | None:
    """Return what is wrong if the outbox is not bound yet and its bot named another store."""
    try:
        if bound.store_id is None:
            check_destination(bound, destination)
    except StoreFault as fault:
        return fail("store_identity", fault.reason, "nothing is delivered until both name the same store")
    return None


def _compare_identities(identity: StoreIdentity, reference: ReferenceLog | None) -> Finding:
    check, store = "store_identity", short_id(identity.store_id)
    outbox = "the outbox" if reference is None else f"outbox {short_id(reference.origin_id)}"
    bound = UNBOUND if reference is None else reference.bound
    if identity.moved_to is not None:
        said = f"the history of store {store} was moved away, to {identity.moved_to}"
        return fail(check, said, "name that one with --store, LETOPIS_STORE or letopis.toml")
    if bound.store_id is None:
        return ok(check, f"history store {store}; {outbox} is not bound before its first delivery")
    if bound.store_id != identity.store_id:
        said = f"this is history store {store}, and {outbox} is bound to {short_id(bound.store_id)}"
        return fail(check, said, f"{_place_of(bound)}; only if it is gone for good, `letopis outbox rebind`")
    return ok(check, f"history store {store}, to which {outbox} is bound")


def _place_of(bound: StoreBinding) -> str:
    return "name the right store" if bound.destination is None else f"name the right store, last at {bound.destination}"


async def _compare_clocks(connection: Any) -> Finding:
    check = "store_clock"
    statement = _NOW.get(connection.dialect.name)
    if statement is None:
        return skipped(check, "the store lies on this machine")
    before = time.time()
    theirs = float((await connection.execute(sa.text(statement))).scalar_one())
    # The store read its clock about halfway through the round trip.
    skew = theirs - (before + time.time()) / 2
    if abs(skew) > MAX_SKEW_SECONDS:
        said = f"the store's clock and this machine's are {abs(skew):.0f} s apart"
        return warn(check, said, "synchronise both (NTP); displayed times depend on it, order does not")
    return ok(check, f"{abs(skew):.2f} s apart")


async def _look_at_tasks(connection: Any) -> Finding:
    """Return a finding about long rewinds and deletions that are not finished."""
    check = "store_tasks"
    waiting = sa.select(
        sa.func.count(), sa.func.sum(tasks.c.upto - tasks.c.after), sa.func.min(tasks.c.created_at)
    ).where(tasks.c.after < tasks.c.upto)
    count, rows, since = (await connection.execute(waiting)).one()
    if not count:
        return ok(check, "all long rewinds and deletions are finished")
    said = f"{count} long rewinds or deletions are in progress, {rows} rows left; reads already exclude them"
    if time.time() - since / 1_000_000 > LATE_TASK_SECONDS:
        return warn(check, said, "a relay finishes them: start the bot, or `letopis relay`")
    return ok(check, said)


async def _look_at_erasures(connection: Any, carried_out: Mapping[UUID, int]) -> Finding:
    """Return a finding about erasures that the store has forgotten, or outboxes have not carried out."""
    check = "store_erasures"
    recorded = set((await connection.execute(sa.select(erasures.c.erasure_id))).scalars())
    if missing := [number for erasure_id, number in carried_out.items() if erasure_id not in recorded]:
        said = (
            f"the store was restored from before erasure {min(missing)}: it lacks {len(missing)} that the outbox has"
            " carried out, and may show their content again"
        )
        return fail(check, said, "set holds that it lost again, then run `letopis history erase --repeat`")
    if not (behind := await read_unacknowledged(connection)):
        return ok(check, "every outbox has carried out the erasures that the store records")
    names = ", ".join(f"{late.name} since {late.since:%Y-%m-%d %H:%M}Z" for late in behind)
    said = f"these outboxes have not carried out the erasures that the store records, and may hold content: {names}"
    return warn(check, said, "start the relay of each; delete a file that is no longer used")


async def _compare_epochs(connection: Any, outbox: ReferenceLog) -> Finding:
    check, epoch = "store_origin", outbox.epoch
    known = await stored_epoch(connection, outbox.origin_id)
    if known is None:
        return ok(check, "the store does not know this outbox yet")
    if known > epoch:
        said = f"a copy of this outbox delivers at epoch {known}, this one is at {epoch} and will be refused"
        hint = "stop one of the two; to keep both, give this one its own identity with `letopis init --new-origin`"
        return fail(check, said, hint)
    return ok(check, f"known at epoch {known}")


async def _compare_heads(connection: Any, outbox: ReferenceLog) -> Finding:
    check = "store_heads"
    delivered = {name: sequence for name, (_, sequence) in outbox.lanes.items() if sequence}
    heads = await stored_heads(connection, outbox.origin_id, delivered)
    behind = sum(heads.get(name, 0) < sequence for name, sequence in delivered.items())
    if behind:
        return fail(
            check,
            f"the store lacks delivered events of {behind} of {len(delivered)} conversations: it was restored from an"
            " older backup, or is another store",
            "a running relay resends them within a minute, as far as the outbox holds them, and `letopis status` names"
            " the others; start a relay if none runs",
        )
    return ok(check, f"{len(delivered)} conversations are as far as the outbox has delivered them")


async def _count_log(connection: Any) -> Finding:
    check = "store_log"
    counted = await count_log(connection, 0, newest=COUNTED_POSITIONS, length=COUNTED_POSITIONS)
    if counted.missing:
        return fail(check, str(counted), "restore the store from a backup; `letopis db verify` says what is missing")
    where = f" in its first and last {COUNTED_POSITIONS:,}" if counted.next else ""
    return ok(check, f"no event that the store counts is missing{where}")


async def _write(engine: Any) -> Finding:
    """Write and roll back: the only way to notice missing rights, a read-only replica or a full disk."""
    check = "store_writable"
    try:
        with translated():
            async with engine.connect() as connection:
                if connection.dialect.name == "sqlite":
                    # With almost no cache the pages are written at once, not only at the commit that never comes.
                    await connection.execute(sa.text("PRAGMA cache_size = 1"))
                # More than fits into free pages: the files must grow.
                moment = time.time_ns() // 1_000
                name = "letopis doctor".ljust(TRIAL_ROW_CHARACTERS, ".")
                row = {"epoch": 1, "name": name, "first_seen_at": moment, "last_seen_at": moment}
                await connection.execute(sa.insert(origins), [{"origin_id": uuid4(), **row} for _ in range(TRIAL_ROWS)])
                # Rights on the other tables, without touching a row.
                for table in _WRITTEN:
                    column = next(iter(table.columns))
                    await connection.execute(sa.update(table).values({column: column}).where(sa.false()))
                    names = [column.name for column in table.columns]
                    await connection.execute(sa.insert(table).from_select(names, sa.select(table).where(sa.false())))
                await connection.rollback()
    except StoreFault as fault:
        return fail(check, f"the store answers, but accepts no write: {fault}", _hint(fault))
    return ok(check, "a write was accepted, and rolled back")


async def _try_out(url: URL) -> Finding:
    """Try an ordinary conversation, as a relay does before it charges an event."""
    check = "store_takes_events"
    try:
        async with ConversationStore.open(url, migrate=False, timeouts=_TIMEOUTS, pool_size=1) as store:
            await store.runtime.try_out("letopis doctor")
    except StoreFault as fault:
        return fail(check, f"the store refuses ordinary messages: {fault}", "fix what it names")
    return ok(check, "an ordinary conversation was accepted, and rolled back")
