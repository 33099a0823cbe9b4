"""Settings of alerts: which channels, which language, how patient; from the environment, then from ``[alerts]``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from letopis.outbox.texts import LANGUAGES, STYLES, Style
from letopis.store.errors import ConfigurationError

MAX_FILE_BYTES: Final = 65_536

_KEYS: Final[Mapping[str, tuple[type, ...]]] = {
    "channels": (list,),
    "channels_file": (str,),
    "private": (bool,),
    "language": (str,),
    "texts": (str,),
    "stuck_after": (int, float),
}
_WORDS: Final[Mapping[type, str]] = {
    list: "a list of addresses in quotes",
    str: "text in quotes",
    bool: "true or false",
    int: "a number of seconds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    """How people are told.

    :ivar channels: addresses of operators' channels, as given, so with secrets in them.
    :ivar private: plain ``http`` and machines of one's own network may be posted to.
    :ivar language: of texts where nobody asks for another: ``en`` or ``ru``.
    :ivar style: of the texts for users.
    :ivar stuck_after: seconds after which what is owed is stuck.
    """

    channels: tuple[str, ...] = field(default=(), repr=False)
    private: bool = False
    language: str = "en"
    style: Style = "plain"
    stuck_after: float = 300.0


def load_alerts(
    table: Mapping[str, Any],
    *,
    channels: Iterable[str] = (),
    private: bool | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> AlertSettings:
    """Return the settings: what the command line says, then ``LETOPIS_ALERTS*``, then the table, then the defaults.

    :param table: ``[alerts]`` of ``letopis.toml``.
    :param channels, private: what the command line says.
    :param environ: the environment; ``os.environ`` by default.
    :param folder: of ``letopis.toml``, where a relative ``channels_file`` starts.
    :raises ConfigurationError: a key or a value that is not known, or a file that cannot be read. No message holds an
        address.
    """
    environ = os.environ if environ is None else environ
    _check(table)
    language = (environ.get("LETOPIS_LANGUAGE") or str(table.get("language", "en"))).strip().lower()
    if language not in LANGUAGES:
        raise ConfigurationError(f"the language of alerts is one of {', '.join(LANGUAGES)}")
    style: Style | None = next((one for one in STYLES if one == table.get("texts", "plain")), None)
    if style is None:
        raise ConfigurationError(f"[alerts] texts is one of {', '.join(STYLES)}")
    stuck_after = float(table.get("stuck_after", 300.0))
    if not 1 <= stuck_after <= 86_400:
        raise ConfigurationError("[alerts] stuck_after is between 1 and 86400 seconds")
    return AlertSettings(
        channels=tuple(channels) or _channels(table, environ, folder or Path()),
        private=_private(table, environ) if private is None else private,
        language=language,
        style=style,
        stuck_after=stuck_after,
    )


def _check(table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        if key not in _KEYS:
            close = get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_KEYS)}"
            raise ConfigurationError(f"[alerts] has no key {key[:60]!r}: {hint}")
        kinds = _KEYS[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigurationError(f"[alerts] {key} must be {_WORDS[kinds[0]]}")
    if not all(isinstance(one, str) for one in table.get("channels", ())):
        raise ConfigurationError("[alerts] channels must be a list of addresses in quotes")
    if table.get("channels") and table.get("channels_file"):
        raise ConfigurationError("[alerts] channels and channels_file are both set: take one out")


def _channels(table: Mapping[str, Any], environ: Mapping[str, str], folder: Path) -> tuple[str, ...]:
    listed, kept = environ.get("LETOPIS_ALERTS", ""), environ.get("LETOPIS_ALERTS_FILE", "")
    if listed.strip() and kept:
        raise ConfigurationError("LETOPIS_ALERTS and LETOPIS_ALERTS_FILE are both set: unset one")
    if listed.strip():
        return tuple(listed.split())
    if kept:
        return _read(Path(kept).expanduser())
    if table.get("channels_file"):
        return _read(folder / Path(str(table["channels_file"])).expanduser())
    return tuple(one.strip() for one in table.get("channels", ()) if one.strip())


def _private(table: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    said = environ.get("LETOPIS_ALERTS_PRIVATE", "").strip().lower()
    if said not in ("", "0", "1", "true", "false", "yes", "no", "on", "off"):
        raise ConfigurationError("LETOPIS_ALERTS_PRIVATE is 0 or 1")
    return said in ("1", "true", "yes", "on") if said else bool(table.get("private", False))


def _read(path: Path) -> tuple[str, ...]:
    """Return the addresses in a file, one a line; empty lines and lines that begin with ``#`` are left out."""
    try:
        with path.open("rb") as file:
            held = file.read(MAX_FILE_BYTES + 1)
        if len(held) > MAX_FILE_BYTES:
            raise ConfigurationError(f"the file {str(path)!r} of alert channels is longer than 64 KiB")
        lines = held.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigurationError(
            f"the file {str(path)!r} of alert channels cannot be read: {error.strerror}"
        ) from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"the file {str(path)!r} of alert channels is not UTF-8 text") from None
    return tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
