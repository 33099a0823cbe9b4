"""Tell where the history store of an outbox lies by default, and that the two are separate files."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.engine import URL

from letopis.outbox.file.inspection import outbox_path
from letopis.store.errors import ConfigurationError


def store_beside(path: str | os.PathLike[str]) -> Path:
    """Return the default history store of an outbox: ``bot.history.db`` beside ``bot.outbox.db``."""
    where = outbox_path(path)
    stem = where.name.removesuffix(".db").removesuffix(".outbox")
    return where.with_name("history.db" if stem in ("outbox", "") else f"{stem}.history.db")


def check_apart(outbox: Path, url: URL) -> None:
    """Check that an outbox does not deliver into itself.

    :raises ConfigurationError: the store is the outbox file.
    """
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    if os.path.realpath(url.database) == os.path.realpath(outbox):
        raise ConfigurationError("the outbox and the history store are the same file: give each a file of its own")
