"""Read the console's settings from option, environment, ``letopis.toml`` or default, in this order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from letopis.console.access import Gate, parse_tokens
from letopis.ops.config.schema import read_secrets
from letopis.ops.daemon.http import LOOPBACK, ListenAddress
from letopis.store.errors import ConfigurationError

DEFAULT_PORT: Final = 8300


def read_gate(
    table: Mapping[str, Any], folder: Path | None, *, given: str | None = None, environ: Mapping[str, str] | None = None
) -> Gate:
    """Return the gate with the configured tokens, if there are any.

    :param table: ``[console]`` of ``letopis.toml``; a relative ``tokens_file`` starts at ``folder``.
    :param given: a file named on the command line.
    :raises ConfigurationError: two settings exclude each other, a file cannot be read, or a token is not valid.
    """
    texts = read_secrets(
        "console",
        "tokens",
        table if given is None else {"tokens_file": given},
        variable="LETOPIS_CONSOLE_TOKENS",
        environ=(os.environ if environ is None else environ) if given is None else {},
        folder=folder if given is None else None,
    )
    return Gate(parse_tokens(texts), open_reading=bool(table.get("open_reading", False)))


def read_address(table: Mapping[str, Any], *, host: str | None, port: int | None) -> ListenAddress:
    """Return host and port to listen on: as given, else from ``[console]``, else 127.0.0.1 and 8300.

    :raises ConfigurationError: the port is not valid.
    """
    number = int(table.get("port", DEFAULT_PORT)) if port is None else port
    if not 0 <= number <= 65_535:
        raise ConfigurationError("[console] port is from 0 to 65535")
    return ListenAddress(host=host or str(table.get("host", LOOPBACK)), port=number)
