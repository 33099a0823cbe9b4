"""SQLite: the library's version, and the outbox file as it is inside."""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from letopis.outbox.checks.finding import Finding, fail, ok, skipped, warn
from letopis.outbox.checks.peek import SQLITE_ERRORS, code_of, peek
from letopis.outbox.file import OUTBOX
from letopis.outbox.identity import place_of
from letopis.outbox.lease import boot_id
from letopis.outbox.status import ALIVE, Status, read_status
from letopis.store.codec import digest_of
from letopis.store.migration import State, revision_state

MEASURED: Final = 10_000
"""Pending events whose content is compared with its digest."""
LARGEST: Final = 2 * 1024**3
"""Bytes beyond which the file's structure is not read as a whole: it would take minutes."""
AHEAD: Final = 60.0
"""Seconds that the newest event may lie in the future."""

_PENDING: Final = (
    "SELECT e.conversation_id, e.type, e.schema_version, e.data, e.metadata, e.digest"
    " FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e"
    " ON e.conversation_id = l.conversation_id AND e.sequence > l.delivered WHERE l.delivered < l.head LIMIT ?"
)
_GAPS: Final = (
    "SELECT count(*) FROM letopis_outbox_lanes AS l WHERE l.delivered < l.head AND l.head - l.delivered <>"
    " (SELECT count(*) FROM letopis_outbox_events AS e"
    " WHERE e.conversation_id = l.conversation_id AND e.sequence > l.delivered AND e.sequence <= l.head)"
)


def check_version(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> Finding:
    """Find whether this SQLite has the bug that two connections can damage a WAL with."""
    check = "sqlite_version"
    text = ".".join(map(str, version))
    mended = version >= (3, 51, 3) or (version[:2] in ((3, 50), (3, 44)) and version[2] >= _BACKPORT[version[:2]])
    if mended or version < (3, 7, 0):
        return ok(check, text)
    return warn(
        check,
        f"SQLite {text} may damage a WAL that one process writes while another checkpoints it (3.7.0 to 3.51.2)",
        "use a Python whose SQLite is 3.51.3, 3.50.7, 3.44.6 or newer, unless your distribution has mended its own; "
        "until then run the relay in the bot's process",
    )


_BACKPORT: Final = {(3, 50): 7, (3, 44): 6}


_OTHERS: Final = ("apsw", "pysqlite3", "sqlean", "sqlcipher3")
"""Packages with an SQLite of their own."""


def check_libraries(installed: Callable[[str], object] = find_spec) -> Finding:
    """Find whether a second SQLite is at hand here: two in one process undo each other's locks on a file."""
    check = "sqlite_libraries"
    others = [name for name in _OTHERS if installed(name) is not None]
    if not others:
        return ok(check, "no second SQLite is installed here")
    return warn(
        check,
        f"{', '.join(others)} brings an SQLite of its own: opening the outbox or the history with it, in a process that"
        " has them open, drops their locks and can lose what was written",
        "use it for other files only, or in other processes",
    )


def check_outbox(path: Path) -> Iterator[Finding]:
    """Yield what is found inside the file; reads one snapshot of it."""
    try:
        with peek(path) as connection:
            found = revision_state(connection, OUTBOX)
            if found.state is State.MISSING:
                said = f"{path.name!r} holds no outbox"
                yield fail("outbox_migrations", said, "check the path; `letopis init` or the bot makes an outbox")
                return
            if found.state is State.OLDER:
                said = f"the outbox is at revision {found.revision}, this release needs {OUTBOX.head}"
                yield warn("outbox_migrations", said, "nothing to do: it migrates itself when the bot opens it")
                return
            if found.state is not State.CURRENT:
                yield fail("outbox_migrations", found.advice(OUTBOX, command="letopis init"), "install that release")
                return
            yield ok("outbox_migrations", f"revision {found.revision}")
            yield _copy(connection, path)
            yield _structure(connection, path)
            yield _content(connection)
            yield from _relay(connection)
            yield _clock(connection)
    except SQLITE_ERRORS as error:
        code = code_of(error)
        hint = "restore it from a backup" if "CORRUPT" in code or "NOTADB" in code else "check its mode and its folder"
        yield fail("outbox_migrations", f"{path.name!r} cannot be read [{code}]", hint)


def _copy(connection: sa.Connection, path: Path) -> Finding:
    check = "outbox_copy"
    row = connection.exec_driver_sql("SELECT device, inode, epoch FROM letopis_outbox_origin").one_or_none()
    if row is None:
        return skipped(check, "the outbox was never opened by a bot")
    if (row[0], row[1]) != tuple(str(one) for one in place_of(path)):
        return warn(
            check,
            f"the file lies at another place than when it was last used (epoch {row[2]}): it was copied or restored",
            "if the original is still in use, give this one its own identity with `letopis init --new-origin`; "
            "else nothing is to be done",
        )
    return ok(check, f"the file lies where it was last used, epoch {row[2]}")


def _structure(connection: sa.Connection, path: Path) -> Finding:
    check = "outbox_structure"
    if path.stat().st_size > LARGEST:
        return skipped(check, "the file is too large to be read as a whole in passing: PRAGMA quick_check does it")
    found = [row[0] for row in connection.exec_driver_sql("PRAGMA quick_check(1)").fetchall()]
    if found != ["ok"]:
        return fail(check, "SQLite finds the file damaged", "stop the bot and the relay, then `letopis outbox salvage`")
    return ok(check, "sound")


def _content(connection: sa.Connection) -> Finding:
    check = "outbox_content"
    read = bad = 0
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_PENDING, (MEASURED,))
        while (row := cursor.fetchone()) is not None:
            read += 1
            bad += digest_of(row[0], row[1], row[2], row[3], row[4]) != row[5]
    finally:
        cursor.close()
    gaps = connection.exec_driver_sql(_GAPS).scalar_one()
    if bad or gaps:
        return fail(
            check,
            f"of {read} pending events {bad} are not what was appended; {gaps} conversations miss some",
            "`letopis outbox list --all` and `export` show what is there; then fix or skip it",
        )
    return ok(check, f"{read} pending events are what was appended" if read else "nothing is pending")


