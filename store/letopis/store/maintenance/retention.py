"""Find the content that the rules of retention keep no longer, from kept places in the log on; change no content."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import product
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.row_mapping import tags_of
from letopis.store.database.schema import checkpoints, conversations, events, messages, of_conversation
from letopis.store.holds import all_held, held, owners_of, written_by
from letopis.store.model.event_types import (
    ConversationArchived,
    ConversationStarted,
    ConversationTagged,
    ConversationTrimmed,
)
from letopis.store.model.events import from_microseconds
from letopis.store.projections.base import RETENTION_PREFIX, Checkpoint, Checkpoints
from letopis.store.read.task_marks import is_content, is_on_path
from letopis.store.rules.retention import ContentRetention, RetentionRule

PAGE_EVENTS: Final = 500
STEP_SECONDS: Final = 0.1
"""Time after which a step looks at no further conversation."""
MAX_COUNTED_EVENTS: Final = 1_000
_MICROSECONDS: Final = 1_000_000

Place = tuple[int, int]
"""An age in seconds and a partition: the log is read once for each age, when its events reach it."""


async def read_again(connection: AsyncConnection) -> None:
    """Have the log read from its beginning, in the open transaction: a hold was released."""
    places = checkpoints.c.name.like(f"{RETENTION_PREFIX}%")
    await connection.execute(sa.update(checkpoints).where(places).values(position=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class DueContent:
    """Content of one conversation that is to leave.

    :ivar upto: the version up to which it leaves.
    :ivar rule: the name of the rule.
    :ivar messages: how many messages lose their content, and ``oldest_kept``, when the oldest of the others was
        recorded: counted only for a dry run.
    """

    conversation_id: str
    owner_id: str | None
    upto: int
    rule: str
    sequence: int | None = None
    messages: int = 0
    oldest_kept: datetime | None = None

    @property
    def body(self) -> ConversationTrimmed:
        """The event that takes it away."""
        return ConversationTrimmed(upto=self.upto, rule=self.rule, sequence=self.sequence)


@dataclass(slots=True)
class RetentionStep:
    """What one step has found, and how far it has read: to be kept once the events are appended.

    :ivar now: the time by which it judged ages, to be given to the next step of a round.
    """

    due: list[DueContent] = field(default_factory=list)
    moved: dict[Place, int] = field(default_factory=dict)
    began: int = 0
    more: bool = False
    now: int = 0


class _Statements:
    def __init__(self, dialect: Dialect) -> None:
        e, c = events.c, conversations.c
        cutoff, after, upto = (sa.bindparam(name, type_=sa.BigInteger) for name in ("cutoff", "after", "upto"))
        self.page = (
            sa.select(e.position, e.conversation_id, e.version, e.type, e.recorded_at)
            .where(e.partition == sa.bindparam("partition"), e.position > after)
            .order_by(e.position)
            .limit(PAGE_EVENTS)
        )
        late = self.page.limit(MAX_COUNTED_EVENTS).subquery()
        self.behind = sa.select(sa.func.count()).select_from(late).where(late.c.recorded_at <= cutoff)
        self.conversations = sa.select(
            c.conversation_id, c.owner_id, c.state, c.version, c.tags, c.trimmed, c.inherits, c.message_count
        ).where(*dialect.of_conversations(conversations), c.state != "deleted", sa.not_(held()))
        beyond = (*of_conversation(events), e.version > after)
        self.young = _select_first(e.version, *beyond, e.recorded_at > cutoff)
        self.archived = _select_first(
            e.version, *beyond, e.type == ConversationArchived.type, e.recorded_at <= cutoff, last=True
        )
        own = (*of_conversation(messages), messages.c.version > after, is_on_path(messages))
        self.newest = sa.select(messages.c.version).where(*own).order_by(messages.c.version.desc())
        content = (*beyond, is_content(events), e.salt.is_not(None))
        self.last = _select_first(e.version, *content, e.version <= upto, last=True)
        lane = (*of_conversation(events), e.origin_id == sa.bindparam("origin"))
        self.sequence = _select_first(e.sequence, *lane, e.version <= upto, last=True)
        self.held = written_by(dialect, sa.func.min(messages.c.version)).where(messages.c.version > after)
        kept = messages.c.redacted_at.is_(None)
        self.count = sa.select(sa.func.count()).where(*own, messages.c.version <= upto, kept)
        # Not the first one's: clocks differ.
        self.kept = sa.select(sa.func.min(e.recorded_at)).where(*content)


def _select_first(column: sa.Column[Any], *where: sa.ColumnElement[bool], last: bool = False) -> sa.Select[Any]:
    """Return the select of a column of the first event, or of the last one."""
    version = events.c.version
    return sa.select(column).where(*where).order_by(version.desc() if last else version).limit(1)


class ContentFinder:
    """Finds what is due in one history store, over connections that it is given."""

    def __init__(self, dialect: Dialect, *, partitions: int, now: Callable[[], int]) -> None:
        self._checkpoints = Checkpoints(dialect)
        self._statements = dialect.shared(_Statements)
        self._partitions = range(partitions)
        self._now = now

    async def places(self, connection: AsyncConnection, retention: ContentRetention) -> dict[Place, int]:
        """Return the position up to which the log was read, by age and partition."""
        rows = await self._checkpoints.read(connection, [_name(retention)], self._partitions)
        return {(row.version, row.partition): row.position for row in rows}

    async def keep(self, connection: AsyncConnection, retention: ContentRetention, step: RetentionStep) -> None:
        """Keep how far a step has read, in the open transaction."""
        for (age, partition), position in step.moved.items():
            key = (_name(retention), age, partition)
            own, _ = await self._checkpoints.find(connection, key)
            own = own or Checkpoint.first(key, replay_to=0)
            # Another relay may have gone on meanwhile, or a release of a hold have the log read again.
            if own.position == step.began:
                own.position = position
                await self._checkpoints.move(connection, [own], now=self._now())

    async def behind(self, connection: AsyncConnection, retention: ContentRetention) -> int:
        """Return how many events have reached an age and were not looked at, of the next 1,000 for each age."""
        places, count = await self.places(connection, retention), 0
        for age, partition in product(retention.ages, self._partitions):
            key = {"partition": partition, "after": places.get((age, partition), 0), "cutoff": self._cutoff(age)}
            count += (await connection.execute(self._statements.behind, key)).scalar_one()
        return count

    async def step(
        self,
        connection: AsyncConnection,
        retention: ContentRetention,
        places: Mapping[Place, int],
        *,
        origin_id: UUID,
        describe: bool = False,
        now: int | None = None,
    ) -> RetentionStep:
        """Look at the next events that have reached an age, and return what is due of their conversations."""
        # A round with a time of its own ends, also where events are recorded faster than they are looked at.
        at = self._now() if now is None else now
        rows: Sequence[Any] = ()
        for age, partition in product(retention.ages, self._partitions):
            after, cutoff = places.get((age, partition), 0), at - age * _MICROSECONDS
            page = (await connection.execute(self._statements.page, {"partition": partition, "after": after})).all()
            old = [row.recorded_at <= cutoff for row in page]
            if rows := page[: old.index(False) if False in old else None]:
                break
        else:
            return RetentionStep(now=at)
        step, deadline = RetentionStep(began=after, more=True, now=at), time.monotonic() + STEP_SECONDS
        types: dict[str, set[str]] = {}
        for row in rows:
            # The rule for a new conversation is known from its first event on.
            new = row.type == ConversationStarted.type and row.version == 1
            types.setdefault(row.conversation_id, set()).update(() if new else (row.type,))
        values = {"partitions": [partition], "conversations": list(types)}
        found = {row.conversation_id: row for row in await connection.execute(self._statements.conversations, values)}
        rules = {name: retention.rule_for(row.owner_id, tags_of(row._mapping)) for name, row in found.items()}
        looked, authors = set[str](), owners_of(await all_held(connection))
        for row in rows:
            name = row.conversation_id
            if name not in looked:
                if time.monotonic() > deadline and looked:
                    break
                looked.add(name)
                if (rule := rules.get(name)) is not None:
                    look = _Look(connection, self._statements, found[name], rule, partition, self._cutoff, authors)
                    if (upto := await look.upto(age, types[name])) is not None:
                        step.due.append(await look.describe(upto, origin_id, whole=describe))
            step.moved[age, partition] = row.position
        return step

    def _cutoff(self, age: int) -> int:
        return self._now() - age * _MICROSECONDS


@dataclass(slots=True)
class _Look:
    """One look at one conversation."""

    connection: AsyncConnection
    statements: _Statements
    conversation: Any
    rule: RetentionRule
    partition: int
    cutoff: Callable[[int], int]
    authors: list[str]  # on hold

    async def upto(self, age: int, types: set[str]) -> int | None:
        """Return the version up to which content is due when events of some types have reached an age."""
        rule, conversation, statements = self.rule, self.conversation, self.statements
        every = age == 0 and not types.isdisjoint((ConversationTagged.type, ConversationStarted.type))
        upto = 0
        if rule.max_age is not None and (every or age == rule.max_age):
            # Not the last old one: of events recorded by clocks that differ, nothing young may leave.
            young = await self._first(statements.young, cutoff=self.cutoff(rule.max_age))
            upto = conversation.version if young is None else young - 1
        archived = rule.archived_max_age is not None and conversation.state == "archived"
        if archived and (every or (age == rule.archived_max_age and ConversationArchived.type in types)):
            cutoff = self.cutoff(rule.archived_max_age or 0)
            upto = max(upto, await self._first(statements.archived, cutoff=cutoff) or 0)
        if rule.max_messages is not None and age == 0 and conversation.message_count > rule.max_messages:
            newest = statements.newest.limit(rule.max_messages + 1).subquery()
            count = sa.func.count() > rule.max_messages
            upto = max(upto, await self._first(sa.select(sa.case((count, sa.func.min(newest.c.version))))) or 0)
        if self.authors and (first := await self._first(statements.held, authors=self.authors)) is not None:
            upto = min(upto, first - 1)
        if upto <= conversation.trimmed:
            return None
        last = await self._first(statements.last, upto=upto)
        # A fork without old words of its own still shows those of its parent.
        return upto if last is None and conversation.inherits else last

    async def describe(self, upto: int, origin_id: UUID, *, whole: bool) -> DueContent:
        statements, oldest, count = self.statements, None, 0
        sequence = await self._first(statements.sequence, upto=upto, origin=origin_id)
        if whole:
            count = await self._first(statements.count, upto=upto) or 0
            oldest = await self._first(statements.kept, after=upto)
        return DueContent(
            conversation_id=self.conversation.conversation_id,
            owner_id=self.conversation.owner_id,
            upto=upto,
            rule=self.rule.name,
            sequence=sequence,
            messages=count,
            oldest_kept=None if oldest is None else from_microseconds(oldest),
        )

    async def _first(self, statement: Any, **values: Any) -> int | None:
        key = {"partition": self.partition, "conversation": self.conversation.conversation_id}
        values = {"after": self.conversation.trimmed, **values}
        found: int | None = (await self.connection.execute(statement, {**key, **values})).scalar()
        return found


def _name(retention: ContentRetention) -> str:
    return f"{RETENTION_PREFIX}{retention.fingerprint}"
