"""Tell what each error code and exception type of a database, driver or operating system means."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import exc

from letopis.store.database.faults import POOL_TIMEOUT_CODE, FaultClass


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One kind of failure."""

    fault_class: FaultClass
    reason: str


_unavailable = partial(FaultRule, FaultClass.UNAVAILABLE)
_misconfigured = partial(FaultRule, FaultClass.MISCONFIGURED)
_conflict = partial(FaultRule, FaultClass.CONFLICT)
_poison = partial(FaultRule, FaultClass.POISON)

LOST = _unavailable("the connection to the history store was lost")
HUNG_UP = _unavailable(
    "the connection to the history store was lost: if one large event always causes it, raise the server's"
    " max_allowed_packet"
)
UNREACHABLE = _unavailable("the history store cannot be reached: if this persists, check host and port")
UNRESOLVED = _unavailable("the host name of the history store cannot be resolved: if this persists, check it")
NO_ANSWER = _unavailable("the history store did not answer in time")
GARBLED = _unavailable("the peer does not speak the protocol of the history store: check host and port")
PROTOCOL_REFUSED = _unavailable("the peer refuses the protocol: behind PgBouncer add ?pgbouncer=true to the URL")
STOPPING = _unavailable("the history store is starting or stopping")
TOO_MANY_CONNECTIONS = _unavailable("the history store accepts no more connections: raise its limit if this persists")
POOL_EMPTY = _conflict("all connections of this process are in use")
TOO_MANY_FILES = _unavailable("too many files and connections are open here: raise the limit if this persists")
SLOW = _unavailable("the history store took too long and the statement was cancelled")
READ_ONLY = _unavailable("the history store is read-only, as after a failover")
OUT_OF_RESOURCES = _unavailable("the history store is out of memory or another resource: free some")
DISK_FULL = _misconfigured("the disk of the history store is full: free space or extend it")
IO = _unavailable("the history store cannot read or write its files: check its disk")
FILE_LOCKED = _unavailable("another process holds the lock on the history store's file")
LOGIN = _misconfigured("the history store refuses the login: check user and password")
NO_DATABASE = _misconfigured("the history store's database does not exist: create it, or correct the URL")
SCHEMA = _misconfigured("a table or column is missing or differs: run `letopis db upgrade`")
NO_CONSTRAINT = _misconfigured("a unique constraint is missing, as on a foreign table: create it, on a shard too")
NO_PRIVILEGE = _misconfigured("the database user may not do this: grant it the right")
TLS = _misconfigured("TLS with the history store failed: check certificates and the TLS options of the URL")
TLS_UNTRUSTED = _misconfigured(
    "the history store's certificate is not signed by a trusted authority: correct the URL's sslrootcert (ssl_ca)"
)
TLS_EXPIRED = _misconfigured("the history store's certificate has expired: renew it on the server")
TLS_NOT_YET = _misconfigured("the history store's certificate is not valid yet: check the clocks, or the certificate")
TLS_HOST = _misconfigured(
    "the history store's certificate is for another host name: use that name in the URL, or replace the certificate"
)
TLS_REFUSED = _misconfigured("the peer refuses TLS, or is not PostgreSQL: check host, port and the URL's sslmode")
OPTIONS = _misconfigured("the server or the driver refuses a connection option: check the URL")
POOLER = _misconfigured("prepared statements are lost, as behind a pooler: add ?pgbouncer=true to the URL")
UNKNOWN_SETTING = _misconfigured(
    "the server does not know a setting that Letopis needs: check that it is MariaDB, and not too old"
)
DAMAGED = _misconfigured("the history store's files are damaged: restore them from a backup")
CANNOT_OPEN_FILE = _misconfigured(
    "the history store's file cannot be opened: check its path, its folder and permissions"
)
FILE_READ_ONLY = _misconfigured("the history store's file may not be written: check its permissions")
UNKNOWN_COMMIT = FaultRule(
    FaultClass.UNKNOWN_OUTCOME, "whether the commit took effect is not known: run it again, which is safe"
)
RACE = _conflict("another transaction conflicted with this one, which was rolled back: run it again")
ROWS_LOCKED = _conflict("another transaction holds the same rows for too long; this one was rolled back: run it again")
STALE = _conflict("the schema changed under a prepared statement: run it again")
REFUSED_VALUE = _poison("the history store cannot store a value of the event: wrong type, range, encoding or length")
CONSTRAINT = _poison("the event breaks a constraint of the history store")
TOO_BIG = _poison("the event is too large or too complex for the history store")
PACKET_TOO_BIG = _poison("the event is larger than the server's max_allowed_packet: raise that setting")
UNCLASSIFIED = FaultRule(FaultClass.UNCLASSIFIED, "an error that Letopis does not know")

