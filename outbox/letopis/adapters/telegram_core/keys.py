"""Name the conversations and messages of Telegram chats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self
from urllib.parse import quote, unquote

from letopis.store import InvalidInput
from letopis.store.model.identifiers import uuid7

_OWNER: Final = re.compile(r"tg:(\d+):(-?\d+)(?::t(\d+))?(?::d(\d+))?(?::b([^:/]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatKey:
    """One place in Telegram where a bot talks: a chat, a topic of it, or a chat of a business account.

    It owns the conversations held there. The first one has the owner's id itself; later ones have a suffix.

    :ivar bot_id: the bot's id, the number before the colon of its token. Two bots never share a conversation.
    :ivar topic_id: ``message_thread_id``, only for messages in a forum topic.
    :ivar direct_topic_id: the topic of a channel's direct messages.
    :ivar business_id: the connection over which the bot speaks for a business account.
    """

    bot_id: int
    chat_id: int
    topic_id: int | None = None
    direct_topic_id: int | None = None
    business_id: str | None = None

    @classmethod
    def of_message(cls, bot_id: int, message: Mapping[str, Any]) -> Self:
        """Return the place of a raw message.

        :raises InvalidInput: the message has no chat.
        """
        chat = message.get("chat")
        if not isinstance(chat, Mapping) or not isinstance(chat.get("id"), int):
            raise InvalidInput("message", "has no chat with an id")
        # Replies in ordinary groups have a thread id too, that of the message they answer, which is not a topic.
        topic = message.get("message_thread_id") if message.get("is_topic_message") else None
        direct = message.get("direct_messages_topic")
        return cls(
            bot_id=bot_id,
            chat_id=chat["id"],
            topic_id=topic,
            direct_topic_id=direct.get("topic_id") if isinstance(direct, Mapping) else None,
            business_id=message.get("business_connection_id"),
        )

    @classmethod
    def of_call(cls, bot_id: int, payload: Mapping[str, Any]) -> Self | None:
        """Return the place that a Bot API method writes to; ``None`` if it names the chat by a username."""
        chat_id = payload.get("chat_id")
        if isinstance(chat_id, str) and re.fullmatch(r"-?\d+", chat_id):
            chat_id = int(chat_id)
        if not isinstance(chat_id, int):
            return None
        return cls(
            bot_id=bot_id,
            chat_id=chat_id,
            topic_id=payload.get("message_thread_id"),
            direct_topic_id=payload.get("direct_messages_topic_id"),
            business_id=payload.get("business_connection_id"),
        )

    @classmethod
    def parse(cls, owner: str | None) -> Self | None:
        """Return the place of an owner id, or of the id of one of its conversations; ``None`` for other ids."""
        found = _OWNER.fullmatch((owner or "").split("/")[0])
        if found is None:
            return None
        bot, chat, topic, direct, business = found.groups()
        return cls(
            bot_id=int(bot),
            chat_id=int(chat),
            topic_id=None if topic is None else int(topic),
            direct_topic_id=None if direct is None else int(direct),
            business_id=None if business is None else unquote(business),
        )

    @property
    def owner(self) -> str:
        """The owner of the conversations here, for example ``tg:7000:-100123:t7``."""
        name = f"tg:{self.bot_id}:{self.chat_id}"
        if self.topic_id is not None:
            name += f":t{self.topic_id}"
        if self.direct_topic_id is not None:
            name += f":d{self.direct_topic_id}"
        if self.business_id is not None:
            name += f":b{quote(self.business_id, safe='')}"
        return name

    def later_conversation(self) -> str:
        """Return a new id for a conversation after the first one."""
        return f"{self.owner}/{uuid7().hex}"

    def in_chat(self, chat_id: int) -> Self:
        """Return the same place in another chat, for a group that became a supergroup."""
        return replace(self, chat_id=chat_id)

    def call(self) -> dict[str, Any]:
        """Return the parameters with which a Bot API method writes here."""
        named = {
            "chat_id": self.chat_id,
            "message_thread_id": self.topic_id,
            "direct_messages_topic_id": self.direct_topic_id,
            "business_connection_id": self.business_id,
        }
        return {name: value for name, value in named.items() if value is not None}


def message_id(chat_id: int, number: int) -> str:
    """Return the id in the history of an incoming message; unique within a conversation."""
    return f"tg:{chat_id}:{number}"


def author_of(bot_id: int, message: Mapping[str, Any]) -> str | None:
    """Return the author of a raw message: the owner id of the person's private chat with the bot.

    ``None`` where a channel or a group wrote it, as its anonymous administrators do.
    """
    sender = message.get("from")
    if message.get("sender_chat") is not None or not isinstance(sender, Mapping):
        return None
    number = sender.get("id")
    return ChatKey(bot_id=bot_id, chat_id=number).owner if isinstance(number, int) else None


def sender_of(bot_id: int, payload: Mapping[str, Any]) -> str | None:
    """Return who caused an update of any kind, as :func:`author_of` does; reactions and poll answers have a user."""
    return author_of(bot_id, payload) or author_of(bot_id, {"from": payload.get("user")})
