"""Find up to which version the forks of a conversation read it, through any chain of forks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.schema import conversations, events, of_conversation
from letopis.store.model.codec import INTEGER_MAX, decode
from letopis.store.model.event_types import (
    Body,
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationTrimmed,
    read,
)
from letopis.store.model.events import Upcasters
from letopis.store.model.identifiers import ForkPoint
from letopis.store.rules.preconditions import SUPERSEDED_KEY
from letopis.store.rules.redaction import arrived_erased

ALL_VERSIONS: Final = INTEGER_MAX
"""Greater than any version."""
_CUTS: Final = (ConversationRewound, ConversationTrimmed, ConversationDeleted)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFork:
    """A fork that begins in the open transaction, whose row is not written yet."""

    conversation_id: str
    point: ForkPoint


@dataclass(frozen=True, slots=True)
class Needed:
    """What forks read of what a conversation retains: it, and nothing below, is needed.

    :ivar upto: the last version that one of them reads; 0 where none does.
    :ivar whole: the version up to which everything had been erased when each of them began.
    :ivar content: the version up to which content had been, which leaves the events that make the state.
    """

    upto: int = 0
    whole: int = ALL_VERSIONS
    content: int = ALL_VERSIONS

    def joined(self, other: Needed) -> Needed:
        return Needed(max(self.upto, other.upto), min(self.whole, other.whole), min(self.content, other.content))


NOTHING: Final = Needed()


@dataclass(frozen=True, slots=True)
class _Erasure:
    """An event that erased content: its version, how far it did, and whether that was everything."""

    version: int
    upto: int
    whole: bool


@dataclass(frozen=True, slots=True)
class _Fork:
    """A conversation below the root, the one whose readers are looked for."""

    partition: int
    conversation_id: str
    version: int  # of its parent, up to which it reads it
    reads: bool  # its parent, still
    needed: Needed  # of the root, by the chain down to it


class Descendants:
    """Follows the tree of forks downwards."""

    # A fork reads its parent as of the fork point, so a later deletion or clear takes nothing from it: one that no
    # longer inherits still passes its parent on to those of its own forks that began before that.
    def __init__(self, dialect: Dialect, upcasters: Upcasters) -> None:
        self._upcasters = upcasters
        c = conversations.c
        self._forks = sa.select(
            *(c.partition, c.conversation_id, c.forked_from_id, c.forked_from_version, c.forked_from_event),
            sa.and_(c.inherits == 1, c.trimmed == 0).label("reads"),
        ).where(dialect.among(c.forked_from_id, "parents"))
        of_one = of_conversation(events)
        self._version = sa.select(events.c.version).where(*of_one, events.c.event_id == sa.bindparam("event"))
        self._leaving = (
            sa.select(events.c.version, events.c.type, events.c.schema_version, events.c.data, events.c.metadata)
            .where(
                *of_one,
                events.c.type.in_([body.type for body in (ConversationStarted, *_CUTS)]),
            )
            .order_by(events.c.version)
        )

    async def read_up_to(
        self,
        connection: AsyncConnection,
        partition: int,
        conversation_id: str,
        *,
        new: Sequence[NewFork] = (),
        kept: int = ALL_VERSIONS,
    ) -> Needed:
        """Return what existing descendants read of a conversation.

        :param kept: the version up to which it retains content, once all its erasures are in the store.
        """
        needed, seen = NOTHING, {conversation_id}
        erased: list[_Erasure] | None = None
        level = [_Fork(partition, conversation_id, 0, reads=False, needed=NOTHING)]
        while level:
            children = await self._children(connection, level, new)
            below: list[_Fork] = []
            for parent in level:
                ends = None
                for child in children.get(parent.conversation_id, ()):
                    if child.conversation_id in seen:
                        continue  # a cycle of forks, written by hand
                    if parent.needed is NOTHING:
                        if kept < ALL_VERSIONS and erased is None:
                            erased = await self._erasures(connection, parent)
                        of_child = _needed_at(child.version, erased or ())
                        # Beyond what was erased, only changes of messages that were erased are retained.
                        if erased and of_child.content >= min(kept, max(erasure.upto for erasure in erased)):
                            continue
                        child = replace(child, needed=of_child)
                    else:
                        if ends is None:
                            ends = await self._inherits_until(connection, parent)
                        if child.version >= ends:
                            continue
                        child = replace(child, needed=parent.needed)
                    seen.add(child.conversation_id)
                    if child.reads:
                        needed = needed.joined(child.needed)
                    else:
                        below.append(child)
            level = below if erased else [fork for fork in below if fork.needed.upto > needed.upto]
        return needed

    async def _children(
        self, connection: AsyncConnection, level: Sequence[_Fork], new: Sequence[NewFork]
    ) -> dict[str, list[_Fork]]:
        parents = {fork.conversation_id: fork.partition for fork in level}
        rows: list[tuple[int, str, str, int | None, Any, bool]] = [
            # Of a fork that begins now, only the id is used.
            (0, fork.conversation_id, fork.point.conversation_id, fork.point.version, fork.point.event_id, True)
            for fork in new
            if fork.point.conversation_id in parents
        ]
        for part in in_batches(parents):
            forks = (await connection.execute(self._forks, {"parents": part})).all()
            rows += [(*row[:5], bool(row.reads)) for row in forks]
        children: dict[str, list[_Fork]] = {}
        for partition, name, parent, version, event_id, reads in rows:
            if version is None:
                key = {"partition": parents[parent], "conversation": parent, "event": event_id}
                version = (await connection.execute(self._version, key)).scalar()
            # An event that is not in this store yet comes after all that are.
            upto = ALL_VERSIONS if version is None else version
            children.setdefault(parent, []).append(_Fork(partition, name, upto, reads, NOTHING))
        return children

    async def _erasures(self, connection: AsyncConnection, fork: _Fork) -> list[_Erasure]:
        erasures = []
        async for version, body, _ in self._path_cuts(connection, fork):
            if isinstance(body, ConversationTrimmed):
                erasures.append(_Erasure(version, min(body.upto, version - 1), whole=False))
            elif isinstance(body, ConversationDeleted) or (isinstance(body, ConversationRewound) and body.erase):
                bound = getattr(body, "upto", None)
                upto = version - 1 if bound is None else min(bound, version - 1)
                erasures.append(_Erasure(version, upto, whole=True))
        return erasures

    async def _inherits_until(self, connection: AsyncConnection, fork: _Fork) -> int:
        """Return the version of the event that ended the inheritance of a fork."""
        begun = ALL_VERSIONS
        async for version, body, arrived in self._path_cuts(connection, fork):
            match body:
                case ConversationStarted():
                    if body.fork is not None and begun == ALL_VERSIONS:
                        begun = 0 if arrived else version
                case ConversationRewound(to_message_id=str()):
                    pass
                case ConversationRewound(upto=int(bound)) if begun > bound:
                    pass  # it began after what is erased
                case _ if begun < version:
                    return version
        return ALL_VERSIONS

    async def _path_cuts(self, connection: AsyncConnection, fork: _Fork) -> AsyncIterator[tuple[int, Body, bool]]:
        """Yield the starts, rewinds, trims and the deletion of a conversation in order, and if they arrived erased."""
        key = {"partition": fork.partition, "conversation": fork.conversation_id}
        for row in (await connection.execute(self._leaving, key)).all():
            if row.metadata is None or SUPERSEDED_KEY not in decode(row.metadata):
                body = read(row.type, *self._upcasters.upcast(row.type, row.schema_version, decode(row.data)))
                yield int(row.version), body, arrived_erased(row.metadata)


def _needed_at(version: int, erased: Iterable[_Erasure]) -> Needed:
    """Return what a fork at a version reads: what had been erased by then it has never read."""
    before = [erasure for erasure in erased if erasure.version <= version]
    return Needed(
        version,
        max((erasure.upto for erasure in before if erasure.whole), default=0),
        max((erasure.upto for erasure in before), default=0),
    )