# The database usually names what refused the event.
NAMING_RULES: Final = frozenset({SCHEMA, REFUSED_VALUE, CONSTRAINT})

# By SQLSTATE: exact codes first, then the class, its first two characters.
BY_SQLSTATE: Final[Mapping[str, FaultRule]] = {
    **dict.fromkeys(("08", "25P03", "57P05"), LOST),
    **dict.fromkeys(("08001", "08004"), UNREACHABLE),
    **dict.fromkeys(("08007", "40003"), UNKNOWN_COMMIT),
    "08P01": PROTOCOL_REFUSED,
    "0A": _misconfigured(
        "the server lacks a feature that Letopis needs: check that it is not too old, and remove rules on its tables"
    ),
    "22": REFUSED_VALUE,
    **dict.fromkeys(("23", "40002", "P0001"), CONSTRAINT),
    "25006": READ_ONLY,
    **dict.fromkeys(("25P04", "57014"), SLOW),
    **dict.fromkeys(("26000", "42P05"), POOLER),
    "28": LOGIN,
    **dict.fromkeys(("3D000", "57P04"), NO_DATABASE),
    **dict.fromkeys(("3F000", "42703", "42704", "42804", "42883", "42P01"), SCHEMA),
    "42P10": NO_CONSTRAINT,
    **dict.fromkeys(("40", "72000"), RACE),
    "42501": NO_PRIVILEGE,
    "53": OUT_OF_RESOURCES,
    "53100": DISK_FULL,
    "53300": TOO_MANY_CONNECTIONS,
    "54": TOO_BIG,
    **dict.fromkeys(("55000", "55006", "57P01", "57P02", "57P03"), STOPPING),
    **dict.fromkeys(("55P02", "F0"), OPTIONS),
    "55P03": ROWS_LOCKED,
    "58": IO,
    **dict.fromkeys(("XX001", "XX002"), DAMAGED),
}

# By MariaDB error number; 2000 to 2999 are the client library's own.
BY_MARIADB_NUMBER: Final[Mapping[int, FaultRule]] = {
    0: LOST,  # "not connected", as the drivers number it
    **dict.fromkeys((1927, 2012, 2014, 2027, 2055, 4031), LOST),
    **dict.fromkeys((2006, 2013), HUNG_UP),
    **dict.fromkeys((1152, 1158, 1159, 1160, 1161, 1184), LOST),
    **dict.fromkeys((2002, 2003), UNREACHABLE),
    2005: UNRESOLVED,
    **dict.fromkeys((1047, 1053, 1077, 1079, 1080), STOPPING),  # 1047: a Galera node that is not in sync
    **dict.fromkeys((1040, 1203, 1226), TOO_MANY_CONNECTIONS),
    **dict.fromkeys((1317, 1969, 3024), SLOW),
    **dict.fromkeys((1290, 1792, 1836), READ_ONLY),
    **dict.fromkeys((1021, 1114), DISK_FULL),
    **dict.fromkeys((1037, 1038, 1041), OUT_OF_RESOURCES),
    **dict.fromkeys((1023, 1024, 1025, 1026, 1030), IO),
    **dict.fromkeys((1180, 1181), UNKNOWN_COMMIT),
    **dict.fromkeys((1020, 1213, 1614), RACE),
    **dict.fromkeys((1412, 1615), STALE),
    1205: ROWS_LOCKED,
    **dict.fromkeys((1044, 1045, 1129, 1130, 1251, 1275, 1698, 1820, 1862, 2054, 2059, 2061), LOGIN),
    **dict.fromkeys((1046, 1049), NO_DATABASE),
    **dict.fromkeys((1142, 1143, 1227, 1370, 1410), NO_PRIVILEGE),
    **dict.fromkeys((1051, 1054, 1109, 1136, 1146, 1305, 1364, 1932), SCHEMA),
    **dict.fromkeys((1115, 1193, 1231, 1273), UNKNOWN_SETTING),
    **dict.fromkeys((145, 1034, 1035, 1194, 1195, 1712), DAMAGED),
    2026: TLS,
    **dict.fromkeys((1048, 1062, 1169, 1216, 1217, 1451, 1452, 1586, 1644, 4025), CONSTRAINT),
    **dict.fromkeys((1264, 1265, 1292, 1300, 1366, 1367, 1406, 1411, 1690, 4038, 4079), REFUSED_VALUE),
    **dict.fromkeys((1118, 1162), TOO_BIG),
    **dict.fromkeys((1153, 1301, 2020), PACKET_TOO_BIG),
}

