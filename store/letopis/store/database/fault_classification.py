"""Translate errors of databases, drivers and the operating system into faults."""

# By SQLSTATE (PostgreSQL), error number (MariaDB), result code name (SQLite) or exception type; by text only where no
# code tells enough. The constraint, column or type that refused an event is named, never a value: names come from a
# driver's structured fields, or from a template that is anchored where no value can stand.

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

from sqlalchemy import exc

from letopis.store.database import open_files
from letopis.store.database.fault_rules import (
    BY_BUILTIN_TYPE,
    BY_CERTIFICATE_ERROR,
    BY_DRIVER_TYPE,
    BY_ERRNO,
    BY_MARIADB_NUMBER,
    CANNOT_OPEN_FILE,
    CODE_BEFORE_TYPE,
    DAMAGED,
    DISK_FULL,
    LOST,
    NAMING_RULES,
    SCHEMA,
    TLS,
    TLS_REFUSED,
    TOO_MANY_FILES,
    UNCLASSIFIED,
    UNKNOWN_COMMIT,
    UNREACHABLE,
    FaultRule,
    rule_of_code,
)
from letopis.store.database.faults import DISK_FULL_CODE, FaultClass, StoreFault
from letopis.store.errors import LetopisError

T = TypeVar("T")

MAX_ATTEMPTS: Final = 3
"""Of a transaction that inserts rows which another process may insert first."""
_IDENTIFIER: Final = r"[A-Za-z_][A-Za-z0-9_$]{0,62}"
_WHOLE_IDENTIFIER: Final = re.compile(_IDENTIFIER)

# By MariaDB error number. If the template quotes the value too, the name is at its end.
_MARIADB_NAMES: Final[Mapping[int, re.Pattern[str]]] = {
    1048: re.compile(rf"Column '(?P<column>{_IDENTIFIER})' cannot be null"),
    1062: re.compile(rf".* for key '(?:{_IDENTIFIER}\.)?(?P<constraint>{_IDENTIFIER})'", re.DOTALL),
    1364: re.compile(rf"Field '(?P<column>{_IDENTIFIER})' doesn't have a default value"),
    **dict.fromkeys((1264, 1265, 1406), re.compile(rf"[A-Z][a-z ]+ for column '(?P<column>{_IDENTIFIER})' at row \d+")),
    1366: re.compile(
        rf".* for column `{_IDENTIFIER}`\.`(?P<table>{_IDENTIFIER})`\.`(?P<column>{_IDENTIFIER})` at row \d+", re.DOTALL
    ),
    **dict.fromkeys(
        (1451, 1452),
        re.compile(
            rf"[A-Z][a-z ]+: a foreign key constraint fails \(`{_IDENTIFIER}`\.`(?P<table>{_IDENTIFIER})`,"
            rf" CONSTRAINT `(?P<constraint>{_IDENTIFIER})` FOREIGN KEY .*",
            re.DOTALL,
        ),
    ),
    4025: re.compile(
        rf"CONSTRAINT `(?:{_IDENTIFIER}\.)?(?P<constraint>{_IDENTIFIER})` failed for"
        rf" `{_IDENTIFIER}`\.`(?P<table>{_IDENTIFIER})`"
    ),
}
# By SQLite's extended result code name; a trigger's error has another one, with text of its own.
_SQLITE_NAMES: Final[Mapping[str, re.Pattern[str]]] = {
    "SQLITE_CONSTRAINT_NOTNULL": re.compile(
        rf"NOT NULL constraint failed: (?P<table>{_IDENTIFIER})\.(?P<column>{_IDENTIFIER})"
    ),
    "SQLITE_CONSTRAINT_CHECK": re.compile(rf"CHECK constraint failed: (?P<constraint>{_IDENTIFIER})"),
    **dict.fromkeys(
        ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"),
        re.compile(rf"UNIQUE constraint failed: (?P<table>{_IDENTIFIER})\.(?P<column>{_IDENTIFIER})(?:, .*)?"),
    ),
}
# For a value that is too long, PostgreSQL names only the type.
_TOO_LONG: Final = re.compile(r"value too long for type (?P<type>character(?: varying)?\(\d+\))")


@contextmanager
def translated(*, committing: bool = False) -> Iterator[None]:
    """Raise `StoreFault` in place of a database, driver or operating system error."""
    # Around the statements that run SQL and nothing else: any OSError in it is attributed to the store.
    try:
        yield
    except Exception as error:  # each driver has an error tree of its own; others pass unchanged
        if (fault := fault_of(error, committing=committing)) is error:
            raise
        raise fault from error


