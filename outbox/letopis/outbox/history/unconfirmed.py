"""Describe replies that were appended to be sent and never confirmed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from letopis.store.model.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """A reply that was appended to be sent, and never confirmed as sent or failed.

    :ivar appended_at: when it became a message of the history.
    :ivar message: as it was appended; ``None`` if the outbox does not hold it any more.
    :ivar abandoned: whether its writer has ended, so that no other program will confirm it.
    """

    conversation_id: str
    message_id: str
    owner_id: str | None
    appended_at: datetime
    message: Message | None
    abandoned: bool

    @property
    def interrupted(self) -> bool:
        """Whether it was cut off while it was written; ``False`` if the message is not known any more."""
        return self.message is not None and self.message.status == "interrupted"


OnUnconfirmed = Callable[[tuple[Unconfirmed, ...]], Awaitable[Any] | Any]
"""A function that is called with the replies that were never confirmed."""
