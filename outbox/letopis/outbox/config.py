"""Settings: what the command line, the environment and ``letopis.toml`` say, in this order, or else the defaults."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from letopis.outbox.backoff import RetryPolicy
from letopis.outbox.logs import FORMATS, LEVELS
from letopis.outbox.tail import Retention
from letopis.store.errors import ConfigurationError, InvalidInput

FILE: Final = "letopis.toml"
OUTBOX: Final = "bot.outbox.db"
"""The outbox where nothing names one; below ``$STATE_DIRECTORY`` where systemd gives one."""

MAX_SECRET_BYTES: Final = 65_536

_KEYS: Final[Mapping[str, type]] = {
    "outbox": str,
    "store": str,
    "store_file": str,
    "relay": dict,
    "retention": dict,
    "alerts": dict,
    "daemon": dict,
}
_RELAY_KEYS: Final[Mapping[str, tuple[type, ...]]] = {
    "base": (int, float),
    "factor": (int, float),
    "cap": (int, float),
    "jitter": (str,),
    "attempts": (int,),
}
_DAEMON_KEYS: Final[Mapping[str, tuple[type, ...]]] = {
    "listen": (str, int),
    "stop_timeout": (int, float),
    "log_level": (str,),
    "log_format": (str,),
}
_RETENTION_KEYS: Final[Mapping[str, tuple[type, ...]]] = {"keep_last": (int,), "keep_hours": (int, float)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a command works with.

    :ivar outbox: the outbox file; it need not exist.
    :ivar store: the history store as it was given, a URL or the path of a SQLite file, so perhaps with a password in
        it; ``None`` where nothing names one, which means the SQLite file beside the outbox.
    :ivar outbox_from, store_from: what named it, for people: ``--outbox``, ``LETOPIS_OUTBOX``, a file, or ``default``.
    :ivar policy: how the relay retries an event that was refused.
    :ivar retention: how long ``letopis relay`` keeps delivered events in the outbox.
    :ivar alerts: the ``[alerts]`` table as it stands, for ``alert_settings.load_alerts``; it may hold secrets.
    :ivar daemon: the ``[daemon]`` table, its keys and their kinds checked.
    :ivar file: the ``letopis.toml`` that was read, if any.
    """

    outbox: Path
    store: str | None = field(default=None, repr=False)
    outbox_from: str = "default"
    store_from: str = "default"
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    retention: Retention = field(default_factory=Retention)
    file: Path | None = None
    alerts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    daemon: Mapping[str, Any] = field(default_factory=dict)


