"""How much an outbox may hold before it refuses new events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from letopis.store.errors import InvalidInput, OutboxFull
from letopis.store.numbers import check_number

_USED: Final = (
    "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)
_PENDING: Final = "SELECT coalesce(sum(head - delivered), 0) FROM letopis_outbox_lanes WHERE delivered < head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The size at which new events are refused; what is there already is never dropped, and acks still work.

    :ivar max_events: pending events; ``None`` for no limit.
    :ivar max_bytes: of the file in use, delivered events that are still kept included; ``None`` for no limit.
    :ivar min_free_bytes: of the disk, kept free for delivering what is pending; ``None`` for no limit.
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

    def check(self, cursor: Any, size: int | None = None) -> None:
        """Look whether there is room for more, in the transaction that is open on a DBAPI ``cursor``.

        What one transaction adds may take the outbox past the limit by that much.

        :param size: bytes that the pages in use cannot have been more than a second ago. To look at them has its
            price, which each append pays; what is below half the limit is not looked at.
        :raises OutboxFull: there is none.
        """
        if self.max_bytes is not None and (size is None or size >= self.max_bytes // 2):
            cursor.execute(_USED)
            if (used := cursor.fetchone()[0]) >= self.max_bytes:
                raise OutboxFull(
                    f"the outbox holds {used} bytes and may hold {self.max_bytes}: nothing was dropped; "
                    "let the relay deliver, or raise max_bytes"
                )
        if self.max_events is not None:
            cursor.execute(_PENDING)
            if (pending := cursor.fetchone()[0]) >= self.max_events:
                raise OutboxFull(
                    f"{pending} events are pending and {self.max_events} may be: nothing was dropped; "
                    "let the relay deliver, or raise max_events"
                )
