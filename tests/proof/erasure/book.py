"""Keep what was done in a program, in order, and how each act ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Any, Final, NamedTuple
from uuid import UUID

ERASING: Final = ("redact", "reset", "delete", "everywhere", "owner", "person", "clear_records")
NUMBERED: Final = ("everywhere", "owner", "person")


class Outcome(IntEnum):
    DONE = 0
    UNKNOWN = 1
    REFUSED = 2


@dataclass(eq=False, slots=True, kw_only=True)
class Chat:
    """A conversation."""

    name: str
    owner: str
    parent: Chat | None = None


@dataclass(eq=False, slots=True, kw_only=True)
class Box:
    """An outbox under one identity.

    :ivar carried: the number of erasures that it has carried out: at least, and at most.
    :ivar carries: the acts after which it had carried out a number.
    :ivar copied: what it was copied from.
    :ivar copied_at: the number of acts that there were when it was copied.
    :ivar replaced: the act with which its file was replaced by an older copy.
    :ivar skipped: the events that an operator has skipped, which the file keeps to be put back.
    """

    name: str
    carried: tuple[int, int] = (0, 0)
    carries: list[tuple[int, int]] = field(default_factory=list)
    copied: Box | None = None
    copied_at: int = 0
    replaced: float = inf
    skipped: set[UUID] = field(default_factory=set)

    def carried_at(self, number: int) -> float:
        return next((act for act, upto in self.carries if upto >= number), inf)

    def stems_from(self, other: Box) -> bool:
        return self is other or (self.copied is not None and self.copied.stems_from(other))


@dataclass(eq=False, slots=True, kw_only=True)
class Act:
    """Something that was done.

    :ivar event: the id of the last event that it appended.
    :ivar number: of the erasure that it recorded in the store; 0 for none.
    :ivar erasure: the id of that.
    :ivar head: the last position of the log when it began.
    :ivar carried: as of the outbox, when it began.
    """

    index: int
    verb: str
    box: Box
    chat: Chat
    message: str = ""
    subject: str = ""
    how: str = ""
    author: str | None = None
    owner: str | None = None
    words: list[Word] = field(default_factory=list)
    amount: int = 0
    outcome: Outcome = Outcome.UNKNOWN
    event: UUID | None = None
    number: int = 0
    erasure: UUID | None = None
    head: int = 0
    carried: tuple[int, int] = (0, 0)
    error: str = ""

    def __str__(self) -> str:
        parts = (
            self.chat.name,
            self.message,
            self.subject,
            self.how,
            f"of {self.owner}" if self.owner else "",
            *(word.text for word in self.words),
            self.error,
        )
        number = f" number {self.number}" if self.number else ""
        words = " ".join(part for part in parts if part)
        return f"{self.index} {self.box.name} {self.verb} {words}{number}: {self.outcome.name.lower()}"


@dataclass(eq=False, slots=True, kw_only=True)
class Word:
    """A planted text that nothing else contains.

    :ivar scope: the owner or the conversation whose record it is.
    """

    text: str
    kind: str
    act: Act
    scope: str = ""


@dataclass(eq=False, slots=True, kw_only=True)
class Hold:
    """A hold on an owner or a conversation, by positions of the log and by acts.

    :ivar asked: the last position when it was asked for; a relay may deliver until it is there, at ``since``.
    :ivar until: the last position when its release was asked for, which was there at ``ended``.
    """

    kind: str
    subject: str
    asked: int
    since: int
    act: int
    until: float = inf
    ended: float = inf
    released: float = inf

    def protects(self, chat: Chat) -> bool:
        return self.subject == (chat.owner if self.kind == "owner" else chat.name)


class Entry(NamedTuple):
    """An event of the store's log."""

    position: int
    chat: str
    version: int
    event: UUID
    origin: UUID
    type: str
    data: dict[str, Any]


@dataclass(eq=False)
class Book:
    """All that was done in a program.

    :ivar restored: the last act that set the store back.
    :ivar restored_head: the last position of the log that no such act has taken away.
    """

    acts: list[Act] = field(default_factory=list)
    chats: dict[str, Chat] = field(default_factory=dict)
    holds: list[Hold] = field(default_factory=list)
    restored: int = -1
    restored_head: float = inf

    @property
    def words(self) -> Iterator[Word]:
        return (word for act in self.acts for word in act.words)

    def held(self, chat: Chat) -> bool:
        """Return True if a conversation or its owner is on hold now."""
        return any(hold.until == inf and hold.protects(chat) for hold in self.holds)
