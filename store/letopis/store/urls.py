"""Read a database URL as people write it, and write it again without its secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url

from letopis.store.errors import ConfigurationError

POSTGRESQL: Final = "postgresql+asyncpg"
MARIADB: Final = "mariadb+asyncmy"
SQLITE: Final = "sqlite+aiosqlite"

ACCEPTED: Final = (
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
_SECRET: Final = re.compile(r"passw|pwd|secret|token", re.IGNORECASE)
_SERVER_LIKE: Final = re.compile(r"^[^/\\]{2,}:\d+(/|$)|^[^/\\]*:[^/\\]*@")


LONGEST_NAME: Final = 255
"""Bytes of a file's name, on all usual file systems."""


def normalise_url(url: str | URL | os.PathLike[str], *, allow_memory: bool = False) -> URL:
    """Give the URL its async driver and its options their one spelling.

    Accepted are ``postgresql://``, ``postgres://``, ``mysql://`` and ``mariadb://`` (a MariaDB server either way),
    ``sqlite:///file`` and the bare path of an SQLite file. A driver that is named (``postgresql+psycopg://``) is
    replaced: the URL says where the database is, not how to reach it. The path of an SQLite file becomes absolute,
    so that a change of the working folder does not open another file. Options are those that `letopis.store.engines`
    understands, after libpq's names; every other one is refused, since a driver would ignore it or fail on it.

    Looks at no file and no server. Giving the result again gives the same.

    :param allow_memory: take an SQLite database in memory, which keeps nothing.
    :raises ConfigurationError: the URL cannot be used; the message says why and never holds the password.
    """
    parsed = _parsed(url)
    backend = parsed.get_backend_name()
    if backend not in _DRIVERNAMES:
        raise ConfigurationError(f"{backend[:30]!r} is no kind of database that Letopis knows: {ACCEPTED}")
    drivername = _DRIVERNAMES[backend]
    if drivername == SQLITE:
        return _sqlite(parsed, allow_memory=allow_memory)
    parsed = _with_login_from_query(parsed)
    if not parsed.database:
        raise ConfigurationError(f"the URL {safe_url(parsed)} names no database: {ACCEPTED}")
    rules = _POSTGRESQL_OPTIONS if drivername == POSTGRESQL else _MARIADB_OPTIONS
    return parsed.set(drivername=drivername, query=_options(parsed, rules))


def safe_url(url: str | URL | os.PathLike[str]) -> str:
    """The URL for people to see: passwords, also those among the options, are masked.

    What cannot be read as a URL is not shown at all, since a secret could be anywhere in it.
    """
    try:
        parsed = _parsed(url)
    except ConfigurationError:
        return "<unreadable URL>"
    query = {key: "***" if _SECRET.search(key) else value for key, value in parsed.query.items()}
    shown = parsed.set(drivername=parsed.get_backend_name(), query=query).render_as_string(hide_password=True)
    return shown.replace("%2A%2A%2A", "***")


def _parsed(url: str | URL | os.PathLike[str]) -> URL:
    if isinstance(url, URL):
        return url
    if isinstance(url, str):
        text = url.strip()
        if not text:
            raise ConfigurationError(f"the database URL is empty: {ACCEPTED}")
        if "://" in text:
            return _from_text(text)
        if text.lower().startswith(("sqlite:", "file:", "postgres:", "postgresql:", "mysql:", "mariadb:")):
            raise ConfigurationError(f"the database URL lacks '//' after its first word: {ACCEPTED}")
        if _SERVER_LIKE.search(text):
            raise ConfigurationError(f"the database URL begins with a server and not with its kind: {ACCEPTED}")
        if text == ":memory:":
            return URL.create(SQLITE, database=text)
    elif isinstance(url, os.PathLike):
        text = os.fspath(url)
    else:
        raise ConfigurationError(f"a database URL is text or a path, not {type(url).__name__}: {ACCEPTED}")
    return URL.create(SQLITE, database=check_path(text, "the history store"))


def check_path(path: object, what: str) -> str:
    """Return ``path`` if it may be that of a file; looks at no disk.

    :raises ConfigurationError: it is not text, or holds what is no character.
    """
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if not isinstance(path, str):
        raise ConfigurationError(f"the path of {what} is text, not {type(path).__name__}")
    try:
        encoded = os.fsencode(path)  # a name that is no text is a file's name all the same
    except UnicodeEncodeError:
        raise ConfigurationError(f"the path of {what} holds half a character, a lone surrogate") from None
    # Else the system's refusal would pass for an outage, which is waited out.
    if any(len(name) > LONGEST_NAME for name in encoded.split(b"/")):
        raise ConfigurationError(f"the path of {what} has a name of more than {LONGEST_NAME} bytes: shorten it")
    return path


def _from_text(text: str) -> URL:
    # The errors of SQLAlchemy and of int() are not chained: they may quote the URL, password and all.
    with suppress(exc.ArgumentError, ValueError):
        parsed = make_url(text)
        # A plain @ in a password ends it early, and what follows would pass, and be shown, as the host.
        shown = (parsed.host, parsed.database, *parsed.query)
        if parsed.get_backend_name() == "sqlite" or not any("@" in (part or "") for part in shown):
            return parsed
    raise ConfigurationError(
        f"the database URL cannot be read (is a character of the password to be %-encoded?): {ACCEPTED}"
    )