# By SQLite's extended result code name, then by the name without its last part.
BY_SQLITE_NAME: Final[Mapping[str, FaultRule]] = {
    **dict.fromkeys(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"), FILE_LOCKED),
    "SQLITE_BUSY_SNAPSHOT": RACE,
    "SQLITE_SCHEMA": STALE,
    "SQLITE_INTERRUPT": SLOW,
    **dict.fromkeys(("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"), DISK_FULL),
    **dict.fromkeys(("SQLITE_NOMEM", "SQLITE_NOLFS"), OUT_OF_RESOURCES),
    "SQLITE_IOERR": IO,
    **dict.fromkeys(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH"), CANNOT_OPEN_FILE),
    "SQLITE_READONLY": FILE_READ_ONLY,
    "SQLITE_CORRUPT": DAMAGED,
    "SQLITE_NOTADB": _misconfigured("the file of the history store is not an SQLite database: check the URL"),
    "SQLITE_CONSTRAINT": CONSTRAINT,
    "SQLITE_MISMATCH": REFUSED_VALUE,
    "SQLITE_TOOBIG": TOO_BIG,
}

# Driver exceptions without a code, or whose type says more than their code does.
BY_DRIVER_TYPE: Final[Mapping[tuple[str, str], tuple[str, FaultRule]]] = {
    ("asyncpg", "InvalidCachedStatementError"): ("cached-statement", STALE),
    ("asyncpg", "OutdatedSchemaCacheError"): ("cached-statement", STALE),
    ("asyncpg", "DataError"): ("client-data", REFUSED_VALUE),
    ("asyncpg", "TargetServerAttributeNotMatched"): ("no-matching-server", READ_ONLY),
    ("asyncpg", "ClientConfigurationError"): ("client-configuration", OPTIONS),
    ("asyncpg", "UnsupportedClientFeatureError"): ("client-configuration", OPTIONS),
    ("asyncpg", "UnsupportedServerFeatureError"): ("client-configuration", OPTIONS),
    ("asyncpg", "ProtocolError"): ("protocol", GARBLED),
    # The plain class comes of a connection that is cut in the middle of an answer, as when its server is killed.
    ("asyncpg", "InternalClientError"): ("cut-off", LOST),
    # Not its subclasses above: the connection is closed, or still has the answer to another statement to come.
    ("asyncpg", "InterfaceError"): ("not-connected", LOST),
    ("asyncmy", "InternalError"): ("protocol", GARBLED),
    ("asyncmy", "InterfaceError"): ("not-connected", LOST),
    ("pymysql", "InternalError"): ("protocol", GARBLED),
    ("pymysql", "InterfaceError"): ("not-connected", LOST),
    ("sqlalchemy", "InvalidCachedStatementError"): ("cached-statement", STALE),
    ("sqlalchemy", "PendingRollbackError"): ("disconnected", LOST),
}
# asyncpg's own DataError is client-side and has no SQLSTATE; the server's has one, and is found by it.
CODE_BEFORE_TYPE: Final = frozenset({"DataError", "InternalError", "InterfaceError"})

BY_BUILTIN_TYPE: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, FaultRule], ...]] = (
    # SQLAlchemy's TimeoutError is its pool's; a database's own is the builtin one.
    (exc.TimeoutError, POOL_TIMEOUT_CODE, POOL_EMPTY),
    (TimeoutError, "timeout", NO_ANSWER),
    (ConnectionRefusedError, "refused", UNREACHABLE),
    # TLS that ends without a closing alert is a lost connection, not a wrong certificate.
    ((ConnectionError, EOFError, ssl.SSLEOFError, ssl.SSLZeroReturnError), "disconnected", LOST),
    (socket.gaierror, "name-resolution", UNRESOLVED),
    (ssl.SSLError, "tls", TLS),
    (FileNotFoundError, "no-socket", UNREACHABLE),
    (PermissionError, "permission", CANNOT_OPEN_FILE),
    (OSError, "os-error", UNREACHABLE),
    (UnicodeEncodeError, "encoding", REFUSED_VALUE),
    (OverflowError, "overflow", REFUSED_VALUE),
)

