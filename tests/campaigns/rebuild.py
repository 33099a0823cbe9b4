"""Compare the rows of conversations with a fold of their events, and damage some of them."""

import random
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from letopis.store import ConversationStore, Rebuilt
from letopis.store.database.schema import conversations, events, messages
from letopis.store.rules.fold import Fold, Folded


async def fold_of(store: ConversationStore, name: str) -> tuple[Folded, int]:
    """Fold a conversation's events by hand; with how many they are."""
    running, after, count = Fold(), 0, 0
    while True:
        page = await store.events(name, after=after, limit=2_000)
        for event in page:
            running.apply(event)
            count += 1
            after = event.version or 0
        if page.next is None:
            return running.result(), count


async def differences(store: ConversationStore, name: str, folded: Folded) -> list[str]:
    conversation = await store.conversation(name)
    if conversation is None or folded.conversation is None:
        return ["is there on one side only"]
    found = [
        key
        for key in _fields(conversation)
        if key not in ("number", "active") and getattr(conversation, key) != getattr(folded.conversation, key)
    ]
    if (conversation.number is None) != (conversation.owner_id is None):
        found.append("number")
    own = [one for one in (await store.messages(name, every=True)).items if one.conversation_id == name]
    if len(own) != len(folded.messages):
        return [*found, f"{len(own)} messages, {len(folded.messages)} in the fold"]
    for read, made in zip(own, folded.messages, strict=True):
        if read != made:
            keys = [key for key in _fields(read) if getattr(read, key) != getattr(made, key)]
            found.append(f"message {made.version}: {', '.join(keys)}")
    return found


def _fields(value: Any) -> Iterator[str]:
    return (name for name in value.__dataclass_fields__ if name != "seen")


async def digests(engine: Any) -> dict[str, str]:
    """Return a digest of the rows of every conversation, without what is not made of its events.

    Of a deleted one, what points into events that were emptied with all others is left out: no reader can tell it.
    """
    hashes: dict[str, Any] = {}
    deleted: set[str] = set()
    async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
        rows = await connection.stream(
            sa.select(conversations).order_by(conversations.c.partition, conversations.c.conversation_id)
        )
        async for row in rows:
            values = {key: value for key, value in row._mapping.items() if key != "rules"}
            hashes[row.conversation_id] = sha256(repr(values).encode())
            if row.state == "deleted":
                deleted.add(row.conversation_id)
        rows = await connection.stream(sa.select(messages).order_by(*messages.primary_key.columns))
        async for row in rows:
            left_out = ("content_version", "redacted_at") if row.conversation_id in deleted else ()
            values = {key: value for key, value in row._mapping.items() if key not in left_out}
            hashes[row.conversation_id].update(repr(values).encode())
    return {name: digest.hexdigest() for name, digest in hashes.items()}


async def names(engine: Any) -> AsyncIterator[str]:
    """Yield the ids of all conversations that the log has."""
    statement = sa.select(events.c.conversation_id).where(events.c.version == 1).order_by(events.c.conversation_id)
    async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
        found = list((await connection.execute(statement)).scalars())
    for name in found:
        yield name


async def mismatches(store: ConversationStore) -> list[Rebuilt]:
    return [rebuilt async for rebuilt in store.rebuild(check=True) if rebuilt.differences]


async def damage(connection: Any, chance: random.Random, *, count: int) -> list[str]:
    """Damage conversations, each in its own way, and return which."""
    found = await connection.execute(
        sa.select(conversations.c.conversation_id)
        .where(conversations.c.message_count > 3, conversations.c.state != "deleted", conversations.c.version < 2_000)
        .order_by(conversations.c.conversation_id)
    )
    victims = chance.sample(list(found.scalars()), count)
    for place, name in enumerate(victims):
        row = sa.update(conversations).where(conversations.c.conversation_id == name)
        path = sa.select(messages.c.version).where(messages.c.conversation_id == name, messages.c.left_at.is_(None))
        version = chance.choice(list((await connection.execute(path)).scalars()))
        one = sa.and_(messages.c.conversation_id == name, messages.c.version == version)
        ways = (
            sa.update(messages).where(one).values(left_at=version + 1),
            row.values(title="another one"),
            sa.delete(messages).where(one),
            sa.update(messages).where(one).values(reactions='[["x",null,1]]', role="tool"),
            sa.update(messages).where(one).values(message_id="other"),
            row.values(message_count=1_000_000, metadata='{"y":1}'),
        )
        await connection.execute(ways[place % len(ways)])
    return victims
