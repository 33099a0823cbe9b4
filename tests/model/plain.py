"""The plain model: lists and dicts that do at once, in memory, what a history promises to come to.

It shares no code with the product: no events, no fold, no versions. What is said is changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass
class Said:
    """One message."""

    id: str
    role: str
    text: str
    tokens: int | None = None
    on_path: bool = True
    redacted: bool = False
    edited: bool = False
    delivery: str = "appended"
    delivery_data: dict[str, Any] = field(default_factory=dict)
    reactions: dict[tuple[str, str | None], Any] = field(default_factory=dict)
    interrupted: bool = False

    def view(self) -> tuple[Any, ...]:
        """What a reader sees of it."""
        return (
            self.id,
            self.role,
            self.text,
            self.tokens,
            self.on_path,
            self.redacted,
            self.edited,
            self.delivery,
            tuple(sorted(self.delivery_data.items(), key=str)),
            tuple((key, actor, value) for (key, actor), value in self.reactions.items()),
            self.interrupted,
        )


@dataclass
class Chat:
    """One conversation."""

    id: str
    owner: str | None
    touched: int = 0
    title: str | None = None
    state: str = "active"
    metadata: dict[str, Any] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)
    tokens: int = 0
    turns: int = 0
    """Events so far that stand against an answer to what was read before them."""
    inherited: list[Said] = field(default_factory=list)
    """What a fork shows of its ancestors; changed by nothing but a redaction."""
    ancestors: list[Chat] = field(default_factory=list)

    @property
    def path(self) -> list[Said]:
        """What is on the active path, in order."""
        return [*self.inherited, *(one for one in self.said if one.on_path)]

    @property
    def count(self) -> int:
        """Its own messages on the path."""
        return sum(one.on_path for one in self.said)

    def find(self, message_id: str) -> Said | None:
        """Return its own message of an id."""
        return next((one for one in self.said if one.id == message_id), None)

    def view(self) -> tuple[Any, ...]:
        """What a reader sees of it, without its messages."""
        return (
            self.owner,
            self.title,
            self.state,
            tuple(sorted(self.metadata.items())),
            self.count,
            self.tokens,
        )


class Plain:
    """All conversations of one test."""

    def __init__(self) -> None:
        self.chats: dict[str, Chat] = {}
        self.active: dict[str, set[str] | None] = {}
        """By owner: the one that is marked; ``None`` once the mark has moved by itself."""
        self._clock = 0

    def living(self) -> list[Chat]:
        """The conversations that something may be said in."""
        return [chat for chat in self.chats.values() if chat.state != "deleted"]

    def _touch(self, chat: Chat) -> None:
        self._clock += 1
        chat.touched = self._clock

    def begin(self, chat_id: str, owner: str | None) -> Chat:
        """Begin a conversation."""
        chat = self.chats[chat_id] = Chat(chat_id, owner)
        self._touch(chat)
        return chat

    def say(self, chat: Chat, message: Said) -> None:
        """Say something."""
        self._touch(chat)
        chat.said.append(message)
        chat.tokens += message.tokens or 0
        chat.turns += 1

    def edit(self, chat: Chat, message_id: str, text: str) -> None:
        """Give a message another text."""
        self._touch(chat)
        chat.turns += 1
        message = chat.find(message_id)
        if message is not None and not message.redacted:
            message.text, message.edited = text, True

    def redact(self, chat: Chat, message_id: str) -> None:
        """Take away what a message said, wherever it is shown."""
        self._touch(chat)
        chat.turns += 1
        message = chat.find(message_id)
        if message is None:
            return
        for shown in (message, *self._shown(chat, message_id)):
            shown.text, shown.redacted, shown.edited = "", True, False
            shown.delivery_data = {
                key: value for key, value in shown.delivery_data.items() if key in ("platform_ids", "sent_as")
            }

    def _shown(self, chat: Chat, message_id: str) -> Iterator[Said]:
        for other in self.chats.values():
            if other is not chat:
                yield from (one for one in other.inherited if one.id == message_id)

    def deliver(self, chat: Chat, message_id: str, delivery: str, data: dict[str, Any]) -> None:
        """Note what the platform did with a message."""
        self._touch(chat)
        message = chat.find(message_id)
        if message is not None:
            if message.redacted:
                data = {key: value for key, value in data.items() if key in ("platform_ids", "sent_as")}
            message.delivery, message.delivery_data = delivery, data

    def react(self, chat: Chat, message_id: str, key: str, actor: str | None, value: Any) -> None:
        """Put a reaction to a message."""
        self._touch(chat)
        message = chat.find(message_id)
        if message is not None:
            message.reactions[key, actor] = value

    def unreact(self, chat: Chat, message_id: str, key: str, actor: str | None) -> None:
        """Take a reaction back."""
        self._touch(chat)
        message = chat.find(message_id)
        if message is not None:
            message.reactions.pop((key, actor), None)

    def rename(self, chat: Chat, title: str) -> None:
        """Give it a title."""
        self._touch(chat)
        chat.title = title

    def annotate(self, chat: Chat, metadata: dict[str, Any]) -> None:
        """Set keys of its metadata; ``None`` removes one."""
        self._touch(chat)
        for key, value in metadata.items():
            if value is None:
                chat.metadata.pop(key, None)
            else:
                chat.metadata[key] = value

    def rewind(self, chat: Chat, target: str | None) -> None:
        """Take what comes after a message off the path."""
        self._touch(chat)
        chat.turns += 1
        if target is None:
            chat.inherited = []
            keep = 0
        else:
            own = chat.find(target)
            if own is not None:
                if not own.on_path:
                    return
                keep = chat.said.index(own) + 1
            else:
                places = [place for place, one in enumerate(chat.inherited) if one.id == target]
                if not places:
                    return
                chat.inherited = chat.inherited[: places[-1] + 1]
                keep = 0
        for one in chat.said[keep:]:
            one.on_path = False

    def archive(self, chat: Chat) -> None:
        """Put it away."""
        self._touch(chat)
        chat.state = "archived"
        self._leave(chat)

    def restore(self, chat: Chat) -> None:
        """Bring it back."""
        self._touch(chat)
        chat.state = "active"

    def activate(self, chat: Chat) -> None:
        """Make it its owner's active one."""
        self._touch(chat)
        chat.state = "active"
        if chat.owner is not None:
            self.active[chat.owner] = {chat.id}

    def touch(self, chat: Chat) -> None:
        """Note something that changes nothing."""
        self._touch(chat)

    def delete(self, chat: Chat) -> None:
        """Delete it."""
        self._touch(chat)
        chat.state, chat.title, chat.metadata, chat.inherited, chat.said = "deleted", None, {}, [], []
        self._leave(chat)

    def _leave(self, chat: Chat) -> None:
        # Which one the mark moves to is decided when the history store takes it, by what it holds then.
        if chat.owner is not None and chat.id in self.active.get(chat.owner, set()):
            self.active[chat.owner] = None

    def may_be_active(self, owner: str, chat_id: str | None) -> bool:
        """Whether a conversation may be its owner's active one."""
        marked = self.active.get(owner, set())
        if marked is not None:
            return chat_id in marked if marked else chat_id is None
        return chat_id is None or self.chats[chat_id].state == "active"

    def fork(self, chat_id: str, parent: Chat, *, at: str | None) -> Chat:
        """Begin a conversation with what another one shows now, up to a message."""
        chat = self.begin(chat_id, parent.owner)
        chat.ancestors = [parent, *parent.ancestors]
        chat.inherited = [replace(one, reactions=dict(one.reactions)) for one in parent.path]
        if at is not None:
            self.rewind(chat, at)
        return chat

    def listed(self, owner: str) -> list[str]:
        """The owner's conversations, the newest activity first."""
        mine = [chat for chat in self.chats.values() if chat.owner == owner and chat.state == "active"]
        return [chat.id for chat in sorted(mine, key=lambda chat: -chat.touched)]
