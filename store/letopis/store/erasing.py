"""Erasing: take content out of stored events and out of the search index, in a transaction that is open."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.codec import INTEGER_MAX, decode
from letopis.store.dialects import Dialect, lookups
from letopis.store.erasure import OF_A_MESSAGE, stripped
from letopis.store.plan import Row
from letopis.store.projection import ours_of
from letopis.store.schema import conversations, events, messages
from letopis.store.search.index import Index
from letopis.store.vocabulary import ConversationDeleted, MessageAppended

EVERYTHING: Final = INTEGER_MAX
"""A version beyond all."""
_CHUNK: Final = 500
_DATA: Final = list(events.c.keys()).index("data")
_METADATA: Final = list(events.c.keys()).index("metadata")
_DIGEST: Final = list(events.c.keys()).index("digest")


class Eraser:
    """Strips stored events; its statements are made once."""

    def __init__(self, dialect: Dialect, index: Index) -> None:
        self._dialect = dialect
        self._index = index
        at = (
            events.c.partition == sa.bindparam("partition"),
            events.c.conversation_id == sa.bindparam("conversation"),
            events.c.version > sa.bindparam("after"),
            events.c.version <= sa.bindparam("upto"),
            events.c.digest.is_not(None),
        )
        self._all = sa.select(events).where(*at).order_by(events.c.version).limit(_CHUNK)
        self._of_messages = (
            sa.select(events).where(*at, events.c.type.in_(OF_A_MESSAGE)).order_by(events.c.version).limit(_CHUNK)
        )
        # A deleted fork that keeps something for forks of its own still reads its parent.
        self._forks = sa.select(conversations.c.forked_from_version, conversations.c.forked_from_event).where(
            conversations.c.forked_from_id == sa.bindparam("conversation"),
            sa.or_(conversations.c.inherits == 1, conversations.c.retained > 0),
        )
        self._version = sa.select(events.c.version).where(
            events.c.partition == sa.bindparam("partition"),
            events.c.conversation_id == sa.bindparam("conversation"),
            events.c.event_id == sa.bindparam("event"),
        )
        self._keeping = sa.select(
            conversations.c.partition, conversations.c.conversation_id, conversations.c.retained
        ).where(conversations.c.state == "deleted", conversations.c.retained > 0)
        # Reactions say what somebody thought of it; those that came from events are emptied with these.
        self._take_back = (
            sa.update(messages)
            .where(
                messages.c.partition == sa.bindparam("at_partition"),
                messages.c.conversation_id == sa.bindparam("at_conversation"),
                messages.c.reactions.is_not(None),
            )
            .values(reactions=None)
        )
        self._lock = dialect.locked(
            sa.select(conversations.c.retained).where(
                conversations.c.partition == sa.bindparam("partition"),
                conversations.c.conversation_id == sa.bindparam("conversation"),
            )
        )

    async def strip(
        self,
        connection: AsyncConnection,
        partition: int,
        conversation_id: str,
        *,
        after: int = 0,
        upto: int = EVERYTHING,
        message_ids: Collection[str] | None = None,
    ) -> int:
        """Strip the events of a conversation after a version, or only those of some messages; return how many.

        All of them are stripped where it was deleted: then the reactions to its messages go too. The event that deleted
        the conversation keeps its reason. What is stripped is found by no search any more.
        """
        done, said = 0, list[int]()
        if message_ids is None:
            place = {"at_partition": partition, "at_conversation": conversation_id}
            await connection.execute(self._take_back, place)
            await self._index.forget(connection, partition, conversation_id, None)
        key = {"partition": partition, "conversation": conversation_id, "upto": upto}
        while True:
            statement = self._all if message_ids is None else self._of_messages
            rows = (await connection.execute(statement, {**key, "after": after})).all()
            emptied: list[Row] = []
            for row in rows:
                data = decode(row.data)
                if row.type == ConversationDeleted.type:
                    continue
                if message_ids is None or data.get("message_id") in message_ids:
                    emptied.append(_emptied(row, data))
                    said += (row.version,) if row.type == MessageAppended.type else ()
            await self._dialect.overwrite(connection, events, emptied)
            done += len(emptied)
            if len(rows) < _CHUNK:
                if message_ids is not None:
                    await self._index.forget(connection, partition, conversation_id, said)
                return done
            after = rows[-1].version

    async def empty(
        self,
        connection: AsyncConnection,
        partition: int,
        conversation_id: str,
        versions: Sequence[int],
        *,
        messages: Collection[int],
    ) -> None:
        """Strip these events, and let no search find these messages any more, which are named by their versions."""
        key = {"partition": partition, "conversation": conversation_id}
        for part in lookups(versions):
            span = {**key, "after": part[0] - 1, "upto": part[-1]}
            wanted = set(part)
            while span["after"] < span["upto"]:
                rows = (await connection.execute(self._all, span)).all()
                emptied = [_emptied(row, decode(row.data)) for row in rows if row.version in wanted]
                await self._dialect.overwrite(connection, events, emptied)
                span["after"] = rows[-1].version if len(rows) == _CHUNK else span["upto"]
        await self._index.forget(connection, partition, conversation_id, messages)

    async def retained(self, connection: AsyncConnection, partition: int, conversation_id: str) -> int:
        """Return up to which version forks read a conversation; 0 where none does."""
        needed = 0
        for version, event_id in (await connection.execute(self._forks, {"conversation": conversation_id})).all():
            if version is None:
                key = {"partition": partition, "conversation": conversation_id, "event": event_id}
                version = (await connection.execute(self._version, key)).scalar()
            # An event that is not here yet comes after all that is.
            needed = max(needed, EVERYTHING if version is None else version)
        return needed

    async def let_go(self, connection: AsyncConnection) -> int:
        """Strip what deleted conversations keep that no fork reads any more; return how many events.

        Letting one go may let its own parent go: again until nothing changes.
        """
        done = 0
        while True:
            before = done
            keeping = (await connection.execute(self._keeping)).all()
            for row in sorted(keeping, key=lambda row: (row.partition, row.conversation_id.encode())):
                done += await self._let_go_of(connection, row.partition, row.conversation_id)
            if done == before:
                return done

    async def _let_go_of(self, connection: AsyncConnection, partition: int, conversation_id: str) -> int:
        key = {"partition": partition, "conversation": conversation_id}
        kept = (await connection.execute(self._lock, key)).scalar_one()
        needed = await self.retained(connection, partition, conversation_id)
        if needed >= kept:
            return 0
        await connection.execute(
            conversations.update()
            .where(
                conversations.c.partition == sa.bindparam("at_partition"),
                conversations.c.conversation_id == sa.bindparam("at_conversation"),
            )
            .values(retained=sa.bindparam("needed")),
            {"at_partition": partition, "at_conversation": conversation_id, "needed": needed},
        )
        # Counted once more than it strips, so that a change is noticed that emptied nothing.
        return 1 + await self.strip(connection, partition, conversation_id, after=needed)


def _emptied(row: sa.Row[Any], data: Mapping[str, Any]) -> Row:
    values = list(row)
    values[_DATA] = orjson.dumps(stripped(row.type, data), option=orjson.OPT_SORT_KEYS).decode()
    values[_METADATA] = ours_of(row.metadata)
    values[_DIGEST] = None
    return tuple(values)
