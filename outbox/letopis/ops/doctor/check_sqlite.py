"""Check the SQLite library, and the content of the outbox file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from letopis.ops.doctor.finding import Finding, fail, ok, skipped, warn
from letopis.ops.verify import EVENT_COLUMNS, damaged_events, incomplete_lanes
from letopis.outbox.file.identity import file_id_of
from letopis.outbox.file.inspection import OUTBOX_MIGRATIONS, TABLES, describe_missing_outbox
from letopis.outbox.file.opening import open_read_only
from letopis.outbox.file.sqlite_errors import error_name
from letopis.outbox.operations.status import RELAY_ALIVE_SECONDS, Status, read_status
from letopis.store.database.migrations import SchemaState, revision_state

MAX_COMPARED_EVENTS: Final = 10_000  # pending events that are compared with their digests
MAX_CHECKED_BYTES: Final = 2 * 1024**3  # the structure of a larger file is not checked: it would take minutes
MAX_AHEAD_SECONDS: Final = 60.0  # how far the newest event may lie in the future

_PENDING: Final = (
    f"SELECT {EVENT_COLUMNS} FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e"  # noqa: S608
    " ON e.lane = l.lane AND e.sequence > l.delivered"
    f" WHERE l.pending_since IS NOT NULL AND l.delivered < l.head LIMIT {MAX_COMPARED_EVENTS}"
)


def check_version(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> Finding:
    """Return a finding about the bug by which two connections can damage a WAL."""
    check = "sqlite_version"
    text = ".".join(map(str, version))
    fixed = version >= (3, 51, 3) or (version[:2] in ((3, 50), (3, 44)) and version[2] >= _BACKPORT[version[:2]])
    if fixed or version < (3, 7, 0):
        return ok(check, text)
    return warn(
        check,
        f"SQLite {text} has the WAL-reset bug (3.7.0 to 3.51.2): a write during a checkpoint can, rarely, lose pages",
        "use a Python whose SQLite is 3.51.3, 3.50.7, 3.44.6 or newer, in the bot and in the relay, unless your "
        "distribution has patched its own; see the guide `Which SQLite is safe`",
    )


_BACKPORT: Final = {(3, 50): 7, (3, 44): 6}

_OTHER_LIBRARIES: Final = ("apsw", "pysqlite3", "sqlean", "sqlcipher3")  # packages that bundle their own SQLite


def check_libraries(installed: Callable[[str], object] = find_spec) -> Finding:
    """Return a finding about other SQLite libraries: two in one process drop each other's locks on a file."""
    check = "sqlite_libraries"
    others = [name for name in _OTHER_LIBRARIES if installed(name) is not None]
    if not others:
        return ok(check, "no second SQLite is installed here")
    return warn(
        check,
        f"{', '.join(others)} bundles its own SQLite: opening the outbox or the history with it, in a process that"
        " has them open, drops their locks and can lose committed data",
        "use it for other files only, or in other processes",
    )


def check_outbox(path: Path) -> Iterator[Finding]:
    """Yield findings about the content of the file, from one snapshot."""
    try:
        with open_read_only(path) as connection:
            revision = revision_state(connection, OUTBOX_MIGRATIONS)
            if revision.state is SchemaState.MISSING:
                tables = connection.exec_driver_sql(TABLES).scalars()
                yield fail("outbox_migrations", *describe_missing_outbox(path, tables))
                return
            if revision.state is SchemaState.OLDER:
                said = f"the outbox is at revision {revision.revision}, this release needs {OUTBOX_MIGRATIONS.head}"
                yield warn("outbox_migrations", said, "nothing to do: it migrates itself when the bot opens it")
                return
            if revision.state is not SchemaState.CURRENT:
                advice = revision.advice(OUTBOX_MIGRATIONS, command="letopis init")
                yield fail("outbox_migrations", advice, "install that release")
                return
            yield ok("outbox_migrations", f"revision {revision.revision}")
            yield _copy(connection, path)
            yield _structure(connection, path)
            yield _content(connection)
            yield from _relay(connection)
            yield _clock(connection)
    except (DBAPIError, sqlite3.Error) as error:
        code = error_name(error)
        hint = "restore it from a backup" if "CORRUPT" in code or "NOTADB" in code else "check its mode and its folder"
        yield fail("outbox_migrations", f"{path.name!r} cannot be read [{code}]", hint)