def fault_of(error: Exception, *, committing: bool = False) -> Exception:
    """Return the fault in whose place :func:`translated` raises an error, or the error itself."""
    if isinstance(error, LetopisError) or not _is_store_error(error):
        return error
    return classify(error, committing=committing)


async def repeat_on_conflict(transaction: Callable[[], Awaitable[T]], *, deadlocks: bool = False) -> T:
    """Return what a transaction returns, run again where another process inserted the same row first."""
    # ``deadlocks``: where it was rolled back for another one, too.
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return await transaction()
        except StoreFault as fault:
            if not (deadlocks and fault.fault_class is FaultClass.CONFLICT) and (
                not isinstance(fault.__cause__, exc.IntegrityError)
            ):
                raise
    return await transaction()


def classify(error: BaseException, *, committing: bool = False) -> StoreFault:
    """Return the fault that an error of a driver, of SQLAlchemy or of the system means. Pure; never raises."""
    # A bug is UNCLASSIFIED, with the name of its type as the code.
    if isinstance(error, StoreFault):
        return error
    code, rule = _look_up(error)
    if rule is UNCLASSIFIED and getattr(error, "connection_invalidated", False):
        code, rule = code or "disconnected", LOST
    if committing and rule.fault_class is FaultClass.UNAVAILABLE:
        rule = UNKNOWN_COMMIT
    name = _refusing_name(error) if rule in NAMING_RULES else ""
    return StoreFault(
        fault_class=rule.fault_class,
        code=code or type(_unwrapped(error)).__name__,
        reason=f"{rule.reason} ({name})" if name else rule.reason,
    )


MAX_TRIGGER_TEXT: Final = 200
"""Characters of a trigger's own text that a fault shows."""
_MARIADB_NO_SPACE: Final = re.compile(r"(?:error|errno|Errcode):? ?(?:28|122)\b", re.IGNORECASE)
"""The errors 3, 1026 and 1030 have the system's error number in their text only."""

_MYSQL_DRIVERS: Final = frozenset({"asyncmy", "pymysql", "aiomysql"})
_DRIVERS: Final = _MYSQL_DRIVERS | {"asyncpg", "sqlite3"}


def _is_store_error(error: Exception) -> bool:
    kinds = (exc.StatementError, exc.TimeoutError, exc.PendingRollbackError)
    return isinstance(error, kinds) or not _roots(error).isdisjoint(_DRIVERS) or _by_builtin(error) is not None


def _look_up(error: BaseException) -> tuple[str | None, FaultRule]:
    for candidate in _chain(error):
        known = _by_driver(candidate) or _by_text(candidate) or _by_builtin(candidate)
        if known is not None:
            code, rule = known
            if rule is CANNOT_OPEN_FILE and open_files.is_exhausted():
                rule = TOO_MANY_FILES  # SQLite says only that it cannot open the file
            return (DISK_FULL_CODE if rule is DISK_FULL else code), rule
    return _code_of(_unwrapped(error)), UNCLASSIFIED


def _refusing_name(error: BaseException) -> str:
    """Return the constraint or column that the database names as refusing; empty if it names none."""
    for candidate in _chain(error):
        roots, code = _roots(candidate), _code_of(candidate)
        if roots & _MYSQL_DRIVERS and code is not None:
            name = name_of_mariadb(int(code), candidate.args[1] if len(candidate.args) > 1 else None)
        elif "sqlite3" in roots and code is not None:
            name = _trigger_text(candidate) or name_of_sqlite(code, str(candidate))
        else:
            name = name_of_postgresql(candidate)
        if name:
            return name
    return ""


def _trigger_text(error: BaseException) -> str:
    """Return the words of an operator's trigger; only those that its definition holds, so never a value."""
    text = getattr(error, "letopis_trigger_text", None)
    return f"trigger: {text[:MAX_TRIGGER_TEXT]}" if isinstance(text, str) and text.isprintable() else ""


def _unwrapped(error: BaseException) -> BaseException:
    """Return the error that SQLAlchemy wrapped, or the error itself."""
    return error.orig if isinstance(error, exc.StatementError) and error.orig is not None else error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error without SQLAlchemy's wrapper, then the causes that its driver gives."""
    step: BaseException | None = error
    for _ in range(4):  # wrapper, adapter, driver, operating system; a cycle ends here too
        if isinstance(step, exc.StatementError):
            step = step.orig
            continue
        if step is None:
            return
        yield step
        # Causes of other errors say nothing about a database.
        step = step.__cause__ if _roots(step) & (_DRIVERS | {"sqlalchemy"}) else None


