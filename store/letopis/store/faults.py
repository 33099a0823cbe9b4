"""Turn what drivers and the operating system raise into one fault with a class, a code and a sentence of ours.

The tables are keyed by SQLSTATE (PostgreSQL), error number (MariaDB), result code name (SQLite) or exception type.
Message text is read only where a driver gives no code of its own, and only in `_by_text`.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import exc

from letopis.store.errors import LetopisError


class FaultClass(StrEnum):
    """What a failure is about, which decides what happens next."""

    UNAVAILABLE = "unavailable"
    """The store cannot be used now. Scope: the store. Waiting mends it; no attempt is charged to anybody."""
    MISCONFIGURED = "misconfigured"
    """A person has to change something: schema, login, permission, disk. Scope: the store."""
    UNKNOWN_OUTCOME = "unknown_outcome"
    """The commit may have taken effect. Scope: the batch. Run it again; the apply is idempotent."""
    CONFLICT = "conflict"
    """Another transaction was in the way; this one was rolled back. Scope: the batch. Run it again at once."""
    POISON = "poison"
    """The data was refused and will be again. Scope: the event."""
    UNCLASSIFIED = "unclassified"
    """Not known. Whether other conversations get through decides if it is the event or the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What `classify` found.

    :ivar code: SQLSTATE, MariaDB error number, SQLite result code name, or a word such as ``refused``.
    :ivar reason: one sentence for people; never the driver's text, which may quote the data.
    """

    fault_class: FaultClass
    code: str
    reason: str


class StoreFault(LetopisError):
    """The history store failed.

    The text is ``<reason> [<class> <code>]`` and holds no driver text, parameter or secret. The original is kept as
    ``__cause__`` and may quote the data: log the text of the fault, not its traceback.
    """

    def __init__(self, *, fault_class: FaultClass, code: str, reason: str) -> None:
        super().__init__(f"{reason} [{fault_class} {code}]")
        self.fault_class = fault_class
        self.code = code
        self.reason = reason


@contextmanager
def translated(*, committing: bool = False) -> Iterator[None]:
    """Raise `StoreFault` in place of a database, driver or operating system error.

    Put it around the place where SQL runs, and nothing else: any ``OSError`` in it is taken for the store's.
    Cancellation, errors of ours and programming errors (``KeyError`` and the like) pass unchanged.

    :param committing: the block is the COMMIT: a connection that is lost in it leaves the outcome unknown.
    :raises StoreFault: chained to the original.
    """
    try:
        yield
    except LetopisError:
        raise
    except Exception as error:  # each driver has a tree of its own; what is not of a database goes on unchanged
        if not _is_of_a_store(error):
            raise
        found = classify(error, committing=committing)
        raise StoreFault(fault_class=found.fault_class, code=found.code, reason=found.reason) from error


def classify(error: BaseException, *, committing: bool = False) -> Diagnosis:
    """Say what an error of a driver, of SQLAlchemy or of the operating system means. Pure; never raises.

    An error that is not of a database (a bug) is UNCLASSIFIED, with the name of its type as the code.

    :param committing: the error came out of the COMMIT: UNAVAILABLE becomes UNKNOWN_OUTCOME.
    """
    if isinstance(error, StoreFault):
        return Diagnosis(fault_class=error.fault_class, code=error.code, reason=error.reason)
    code, rule = _look_up(error)
    if rule is _UNCLASSIFIED and getattr(error, "connection_invalidated", False):
        code, rule = code or "disconnected", _LOST
    if committing and rule.fault_class is FaultClass.UNAVAILABLE:
        rule = _IN_DOUBT
    return Diagnosis(fault_class=rule.fault_class, code=code or type(_unwrapped(error)).__name__, reason=rule.reason)


@dataclass(frozen=True, slots=True)
class _Rule:
    fault_class: FaultClass
    reason: str


def _unavailable(reason: str) -> _Rule:
    return _Rule(FaultClass.UNAVAILABLE, reason)


def _misconfigured(reason: str) -> _Rule:
    return _Rule(FaultClass.MISCONFIGURED, reason)


def _conflict(reason: str) -> _Rule:
    return _Rule(FaultClass.CONFLICT, reason)


def _poison(reason: str) -> _Rule:
    return _Rule(FaultClass.POISON, reason)


_AGAIN: Final = "it is tried again by itself"
_LOST = _unavailable(f"the connection to the history store was lost; {_AGAIN}")
_UNREACHABLE = _unavailable(f"the history store cannot be reached; {_AGAIN}; if it stays so, check host and port")
_NO_NAME = _unavailable(f"the host name of the history store cannot be resolved; {_AGAIN}; if it stays so, check it")
_SILENT = _unavailable(f"the history store did not answer in time; {_AGAIN}")
_GARBLED = _unavailable(f"the peer does not speak the protocol of the history store; {_AGAIN}; check host and port")
_STRANGE = _unavailable(f"the peer refuses the protocol; {_AGAIN}; behind PgBouncer add ?pgbouncer=true to the URL")
_STOPPING = _unavailable(f"the history store is starting or stopping; {_AGAIN}")
_CROWDED = _unavailable(f"the history store takes no more connections; {_AGAIN}; raise its limit if it stays so")
_POOL_EMPTY = _unavailable(f"all connections of this process are in use; {_AGAIN}")
_NO_FILES = _unavailable(f"too many files and connections are open here; {_AGAIN}; raise the limit if it stays so")
_SLOW = _unavailable(f"the history store took too long and the statement was cancelled; {_AGAIN}")
_READ_ONLY = _unavailable(f"the history store is read-only, as after a failover; {_AGAIN} on a new connection")
_FULL = _unavailable(f"the history store is out of disk or memory: free some; {_AGAIN}")
_IO = _unavailable(f"the history store cannot read or write its files: check its disk; {_AGAIN}")
_FILE_LOCKED = _unavailable(f"another process holds the lock on the history store's file; {_AGAIN}")
_LOGIN = _misconfigured("the history store refuses the login: check user and password")
_NO_DATABASE = _misconfigured("the history store's database does not exist: create it, or mend the URL")
_SCHEMA = _misconfigured("a table or column is missing or differs: run `letopis db upgrade`")
_NO_PRIVILEGE = _misconfigured("the database user may not do this: grant it the right")
_TLS = _misconfigured("TLS with the history store failed: check certificates and the TLS options of the URL")
_TLS_REFUSED = _misconfigured("the peer refuses TLS, or is no PostgreSQL: check host, port and the URL's sslmode")
_OPTIONS = _misconfigured("the server or the driver refuses a connection option: check the URL")
_POOLER = _misconfigured("prepared statements get lost, as behind a pooler: add ?pgbouncer=true to the URL")
_SERVER = _misconfigured(
    "the server does not know a setting that Letopis needs: check that it is MariaDB, and not too old"
)
_DAMAGED = _misconfigured("the history store's files are damaged: restore them from a backup")
_FILE_PLACE = _misconfigured("the history store's file cannot be opened: check its path, its folder and permissions")
_FILE_READ_ONLY = _misconfigured("the history store's file may not be written: check its permissions")
_IN_DOUBT = _Rule(
    FaultClass.UNKNOWN_OUTCOME, "whether the commit took effect is not known; it is run again, which is safe"
)
_RACE = _conflict("another transaction was in the way and this one was rolled back; it is run again")
_ROWS_LOCKED = _conflict("another transaction holds the same rows for too long; this one is run again")
_STALE = _conflict("the schema changed under a prepared statement; it is run again")
_REFUSED_VALUE = _poison("the history store cannot keep a value of the event: wrong type, range, encoding or length")
_CONSTRAINT = _poison("the event breaks a constraint of the history store")
_TOO_BIG = _poison("the event is too big or too complex for the history store")
_UNCLASSIFIED = _Rule(FaultClass.UNCLASSIFIED, "an error that Letopis does not know")

# By SQLSTATE: exact codes first, then the class, its first two characters.
_SQLSTATE: Final[Mapping[str, _Rule]] = {
    "08": _LOST,
    "08001": _UNREACHABLE,
    "08004": _UNREACHABLE,
    "08007": _IN_DOUBT,
    "08P01": _STRANGE,
    "0A": _misconfigured("the server lacks a feature that Letopis needs: check that it is not too old"),
    "22": _REFUSED_VALUE,
    "23": _CONSTRAINT,
    "25006": _READ_ONLY,
    "25P03": _LOST,
    "25P04": _SLOW,
    "26000": _POOLER,
    "28": _LOGIN,
    "3D000": _NO_DATABASE,
    "3F000": _SCHEMA,
    "40": _RACE,
    "40002": _CONSTRAINT,
    "40003": _IN_DOUBT,
    "42501": _NO_PRIVILEGE,
    "42703": _SCHEMA,
    "42704": _SCHEMA,
    "42804": _SCHEMA,
    "42883": _SCHEMA,
    "42P01": _SCHEMA,
    "42P05": _POOLER,
    "42P10": _SCHEMA,
    "53": _FULL,
    "53300": _CROWDED,
    "54": _TOO_BIG,
    "55000": _STOPPING,
    "55006": _STOPPING,
    "55P02": _OPTIONS,
    "55P03": _ROWS_LOCKED,
    "57014": _SLOW,
    "57P01": _STOPPING,
    "57P02": _STOPPING,
    "57P03": _STOPPING,
    "57P04": _NO_DATABASE,
    "57P05": _LOST,
    "58": _IO,
    "72000": _RACE,
    "F0": _OPTIONS,
    "P0001": _CONSTRAINT,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}

# By MariaDB error number; those from 2000 to 2999 are the client library's own.
_MARIADB: Final[Mapping[int, _Rule]] = {
    0: _LOST,  # "not connected", as the drivers number it
    **dict.fromkeys((1927, 2006, 2012, 2013, 2014, 2027, 2055, 4031), _LOST),
    **dict.fromkeys((1152, 1158, 1159, 1160, 1161, 1184), _LOST),
    **dict.fromkeys((2002, 2003), _UNREACHABLE),
    2005: _NO_NAME,
    **dict.fromkeys((1047, 1053, 1077, 1079, 1080), _STOPPING),  # 1047: a Galera node that is not in sync
    **dict.fromkeys((1040, 1203, 1226), _CROWDED),
    **dict.fromkeys((1317, 1969, 3024), _SLOW),
    **dict.fromkeys((1290, 1792, 1836), _READ_ONLY),
    **dict.fromkeys((1021, 1037, 1038, 1041, 1114), _FULL),
    **dict.fromkeys((1023, 1024, 1025, 1026, 1030), _IO),
    **dict.fromkeys((1180, 1181), _IN_DOUBT),
    **dict.fromkeys((1020, 1213, 1614), _RACE),
    **dict.fromkeys((1412, 1615), _STALE),
    1205: _ROWS_LOCKED,
    **dict.fromkeys((1044, 1045, 1129, 1130, 1251, 1275, 1698, 1820, 1862, 2054, 2059, 2061), _LOGIN),
    **dict.fromkeys((1046, 1049), _NO_DATABASE),
    **dict.fromkeys((1142, 1143, 1227, 1370, 1410), _NO_PRIVILEGE),
    **dict.fromkeys((1051, 1054, 1109, 1136, 1146, 1305, 1364, 1932), _SCHEMA),
    **dict.fromkeys((1115, 1193, 1231, 1273), _SERVER),
    **dict.fromkeys((145, 1034, 1035, 1194, 1195, 1712), _DAMAGED),
    2026: _TLS,
    **dict.fromkeys((1048, 1062, 1169, 1216, 1217, 1451, 1452, 1586, 1644, 4025), _CONSTRAINT),
    **dict.fromkeys((1264, 1265, 1292, 1300, 1366, 1367, 1406, 1411, 1690, 4038, 4079), _REFUSED_VALUE),
    **dict.fromkeys((1118, 1153, 1162, 1301, 2020), _TOO_BIG),
}

# By SQLite's extended result code name, then by the name without its last part.
_SQLITE: Final[Mapping[str, _Rule]] = {
    "SQLITE_BUSY": _FILE_LOCKED,
    "SQLITE_BUSY_SNAPSHOT": _RACE,
    "SQLITE_LOCKED": _FILE_LOCKED,
    "SQLITE_PROTOCOL": _FILE_LOCKED,
    "SQLITE_SCHEMA": _STALE,
    "SQLITE_INTERRUPT": _SLOW,
    "SQLITE_FULL": _FULL,
    "SQLITE_NOMEM": _FULL,
    "SQLITE_IOERR": _IO,
    "SQLITE_NOLFS": _FULL,
    "SQLITE_CANTOPEN": _FILE_PLACE,
    "SQLITE_PERM": _FILE_PLACE,
    "SQLITE_AUTH": _FILE_PLACE,
    "SQLITE_READONLY": _FILE_READ_ONLY,
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_NOTADB": _misconfigured("the file of the history store is not an SQLite database: check the URL"),
    "SQLITE_CONSTRAINT": _CONSTRAINT,
    "SQLITE_MISMATCH": _REFUSED_VALUE,
    "SQLITE_TOOBIG": _TOO_BIG,
}

# Driver exceptions that carry no code of their own, or whose type says more than their code does.
_DRIVER_TYPES: Final[Mapping[tuple[str, str], tuple[str, _Rule]]] = {
    ("asyncpg", "InvalidCachedStatementError"): ("cached-statement", _STALE),
    ("asyncpg", "OutdatedSchemaCacheError"): ("cached-statement", _STALE),
    ("asyncpg", "DataError"): ("client-data", _REFUSED_VALUE),
    ("asyncpg", "TargetServerAttributeNotMatched"): ("no-matching-server", _READ_ONLY),
    ("asyncpg", "ClientConfigurationError"): ("client-configuration", _OPTIONS),
    ("asyncpg", "UnsupportedClientFeatureError"): ("client-configuration", _OPTIONS),
    ("asyncpg", "UnsupportedServerFeatureError"): ("client-configuration", _OPTIONS),
    ("asyncpg", "ProtocolError"): ("protocol", _GARBLED),
    ("asyncmy", "InternalError"): ("protocol", _GARBLED),
    ("asyncmy", "InterfaceError"): ("not-connected", _LOST),
    ("pymysql", "InternalError"): ("protocol", _GARBLED),
    ("pymysql", "InterfaceError"): ("not-connected", _LOST),
    ("sqlalchemy", "InvalidCachedStatementError"): ("cached-statement", _STALE),
    ("sqlalchemy", "PendingRollbackError"): ("disconnected", _LOST),
}
# asyncpg's own DataError is client-side and has no SQLSTATE; the server's one does, and is found by it.
_CODE_SAYS_MORE: Final = frozenset({"DataError", "InternalError", "InterfaceError"})

_BUILTIN: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, _Rule], ...]] = (
    # SQLAlchemy's TimeoutError is its pool's; a database's own is the builtin one.
    (exc.TimeoutError, "pool-timeout", _POOL_EMPTY),
    (TimeoutError, "timeout", _SILENT),
    (ConnectionRefusedError, "refused", _UNREACHABLE),
    # TLS that ends without a farewell is a lost connection, not a wrong certificate.
    ((ConnectionError, EOFError, ssl.SSLEOFError, ssl.SSLZeroReturnError), "disconnected", _LOST),
    (socket.gaierror, "name-resolution", _NO_NAME),
    (ssl.SSLError, "tls", _TLS),
    (FileNotFoundError, "no-socket", _UNREACHABLE),
    (PermissionError, "permission", _FILE_PLACE),
    (OSError, "os-error", _UNREACHABLE),
    (UnicodeEncodeError, "encoding", _REFUSED_VALUE),
    (OverflowError, "overflow", _REFUSED_VALUE),
)

# Plain OSErrors that are not about the network.
_ERRNO: Final[Mapping[int, _Rule]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EIO: _IO,
    errno.EROFS: _FILE_READ_ONLY,
    errno.EMFILE: _NO_FILES,
    errno.ENFILE: _NO_FILES,
}

_MYSQL_DRIVERS: Final = frozenset({"asyncmy", "pymysql", "aiomysql"})
_DRIVERS: Final = _MYSQL_DRIVERS | {"asyncpg", "sqlite3"}


def _is_of_a_store(error: Exception) -> bool:
    kinds = (exc.StatementError, exc.TimeoutError, exc.PendingRollbackError)
    return isinstance(error, kinds) or not _roots(error).isdisjoint(_DRIVERS) or _by_builtin(error) is not None


def _look_up(error: BaseException) -> tuple[str | None, _Rule]:
    for candidate in _chain(error):
        found = _by_driver(candidate) or _by_text(candidate) or _by_builtin(candidate)
        if found is not None:
            return found
    return _code_of(_unwrapped(error)), _UNCLASSIFIED


def _unwrapped(error: BaseException) -> BaseException:
    """What SQLAlchemy wrapped, if it did."""
    return error.orig if isinstance(error, exc.StatementError) and error.orig is not None else error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, or what SQLAlchemy wrapped in it, then what its driver says caused it."""
    step: BaseException | None = error
    for _ in range(4):  # wrapper, adapter, driver, operating system; a cycle ends here too
        if isinstance(step, exc.StatementError):
            step = step.orig
            continue
        if step is None:
            return
        yield step
        # The cause of an error that is not a driver's says nothing about a database.
        step = step.__cause__ if _roots(step) & (_DRIVERS | {"sqlalchemy"}) else None


