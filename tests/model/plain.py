"""Model a history with lists and dicts, in memory and at once: the one model that every harness compares with.

It shares no code with the product: no events, no fold. Each operation gives a conversation its next version, and every
version is kept as a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_KEPT_OF_A_REDACTED_DELIVERY = ("platform_ids", "sent_as")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One message as it is at one version; ``chat`` is where it was said, which may be an ancestor of the reader."""

    chat: Chat = field(repr=False, compare=False)
    id: str
    role: str
    text: str
    tokens: int | None = None
    mood: str | None = None
    on_path: bool = True
    wiped: bool = False
    """Whether a reset took its content away, which forks keep."""
    edited: bool = False
    delivery: str = "appended"
    delivery_data: Mapping[str, Any] = field(default_factory=dict)
    reactions: Mapping[tuple[str, str | None], Any] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def redacted(self) -> bool:
        """Whether its content was taken away: for every reader, and at every version."""
        return self.wiped or self.id in self.chat.erased

    @property
    def shown(self) -> str:
        return "" if self.redacted else self.text

    def view(self) -> tuple[Any, ...]:
        """What a reader sees of it."""
        data = self.delivery_data
        if self.redacted:
            data = {key: value for key, value in data.items() if key in _KEPT_OF_A_REDACTED_DELIVERY}
        return (
            self.id,
            self.role,
            self.shown,
            self.tokens,
            self.on_path,
            self.redacted,
            self.edited and not self.redacted,
            self.delivery,
            tuple(sorted(data.items(), key=str)),
            tuple((key, actor, value) for (key, actor), value in self.reactions.items()),
            self.interrupted,
        )


@dataclass(frozen=True, slots=True)
class Moment:
    path: tuple[Said, ...] = ()
    inherits: bool = False


@dataclass(eq=False)
class Chat:
    id: str
    owner: str | None
    parent: Chat | None = None
    forked_at: int = 0
    """The version of the parent that a fork begins with."""
    touched: int = 0
    title: str | None = None
    state: str = "active"
    left: bool = False
    """Whether it was archived or deleted since it was last activated."""
    metadata: dict[str, Any] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)
    tokens: int = 0
    counted: set[str] = field(default_factory=set)
    """Ids of the messages whose tokens are counted; a deletion takes the messages, and what they cost stays."""
    erased: set[str] = field(default_factory=set)
    """Ids that a redaction has named, also of messages that are nowhere: no edit of them is taken any more."""
    inherited: tuple[Said, ...] = ()
    """What a fork shows of its ancestors."""
    whole: tuple[Said, ...] = ()
    """What it showed of them when it was forked."""
    lost: bool = False
    """Whether the event that it was forked at is not known."""
    inherits: bool = False
    undone: bool = False
    moments: list[Moment] = field(default_factory=lambda: [Moment()])

    @property
    def version(self) -> int:
        return len(self.moments) - 1

    @property
    def deleted(self) -> bool:
        return self.state == "deleted"

    @property
    def path(self) -> tuple[Said, ...]:
        return self.moments[-1].path

    @property
    def own(self) -> list[Said]:
        return [one for one in self.said if one.on_path]

    @property
    def ancestors(self) -> Iterator[Chat]:
        if self.parent is not None:
            yield self.parent
            yield from self.parent.ancestors

    def find(self, message_id: str) -> Said | None:
        return next((one for one in self.said if one.id == message_id), None)

    def every(self, message_id: str) -> list[Said]:
        return [one for one in self.said if one.id == message_id]

    def change(self, message: Said, **values: Any) -> None:
        """Put another version of one of its own messages in the place of it."""
        place = next(place for place, one in enumerate(self.said) if one is message)
        self.said[place] = replace(message, **values)

    def view(self) -> tuple[Any, ...]:
        """What a reader sees of it, without its messages."""
        return (self.owner, self.title, self.state, tuple(sorted(self.metadata.items())), len(self.own), self.tokens)