# Plain OSErrors that are not about the network.
BY_ERRNO: Final[Mapping[int, FaultRule]] = {
    errno.ENOSPC: DISK_FULL,
    errno.EDQUOT: DISK_FULL,
    errno.EIO: IO,
    errno.EROFS: FILE_READ_ONLY,
    errno.EMFILE: TOO_MANY_FILES,
    errno.ENFILE: TOO_MANY_FILES,
}

# By OpenSSL's error for a certificate; all others are `TLS`.
BY_CERTIFICATE_ERROR: Final[Mapping[int, tuple[str, FaultRule]]] = {
    **dict.fromkeys((2, 18, 19, 20, 21), ("tls-untrusted", TLS_UNTRUSTED)),
    9: ("tls-not-yet-valid", TLS_NOT_YET),
    10: ("tls-expired", TLS_EXPIRED),
    **dict.fromkeys((62, 64), ("tls-host", TLS_HOST)),
}


def rules() -> frozenset[FaultRule]:
    """Return every kind of failure that is known."""
    return frozenset(
        (
            *(rule for rule in globals().values() if isinstance(rule, FaultRule)),
            *BY_SQLSTATE.values(),
            *BY_MARIADB_NUMBER.values(),
            *BY_SQLITE_NAME.values(),
            *(rule for _, rule in BY_DRIVER_TYPE.values()),
            *(rule for _, _, rule in BY_BUILTIN_TYPE),
            *BY_ERRNO.values(),
            *(rule for _, rule in BY_CERTIFICATE_ERROR.values()),
        )
    )


def rule_of_code(code: str) -> FaultRule | None:
    """Return what the code of a fault means, as its text shows it; ``None`` for a code that is in no table."""
    if (rule := _BY_WORD.get(code)) is not None:
        return rule
    if code.startswith("SQLITE_"):
        return BY_SQLITE_NAME.get(code) or BY_SQLITE_NAME.get(code.rsplit("_", 1)[0])
    if len(code) == _SQLSTATE_LENGTH:
        return BY_SQLSTATE.get(code) or BY_SQLSTATE.get(code[:2])
    return BY_MARIADB_NUMBER.get(int(code)) if code.isascii() and code.isdigit() else None


_SQLSTATE_LENGTH: Final = 5
_BY_WORD: Final[Mapping[str, FaultRule]] = {
    **dict(BY_DRIVER_TYPE.values()),
    **{code: rule for _, code, rule in BY_BUILTIN_TYPE},
    **dict(BY_CERTIFICATE_ERROR.values()),
    **{errno.errorcode[number]: rule for number, rule in BY_ERRNO.items()},
    "disk-full": DISK_FULL,
    "tls-refused": TLS_REFUSED,
    "undecodable": DAMAGED,
    "closed": LOST,
}
