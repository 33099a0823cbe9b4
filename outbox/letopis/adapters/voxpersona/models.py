"""The messages and chats that the seed's bot passes in and gets back."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import ModuleType
from typing import Any, Final, Self

from letopis.store import InvalidInput

NEW_CHAT: Final = "Новый чат"
"""The title of a chat without a question."""
MAX_TITLE_LENGTH: Final = 50
"""The longest title that the seed's own classes accept, in characters."""
_MODULE: Final = "conversations"
_CLASSES: Final = ("ConversationMessage", "ConversationMetadata", "Conversation")
_DOTS: Final = "..."
_MIN_WORDS: Final = 3


class _Values:
    """The methods that pydantic gives the seed's classes, as far as a bot uses them."""

    __slots__ = ()

    def model_dump(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # a dataclass

    @classmethod
    def model_validate(cls, data: Mapping[str, Any]) -> Self:
        """Create an object from a dictionary; unknown keys are ignored."""
        known = {one.name for one in fields(cls)}  # type: ignore[arg-type]  # a dataclass
        return cls(**{name: value for name, value in data.items() if name in known})


@dataclass(slots=True)
class ConversationMessage(_Values):
    """One message of a chat.

    :ivar timestamp: local time, ISO 8601 without an offset.
    :ivar message_id: its id in Telegram.
    :ivar type: ``user_question`` or ``bot_answer``.
    :ivar sent_as: ``message`` or ``file``.
    :ivar file_path: the report, if the answer was sent as a file.
    :ivar search_type: ``fast`` or ``deep``.
    """

    timestamp: str
    message_id: int
    type: str
    text: str
    tokens: int
    sent_as: str | None = None
    file_path: str | None = None
    search_type: str | None = None


@dataclass(slots=True)
class ConversationMetadata(_Values):
    """One chat, without its messages.

    :ivar created_at: local time, ISO 8601 without an offset; so is ``updated_at``.
    :ivar chat_number: its permanent number among the user's, from 1; 0 for a chat without one.
    """

    conversation_id: str
    user_id: int
    username: str
    title: str
    created_at: str
    updated_at: str
    is_active: bool
    message_count: int
    total_tokens: int
    chat_number: int = 0


@dataclass(slots=True)
class Conversation(_Values):
    """One chat with its messages, oldest first."""

    metadata: ConversationMetadata
    messages: list[ConversationMessage] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Models:
    """The classes of the objects that a bot gets: its own, or those of this module.

    :raises InvalidInput: a module lacks one of them.
    """

    message: Any = ConversationMessage
    metadata: Any = ConversationMetadata
    conversation: Any = Conversation

    @classmethod
    def of(cls, module: ModuleType | None) -> Self:
        """Return the classes of a module; with ``None``, of the bot's ``conversations``, if there is one."""
        if module is not None:
            if lacking := [name for name in _CLASSES if not hasattr(module, name)]:
                raise InvalidInput("models", f"has no {', '.join(lacking)}")
            return cls(*(getattr(module, name) for name in _CLASSES))
        try:
            module = importlib.import_module(_MODULE)
        except ImportError:
            return cls()
        return cls.of(module) if all(hasattr(module, name) for name in _CLASSES) else cls()

    def make_message(self, values: Mapping[str, Any]) -> Any:
        """Return a message."""
        return _made(self.message, values)

    def make_metadata(self, values: Mapping[str, Any]) -> Any:
        """Return a chat without its messages."""
        return _made(self.metadata, values)

    def make_conversation(self, metadata: Mapping[str, Any], messages: list[Mapping[str, Any]]) -> Any:
        """Return a chat with its messages."""
        made = [self.make_message(one) for one in messages]
        return _made(self.conversation, {"metadata": self.make_metadata(metadata), "messages": made})


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    # Not validated: a chat with a long title would vanish, as it does from the seed's list.
    return getattr(kind, "model_construct", kind)(**values)


def generate_chat_name(text: str, max_length: int = 30) -> str:
    """Return a title from the first words of a question: at least three, then as many as fit in ``max_length``.

    White space is collapsed, and dots show that words are missing.
    """
    words = text.split()
    whole = " ".join(words)
    if len(whole) <= max_length:
        return whole
    count, length = 0, 0
    for word in words:
        if count >= _MIN_WORDS and length + len(word) + count + len(_DOTS) > max_length:
            break
        count, length = count + 1, length + len(word)
    return whole if count == len(words) else " ".join(words[:count]) + _DOTS


def short_title(title: str) -> str:
    """Return a title that the seed's classes accept: neither empty nor too long."""
    if len(title) <= MAX_TITLE_LENGTH:
        return title or NEW_CHAT
    return title[: MAX_TITLE_LENGTH - len(_DOTS)] + _DOTS