class Plain:
    def __init__(self) -> None:
        self.chats: dict[str, Chat] = {}
        self._activated: dict[str, Chat] = {}
        """By owner, the conversation that was activated last; one put away since has left the mark to another."""
        self._clock = 0

    def living(self) -> list[Chat]:
        return [chat for chat in self.chats.values() if not chat.deleted]

    def _touch(self, chat: Chat) -> None:
        self._clock += 1
        chat.touched = self._clock

    def _done(self, chat: Chat) -> None:
        """Keep the version that an operation has made."""
        self._touch(chat)
        chat.moments.append(Moment((*chat.inherited, *chat.own), chat.inherits))

    def begin(self, chat_id: str, owner: str | None = None) -> Chat:
        """Begin a conversation; its first version is made by the first operation."""
        chat = self.chats[chat_id] = Chat(chat_id, owner)
        self._touch(chat)
        return chat

    def say(
        self,
        chat: Chat,
        message_id: str,
        role: str,
        text: str,
        tokens: int | None = None,
        *,
        aside: bool = False,
        **more: Any,
    ) -> None:
        """Say something; what comes after a deletion is kept by nobody.

        :param aside: the store put it aside, so that it was never on the path.
        :param more: further values of what was said.
        """
        if not chat.deleted:
            values = {"role": role, "text": text, "tokens": tokens, **more}
            chat.said.append(Said(chat=chat, id=message_id, on_path=not aside, **values))
        if message_id not in chat.counted:
            chat.tokens += tokens or 0
        chat.counted.add(message_id)
        self._done(chat)

    def edit(self, chat: Chat, message_id: str, text: str) -> None:
        for message in chat.every(message_id):
            chat.change(message, text=text, edited=True)
        self._done(chat)

    def redact(self, chat: Chat, message_id: str) -> None:
        chat.erased.add(message_id)
        self._done(chat)

    def deliver(self, chat: Chat, message_id: str, delivery: str, data: dict[str, Any]) -> None:
        for message in chat.every(message_id):
            chat.change(message, delivery=delivery, delivery_data=data)
        self._done(chat)

    def react(self, chat: Chat, message_id: str, key: str, actor: str | None, value: Any) -> None:
        for message in chat.every(message_id):
            if message.on_path or not message.redacted:
                chat.change(message, reactions={**message.reactions, (key, actor): value})
        self._done(chat)

    def unreact(self, chat: Chat, message_id: str, key: str, actor: str | None) -> None:
        for message in chat.every(message_id):
            rest = {one: value for one, value in message.reactions.items() if one != (key, actor)}
            chat.change(message, reactions=rest)
        self._done(chat)

    def rename(self, chat: Chat, title: str) -> None:
        chat.title = title
        self._done(chat)

    def annotate(self, chat: Chat, metadata: dict[str, Any]) -> None:
        for key, value in metadata.items():
            if value is None:
                chat.metadata.pop(key, None)
            else:
                chat.metadata[key] = value
        self._done(chat)

    def rewind(self, chat: Chat, target: str | None, *, undone: bool = False) -> None:
        """Take what comes after a message off the path, or everything; a message that is not on it changes nothing.

        In a fork, one that it never had of its own names anew where the inherited part ends; all of it stays if that is
        not there. One that is ``undone`` to its beginning shows nothing and is read as it was; a cleared one is not.
        """
        if target is None:
            chat.inherited, chat.inherits, chat.undone = (), chat.inherits and undone, undone
            self._cut(chat, 0)
        elif target in (path := [one.id for one in chat.path]):
            # The last one: a fork may inherit an id that its parent has used again.
            self._cut(chat, len(path) - path[::-1].index(target))
        elif chat.inherits and not chat.undone and chat.find(target) is None:
            self._cut(chat, len(chat.inherited))
            ids = [one.id for one in chat.whole]
            chat.inherited = chat.whole[: len(ids) - ids[::-1].index(target)] if target in ids else chat.whole
        self._done(chat)

    def _cut(self, chat: Chat, length: int) -> None:
        chat.inherited = chat.inherited[:length]
        for one in chat.own[length - len(chat.inherited) :]:
            chat.change(one, on_path=False)

    def archive(self, chat: Chat) -> None:
        chat.state, chat.left = "archived", True
        self._done(chat)

    def restore(self, chat: Chat) -> None:
        chat.state = "active"
        self._done(chat)

    def reset(self, chat: Chat) -> None:
        """Erase it; it goes on, empty, and its forks have their copies."""
        self.rewind(chat, None)
        chat.title, chat.metadata = None, {}
        chat.said = [replace(one, wiped=True, reactions={}) for one in chat.said]

    def activate(self, chat: Chat) -> None:
        chat.state, chat.left = "active", False
        if chat.owner is not None:
            self._activated[chat.owner] = chat
        self._done(chat)

    def touch(self, chat: Chat) -> None:
        self._done(chat)

    def delete(self, chat: Chat) -> None:
        """Delete it; its forks have their copies."""
        chat.state, chat.title, chat.metadata, chat.said, chat.left = "deleted", None, {}, [], True
        chat.inherited, chat.inherits = (), False
        self._done(chat)

    def start(
        self,
        chat: Chat,
        owner: str | None = None,
        title: str | None = None,
        *,
        parent: Chat | None = None,
        version: int = 0,
        at: str | None = None,
    ) -> None:
        chat.owner = chat.owner or owner
        chat.title = title if chat.title is None else chat.title
        if parent is not None:
            chat.parent, chat.inherits, chat.forked_at = parent, True, version
            chat.inherited = chat.whole = parent.moments[version].path
            if at is not None:
                chat.inherited = chat.inherited[: [one.id for one in chat.inherited].index(at) + 1]
        self._done(chat)

    def fork(self, chat_id: str, parent: Chat, *, at: str | None = None, version: int | None = None) -> Chat:
        """Begin a conversation with a copy of what another one showed at a version, up to a message."""
        chat = self.begin(chat_id, parent.owner)
        self.start(chat, parent=parent, version=parent.version if version is None else version, at=at)
        return chat

    def needed(self) -> dict[str, int]:
        """Return up to which version each conversation is read by a fork that is alive; followed upwards."""
        needed: dict[str, int] = {}
        for fork in self.chats.values():
            at, inherits = fork, fork.inherits
            while inherits and at.parent is not None:
                parent, version = at.parent, at.forked_at
                needed[parent.id] = max(needed.get(parent.id, 0), version)
                at, inherits = parent, parent.moments[version].inherits
        return needed

    def active(self, owner: str) -> Chat | None:
        """The owner's active conversation, if one was activated and not put away since."""
        chat = self._activated.get(owner)
        return None if chat is None or chat.left else chat