def _by_driver(error: BaseException) -> tuple[str, FaultRule] | None:
    roots = _roots(error)
    code = _code_of(error)
    if code in ("3", "1026", "1030") and roots & _MYSQL_DRIVERS and _MARIADB_NO_SPACE.search(str(error)):
        return code, DISK_FULL
    for kind in type(error).__mro__:
        if code is not None and kind.__name__ in CODE_BEFORE_TYPE:
            continue
        for root in roots:
            known = BY_DRIVER_TYPE.get((root, kind.__name__))
            if known is not None:
                return known
    if code is None:
        return None
    if roots & _MYSQL_DRIVERS:
        # 2003 is any failure before the server answered; the cause tells a typo from a wrong certificate.
        rule = None if code == "2003" and isinstance(error.__cause__, OSError) else BY_MARIADB_NUMBER.get(int(code))
    else:
        rule = rule_of_code(code)
    return None if rule is None else (code, rule)


def _code_of(error: BaseException) -> str | None:
    """Return the driver's code: error number, result code name or SQLSTATE."""
    roots = _roots(error)
    if roots & _MYSQL_DRIVERS:
        number = error.args[0] if error.args else None
        return str(number) if isinstance(number, int) else None
    if "sqlite3" in roots:
        return getattr(error, "sqlite_errorname", None)
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) and len(state) == 5 else None


def _by_text(error: BaseException) -> tuple[str, FaultRule] | None:
    """Look up cases by message text that no code tells apart."""
    # SQLite has one code for a missing table and a syntax error, and none for invalid UTF-8 or a closed connection;
    # asyncpg raises a bare ConnectionError if the server refuses TLS, and for a server that cannot answer at all.
    if type(error) is ConnectionError and "SSL" in str(error) and "error response" not in str(error):
        return "tls-refused", TLS_REFUSED
    if "sqlite3" not in _roots(error):
        return None
    code, text = _code_of(error), str(error)
    if code == "SQLITE_ERROR" and any(part in text for part in ("no such table", "no such column", "has no column")):
        return code, SCHEMA
    if code is None and "Could not decode to UTF-8" in text:
        return "undecodable", DAMAGED
    if code is None and ("no active connection" in text or "closed database" in text):
        return "closed", LOST
    return None


def _by_builtin(error: BaseException) -> tuple[str, FaultRule] | None:
    if type(error) is OSError and error.errno is not None:
        return errno.errorcode.get(error.errno, "os-error"), BY_ERRNO.get(error.errno, UNREACHABLE)
    if isinstance(error, ssl.SSLCertVerificationError):
        return BY_CERTIFICATE_ERROR.get(getattr(error, "verify_code", 0), ("tls", TLS))
    for kind, code, rule in BY_BUILTIN_TYPE:
        if isinstance(error, kind):
            return code, rule
    return None


def _roots(error: BaseException) -> frozenset[str]:
    """Return the top-level packages that define the error's class and its bases."""
    return frozenset(kind.__module__.partition(".")[0] for kind in type(error).__mro__)


def name_of_mariadb(number: int, message: object) -> str:
    """Return what an error of MariaDB names, in words, or ""."""
    return _match(_MARIADB_NAMES.get(number), message)


def name_of_sqlite(code: str, message: object) -> str:
    """Return what an error of SQLite names, in words, or ""."""
    return _match(_SQLITE_NAMES.get(code), message)


def name_of_postgresql(error: BaseException) -> str:
    """Return what an error of PostgreSQL names, in words, or ""."""
    fields = {kind: getattr(error, f"{kind}_name", None) for kind in ("constraint", "column", "table")}
    named = {kind: name for kind, name in fields.items() if isinstance(name, str) and _WHOLE_IDENTIFIER.fullmatch(name)}
    return _describe(named) or _match(_TOO_LONG, getattr(error, "message", None))


def _match(template: re.Pattern[str] | None, message: object) -> str:
    if template is None or not isinstance(message, str):
        return ""
    matched = template.fullmatch(message)
    return "" if matched is None else _describe(matched.groupdict())


def _describe(named: Mapping[str, str | None]) -> str:
    """Return ``column letopis_events.data`` or the like."""
    for kind in ("constraint", "column", "type"):
        if name := named.get(kind):
            table = named.get("table")
            return f"{kind} {table}.{name}" if table else f"{kind} {name}"
    return ""