def _by_driver(error: BaseException) -> tuple[str, _Rule] | None:
    roots = _roots(error)
    code = _code_of(error)
    for kind in type(error).__mro__:
        if code is not None and kind.__name__ in _CODE_SAYS_MORE:
            continue
        for root in roots:
            found = _DRIVER_TYPES.get((root, kind.__name__))
            if found is not None:
                return found
    if code is None:
        return None
    if roots & _MYSQL_DRIVERS:
        # 2003 is whatever went wrong before the server said a word; the cause tells a typo from a wrong certificate.
        rule = None if code == "2003" and isinstance(error.__cause__, OSError) else _MARIADB.get(int(code))
    elif code.startswith("SQLITE_"):
        rule = _SQLITE.get(code) or _SQLITE.get(code.rsplit("_", 1)[0])
    else:
        rule = _SQLSTATE.get(code) or _SQLSTATE.get(code[:2])
    return None if rule is None else (code, rule)


def _code_of(error: BaseException) -> str | None:
    """The code a driver gives: error number, result code name or SQLSTATE."""
    roots = _roots(error)
    if roots & _MYSQL_DRIVERS:
        number = error.args[0] if error.args else None
        return str(number) if isinstance(number, int) else None
    if "sqlite3" in roots:
        return getattr(error, "sqlite_errorname", None)
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) and len(state) == 5 else None


