"""Read the console's settings from option, environment, ``letopis.toml`` or default, in this order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from letopis.outbox.config.schema import read_secret_file
from letopis.outbox.daemon.http import LOOPBACK, ListenAddress
from letopis.store.errors import ConfigurationError

DEFAULT_PORT: Final = 8300
TOKEN: Final = "LETOPIS_CONSOLE_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE: Final = "LETOPIS_CONSOLE_TOKEN_FILE"  # noqa: S105 - the name of a variable


def read_token(
    table: Mapping[str, Any], folder: Path | None, *, given: str | None = None, environ: Mapping[str, str] | None = None
) -> str | None:
    """Return the console's token; ``None`` if there is none.

    :param table: ``[console]`` of ``letopis.toml``; a relative ``token_file`` starts at ``folder``.
    :param given: a file named on the command line.
    :raises ConfigurationError: both variables are set, or the file cannot be read or holds no token.
    """
    environ = os.environ if environ is None else environ
    in_variable, in_file = environ.get(TOKEN) or None, environ.get(TOKEN_FILE) or None
    if given is not None:
        return _in_file(Path(given))
    if in_variable and in_file:
        raise ConfigurationError(f"{TOKEN} and {TOKEN_FILE} are both set: unset one")
    if in_variable:
        return in_variable
    if in_file:
        return _in_file(Path(in_file))
    named = table.get("token_file")
    return None if not named else _in_file((folder or Path()) / Path(str(named)).expanduser())


def read_address(table: Mapping[str, Any], *, host: str | None, port: int | None) -> ListenAddress:
    """Return host and port to listen on: as given, else from ``[console]``, else 127.0.0.1 and 8300.

    :raises ConfigurationError: the port is not valid.
    """
    number = int(table.get("port", DEFAULT_PORT)) if port is None else port
    if not 0 <= number <= 65_535:
        raise ConfigurationError("[console] port is from 0 to 65535")
    return ListenAddress(host=host or str(table.get("host", LOOPBACK)), port=number)


def _in_file(path: Path) -> str:
    lines = read_secret_file(path.expanduser(), "the console's token")
    if len(lines) != 1 or not lines[0].strip():
        raise ConfigurationError(f"the file {str(path)!r} must hold the console's token on one line, and nothing else")
    return lines[0].strip()
