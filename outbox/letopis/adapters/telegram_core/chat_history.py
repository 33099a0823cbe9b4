"""Give a bot's code the history of the current chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from letopis.adapters.telegram_core.chats import Chats, question_of
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.outbox import History, Receipt
from letopis.outbox.history.context import ending_with, read_context
from letopis.store import Conversation, Hit, Message, Page, RecordedMessage
from letopis.store.model.event_types import Body
from letopis.store.rules.context_window import Context, WindowBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatHistory:
    """The conversation that an update belongs to: the one that was active in its chat when it arrived.

    It stays the same while the update is handled, even if the user switches to another conversation meanwhile.

    :ivar key: the place in Telegram.
    :ivar language: of the user who caused the update, as Telegram gives it.
    :ivar message_id: the message of the update, in the history; ``None`` if the update is no message of the
        conversation, such as a press of a button.
    """

    chats: Chats = field(repr=False)
    key: ChatKey
    conversation_id: str
    language: str | None = None
    message_id: str | None = None
    _appended: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def base(self) -> History:
        """The whole history, for everything not offered here; use it with the conversation id and the owner."""
        return self.chats.history

    @property
    def owner(self) -> str:
        """The owner of the chat's conversations."""
        return self.key.owner

    async def messages(self, *, last: int | None = 50, **options: Any) -> Page[RecordedMessage]:
        """Return the newest messages, oldest first; as ``History.messages``.

        Later ones than the update's may be among them: to answer it, use :meth:`context`.
        """
        return await self.base.messages(self.conversation_id, last=last, **options)

    async def context(self, **budget: Any) -> Context:
        """Return the newest part that fits a model; as ``History.context``.

        It ends with the update's message, also when later ones are recorded already, or after a crash. What the bot has
        answered to earlier messages so far follows these, and what this object has appended is at the end. If the
        update is no message, or with an ``until`` of your own, the window is that of ``History.context``.

        :raises InvalidInput: the update's message was undone, redacted or could not be recorded: there is nothing to
            answer; or an argument is wrong.
        """
        if self.message_id is None or "until" in budget:
            return await self.base.context(self.conversation_id, **budget)
        return await read_context(
            partial(self.base.messages, self.conversation_id), WindowBudget(**budget), self._turns
        )

    async def append(self, what: Message | Body, *more: Message | Body, **options: Any) -> Receipt:
        """Append messages that Telegram neither sent nor receives, such as tool calls and their results."""
        self._appended.update(one.id for one in (what, *more) if isinstance(one, Message))
        return await self.base.append(self.conversation_id, what, *more, owner=self.owner, **options)

    async def conversation(self) -> Conversation | None:
        """Return the current state of the conversation."""
        return await self.base.chat(self.conversation_id).conversation()

    async def undo(self, turns: int = 1) -> Receipt | None:
        """Take the last turns off the path; as ``Chat.undo``."""
        return await self.base.chat(self.conversation_id).undo(turns)

    async def redact(self, message_id: str, *, reason: str | None = None) -> Receipt:
        """Erase a message for good, with the file as which smart send sent it; otherwise as ``Chat.redact``."""
        return await self.chats.redact(self.conversation_id, message_id, reason=reason)

    async def annotate(self, metadata: Mapping[str, Any]) -> Receipt:
        """Set keys of the conversation's own metadata; as ``Chat.annotate``."""
        return await self.base.chat(self.conversation_id).annotate(metadata)

    async def search(self, query: str, *, limit: int = 20) -> Page[Hit]:
        """Search all conversations of this chat; as ``History.search``."""
        return await self.base.search(query, owner=self.owner, limit=limit)

    def _turns(self, messages: Sequence[RecordedMessage]) -> list[RecordedMessage] | None:
        """Return the messages up to the update's, with those after it that belong to them."""
        assert self.message_id is not None  # noqa: S101 - there would be no cut
        kept = ending_with(self.message_id)(messages)
        if kept is None:
            return None
        answers: dict[str | None, list[RecordedMessage]] = {one.id: [] for one in kept}
        for one in messages[len(kept) :]:
            # Not what an earlier run of the handler has sent: the model would go on from its own half answer.
            question = question_of(one) if question_of(one) != self.message_id else None
            if one.id in self._appended:
                question = self.message_id
            if question in answers:
                answers[question].append(one)
        return [one for message in kept for one in (message, *answers[message.id])]
