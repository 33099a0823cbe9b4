"""Statistics: what was asked, answered and spent in a period, counted from the log page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.codec import decode
from letopis.store.dialects import Dialect, lookups
from letopis.store.errors import InvalidInput
from letopis.store.events import to_microseconds
from letopis.store.identifiers import check_identifier, partition_of
from letopis.store.reads import Reader
from letopis.store.schema import conversations, events, messages
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import MessageAppended

GROUPS_MAX: Final = 10_000
"""Values of a metadata key that are told apart, so that a key of unique values cannot fill the memory."""
_PAGE: Final = 500
"""Events that are held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was said, and what it cost.

    :ivar questions: messages of users; ``answers``: of assistants; ``messages``: of all roles.
    :ivar tokens: what the messages cost, as far as they say.
    """

    questions: int = 0
    answers: int = 0
    messages: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics(Figures):
    """What was said in a period, and what it cost.

    Everything counts that was said and paid for, also what was rewound over, redacted or deleted since. Of a message
    that was superseded only the tokens count: it was paid for, but never was part of a conversation. What a fork
    inherits counts once, where it was said.

    :ivar conversations: in which something was said in the period.
    :ivar by: the same by the values of a key of the messages' metadata: text as it is, other values as JSON; ``None``
        is where there is no such key, and where it was redacted. Empty where no key was asked for.
    :ivar complete: ``False`` where the history store could not be reached, and only what the outbox holds was counted.
    """

    conversations: int = 0
    by: Mapping[str | None, Figures] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What is to be counted.

    :ivar since: UTC microseconds, included; ``until``: not included.
    """

    owner: str | None = None
    since: int | None = None
    until: int | None = None
    by: str | None = None

    @classmethod
    def of(cls, *, owner: str | None, since: datetime | None, until: datetime | None, by: str | None) -> Self:
        """Return what a caller asks for.

        :raises InvalidInput: an argument is wrong.
        """
        if by is not None and (not isinstance(by, str) or not by):
            raise InvalidInput("by", "must be a key of the messages' metadata")
        return cls(
            owner=None if owner is None else check_identifier(owner, "owner"),
            since=_moment(since, "since"),
            until=_moment(until, "until"),
            by=by,
        )


def _moment(given: datetime | None, name: str) -> int | None:
    try:
        return None if given is None else to_microseconds(given)
    except InvalidInput as error:
        raise InvalidInput(name, error.reason) from error


@dataclass(slots=True)
class _Sums:
    questions: int = 0
    answers: int = 0
    messages: int = 0
    tokens: int = 0

    def take(self, role: str, tokens: int, *, superseded: bool) -> None:
        self.tokens += tokens
        if not superseded:
            self.messages += 1
            self.questions += role == "user"
            self.answers += role == "assistant"


class Counting:
    """A count under way: takes in the data of ``message.appended``, one after the other."""

    def __init__(self, by: str | None = None) -> None:
        self._by = by
        self._all = _Sums()
        self._groups: dict[str | None, _Sums] = {}
        self.conversations = 0
        """Set by whoever knows which conversations the messages are of."""

    def take(self, data: Mapping[str, Any], *, superseded: bool = False) -> None:
        """Count a message.

        :raises InvalidInput: the key that is grouped by has more than 10,000 values.
        """
        tokens = data.get("tokens")
        cost = tokens if isinstance(tokens, int) else 0
        role = str(data.get("role"))
        self._all.take(role, cost, superseded=superseded)
        if self._by is not None:
            self._group(_label(data, self._by)).take(role, cost, superseded=superseded)

    def _group(self, label: str | None) -> _Sums:
        if (found := self._groups.get(label)) is None:
            if len(self._groups) >= GROUPS_MAX:
                raise InvalidInput("by", f"has more than {GROUPS_MAX} values: group by a key that has few")
            found = self._groups[label] = _Sums()
        return found

    def result(self, *, complete: bool = True) -> Statistics:
        """Return what it comes to; the groups with the most messages first."""
        order = sorted(self._groups.items(), key=lambda item: (-item[1].messages, item[0] is None, item[0] or ""))
        return Statistics(
            **_as_dict(self._all),
            conversations=self.conversations,
            by={label: Figures(**_as_dict(sums)) for label, sums in order},
            complete=complete,
        )


