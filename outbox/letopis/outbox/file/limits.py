"""Refuse new events when the outbox has reached its size limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from letopis.store.errors import InvalidInput, OutboxFull
from letopis.store.model.validation import check_number

ROUTINE_WAL_BYTES: Final = 8 * 1024**2
"""Size of a WAL, twice what SQLite lets it grow to, above which an idle moment is used to truncate it."""

_USED: Final = (
    "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)
_PENDING: Final = (
    "SELECT coalesce(sum(head - delivered), 0) FROM letopis_outbox_lanes"
    " WHERE pending_since IS NOT NULL AND delivered < head"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The limits at which new events are refused; existing events are never dropped, and delivery continues.

    :ivar max_events: pending events; ``None`` for no limit.
    :ivar max_bytes: bytes in use in the file, including delivered events that are retained, and bytes of the WAL beyond
        the 8 MiB that it may hold at any time: a reader that keeps its transaction open makes it grow. ``None`` for no
        limit.
    :ivar min_free_bytes: bytes of the disk kept free for delivering pending events; ``None`` for no limit.
    """

    max_events: int | None = None
    max_bytes: int | None = 8 * 1024**3
    min_free_bytes: int | None = 16 * 1024**2

    def __post_init__(self) -> None:
        for name in ("max_events", "max_bytes", "min_free_bytes"):
            if (value := getattr(self, name)) is None:
                continue
            check_number(value, name, whole=True)
            if value < 1:
                raise InvalidInput(name, "must be at least 1, or None for no limit")

    def check(self, cursor: Any, size: int | None = None, wal: Callable[[], int] = lambda: 0) -> None:
        """Do nothing if there is room for more, in the transaction that is open on a DBAPI ``cursor``.

        One transaction may take the outbox past a limit by what it adds.

        :param size: an upper bound of the bytes in use, at most a second old. The pages in use are counted only where
            it is above half the limit, because every append pays for the count.
        :param wal: returns the bytes of the WAL; called near the limit only.
        :raises OutboxFull: a limit is reached.
        """
        if self.max_bytes is not None and (size is None or size >= self.max_bytes // 2):
            cursor.execute(_USED)
            used = cursor.fetchone()[0]
            held = max(0, wal() - ROUTINE_WAL_BYTES)
            if used + held >= self.max_bytes:
                what = f"the outbox holds {used} bytes" + (f" and {held} in its WAL" if held else "")
                advice = (
                    "end the program that keeps a read transaction open on it"
                    if held > used
                    else "let the relay deliver"
                )
                raise OutboxFull(
                    f"{what} and may hold {self.max_bytes}: nothing was dropped; {advice}, or raise max_bytes"
                )
        if self.max_events is not None:
            cursor.execute(_PENDING)
            if (pending := cursor.fetchone()[0]) >= self.max_events:
                raise OutboxFull(
                    f"{pending} events are pending and {self.max_events} may be: nothing was dropped; "
                    "let the relay deliver, or raise max_events"
                )