def _by_text(error: BaseException) -> tuple[str, _Rule] | None:
    """Where no code tells cases apart that need different treatment.

    SQLite has one code for a missing table and for a syntax error, and none at all when Python finds text that is no
    UTF-8 or a closed connection; asyncpg raises a bare ``ConnectionError`` when the server refuses TLS.
    """
    if type(error) is ConnectionError and "SSL" in str(error):
        return "tls-refused", _TLS_REFUSED
    if "sqlite3" not in _roots(error):
        return None
    code, text = _code_of(error), str(error)
    if code == "SQLITE_ERROR" and any(part in text for part in ("no such table", "no such column", "has no column")):
        return code, _SCHEMA
    if code is None and "Could not decode to UTF-8" in text:
        return "undecodable", _DAMAGED
    if code is None and ("no active connection" in text or "closed database" in text):
        return "closed", _LOST
    return None


def _by_builtin(error: BaseException) -> tuple[str, _Rule] | None:
    if type(error) is OSError and error.errno is not None:
        return errno.errorcode.get(error.errno, "os-error"), _ERRNO.get(error.errno, _UNREACHABLE)
    for kind, code, rule in _BUILTIN:
        if isinstance(error, kind):
            return code, rule
    return None


def _roots(error: BaseException) -> frozenset[str]:
    """The top-level packages that the error's class and its bases come from."""
    return frozenset(kind.__module__.partition(".")[0] for kind in type(error).__mro__)