def _as_dict(sums: _Sums) -> dict[str, int]:
    return {
        "questions": sums.questions,
        "answers": sums.answers,
        "messages": sums.messages,
        "tokens": sums.tokens,
    }


def _label(data: Mapping[str, Any], key: str) -> str | None:
    metadata = data.get("metadata")
    value = metadata.get(key) if isinstance(metadata, Mapping) else None
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a history store holds, to add what an outbox holds beyond it.

    :ivar heads: how far lanes of the outbox had got; those of which nothing is there are left out.
    :ivar there: which of their conversations were counted already.
    :ivar owned: which of their conversations are the owner's, as the store knows.
    """

    counting: Counting
    heads: Mapping[str, int]
    there: frozenset[str]
    owned: frozenset[str]


class Counter:
    """Counts in one history store, over one snapshot of it; its statements are made once."""

    def __init__(self, dialect: Dialect, *, partitions: int, upcasters: Upcasters, reader: Reader) -> None:
        self._dialect = dialect
        self._partitions = partitions
        self._upcasters = upcasters
        self._reader = reader
        self._statements = _Statements(dialect)

    async def count(
        self, connection: AsyncConnection, period: Period, *, origin_id: UUID | None = None, lanes: Sequence[str] = ()
    ) -> Counted:
        """Count a period, and say how far some lanes of an outbox are in it.

        :param connection: with no transaction yet.
        :raises InvalidInput: the key that is grouped by has more than 10,000 values.
        """
        await self._dialect.begin_snapshot(connection)
        counting = Counting(period.by)
        named = frozenset(lanes)
        heads = {} if origin_id is None else await self._reader.lane_heads(connection, origin_id, lanes)
        owned = await self._owned(connection, period.owner, lanes)
        there: set[str] = set()
        last: str | None = None
        async for rows in self._pages(connection, period):
            for row in rows:
                _, data = self._upcasters.upcast(MessageAppended.type, row.schema_version, decode(row.data))
                counting.take(data, superseded=row.left_at == row.version)
                if row.conversation_id != last:
                    last = row.conversation_id
                    counting.conversations += 1
                    if last in named:
                        there.add(last)
        return Counted(counting=counting, heads=heads, there=frozenset(there), owned=owned)

    async def _owned(self, connection: AsyncConnection, owner: str | None, names: Sequence[str]) -> frozenset[str]:
        if owner is None:
            return frozenset(names)
        found: set[str] = set()
        for part in lookups(names):
            rows = await connection.execute(
                self._statements.owned,
                {"partitions": self._partitions_of(part), "conversations": part, "owner": owner},
            )
            found.update(row.conversation_id for row in rows)
        return frozenset(found)

    async def _pages(self, connection: AsyncConnection, period: Period) -> AsyncIterator[Sequence[sa.Row[Any]]]:
        """Yield the messages of the period, all of a conversation one after the other."""
        narrowed = {
            name: value for name, value in (("since", period.since), ("until", period.until)) if value is not None
        }
        statement = self._statements.messages(period, whole=True)
        part = self._statements.messages(period, whole=False)
        async for few in self._conversations(connection, period):
            if len(few) > 1 or few[0].version <= _PAGE:
                names = [row.conversation_id for row in few]
                key = {"partitions": self._partitions_of(names), "conversations": names}
                found = (await connection.execute(statement, {**key, **narrowed})).all()
                yield sorted(found, key=lambda row: (row.conversation_id, row.version))
                continue
            for after in range(0, few[0].version, _PAGE):
                window = {"partition": few[0].partition, "conversation": few[0].conversation_id}
                window.update(after=after, upto=after + _PAGE)
                yield (await connection.execute(part, {**window, **narrowed})).all()

    async def _conversations(self, connection: AsyncConnection, period: Period) -> AsyncIterator[list[sa.Row[Any]]]:
        """Yield conversations that may have said something in the period: a few that make a page, or a large one."""
        statement = self._statements.conversations(period)
        # Of one owner they are few, wherever they lie; all of them are walked through along the key of their table.
        for partition in (0,) if period.owner is not None else range(self._partitions):
            key: dict[str, Any] = {"after": "", "limit": _PAGE, "partition": partition}
            if period.owner is not None:
                del key["partition"]
                key["owner"] = period.owner
            if period.since is not None:
                key["since"] = period.since
            while rows := (await connection.execute(statement, key)).all():
                for few in _parted(rows):
                    yield few
                key["after"] = rows[-1].conversation_id

    def _partitions_of(self, names: Iterable[str]) -> list[int]:
        return sorted({partition_of(name, self._partitions) for name in names})


def _parted(rows: Iterable[sa.Row[Any]]) -> Iterable[list[sa.Row[Any]]]:
    """Part conversations into groups of which all events together make a page at most."""
    few: list[sa.Row[Any]] = []
    size = 0
    for row in rows:
        if few and size + row.version > _PAGE:
            yield few
            few, size = [], 0
        few.append(row)
        size += row.version
    if few:
        yield few


class _Statements:
    """The selects of a count."""

    def __init__(self, dialect: Dialect) -> None:
        self._among_partitions = dialect.among(messages.c.partition, "partitions")
        self._among_conversations = dialect.among(messages.c.conversation_id, "conversations")
        self.owned = sa.select(conversations.c.conversation_id).where(
            dialect.among(conversations.c.partition, "partitions"),
            dialect.among(conversations.c.conversation_id, "conversations"),
            conversations.c.owner_id == sa.bindparam("owner"),
        )

    def conversations(self, period: Period) -> sa.Executable:
        """Return the select of some conversations, by id."""
        statement = sa.select(
            conversations.c.partition, conversations.c.conversation_id, conversations.c.version
        ).where(conversations.c.conversation_id > sa.bindparam("after"))
        if period.owner is None:
            statement = statement.where(conversations.c.partition == sa.bindparam("partition"))
        else:
            statement = statement.where(conversations.c.owner_id == sa.bindparam("owner"))
        if period.since is not None:
            # What a conversation was updated at is never before what was said in it.
            statement = statement.where(conversations.c.updated_at >= sa.bindparam("since"))
        return statement.order_by(conversations.c.conversation_id).limit(sa.bindparam("limit"))

    def messages(self, period: Period, *, whole: bool) -> sa.Executable:
        """Return the select of the messages of some whole conversations, or of a stretch of one."""
        statement = sa.select(
            messages.c.conversation_id,
            messages.c.version,
            messages.c.left_at,
            events.c.schema_version,
            events.c.data,
        ).select_from(
            messages.join(
                events,
                sa.and_(
                    events.c.partition == messages.c.partition,
                    events.c.conversation_id == messages.c.conversation_id,
                    events.c.version == messages.c.version,
                ),
            )
        )
        if whole:
            statement = statement.where(self._among_partitions, self._among_conversations)
        else:
            statement = statement.where(
                messages.c.partition == sa.bindparam("partition"),
                messages.c.conversation_id == sa.bindparam("conversation"),
                messages.c.version > sa.bindparam("after"),
                messages.c.version <= sa.bindparam("upto"),
            )
        if period.since is not None:
            statement = statement.where(events.c.occurred_at >= sa.bindparam("since"))
        if period.until is not None:
            statement = statement.where(events.c.occurred_at < sa.bindparam("until"))
        return statement
