"""Open a history as another process would: it does not share the outbox that this process has open."""

import os
from typing import Any

from letopis.outbox import History
from letopis.outbox.history.sharing import Registry


def open_apart(path: str | os.PathLike[str], **options: Any) -> History:
    """Return a history with an outbox, a relay and background tasks of its own."""
    history = History(path, **options)
    history._home.registry = Registry()
    return history
