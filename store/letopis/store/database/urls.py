"""Parse database URLs as users write them, and render them without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url

from letopis.store.database.hosts import HostAddress, addresses_of, show_hosts, split_hosts, with_addresses
from letopis.store.errors import ConfigurationError

MAX_CONNECTIONS: Final = 1024
POSTGRESQL: Final = "postgresql+asyncpg"
MARIADB: Final = "mariadb+asyncmy"
SQLITE: Final = "sqlite+aiosqlite"

ACCEPTED_URLS: Final = (
    "accepted are postgresql://user@host/database, mariadb://user@host/database, sqlite:///history.db, "
    "and the path of an SQLite file"
)

_DRIVERNAMES: Final[Mapping[str, str]] = {
    "postgresql": POSTGRESQL,
    "postgres": POSTGRESQL,
    "mysql": MARIADB,
    "mariadb": MARIADB,
    "sqlite": SQLITE,
}
DEFAULT_PORTS: Final[Mapping[str, int]] = {POSTGRESQL: 5432, MARIADB: 3306}

_SECRET: Final = re.compile(r"passw|pwd|secret|token", re.IGNORECASE)
_SERVER_LIKE: Final = re.compile(r"^[^/\\]{2,}:\d+(/|$)|^[^/\\]*:[^/\\]*@")


SESSION_TARGETS: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")

MAX_FILE_NAME_BYTES: Final = 255
"""Longest name on common file systems."""


def normalise_url(url: str | URL | os.PathLike[str], *, allow_memory: bool = False) -> URL:
    """Return the URL with its async driver and one spelling of its options. Idempotent; accesses no file or server."""
    # The path of an SQLite file becomes absolute, so that a change of the working folder does not open another file.
    # Unknown options are refused, since a driver would ignore them or fail.
    parsed = _parsed(url)
    backend = parsed.get_backend_name()
    if backend not in _DRIVERNAMES:
        raise ConfigurationError(f"{backend[:30]!r} is not a supported kind of database: {ACCEPTED_URLS}")
    drivername = _DRIVERNAMES[backend]
    if drivername == SQLITE:
        return _sqlite(parsed, allow_memory=allow_memory)
    parsed = _with_login_from_query(parsed)
    if not parsed.database:
        raise ConfigurationError(f"the URL {safe_url(parsed)} names no database: {ACCEPTED_URLS}")
    rules = _POSTGRESQL_OPTIONS if drivername == POSTGRESQL else _MARIADB_OPTIONS
    addresses = addresses_of(parsed)
    if drivername == MARIADB and ("unix_socket" in parsed.query or "socket" in parsed.query) and len(addresses) > 1:
        raise ConfigurationError("the URL gives a unix_socket and several hosts: give one of them")
    if drivername == MARIADB and any(address.is_socket for address in addresses):
        raise ConfigurationError("the URL gives the path of a socket as its host: give it as unix_socket")
    parsed = with_addresses(parsed, addresses, DEFAULT_PORTS[drivername])
    return parsed.set(drivername=drivername, query=_options(parsed, rules))


def hosts_of(url: str | URL | os.PathLike[str]) -> tuple[HostAddress, ...]:
    """Return the addresses of a URL in its order, each with its port."""
    # Empty for SQLite, and for a PostgreSQL URL without a host, which the driver takes from PGHOST or a local socket.
    url = normalise_url(url, allow_memory=True)
    if url.drivername == SQLITE:
        return ()
    if socket := url.query.get("unix_socket"):
        return (HostAddress(str(socket), None),)
    port = DEFAULT_PORTS[url.drivername]
    addresses = tuple(HostAddress(address.host, address.port or port) for address in addresses_of(url))
    return addresses or ((HostAddress("localhost", url.port or port),) if url.drivername == MARIADB else ())


def safe_url(url: str | URL | os.PathLike[str]) -> str:
    """Return the URL with masked passwords, also among its options."""
    # An unreadable URL is not shown at all, since a secret could be anywhere in it.
    try:
        parsed = _parsed(url)
    except ConfigurationError:
        return "<unreadable URL>"
    query = {key: "***" if _SECRET.search(key) else value for key, value in parsed.query.items()}
    # A path may hold bytes that are not UTF-8.
    database = None if parsed.database is None else parsed.database.encode("utf-8", "backslashreplace").decode("utf-8")
    shown = parsed.set(drivername=parsed.get_backend_name(), database=database, query=query)
    port = DEFAULT_PORTS.get(_DRIVERNAMES.get(parsed.get_backend_name(), ""))
    try:
        addresses = () if port is None else addresses_of(parsed)
    except ConfigurationError:
        return "<unreadable URL>"
    if port is None or len(addresses) < 2:
        return shown.render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
    bare = shown.set(query={key: value for key, value in shown.query.items() if key not in ("host", "port")})
    return show_hosts(bare, [HostAddress(address.host, address.port or port) for address in addresses])


def _parsed(url: str | URL | os.PathLike[str]) -> URL:
    if isinstance(url, URL):
        return url
    if isinstance(url, str):
        text = url.strip()
        if not text:
            raise ConfigurationError(f"the database URL is empty: {ACCEPTED_URLS}")
        if "://" in text:
            return _from_text(text)
        if text.lower().startswith(("sqlite:", "file:", "postgres:", "postgresql:", "mysql:", "mariadb:")):
            raise ConfigurationError(f"the database URL lacks '//' after its first word: {ACCEPTED_URLS}")
        if _SERVER_LIKE.search(text):
            raise ConfigurationError(f"the database URL begins with a server and not with its kind: {ACCEPTED_URLS}")
        if text == ":memory:":
            return URL.create(SQLITE, database=text)
    elif isinstance(url, os.PathLike):
        text = os.fspath(url)
    else:
        raise ConfigurationError(f"a database URL is text or a path, not {type(url).__name__}: {ACCEPTED_URLS}")
    return URL.create(SQLITE, database=check_path(text, "the history store"))


def check_path(path: object, what: str) -> str:
    """Return ``path`` if it can be the path of a file. Accesses no disk."""
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if not isinstance(path, str):
        raise ConfigurationError(f"the path of {what} is text, not {type(path).__name__}")
    try:
        encoded = os.fsencode(path)  # undecodable names are valid file names
    except UnicodeEncodeError:
        raise ConfigurationError(f"the path of {what} holds a lone surrogate: correct its encoding") from None
    # The system's refusal would pass for an outage, which is waited for.
    if any(len(name) > MAX_FILE_NAME_BYTES for name in encoded.split(b"/")):
        raise ConfigurationError(f"the path of {what} has a name of more than {MAX_FILE_NAME_BYTES} bytes: shorten it")
    return path


def _from_text(text: str) -> URL:
    # The errors of SQLAlchemy and of int() are not chained: they may quote the URL, password and all.
    with suppress(exc.ArgumentError, ValueError):
        single, hosts = split_hosts(text)
        parsed = make_url(single)
        # An unencoded @ in a password ends it early, and the rest would be shown as the host.
        shown = (parsed.host, parsed.database, *parsed.query)
        if parsed.get_backend_name() == "sqlite":
            return make_url(text)
        if not any("@" in (part or "") for part in shown):
            return parsed.update_query_dict({"host": hosts}) if hosts and "host" not in parsed.query else parsed
    raise ConfigurationError(f"the database URL cannot be read (does the password need %-encoding?): {ACCEPTED_URLS}")


def _sqlite(url: URL, *, allow_memory: bool) -> URL:
    path = url.database or ""
    if url.host or url.username or url.password or url.port:
        raise ConfigurationError("an SQLite URL has three slashes before a path: sqlite:///history.db")
    if url.query:
        names = ", ".join(sorted(url.query))
        raise ConfigurationError(f"an SQLite URL takes no options, but this one has {names}: give the path alone")
    if path.startswith("file:"):
        raise ConfigurationError("an SQLite URL takes a plain path, not a file: URI: sqlite:///history.db")
    if "\0" in path:
        raise ConfigurationError("the path of the SQLite file holds a NUL character")
    if path in ("", ":memory:"):
        if not allow_memory:
            raise ConfigurationError(
                "an SQLite database in memory keeps nothing once the process ends: give the path of a file"
            )
        return URL.create(SQLITE, database=":memory:")
    # abspath, not resolve: a symbolic link may be changed on purpose, and is followed on each open.
    return URL.create(SQLITE, database=os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


def _with_login_from_query(url: URL) -> URL:
    """Move a user, password and database from the options to the fields that are masked."""
    query = dict(url.query)
    moved: dict[str, str] = {}
    for field, names in (("username", ("user",)), ("password", ("password", "passwd")), ("database", ("dbname", "db"))):
        for name in names:
            value = query.pop(name, None)
            if value is None:
                continue
            if not isinstance(value, str) or getattr(url, field):
                raise ConfigurationError(f"the URL gives its {field} twice")
            moved[field] = value
    return url.set(query=query).set(**moved) if moved else url  # type: ignore[arg-type]  # the fields are all str


_Rule = Callable[[str, str], dict[str, str]]
"""A function from the name and value of an option to its normal form; raises ConfigurationError."""


def _options(url: URL, rules: Mapping[str, _Rule]) -> dict[str, str | tuple[str, ...]]:
    normalised: dict[str, str | tuple[str, ...]] = {}
    for name, value in url.query.items():
        rule = rules.get(name)
        if rule is None:
            raise ConfigurationError(f"the URL's option {name!r} is not known: known are {', '.join(sorted(rules))}")
        if not isinstance(value, str):
            # Only hosts may be given several times.
            if name != "host":
                raise ConfigurationError(f"the URL gives its option {name!r} twice")
            normalised[name] = value
            continue
        for key, new in rule(name, value).items():
            if normalised.setdefault(key, new) != new:
                raise ConfigurationError(f"the URL gives its option {key!r} twice")
    return normalised


def _as_is(name: str, value: str) -> dict[str, str]:
    return {name: value}


def _one_of(key: str, *accepted: str, spellings: Mapping[str, str] = MappingProxyType({}), wanted: str = "") -> _Rule:
    """Accept some words, also in other spellings, and give them as the option ``key``."""
    wanted = wanted or f"one of {', '.join(accepted)}"

    def check(name: str, value: str) -> dict[str, str]:
        word = spellings.get(value.lower(), value.lower())
        if word not in accepted:
            raise ConfigurationError(f"the URL's option {name!r} is {wanted}")
        return {key: word}

    return check


def _must(valid: Callable[[str], bool], wanted: str, *, kept: bool = True) -> _Rule:
    """Accept values for which ``valid`` holds; an option that is not ``kept`` is what the driver does anyway."""

    def check(name: str, value: str) -> dict[str, str]:
        if not valid(value):
            raise ConfigurationError(f"the URL's option {name!r} {wanted}")
        return {name: value} if kept else {}

    return check


def _are_seconds(value: str) -> bool:
    try:
        return 0 < float(value) < 86_400
    except ValueError:
        return False


def _not_required(why: str) -> _Rule:
    """Accept an option of libpq that the driver lacks only if its value does not require it."""
    return _must(lambda value: value.lower() in ("disable", "prefer"), f"is not supported: {why}", kept=False)


_count: Final = _must(str.isdecimal, "is a whole number")
_utf8: Final = _must(
    lambda value: value.lower().replace("-", "") in ("utf8", "utf8mb4", "auto"),
    "can only be UTF-8: leave it out",
    kept=False,
)
_TRUTH: Final = {**dict.fromkeys(("1", "yes", "on"), "true"), **dict.fromkeys(("0", "no", "off"), "false")}
# The words of MariaDB's and MySQL's clients.
_SSL_WORDS: Final = {
    **dict.fromkeys(("disabled", "false", "0", "no", "off"), "disable"),
    **dict.fromkeys(("required", "true", "1", "yes", "on"), "require"),
    "verify_ca": "verify-ca",
    **dict.fromkeys(("verify_full", "verify_identity"), "verify-full"),
}
_SSL_OF_MARIADB: Final = _one_of("ssl", "disable", "require", "verify-ca", "verify-full", spellings=_SSL_WORDS)
_SSLMODE: Final = _one_of("ssl", "disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_HOST_OPTIONS: Final[Mapping[str, _Rule]] = {
    "host": _as_is,
    "port": _as_is,
    "target_session_attrs": _one_of("target_session_attrs", *SESSION_TARGETS),
    "load_balance_hosts": _one_of("load_balance_hosts", "disable", "random"),
    "connect_timeout": _must(_are_seconds, "is a number of seconds above 0"),
    "connections": _must(
        lambda value: value.isdecimal() and 1 <= int(value) <= MAX_CONNECTIONS,
        f"is a whole number, 1 to {MAX_CONNECTIONS:,}",
    ),
}

_POSTGRESQL_OPTIONS: Final[Mapping[str, _Rule]] = {
    "ssl": _SSLMODE,
    "sslmode": _SSLMODE,
    **dict.fromkeys(("sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "passfile"), _as_is),
    **dict.fromkeys(("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"), _as_is),
    **_HOST_OPTIONS,
    "application_name": _as_is,
    "options": _as_is,
    "pgbouncer": _one_of("pgbouncer", "true", "false", spellings=_TRUTH, wanted="true or false"),
    "statement_cache_size": _count,
    "prepared_statement_cache_size": _count,
    "client_encoding": _utf8,
    "channel_binding": _not_required("the driver cannot bind the login to the TLS channel"),
    "gssencmode": _not_required("the driver does not encrypt by GSSAPI"),
}

_MARIADB_OPTIONS: Final[Mapping[str, _Rule]] = {
    **_HOST_OPTIONS,
    "charset": _utf8,
    "unix_socket": _as_is,
    "socket": lambda _, value: {"unix_socket": value},
    **dict.fromkeys(("ssl", "sslmode", "ssl-mode", "ssl_mode"), _SSL_OF_MARIADB),
    **dict.fromkeys(("ssl_ca", "ssl_cert", "ssl_key"), _as_is),
    "ssl_check_hostname": _one_of("ssl_check_hostname", "true", "false", spellings=_TRUTH, wanted="true or false"),
}
