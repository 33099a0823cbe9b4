"""Read ``letopis.toml`` and the files it names, checked against one schema."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from letopis.outbox.alerting.language import LANGUAGES, STYLES
from letopis.outbox.telemetry.logging import FORMATS, LEVELS
from letopis.store.errors import ConfigurationError

MAX_FILE_BYTES: Final = 65_536  # bytes of a file of secrets


@dataclass(frozen=True, slots=True)
class Option:
    kinds: tuple[type, ...]
    expected: str
    choices: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None


_TEXT: Final = Option((str,), "text in quotes")
_TABLE: Final = Option((dict,), "a table")
_INTEGER: Final = Option((int,), "a whole number")
_NUMBER: Final = Option((int, float), "a number")

SCHEMA: Final[Mapping[str, Mapping[str, Option]]] = {
    "": {
        "outbox": _TEXT,
        "store": _TEXT,
        "store_file": _TEXT,
        "relay": _TABLE,
        "retention": _TABLE,
        "alerts": _TABLE,
        "daemon": _TABLE,
        "console": _TABLE,
    },
    "relay": {"base": _NUMBER, "factor": _NUMBER, "cap": _NUMBER, "jitter": _TEXT, "attempts": _INTEGER},
    "retention": {"keep_last": _INTEGER, "keep_hours": _NUMBER, "content": _TABLE},
    "retention.content": {
        "max_age_days": _NUMBER,
        "max_messages": _INTEGER,
        "archived_max_age_days": _NUMBER,
        "checkpoints_last": _INTEGER,
        "checkpoints_max_age_days": _NUMBER,
        "rules": Option((list,), "a list of tables"),
    },
    "retention.content.rules": {
        "owner": _TEXT,
        "tag": _TEXT,
        "max_age_days": _NUMBER,
        "max_messages": _INTEGER,
        "archived_max_age_days": _NUMBER,
        "checkpoints_last": _INTEGER,
        "checkpoints_max_age_days": _NUMBER,
    },
    "daemon": {
        "listen": Option((str, int), "an address in quotes or a port"),
        "stop_timeout": Option((int, float), "a number of seconds", limits=(0, 3600)),
        "log_level": Option((str,), "text in quotes", choices=tuple(LEVELS)),
        "log_format": Option((str,), "text in quotes", choices=tuple(FORMATS)),
        "trace_conversations": Option((bool,), "true or false"),
        "console": Option((bool,), "true or false"),
    },
    "console": {
        "host": _TEXT,
        "port": Option((int,), "a port"),
        "tokens": Option((list,), "a list of tokens in quotes"),
        "tokens_file": _TEXT,
        "open_reading": Option((bool,), "true or false"),
    },
    "alerts": {
        "channels": Option((list,), "a list of addresses in quotes"),
        "channels_file": _TEXT,
        "private": Option((bool,), "true or false"),
        "language": Option((str,), "text in quotes", choices=LANGUAGES),
        "texts": Option((str,), "text in quotes", choices=STYLES),
        "stuck_after": Option((int, float), "a number of seconds", limits=(1, 86_400)),
    },
}


def read_toml(path: Path) -> Mapping[str, Any]:
    """Return the tables of ``letopis.toml``, the outermost one checked."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        # Not chained, and only the place of it: the message may quote a line that holds a password.
        position = str(error).rpartition("(")[2].rstrip(")") if "(" in str(error) else "somewhere"
        raise ConfigurationError(f"{path} is not valid TOML ({position})") from None
    except (RecursionError, ValueError):  # nested too deep; a number of thousands of digits
        raise ConfigurationError(f"{path} is not valid TOML (nested too deep, or a number too long)") from None
    check_table("", table, path)
    return table


def check_table(name: str, table: Mapping[str, Any], path: Path | None = None) -> None:
    """Check the keys and values of one table of ``SCHEMA``."""
    options = SCHEMA[name]
    where = " ".join(part for part in (f"{path}:" if path else "", f"[{name}]" if name else "") if part)
    for key, value in table.items():
        option = options.get(key)
        if option is None:
            close = get_close_matches(key, options, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(options))}"
            raise ConfigurationError(f"{where} {key[:60]!r} is not known: {hint}")
        if not isinstance(value, option.kinds) or (isinstance(value, bool) and bool not in option.kinds):
            raise ConfigurationError(f"{where} {key} must be {option.expected}")
        of = dict if option.expected.endswith("tables") else str
        if isinstance(value, list) and not all(isinstance(item, of) for item in value):
            raise ConfigurationError(f"{where} {key} must be {option.expected}")
        if option.choices and str(value).lower() not in (choice.lower() for choice in option.choices):
            raise ConfigurationError(f"{where} {key} is one of {', '.join(option.choices)}")
        if option.limits and not option.limits[0] <= table[key] <= option.limits[1]:
            least, largest = option.limits
            raise ConfigurationError(f"{where} {key} is between {least:g} and {largest:g} seconds")


def read_secrets(
    name: str, key: str, table: Mapping[str, Any], *, variable: str, environ: Mapping[str, str], folder: Path | None
) -> tuple[str, ...]:
    """Return the secrets that ``variable`` or ``variable_FILE`` names, else ``key`` or ``key_file`` of a table."""
    if table.get(key) and table.get(f"{key}_file"):
        raise ConfigurationError(f"[{name}] {key} and {key}_file are both set: remove one")
    listed, file = environ.get(variable, ""), environ.get(f"{variable}_FILE", "")
    if listed.strip() and file:
        raise ConfigurationError(f"{variable} and {variable}_FILE are both set: unset one")
    if listed.strip():
        return tuple(listed.split())
    lines = table.get(key, ())
    if file or table.get(f"{key}_file"):
        base = Path() if file else folder or Path()
        path = base / Path(file or str(table[f"{key}_file"])).expanduser()
        lines = read_secret_file(path, f"[{name}] {key}")
    stripped = map(str.strip, lines)
    return tuple(line for line in stripped if line and not line.startswith("#"))


def read_secret_file(path: Path, what: str) -> list[str]:
    """Return the lines of a small file of secrets, as containers and systemd provide them."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"the file {str(path)!r} of {what} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigurationError(f"the file {str(path)!r} of {what} is longer than 64 KiB")
    try:
        return content.decode("utf-8-sig").strip().splitlines()
    except UnicodeDecodeError:
        raise ConfigurationError(f"the file {str(path)!r} of {what} is not UTF-8 text") from None
