"""Name the methods that a destination store must have."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.events import RecordedEvent
from letopis.store.read.paging import DEFAULT_STATES
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin
from letopis.store.rules.statistics import Statistics


class DestinationStore(Protocol):
    """A store that a relay delivers to and that readers ask.

    :class:`~letopis.store.ConversationStore` is the reference; its methods of these names document the arguments, the
    results and the errors.
    """

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        """Apply a batch in one transaction: every event takes effect once, in the order of its lane."""
        ...

    async def lane_heads(self, origin_id: UUID, conversation_ids: Sequence[str]) -> dict[str, int]:
        """Return how far the store holds the lanes of an outbox."""
        ...

    async def conversation(self, conversation_id: str, *, as_of: int | datetime | None = None) -> Conversation | None:
        """Return a conversation, or ``None``."""
        ...

    async def conversations(
        self,
        *,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 50,
        states: Collection[str] = DEFAULT_STATES,
    ) -> Page[Conversation]:
        """Return a page of conversations, the newest activity first."""
        ...

    async def active(self, owner: str) -> Conversation | None:
        """Return the active conversation of an owner, or ``None``."""
        ...

    async def messages(
        self,
        conversation_id: str,
        *,
        last: int | None = None,
        first: int | None = None,
        before: int | str | None = None,
        after: int | str | None = None,
        every: bool = False,
        as_of: int | datetime | None = None,
    ) -> Page[RecordedMessage]:
        """Return a page of messages, oldest first."""
        ...

    async def events(self, conversation_id: str, *, after: int | str = 0, first: int = 500) -> Page[RecordedEvent]:
        """Return a page of the events of a conversation, in the order of their versions."""
        ...

    async def head(self, partition: int = 0) -> int:
        """Return the position of the newest event in a partition of the log."""
        ...

    async def partitions(self) -> int:
        """Return the number of partitions of the log."""
        ...

    def subscribe(
        self,
        from_position: int | Mapping[int, int] = 0,
        *,
        partition: int | None = None,
        batch: int = 500,
        poll: float = 0.25,
    ) -> AsyncGenerator[RecordedEvent, None]:
        """Yield the events of a partition, or of all, in the order of their positions in each, without end."""
        ...

    async def statistics(
        self,
        *,
        owner: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | None = None,
    ) -> Statistics:
        """Count questions, answers, messages and tokens."""
        ...
