"""Describe what failed in a history store, and what that means for its callers."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from letopis.store.errors import LetopisError

POOL_TIMEOUT_CODE: Final = "pool-timeout"
"""The code of a wait for a connection of this process: it is the fault neither of the store nor of any event."""
DISK_FULL_CODE: Final = "disk-full"
"""The code of a full disk, whatever the database calls it: operators see it first."""


class FaultClass(StrEnum):
    """What a failure is about, which decides what happens next."""

    UNAVAILABLE = "unavailable"
    """The store cannot be used now. Scope: the store. Waiting helps; no attempt is charged to a conversation."""
    MISCONFIGURED = "misconfigured"
    """An operator has to change something: schema, login, permission, disk. Scope: the store."""
    WRONG_STORE = "wrong_store"
    """This is not the history store that the outbox is bound to, or it was moved away. Scope: the store."""
    UNKNOWN_OUTCOME = "unknown_outcome"
    """The commit may have taken effect. Scope: the batch. Run it again; the apply is idempotent."""
    CONFLICT = "conflict"
    """Another transaction was in the way; this one was rolled back. Scope: the batch. Run it again at once."""
    POISON = "poison"
    """The data was refused and will be again. Scope: the event."""
    UNCLASSIFIED = "unclassified"
    """Unknown. It is the event's if other conversations get through, otherwise the store's."""


class StoreFault(LetopisError):
    """The history store failed.

    The text is ``<reason> [<class> <code>]`` and holds no driver text, parameter or secret. The original is kept as
    ``__cause__`` and may quote the data: log the text of the fault, not its traceback.
    """

    __module__ = "letopis.store"  # as programs import it

    def __init__(self, *, fault_class: FaultClass, code: str, reason: str) -> None:
        super().__init__(f"{reason} [{fault_class} {code}]")
        self.fault_class = fault_class
        self.code = code  # SQLSTATE, MariaDB's number, SQLite's result code name, or a word such as ``disk-full``
        self.reason = reason
