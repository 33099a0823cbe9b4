"""Show that folding the log, the rows kept while it is written, and the rows rebuilt from it are the same.

Every conversation is read three ways: folded from its events, read from the rows that were kept inline, and read again
after all rows were emptied and rebuilt. The three have to be equal in every field, a check has to find what is damaged
in single rows and nothing else, and a rebuild has to repair it.
"""

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import sqlalchemy as sa

from letopis.store import ConversationStarted, ConversationStore, Message, Rebuilt
from letopis.store.database.engines import create_store_engine
from letopis.store.database.schema import conversations, events, messages
from letopis.store.rules.fold import Fold, Folded
from letopis.store.testing.outbox import Outbox
from tests.campaigns import dataset
from tests.campaigns.operations import Operations
from tests.proof.harness import Experiment, Setting, Tally, prove_table
from tests.proof.options import Options
from tests.proof.rows import Row

SHOWN: Final = 5
_BATCH: Final = 30  # conversations of a delivery
# What is not made of the events.
_KEPT: Final = frozenset({"number", "retained", "rules"})


@dataclass(slots=True)
class Campaign:
    url: str
    sample: float
    operations: int
    seed: int
    tally: Tally = field(default_factory=Tally)
    _engine: Any = None

    async def run(self) -> Tally:
        """Run it to its end; ``figures`` has what was found by its name."""
        self._engine = create_store_engine(self.url)
        async with ConversationStore.open(self.url, migrate=True) as store:
            try:
                await apply_corpus(store, sample=self.sample, seed=self.seed)
                await Operations(self.seed).run(store, self.operations, at_once=max(60, self.operations // 100))
                await self._same(store, "fold and inline")
                await self._damaged(store)
                await self._emptied(store)
            finally:
                await self._engine.dispose()
        self.tally.require(self.tally.figures["events"] > self.operations, "few events")
        self.tally.notes = self.tally.told()
        return self.tally

    async def _same(self, store: ConversationStore, what: str) -> None:
        tally, differ = self.tally, 0
        tally.figures.update(conversations=-tally.count, events=-tally.figures["events"])
        tally.count = 0
        async for name in names(self._engine):
            folded, count = await fold_of(store, name)
            tally.count += 1
            tally.figures.update(conversations=1, events=count)
            if different := await differences(store, name, folded):
                differ += 1
                if differ <= SHOWN:
                    tally.problems.append(f"{what}: {name}: {', '.join(different)}")
        tally.require(differ <= SHOWN, f"{what}: {differ} conversations differ")

    async def _emptied(self, store: ConversationStore) -> None:
        tally, before = self.tally, await digests(self._engine)
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(messages))
            await connection.execute(sa.update(conversations).values(**empty_values(), rules=1))
        done = [rebuilt async for rebuilt in store.rebuild()]
        whole = len(done) == tally.count and all(one.written for one in done)
        tally.require(whole, f"{len(done)} of {tally.count} conversations were rebuilt")
        tally.require(not [one async for one in store.rebuild()], "a second rebuild still found something to do")
        after = await digests(self._engine)
        different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        tally.require(not different, f"the rows of {len(different)} conversations differ: {different[:SHOWN]}")
        await self._same(store, "fold and rebuilt")
        found = await mismatches(store)
        tally.require(not found, f"a check after the rebuild found {len(found)}: {told(found)}")

    async def _damaged(self, store: ConversationStore) -> None:
        """Damage some rows: a check has to find these and no others, and a rebuild has to repair them."""
        tally = self.tally
        async with self._engine.begin() as connection:
            victims = await damage(connection, random.Random(self.seed), count=12)
        # Nothing else is named, so what was kept inline is as a rebuild would make it.
        found = await mismatches(store)
        named = {one.conversation_id for one in found} == set(victims)
        tally.require(named, f"the check named {told(found)}, but {victims} were damaged")
        seen = [name for name in victims if await differences(store, name, (await fold_of(store, name))[0])]
        tally.figures.update({"damaged": len(found), "damage that a reader sees": len(seen)})
        tally.require(bool(seen), "no damage was seen by comparing with the fold")
        mended = [rebuilt async for rebuilt in store.rebuild(every=True) if rebuilt.written]
        repaired = {one.conversation_id for one in mended} == set(victims)
        tally.require(repaired, f"the rebuild mended {told(mended)}, but {victims} were damaged")
        wrong = [name for name in victims if await differences(store, name, (await fold_of(store, name))[0])]
        tally.require(not wrong, f"after mending, {wrong} still differ from the fold")


# --- what is compared -----------------------------------------------------------------------------------------------


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


def told(found: Sequence[Rebuilt]) -> str:
    return "; ".join(f"{one.conversation_id}: {', '.join(one.differences)}" for one in found[:SHOWN])


# --- what is damaged ------------------------------------------------------------------------------------------------


def empty_values() -> dict[str, Any]:
    """Return values for every column of the conversations that a rebuild makes from the events."""
    wrong: dict[str, Any] = {"state": "archived", "message_count": -1, "tokens": -1}
    wrong |= dict.fromkeys(("version", "created_at", "updated_at", "inherits", "trimmed"), 0)
    made = [column for column in conversations.columns if not column.primary_key and column.name not in _KEPT]
    return {column.name: wrong.get(column.name) for column in made}


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


# --- what is applied ------------------------------------------------------------------------------------------------


async def apply_corpus(store: ConversationStore, *, sample: float, seed: int) -> None:
    outbox = Outbox("corpus.db")
    for number, (name, lines) in enumerate(dataset.conversations(sample=sample, seed=seed), 1):
        said = (
            Message(role=line["role"], content=line["content"], id=line["id"], metadata=line["metadata"])
            for line in lines
        )
        outbox.append(name, ConversationStarted(owner_id=lines[0]["owner"]), *said)
        if number % _BATCH == 0:
            await outbox.deliver(store)
            # A corpus need not be kept twice in memory.
            outbox.lanes.clear()
    await outbox.deliver(store)


def run(setting: Setting) -> Any:
    sample, operations = (0.001, 1_500) if setting.options.short else (1.0, 100_000)
    return Campaign(setting.url, sample, operations, setting.seed).run()


WHAT: Final = (
    "the corpus and random operations: fold, rows kept inline, rows rebuilt are equal; damage is found, mended"
)


def prove(options: Options) -> Iterator[Row]:
    yield from prove_table(options, [Experiment(WHAT, run, "conversations", 7_000)])
