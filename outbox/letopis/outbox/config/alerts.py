"""Read the settings of alerts: from the command line, the environment, then ``[alerts]``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letopis.outbox.alerting.language import LANGUAGES
from letopis.outbox.alerting.texts import Style
from letopis.outbox.config.schema import check_table, read_secrets
from letopis.store.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    """How operators and users are notified.

    :ivar channels: addresses of operators' channels, as given, so with secrets in them.
    :ivar private: addresses may be posted to without TLS.
    :ivar language: of texts where the caller asks for no other: ``en`` or ``ru``.
    :ivar style: of the texts for users.
    :ivar stuck_after: seconds after which a pending event is stuck.
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
    """Return the settings. Precedence: command line, ``LETOPIS_ALERTS*``, the table, the defaults.

    :param table: ``[alerts]`` of ``letopis.toml``.
    :param channels: addresses given on the command line.
    :param private: the flag on the command line, if given.
    :param environ: the environment; ``os.environ`` by default.
    :param folder: of ``letopis.toml``, where a relative ``channels_file`` starts.
    :raises ConfigurationError: a key or a value that is not known, or a file that cannot be read. No message holds an
        address.
    """
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
        style=table.get("texts", "plain"),
        stuck_after=float(table.get("stuck_after", 300.0)),
    )


def _private(table: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    value = environ.get("LETOPIS_ALERTS_PRIVATE", "").strip().lower()
    if value not in ("", "0", "1", "true", "false", "yes", "no", "on", "off"):
        raise ConfigurationError("LETOPIS_ALERTS_PRIVATE is 0 or 1")
    return value in ("1", "true", "yes", "on") if value else bool(table.get("private", False))
