"""Name what a bot imports from ``letopis``, and load it when it is asked for."""

from __future__ import annotations

import importlib

from letopis.outbox import ROOMS as OF_OUTBOX
from letopis.store import ROOMS as OF_STORE

# Both packages load a name when it is asked for, so that this imports neither SQLAlchemy nor much of ours.
NAMES = tuple(sorted({*OF_OUTBOX, *OF_STORE}))


def load(name: str) -> object:
    """Return a public name, or the version.

    :raises AttributeError: there is no such name.
    """
    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        try:
            return metadata.version("letopis")
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name not in NAMES:
        raise AttributeError(f"module 'letopis' has no attribute {name!r}")
    return getattr(importlib.import_module("letopis.outbox" if name in OF_OUTBOX else "letopis.store"), name)