def _sqlite(url: URL, *, allow_memory: bool) -> URL:
    path = url.database or ""
    if url.host or url.username or url.password or url.port:
        raise ConfigurationError("an SQLite URL has three slashes before a path: sqlite:///history.db")
    if url.query:
        names = ", ".join(sorted(url.query))
        raise ConfigurationError(f"an SQLite URL takes no options, but this one has {names}: give the path alone")
    if path.startswith("file:"):
        raise ConfigurationError("an SQLite URL takes a plain path and no file: URI: sqlite:///history.db")
    if "\0" in path:
        raise ConfigurationError("the path of the SQLite file holds a NUL character")
    if path in ("", ":memory:"):
        if not allow_memory:
            raise ConfigurationError(
                "an SQLite database in memory keeps nothing once the process ends: give the path of a file"
            )
        return URL.create(SQLITE, database=":memory:")
    # abspath and not resolve: a symbolic link may be moved to another file on purpose, and is followed on each open.
    return URL.create(SQLITE, database=os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


def _with_login_from_query(url: URL) -> URL:
    """Move a user, password and database given as options to where they are masked."""
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
"""From the name and value of an option to what the URL then holds; raises ConfigurationError."""


def _options(url: URL, rules: Mapping[str, _Rule]) -> dict[str, str | tuple[str, ...]]:
    kept: dict[str, str | tuple[str, ...]] = {}
    for name, value in url.query.items():
        rule = rules.get(name)
        if rule is None:
            raise ConfigurationError(f"the URL's option {name!r} is not known: known are {', '.join(sorted(rules))}")
        if not isinstance(value, str):
            # Several hosts, to be tried in turn, are the one thing that is rightly given twice.
            if name != "host":
                raise ConfigurationError(f"the URL gives its option {name!r} twice")
            kept[name] = value
            continue
        for key, new in rule(name, value).items():
            if kept.setdefault(key, new) != new:
                raise ConfigurationError(f"the URL gives its option {key!r} twice")
    return kept


def _as_is(name: str, value: str) -> dict[str, str]:
    return {name: value}


def _renamed(key: str) -> _Rule:
    return lambda name, value: {key: value}


def _one_of(key: str, *accepted: str) -> _Rule:
    def check(name: str, value: str) -> dict[str, str]:
        if value.lower() not in accepted:
            raise ConfigurationError(f"the URL's option {name!r} is one of {', '.join(accepted)}")
        return {key: value.lower()}

    return check


def _seconds(name: str, value: str) -> dict[str, str]:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < 86_400:
        raise ConfigurationError(f"the URL's option {name!r} is a number of seconds above 0")
    return {name: value}


def _count(name: str, value: str) -> dict[str, str]:
    if not value.isdecimal():
        raise ConfigurationError(f"the URL's option {name!r} is a whole number")
    return {name: value}


def _yes_or_no(name: str, value: str) -> dict[str, str]:
    words = {"true": "true", "1": "true", "yes": "true", "on": "true"}
    words |= {"false": "false", "0": "false", "no": "false", "off": "false"}
    if value.lower() not in words:
        raise ConfigurationError(f"the URL's option {name!r} is true or false")
    return {name: words[value.lower()]}


def _utf8(name: str, value: str) -> dict[str, str]:
    if value.lower().replace("-", "") not in ("utf8", "utf8mb4", "auto"):
        raise ConfigurationError(f"the URL's option {name!r} can only be UTF-8: leave it out")
    return {}


def _only_if_not_required(why: str) -> _Rule:
    """An option of libpq that the driver lacks: what it may do without is dropped, what is demanded is refused."""

    def check(name: str, value: str) -> dict[str, str]:
        if value.lower() not in ("disable", "prefer"):
            raise ConfigurationError(f"the URL's option {name!r} is not supported: {why}")
        return {}

    return check


def _ssl_of_mariadb(name: str, value: str) -> dict[str, str]:
    """The words of MariaDB's and of MySQL's clients, and of libpq, for the same four demands."""
    words = {
        "disable": ("disable", "disabled", "false", "0", "no", "off"),
        "require": ("require", "required", "true", "1", "yes", "on"),
        "verify-ca": ("verify-ca", "verify_ca"),
        "verify-full": ("verify-full", "verify_full", "verify_identity"),
    }
    for word, spellings in words.items():
        if value.lower() in spellings:
            return {"ssl": word}
    raise ConfigurationError(f"the URL's option {name!r} is one of {', '.join(words)}")


_SSLMODE: Final = _one_of("ssl", "disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_POSTGRESQL_OPTIONS: Final[Mapping[str, _Rule]] = {
    "host": _as_is,
    "port": _as_is,
    "ssl": _SSLMODE,
    "sslmode": _SSLMODE,
    **dict.fromkeys(("sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "passfile"), _as_is),
    **dict.fromkeys(("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"), _as_is),
    # A history store is written to, so a standby would be of no use.
    "target_session_attrs": _one_of("target_session_attrs", "any", "primary", "read-write"),
    "application_name": _as_is,
    "options": _as_is,
    "connect_timeout": _seconds,
    "pgbouncer": _yes_or_no,
    "statement_cache_size": _count,
    "prepared_statement_cache_size": _count,
    "client_encoding": _utf8,
    "channel_binding": _only_if_not_required("the driver cannot bind the login to the TLS channel"),
    "gssencmode": _only_if_not_required("the driver does not encrypt by GSSAPI"),
}

_MARIADB_OPTIONS: Final[Mapping[str, _Rule]] = {
    "charset": _utf8,
    "unix_socket": _as_is,
    "socket": _renamed("unix_socket"),
    **dict.fromkeys(("ssl", "sslmode", "ssl-mode", "ssl_mode"), _ssl_of_mariadb),
    **dict.fromkeys(("ssl_ca", "ssl_cert", "ssl_key"), _as_is),
    "ssl_check_hostname": _yes_or_no,
    "connect_timeout": _seconds,
}
