"""Add up the messages of a period and what they cost, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.events import to_microseconds
from letopis.store.model.identifiers import check_identifier

MAX_GROUPS: Final = 10_000
"""Values of a metadata key in one count, so that a key of unique values cannot fill the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How many messages there were, and what they cost.

    :ivar questions: messages of users.
    :ivar answers: messages of assistants.
    :ivar messages: messages of all roles.
    :ivar tokens: the sum of the tokens that messages state.
    """

    questions: int = 0
    answers: int = 0
    messages: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics(Figures):
    """The messages of a period, and what they cost.

    Every message counts that was appended, including those that were rewound over, redacted or deleted since. A
    superseded message counts with its tokens only: it was paid for, but never part of a conversation. A message that
    forks inherit counts once, in the conversation that it was appended to.

    :ivar conversations: how many conversations had a message in the period.
    :ivar by: the figures by the values of a key of the messages' metadata: text unchanged, other values as JSON;
        ``None`` for messages without that key or with redacted metadata. Empty where no key was asked for.
    :ivar complete: ``False`` where the history store was unavailable, and only what the outbox holds was counted.
    """

    conversations: int = 0
    by: Mapping[str | None, Figures] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What to count: from ``since`` on and before ``until``, in UTC microseconds; ``by`` a key of the metadata."""

    owner: str | None = None
    since: int | None = None
    until: int | None = None
    by: str | None = None

    @classmethod
    def of(cls, *, owner: str | None, since: datetime | None, until: datetime | None, by: str | None) -> Self:
        """Return what a caller asks to count."""
        if by is not None and (not isinstance(by, str) or not by):
            raise InvalidInput("by", "must be a key of the messages' metadata")
        return cls(
            owner=None if owner is None else check_identifier(owner, "owner"),
            since=_microseconds(since, "since"),
            until=_microseconds(until, "until"),
            by=by,
        )


def _microseconds(given: datetime | None, name: str) -> int | None:
    try:
        return None if given is None else to_microseconds(given)
    except InvalidInput as error:
        raise InvalidInput(name, error.reason) from error


@dataclass(slots=True)
class Sums:
    """Figures while they are added up; one rule of what a message counts as, for all who count."""

    questions: int = 0
    answers: int = 0
    messages: int = 0
    tokens: int = 0

    def take(self, role: str, tokens: int, *, superseded: bool) -> None:
        """Count a message; a superseded one counts with its tokens alone."""
        self.tokens += tokens
        if not superseded:
            self.messages += 1
            self.questions += role == "user"
            self.answers += role == "assistant"


class Erasures(dict[str, dict[str | None, int]]):
    """Where pending events erase messages of conversations, by message id: sequences; ``None`` for all messages."""

    def of(self, conversation_id: str, message_id: object, sequence: int = 0) -> bool:
        """Return True if a message is erased that was appended before: in the store, or under a sequence."""
        sequences = self.get(conversation_id)
        return sequences is not None and max(sequences.get(None, 0), sequences.get(str(message_id), 0)) > sequence


class StatisticsBuilder:
    """Adds up the data of ``message.appended`` events."""

    def __init__(self, by: str | None = None, *, erasures: Erasures | None = None) -> None:
        self._by = by
        self.erasures = erasures or Erasures()  # of stored messages, which count as they will without their content
        self._all = Sums()
        self._groups: dict[str | None, Sums] = {}
        self.conversations = 0
        """How many conversations the messages are of; set by the caller."""

    def take(self, data: Mapping[str, Any], *, superseded: bool = False) -> None:
        """Count a message."""
        tokens = data.get("tokens")
        cost = tokens if isinstance(tokens, int) else 0
        role = str(data.get("role"))
        self._all.take(role, cost, superseded=superseded)
        if self._by is not None:
            self._group(_label(data, self._by)).take(role, cost, superseded=superseded)

    def add(self, *, questions: int, answers: int, messages: int, tokens: int) -> None:
        """Count many messages at once, where they are not grouped."""
        self._all.questions += questions
        self._all.answers += answers
        self._all.messages += messages
        self._all.tokens += tokens

    def _group(self, label: str | None) -> Sums:
        if (sums := self._groups.get(label)) is None:
            if len(self._groups) >= MAX_GROUPS:
                raise InvalidInput("by", f"has more than {MAX_GROUPS} values: group by a key that has few")
            sums = self._groups[label] = Sums()
        return sums

    def result(self, *, complete: bool = True) -> Statistics:
        """Return the statistics, with the groups that have the most messages first."""
        order = sorted(self._groups.items(), key=lambda item: (-item[1].messages, item[0] is None, item[0] or ""))
        return Statistics(
            **asdict(self._all),
            conversations=self.conversations,
            by={label: Figures(**asdict(sums)) for label, sums in order},
            complete=complete,
        )


def _label(data: Mapping[str, Any], key: str) -> str | None:
    metadata = data.get("metadata")
    value = metadata.get(key) if isinstance(metadata, Mapping) else None
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialStatistics:
    """The count of a history store, to which an outbox adds what is pending."""

    counting: StatisticsBuilder
    heads: Mapping[str, int]  # the last applied sequence of the outbox's lanes
    there: frozenset[str]  # conversations of these lanes that were counted already
    owned: frozenset[str]  # that belong to the owner, as far as the store knows
    stored: frozenset[UUID] = frozenset()  # events still to be delivered that another outbox has delivered
    deleted: frozenset[str] = frozenset()