def _copy(connection: sa.Connection, path: Path) -> Finding:
    check = "outbox_copy"
    row = connection.exec_driver_sql("SELECT device, inode, epoch FROM letopis_outbox_origin").one_or_none()
    if row is None:
        return skipped(check, "the outbox was never opened by a bot")
    if (row[0], row[1]) != tuple(str(number) for number in file_id_of(path)):
        return warn(
            check,
            f"the file has moved since it was last used (epoch {row[2]}): it was copied or restored",
            "if the original is still in use, give this one its own identity with `letopis init --new-origin`; "
            "otherwise nothing needs to be done",
        )
    return ok(check, f"the file is where it was last used, epoch {row[2]}")


def _structure(connection: sa.Connection, path: Path) -> Finding:
    check = "outbox_structure"
    if path.stat().st_size > MAX_CHECKED_BYTES:
        return skipped(check, "the file is too large to check here: run PRAGMA quick_check")
    answers = [row[0] for row in connection.exec_driver_sql("PRAGMA quick_check(1)").fetchall()]
    if answers != ["ok"]:
        hint = "stop the bot and the relay, then `letopis outbox salvage`"
        return fail(check, "SQLite reports that the file is damaged", hint)
    return ok(check, "sound")


def _content(connection: sa.Connection) -> Finding:
    check = "outbox_content"
    bad = sum(1 for _ in damaged_events(connection, _PENDING))
    gaps = sum(1 for _ in incomplete_lanes(connection))
    if bad or gaps:
        said = f"{bad} pending events are not what was appended; {gaps} conversations lack events"
        return fail(check, said, "`letopis outbox list --all` and `export` show the events; then fix or skip them")
    return ok(check, "pending events are what was appended")


def _relay(connection: sa.Connection) -> Iterator[Finding]:
    status = read_status(connection, now_us=time.time_ns() // 1_000)
    yield _holder(status)
    if (outage := status.outage()) is not None and status.relay.running:
        if outage[0] == "unreachable":
            yield warn("delivery", outage[1], "see the checks of the store; the relay keeps retrying")
        else:
            yield fail("delivery", outage[1], "an operator has to fix what it names; nothing is lost meanwhile")
    condition, verdict = status.judge()
    if condition in _STUCK:
        yield fail("stuck", verdict, _STUCK[condition])
    elif status.incidents:
        yield warn("stuck", f"open incidents: {len(status.incidents)}", "`letopis status` shows them")
    else:
        yield ok("stuck", "no conversation is blocked")


_STUCK: Final = {
    "lost": "restore a newer backup of the store, or give them up with `letopis outbox skip --missing`",
    "blocked": "`letopis outbox list` shows them; then retry, fix or skip",
}


def _holder(status: Status) -> Finding:
    check = "relay"
    relay = status.relay
    if relay.paused_since is not None:
        said = f"delivery is paused since {relay.paused_since:%Y-%m-%d %H:%M}Z, {status.pending} events are pending"
        return warn(check, said, "`letopis resume` resumes it")
    if relay.died:
        gone = f"the relay has died: {relay.holder}"
        if status.pending:
            return fail(check, f"{gone}, {status.pending} events are pending", _START)
        return warn(check, gone, _START)
    if relay.running:
        return ok(check, f"running: {relay.holder}")
    if status.pending:
        said = f"no relay has been seen for {RELAY_ALIVE_SECONDS:.0f} s, {status.pending} events are pending"
        return fail(check, said, _START)
    return ok(check, "no relay is running, and nothing is pending")


_START: Final = "start the bot, or `letopis relay`"


def _clock(connection: sa.Connection) -> Finding:
    check = "local_clock"
    newest = connection.exec_driver_sql(
        "SELECT appended_at FROM letopis_outbox_events ORDER BY position DESC LIMIT 1"
    ).scalar()
    ahead = 0.0 if newest is None else newest / 1_000_000 - time.time()
    if ahead > MAX_AHEAD_SECONDS:
        said = f"the newest event was appended {ahead:.0f} s in the future: the clock was set back"
        return warn(check, said, "check the machine's clock; displayed times depend on it, order does not")
    return ok(check, "the newest event lies in the past" if newest is not None else "there is no event to compare")