def _relay(connection: sa.Connection) -> Iterator[Finding]:
    status = read_status(connection, now_us=time.time_ns() // 1_000)
    yield _holder(connection, status)
    blocked = status.lanes.get("blocked", 0)
    if blocked:
        said = f"{blocked} conversation{' waits' if blocked == 1 else 's wait'} for a person; nothing is lost"
        yield fail("stuck", said, "`letopis outbox list` shows them; then retry, fix or skip")
    elif status.incidents:
        yield warn("stuck", f"{len(status.incidents)} incidents are open", "`letopis status` shows them")
    else:
        yield ok("stuck", "no conversation waits for a person")


def _holder(connection: sa.Connection, status: Status) -> Finding:
    check = "relay"
    relay = status.relay
    if relay.held_since is not None:
        said = f"the relay is held back since {relay.held_since:%Y-%m-%d %H:%M}Z, {status.pending} events wait"
        return warn(check, said, "`letopis resume` when it may go on")
    row = connection.exec_driver_sql("SELECT pid, host, boot_id FROM letopis_outbox_relay").one_or_none()
    if row is not None and row[0] and (row[1], row[2]) == (socket.gethostname(), boot_id()) and not _lives(row[0]):
        gone = f"the relay (pid {row[0]}) died without a word"
        if status.pending:
            return fail(check, f"{gone}, {status.pending} events wait", _START)
        return warn(check, gone, _START)
    if relay.running:
        return ok(check, f"at work: {relay.holder}")
    if status.pending:
        return fail(check, f"no relay has shown itself for {ALIVE:.0f} s, {status.pending} events wait", _START)
    return ok(check, "no relay is at work, and nothing waits")


_START: Final = "start the bot, or `letopis relay`"


def _lives(pid: int) -> bool:
    # /proc and not kill(pid, 0), which means something else on Windows.
    return not Path("/proc/self").exists() or Path(f"/proc/{pid}").exists()


def _clock(connection: sa.Connection) -> Finding:
    check = "local_clock"
    newest = connection.exec_driver_sql(
        "SELECT appended_at FROM letopis_outbox_events ORDER BY position DESC LIMIT 1"
    ).scalar()
    ahead = 0.0 if newest is None else newest / 1_000_000 - time.time()
    if ahead > AHEAD:
        said = f"the newest event was appended {ahead:.0f} s in the future: the clock was set back"
        return warn(check, said, "check the machine's clock; no order depends on it, but times that are shown do")
    return ok(check, "the newest event lies in the past" if newest is not None else "nothing to compare with")
