"""Take the figures that pages quote from the pages that publish them: {{ append_p50 }} and others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError
from sphinx.util.typing import ExtensionMetadata

_ROW = re.compile(
    r"^\| (?P<name>[^|]+?) \| (?P<value>[\d.,]+) \(.*?\) \| (?P<durability>[^|]*) \| (?P<besides>.*?) \|$"
)
_KILLS = re.compile(
    r"^\| bot, relay or both killed at random \| (?P<store>\w+) \| (?P<kills>[\d,]+) kills \|"
    r" (?P<violations>\d+)[^|]*\|.*?(?P<events>[\d,]+) events acknowledged",
    re.MULTILINE,
)

ONE, MANY = "Append, one at a time, all at FULL", "Append, 64 at once, all at FULL"
DRAIN, DISK, START = "Drain into a history store", "Bytes on disk", "A relay's start"
READ = "The last 50 messages, PostgreSQL"
WHILE = "While the daemon drains in another process, p99"

_VALUES: Mapping[str, tuple[str, str]] = {
    "append_rate": (ONE, "Letopis"),
    "append_rate_64": (MANY, "Letopis"),
    "drain_postgresql": (DRAIN, "Letopis into postgresql, from the outbox"),
    "drain_mariadb": (DRAIN, "Letopis into mariadb, from the outbox"),
    "drain_sqlite": (DRAIN, "Letopis into sqlite, from the outbox"),
    "bytes_outbox": (DISK, "outbox"),
    "bytes_sqlite": (DISK, "history in sqlite"),
    "bytes_postgresql": (DISK, "history in postgresql"),
    "bytes_mariadb": (DISK, "history in mariadb"),
    "start_seconds": (START, "relay on a full outbox, until the first delivery"),
    "read_million_postgresql": (
        READ,
        "Letopis, postgresql, 1,100,100 messages, 100 in the conversation",
    ),
    "append_while_draining_p99": (WHILE, "append while the daemon drains"),
    "saved_p99": (WHILE, "from the append until it is saved"),
}
_BESIDES: Mapping[str, tuple[str, str, str]] = {
    "append_p50": (ONE, "Letopis", r"([\d.]+) p50 ms"),
    "append_p99": (ONE, "Letopis", r"([\d.]+) p99 ms"),
    "append_p99_64": (MANY, "Letopis", r"([\d.]+) p99 ms"),
    "start_memory": (
        START,
        "relay on a full outbox, until the first delivery",
        r"([\d.]+) memory MB",
    ),
    "start_events": (
        START,
        "relay on a full outbox, until the first delivery",
        r"([\d,]+) events",
    ),
    "event_bytes": (DISK, "outbox", r"([\d,]+) JSON bytes an event"),
    "saved_p50": (WHILE, "from the append until it is saved", r"([\d.]+) p50 ms"),
}


def rows(page: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the measured value and the remarks of each row, by section and name."""
    found, section = {}, ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif row := _ROW.match(line):
            found[section, row["name"]] = (row["value"], row["besides"])
    return found


def figures(speed: str, proof: str) -> dict[str, str]:
    """Return the figures by the names under which pages quote them.

    :raises ConfigError: a page no longer publishes one of them.
    """
    measured = rows(speed)
    try:
        found = {name: measured[place][0] for name, place in _VALUES.items()}
        for name, (section, row, pattern) in _BESIDES.items():
            remark = re.search(pattern, measured[section, row][1])
            if remark is None:
                raise KeyError((section, row, pattern))  # noqa: TRY301
            found[name] = remark[1]
    except KeyError as error:
        raise ConfigError(f"explanation/tables/speed.md has no figure {error}: change docs/_ext/figures.py") from error
    for place in ("outbox", "sqlite", "postgresql", "mariadb"):
        million = float(found["event_bytes"].replace(",", "")) * float(found[f"bytes_{place}"]) * 1_000_000
        found[f"gb_{place}"] = f"{million / 1e9:.1f}"
    kills = [
        {name: int(value.replace(",", "")) for name, value in one.groupdict().items() if name != "store"}
        for one in _KILLS.finditer(proof)
    ]
    if not kills:
        raise ConfigError("explanation/tables/proof.md has no random kills: change docs/_ext/figures.py")
    for name in ("kills", "events", "violations"):
        found[f"random_{name}"] = f"{sum(one[name] for one in kills):,}"
    return found


def substitute(app: Sphinx, config: Config) -> None:
    """Make the figures known to MyST."""
    tables = Path(app.srcdir, "explanation", "tables")
    texts = [(tables / name).read_text(encoding="utf-8") for name in ("speed.md", "proof.md")]
    config.myst_substitutions = {**config.myst_substitutions, **figures(*texts)}


def setup(app: Sphinx) -> ExtensionMetadata:
    """Read the figures once the configuration is known."""
    app.connect("config-inited", substitute, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
