"""Give a bot's code the history of the current chat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from letopis.adapters.telegram_core.keys import ChatKey
from letopis.outbox import History, Receipt
from letopis.store import Conversation, Hit, Message, Page, RecordedMessage
from letopis.store.model.event_types import Body
from letopis.store.rules.context_window import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatHistory:
    """The conversation that an update belongs to: the one that was active in its chat when it arrived.

    It stays the same while the update is handled, even if the user switches to another conversation meanwhile.

    :ivar base: the whole history, for everything not offered here; use it with :attr:`conversation_id` and
        :attr:`owner`.
    :ivar key: the place in Telegram.
    :ivar language: of the user who caused the update, as Telegram gives it.
    """

    base: History
    key: ChatKey
    conversation_id: str
    language: str | None = None

    @property
    def owner(self) -> str:
        """The owner of the chat's conversations."""
        return self.key.owner

    async def messages(self, *, last: int | None = 50, **options: Any) -> Page[RecordedMessage]:
        """Return the newest messages, oldest first, including the update's; as ``History.messages``."""
        return await self.base.messages(self.conversation_id, last=last, **options)

    async def context(self, **budget: Any) -> Context:
        """Return the newest part that fits a model; as ``History.context``."""
        return await self.base.context(self.conversation_id, **budget)

    async def append(self, what: Message | Body, *more: Message | Body, **options: Any) -> Receipt:
        """Append messages that Telegram neither sent nor receives, such as tool calls and their results."""
        return await self.base.append(self.conversation_id, what, *more, owner=self.owner, **options)

    async def conversation(self) -> Conversation | None:
        """Return the current state of the conversation."""
        return await self.base.conversation(self.conversation_id)

    async def undo(self, turns: int = 1) -> Receipt | None:
        """Take the last turns off the path; as ``History.undo``."""
        return await self.base.undo(self.conversation_id, turns)

    async def annotate(self, metadata: Mapping[str, Any]) -> Receipt:
        """Set keys of the conversation's own metadata; as ``History.annotate``."""
        return await self.base.annotate(self.conversation_id, metadata)

    async def search(self, query: str, *, limit: int = 20) -> Page[Hit]:
        """Search all conversations of this chat; as ``History.search``."""
        return await self.base.search(query, owner=self.owner, limit=limit)
