"""Load the settings of a command from its options, the environment, ``letopis.toml``, then the defaults."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from letopis.ops.config.schema import check_table, read_secret_file, read_secrets, read_toml
from letopis.outbox.alerting.language import LANGUAGES, Style
from letopis.outbox.event_log.retention import Retention
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.errors import ConfigurationError, InvalidInput
from letopis.store.rules.retention import ContentRetention, RetentionRule

FILE: Final = "letopis.toml"
OUTBOX: Final = "bot.outbox.db"  # the default outbox; below ``$STATE_DIRECTORY`` where systemd sets it


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a command."""

    outbox: Path  # it need not exist
    # a URL, perhaps with a password, or an SQLite file's path; ``None``: the file beside the outbox
    store: str | None = field(default=None, repr=False)
    outbox_from: str = "default"  # what named the outbox: ``--outbox``, ``LETOPIS_OUTBOX``, a file, or ``default``
    store_from: str = "default"
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    retention: Retention = field(default_factory=Retention)
    file: Path | None = None
    # the ``[alerts]`` table, not checked yet; it may hold secrets
    alerts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    daemon: Mapping[str, Any] = field(default_factory=dict)
    console: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the ``[console]`` table; it may hold secrets


def load_settings(
    *,
    outbox: str | None = None,
    store: str | None = None,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Return the settings. Relative paths in ``letopis.toml`` start at its folder, others at the current one."""
    environ = os.environ if environ is None else environ
    path = _config_file(config, environ.get("LETOPIS_CONFIG"), folder or Path())
    table = {} if path is None else read_toml(path)
    # systemd lists several, separated by colons, for a unit that asks for several.
    state_directory = environ.get("STATE_DIRECTORY", "").split(":")[0]
    outboxes = (
        (outbox, "--outbox"),
        (environ.get("LETOPIS_OUTBOX"), "LETOPIS_OUTBOX"),
        (_from_file(table, "outbox", path), str(path)),
        (str(Path(state_directory) / OUTBOX) if state_directory else None, "STATE_DIRECTORY"),
    )
    chosen_outbox, outbox_from = next(((value, source) for value, source in outboxes if value), (None, "default"))
    chosen_store, store_from = _store(store, environ, table, path)
    try:
        policy = RetryPolicy(**_checked("relay", table, path))
    except ValueError as error:
        raise ConfigurationError(f"{path}: [relay] {error}") from error
    return Settings(
        outbox=Path(chosen_outbox or OUTBOX).expanduser(),
        store=chosen_store,
        outbox_from=outbox_from,
        store_from=store_from,
        policy=policy,
        retention=_retention(_checked("retention", table, path), path),
        file=path,
        alerts=table.get("alerts", {}),
        daemon=_checked("daemon", table, path),
        console=_checked("console", table, path),
    )


def move_target(given: str | None) -> str | None:
    """Return the target of ``letopis move``: as given, or from ``LETOPIS_MOVE_TO`` or ``LETOPIS_MOVE_TO_FILE``."""
    if given:
        return given
    in_variable, in_secret = os.environ.get("LETOPIS_MOVE_TO") or None, os.environ.get("LETOPIS_MOVE_TO_FILE") or None
    if in_variable and in_secret:
        raise ConfigurationError("LETOPIS_MOVE_TO and LETOPIS_MOVE_TO_FILE are both set: unset one")
    return _secret(Path(in_secret).expanduser()) if in_secret else in_variable


def _config_file(given: str | None, in_variable: str | None, folder: Path) -> Path | None:
    if named := given or in_variable:
        path = Path(named).expanduser()
        if not os.path.isfile(path):  # noqa: PTH113 - False also for what cannot be a name; a Path would quote it
            # A variable may hold anything, also the secret that was meant for another one.
            name = repr(str(path)) if given else "at the path that LETOPIS_CONFIG holds"
            raise ConfigurationError(f"there is no configuration file {name}: write one with `letopis init`")
        return path
    path = folder / FILE
    return path if path.is_file() else None


def _from_file(table: Mapping[str, Any], key: str, path: Path | None) -> str | None:
    """Return a path in ``letopis.toml``, relative to its folder; ``None`` if it is not set."""
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
        raise ConfigurationError(f"{path}: store and store_file are both set: remove one")
    if (secret := _from_file(table, "store_file", path)) is not None:
        return _secret(Path(secret)), str(path)
    if path is not None and table.get("store"):
        return _beside(str(table["store"]), path), str(path)
    return None, "default"


def _beside(store: str, path: Path) -> str:
    """Make a relative SQLite path in ``letopis.toml`` start at its folder; leave every other URL unchanged."""
    prefix = "sqlite:///" if store.startswith("sqlite:///") else ""
    rest = store.removeprefix(prefix)
    # With a colon it is another URL, a misspelt one, or an absolute Windows path: leave it to the checks of URLs.
    if not rest or ":" in rest:
        return store
    return f"{prefix}{(path.parent / Path(rest).expanduser()).absolute()}"


def _secret(path: Path) -> str:
    """Return the one line that a file holds."""
    lines = read_secret_file(path, "the store's URL")
    if len(lines) != 1:
        raise ConfigurationError(
            f"the file {str(path)!r} must hold the store's URL, one line of text, and nothing else"
        )
    return lines[0]


def _checked(name: str, tables: Mapping[str, Any], path: Path | None) -> Mapping[str, Any]:
    table: Mapping[str, Any] = tables.get(name, {})
    check_table(name, table, path)
    return table


def _retention(table: Mapping[str, Any], path: Path | None) -> Retention:
    default = Retention()
    try:
        keep_for = timedelta(hours=table["keep_hours"]) if "keep_hours" in table else default.keep_for
        content = _content(table["content"], path) if "content" in table else None
        return Retention(keep_last=table.get("keep_last", default.keep_last), keep_for=keep_for, content=content)
    except InvalidInput as error:
        field_name = "keep_hours" if error.field == "keep_for" else error.field
        raise ConfigurationError(f"{path}: [retention] {field_name}: {error.reason}") from error
    except (OverflowError, ValueError) as error:  # beyond what a timedelta holds; not a number
        raise ConfigurationError(f"{path}: [retention] keep_hours: is no length of time") from error


def _content(table: Mapping[str, Any], path: Path | None) -> ContentRetention:
    check_table("retention.content", table, path)
    given = table.get("rules", ())
    try:
        for rule in given:
            check_table("retention.content.rules", rule, path)
        return ContentRetention(**{**table, "rules": tuple(RetentionRule(**rule) for rule in given)})
    except InvalidInput as error:
        raise ConfigurationError(f"{path}: [retention.content] {error.field}: {error.reason}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    channels: tuple[str, ...] = field(default=(), repr=False)
    private: bool = False
    language: str = "en"
    style: Style = "retrying"
    stuck_after: float = 300.0


def load_alerts(
    table: Mapping[str, Any],
    *,
    channels: Iterable[str] = (),
    private: bool | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> AlertSettings:
    """Return the settings. Precedence: command line, ``LETOPIS_ALERTS*``, the table, the defaults."""
    environ = os.environ if environ is None else environ
    check_table("alerts", table)
    language = (environ.get("LETOPIS_LANGUAGE") or str(table.get("language", "en"))).strip().lower()
    if language not in LANGUAGES:
        raise ConfigurationError(f"the language of alerts is one of {', '.join(LANGUAGES)}")
    return AlertSettings(
        channels=tuple(channels)
        or read_secrets("alerts", "channels", table, variable="LETOPIS_ALERTS", environ=environ, folder=folder),
        private=_private(table, environ) if private is None else private,
        language=language,
        style=table.get("texts", "retrying"),
        stuck_after=float(table.get("stuck_after", 300.0)),
    )


def _private(table: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    value = environ.get("LETOPIS_ALERTS_PRIVATE", "").strip().lower()
    if value not in ("", "0", "1", "true", "false", "yes", "no", "on", "off"):
        raise ConfigurationError("LETOPIS_ALERTS_PRIVATE is 0 or 1")
    return value in ("1", "true", "yes", "on") if value else bool(table.get("private", False))