def load(
    *,
    outbox: str | None = None,
    store: str | None = None,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Return the settings; nothing but ``letopis.toml`` and the file of a secret is looked at.

    A variable that is set and empty counts as not set. Relative paths in ``letopis.toml`` start at its own folder, all
    others at the current one.

    :param outbox, store, config: what the command line says.
    :param environ: the environment; ``os.environ`` by default.
    :param folder: where ``letopis.toml`` is looked for; the current folder by default.
    :raises ConfigurationError: a file is missing or cannot be read, or holds a key or a value that is not known. No
        message holds the store's URL.
    """
    environ = os.environ if environ is None else environ
    path = _config_file(config or environ.get("LETOPIS_CONFIG") or None, folder or Path())
    table = {} if path is None else _read(path)
    chosen_outbox, outbox_from = _first(
        (outbox, "--outbox"),
        (environ.get("LETOPIS_OUTBOX"), "LETOPIS_OUTBOX"),
        (_from_file(table, "outbox", path), str(path)),
        (_state_directory(environ), "STATE_DIRECTORY"),
    )
    chosen_store, store_from = _store(store, environ, table, path)
    return Settings(
        outbox=Path(chosen_outbox or OUTBOX).expanduser(),
        store=chosen_store,
        outbox_from=outbox_from,
        store_from=store_from,
        policy=_policy(table.get("relay", {}), path),
        retention=_retention(table.get("retention", {}), path),
        file=path,
        alerts=table.get("alerts", {}),
        daemon=_daemon(table.get("daemon", {}), path),
    )


def _config_file(given: str | None, folder: Path) -> Path | None:
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"there is no configuration file {str(path)!r}: write one with `letopis init`")
        return path
    path = folder / FILE
    return path if path.is_file() else None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        # Not chained, and only the place of it: the message may quote a line that holds a password.
        place = str(error).rpartition("(")[2].rstrip(")") if "(" in str(error) else "somewhere"
        raise ConfigurationError(f"{path} is not valid TOML ({place})") from None
    except (RecursionError, ValueError):  # nested too deep; a number of thousands of digits
        raise ConfigurationError(f"{path} is not valid TOML (nested too deep, or a number too long)") from None
    for key, value in table.items():
        if key not in _KEYS:
            raise ConfigurationError(f"{path}: {_unknown(key, _KEYS)}")
        if not isinstance(value, _KEYS[key]):
            expected = "a table" if _KEYS[key] is dict else "text in quotes"
            raise ConfigurationError(f"{path}: {key} must be {expected}")
    return table


def _from_file(table: Mapping[str, Any], key: str, path: Path | None) -> str | None:
    """Return a path of ``letopis.toml``, from its folder on; ``None`` where there is none."""
    value = table.get(key)
    if not value or path is None:
        return None
    return str(path.parent / Path(str(value)).expanduser())


def _store(
    given: str | None, environ: Mapping[str, str], table: Mapping[str, Any], path: Path | None
) -> tuple[str | None, str]:
    if given:
        return given, "--store"
    in_variable, in_secret = environ.get("LETOPIS_STORE") or None, environ.get("LETOPIS_STORE_FILE") or None
    if in_variable and in_secret:
        raise ConfigurationError("LETOPIS_STORE and LETOPIS_STORE_FILE are both set: unset one")
    if in_variable:
        return in_variable, "LETOPIS_STORE"
    if in_secret:
        return _secret(Path(in_secret).expanduser()), "LETOPIS_STORE_FILE"
    if table.get("store") and table.get("store_file"):
        raise ConfigurationError(f"{path}: store and store_file are both set: take one out")
    if (secret := _from_file(table, "store_file", path)) is not None:
        return _secret(Path(secret)), str(path)
    if path is not None and table.get("store"):
        return _beside(str(table["store"]), path), str(path)
    return None, "default"


def _beside(store: str, path: Path) -> str:
    """Let a relative SQLite path of ``letopis.toml`` start at its folder; every other URL stays as it is."""
    prefix = "sqlite:///" if store.startswith("sqlite:///") else ""
    rest = store.removeprefix(prefix)
    # With a colon it is another URL, one that was misspelt, or an absolute path of Windows: not for us to change.
    if not rest or ":" in rest:
        return store
    return f"{prefix}{(path.parent / Path(rest).expanduser()).absolute()}"


def _secret(path: Path) -> str:
    """Return the one line that a file holds, as containers and systemd hand secrets over."""
    try:
        with path.open("rb") as file:
            held = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"the file {str(path)!r} of the store's URL cannot be read: {error.strerror}"
        ) from error
    if len(held) > MAX_SECRET_BYTES:
        raise ConfigurationError(f"the file {str(path)!r} of the store's URL is larger than a URL can be")
    try:
        text = held.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        text = "\n"
    if not text or "\n" in text:
        raise ConfigurationError(
            f"the file {str(path)!r} must hold the store's URL, one line of text, and nothing else"
        )
    return text


def _state_directory(environ: Mapping[str, str]) -> str | None:
    # systemd gives several, divided by colons, where a unit asks for several.
    first = environ.get("STATE_DIRECTORY", "").split(":")[0]
    return str(Path(first) / OUTBOX) if first else None


def _first(*candidates: tuple[str | None, str]) -> tuple[str | None, str]:
    return next(((value, source) for value, source in candidates if value), (None, "default"))


def _policy(table: Mapping[str, Any], path: Path | None) -> RetryPolicy:
    _check(table, _RELAY_KEYS, "relay", path)
    try:
        return RetryPolicy(**table)
    except ValueError as error:
        raise ConfigurationError(f"{path}: [relay] {error}") from error


def _retention(table: Mapping[str, Any], path: Path | None) -> Retention:
    _check(table, _RETENTION_KEYS, "retention", path)
    default = Retention()
    try:
        keep_for = timedelta(hours=table["keep_hours"]) if "keep_hours" in table else default.keep_for
        return Retention(keep_last=table.get("keep_last", default.keep_last), keep_for=keep_for)
    except InvalidInput as error:
        field_name = "keep_hours" if error.field == "keep_for" else error.field
        raise ConfigurationError(f"{path}: [retention] {field_name}: {error.reason}") from error
    except (OverflowError, ValueError) as error:  # beyond what a timedelta holds; not a number
        raise ConfigurationError(f"{path}: [retention] keep_hours: is no length of time") from error


def _daemon(table: Mapping[str, Any], path: Path | None) -> Mapping[str, Any]:
    _check(table, _DAEMON_KEYS, "daemon", path)
    for key, known in (("log_level", LEVELS), ("log_format", FORMATS)):
        if str(table.get(key, known[0])).lower() not in (one.lower() for one in known):
            raise ConfigurationError(f"{path}: [daemon] {key} is one of {', '.join(known)}")
    if not 0 <= table.get("stop_timeout", 0) <= 3600:
        raise ConfigurationError(f"{path}: [daemon] stop_timeout is between 0 and 3600 seconds")
    return table


def _check(table: Mapping[str, Any], keys: Mapping[str, tuple[type, ...]], name: str, path: Path | None) -> None:
    for key, value in table.items():
        if key not in keys:
            raise ConfigurationError(f"{path}: [{name}] {_unknown(key, keys)}")
        if not isinstance(value, keys[key]) or isinstance(value, bool):
            kinds = " or ".join(kind.__name__ for kind in keys[key])
            raise ConfigurationError(f"{path}: [{name}] {key} must be {kinds}")


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
    return f"{key[:60]!r} is not known: {hint}"
