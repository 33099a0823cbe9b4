"""Show that folding the log, the rows kept while it is written, and the rows rebuilt from it are the same.

::

    python -m tests.campaigns.rebuild --store all                  # the whole corpus and 100,000 random operations
    python -m tests.campaigns.rebuild --sample 0.01 --operations 5000

Every conversation is read three ways: folded from its events, read from the rows that were kept inline, and read again
after all rows were emptied and rebuilt. It ends with 0 only if the three are equal in every field, a check finds what
is damaged in single rows and nothing else, and a rebuild repairs it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from letopis.store import ConversationStarted, ConversationStore, Message, Rebuilt
from letopis.store.database.engines import create_store_engine
from letopis.store.database.schema import conversations, events, messages
from letopis.store.rules.fold import Fold, Folded
from letopis.store.testing.outbox import Outbox
from tests.campaigns import dataset
from tests.campaigns.operations import Operations
from tests.campaigns.targets import KINDS
from tests.proof.stores import fresh

SHOWN: Final = 5
_BATCH: Final = 1_000
# What is not made of the events.
_KEPT: Final = frozenset({"number", "retained", "rules"})


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one store's campaign came to."""

    store: str
    conversations: int = 0
    events: int = 0
    messages: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return True if everything held."""
        return not self.problems


class Campaign:
    """One store's run."""

    def __init__(
        self,
        kind: str,
        url: str,
        *,
        sample: float,
        operations: int,
        seed: int,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._url = url
        self._tell = tell
        self._sample = sample
        self._operations = operations
        self._seed = seed
        self._engine = create_store_engine(url)
        self.outcome = Outcome(store=kind)

    async def run(self) -> Outcome:
        """Run it to its end; the outcome reports what went wrong."""
        outcome = self.outcome
        async with ConversationStore.open(self._url, migrate=True) as store:
            try:
                with self._timed("apply corpus"):
                    await apply_corpus(store, sample=self._sample, seed=self._seed)
                with self._timed("apply operations"):
                    await Operations(self._seed).run(store, self._operations, at_once=max(60, self._operations // 100))
                await self._same(store, "fold and inline")
                await self._damaged(store)
                await self._emptied(store)
            finally:
                await self._engine.dispose()
        return outcome

    async def _same(self, store: ConversationStore, what: str) -> None:
        outcome = self.outcome
        outcome.conversations = outcome.events = outcome.messages = 0
        differ = 0
        with self._timed(f"compare {what}"):
            async for name in names(self._engine):
                folded, count = await fold_of(store, name)
                outcome.conversations += 1
                outcome.events += count
                outcome.messages += len(folded.messages)
                if different := await differences(store, name, folded):
                    differ += 1
                    if differ <= SHOWN:
                        outcome.problems.append(f"{what}: {name}: {', '.join(different)}")
        outcome.found[what] = differ
        if differ > SHOWN:
            outcome.problems.append(f"{what}: {differ} conversations differ")

    async def _emptied(self, store: ConversationStore) -> None:
        before = await digests(self._engine)
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(messages))
            await connection.execute(sa.update(conversations).values(**empty_values(), rules=1))
        with self._timed("rebuild"):
            done = [rebuilt async for rebuilt in store.rebuild()]
        if len(done) != self.outcome.conversations or any(not one.written for one in done):
            self.outcome.problems.append(f"{len(done)} of {self.outcome.conversations} conversations were rebuilt")
        if [rebuilt async for rebuilt in store.rebuild()]:
            self.outcome.problems.append("a second rebuild still found something to do")
        after = await digests(self._engine)
        if different := sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
            self.outcome.problems.append(f"the rows of {len(different)} conversations differ: {different[:SHOWN]}")
        await self._same(store, "fold and rebuilt")
        with self._timed("check of what was rebuilt"):
            found = await mismatches(store)
        if found:
            self.outcome.problems.append(f"a check after the rebuild found {len(found)}: {told(found)}")

    async def _damaged(self, store: ConversationStore) -> None:
        """Damage some rows: a check has to find these and no others, and a rebuild has to repair them."""
        chance = random.Random(self._seed)
        async with self._engine.begin() as connection:
            victims = await damage(connection, chance, count=12)
        # Nothing else is named, so what was kept inline is as a rebuild would make it.
        with self._timed("check"):
            found = await mismatches(store)
        self.outcome.found["damaged"] = len(found)
        if {one.conversation_id for one in found} != set(victims):
            self.outcome.problems.append(f"the check named {told(found)}, but {victims} were damaged")
        seen = [name for name in victims if await differences(store, name, (await fold_of(store, name))[0])]
        self.outcome.found["damage that a reader sees"] = len(seen)
        if not seen:
            self.outcome.problems.append("no damage was seen by comparing with the fold")
        with self._timed("rebuild what is right"):
            mended = [rebuilt async for rebuilt in store.rebuild(every=True) if rebuilt.written]
        if {one.conversation_id for one in mended} != set(victims):
            self.outcome.problems.append(f"the rebuild mended {told(mended)}, but {victims} were damaged")
        wrong = [name for name in victims if await differences(store, name, (await fold_of(store, name))[0])]
        if wrong:
            self.outcome.problems.append(f"after mending, {wrong} still differ from the fold")

    def _timed(self, what: str) -> _Timed:
        return _Timed(self.outcome.seconds, what, self._tell)


class _Timed:
    def __init__(self, seconds: dict[str, float], what: str, tell: Callable[[str], None]) -> None:
        self._seconds, self._what, self._tell = seconds, what, tell

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._what] = round(time.monotonic() - self._start, 1)
        self._tell(f"{self._what}: {self._seconds[self._what]} s")


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
    after = ""
    while True:
        statement = (
            sa.select(events.c.conversation_id)
            .where(events.c.version == 1, events.c.conversation_id > after)
            .order_by(events.c.conversation_id)
            .limit(_BATCH)
        )
        async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            found = list((await connection.execute(statement)).scalars())
        for name in found:
            yield name
        if len(found) < _BATCH:
            return
        after = found[-1]


async def mismatches(store: ConversationStore) -> list[Rebuilt]:
    return [rebuilt async for rebuilt in store.rebuild(check=True) if rebuilt.differences]


def told(found: Sequence[Rebuilt]) -> str:
    """Return it as text."""
    return "; ".join(f"{one.conversation_id}: {', '.join(one.differences)}" for one in found[:SHOWN])


# --- what is damaged ------------------------------------------------------------------------------------------------


def empty_values() -> dict[str, Any]:
    """Return values for every column of the conversations that a rebuild makes from the events."""
    wrong: dict[str, Any] = {
        "state": "archived",
        "version": 0,
        "message_count": -1,
        "tokens": -1,
        "created_at": 0,
        "updated_at": 0,
        "inherits": 0,
    }
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
        of_row = conversations.c.conversation_id == name
        rows = await connection.execute(
            sa.select(messages.c.version).where(messages.c.conversation_id == name, messages.c.left_at.is_(None))
        )
        version = chance.choice(list(rows.scalars()))
        of_message = sa.and_(messages.c.conversation_id == name, messages.c.version == version)
        match place % 6:
            case 0:
                await connection.execute(sa.update(messages).where(of_message).values(left_at=version + 1))
            case 1:
                await connection.execute(sa.update(conversations).where(of_row).values(title="another one"))
            case 2:
                await connection.execute(sa.delete(messages).where(of_message))
            case 3:
                values = {"reactions": '[["x",null,1]]', "role": "tool"}
                await connection.execute(sa.update(messages).where(of_message).values(**values))
            case 4:
                await connection.execute(sa.update(messages).where(of_message).values(message_id="other"))
            case _:
                values = {"message_count": 1_000_000, "metadata": '{"y":1}'}
                await connection.execute(sa.update(conversations).where(of_row).values(**values))
    return victims


# --- what is applied ------------------------------------------------------------------------------------------------


async def apply_corpus(store: ConversationStore, *, sample: float, seed: int) -> None:
    """Apply the real conversations, as an import would."""
    outbox, waiting = Outbox("corpus.db"), 0
    for name, lines in dataset.conversations(sample=sample, seed=seed):
        for line in lines:
            if line["id"] == "1":
                outbox.append(name, ConversationStarted(owner_id=line["owner"]))
                waiting += 1
            message = Message(role=line["role"], content=line["content"], id=line["id"], metadata=line["metadata"])
            outbox.append(name, message)
            waiting += 1
        if waiting >= _BATCH:
            await outbox.deliver(store)
            # A corpus need not be kept twice in memory.
            outbox.lanes.clear()
            waiting = 0
    if waiting:
        await outbox.deliver(store)


async def run(kind: str, *, sample: float, operations: int, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="letopis-rebuild-") as folder, fresh(kind, Path(folder), "history") as one:
        if one.missing:
            return Outcome(store=kind, problems=[f"there is no such server here: {one.missing}"])
        given = {"sample": sample, "operations": operations, "seed": seed}
        return await Campaign(kind, one.url, **given, tell=lambda text: tell(f"{kind}: {text}")).run()


def tell(text: str) -> None:
    """Say how it goes, on stderr."""
    print(text, file=sys.stderr, flush=True)


def report(outcomes: Sequence[Outcome]) -> str:
    """Return the table as text."""
    rows = [
        "| store | conversations | events | messages | apply | fold and compare | rebuild | check | result |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        spent = one.seconds
        apply = spent.get("apply corpus", 0) + spent.get("apply operations", 0)
        compare = spent.get("compare fold and inline", 0)
        rows.append(
            f"| {one.store} | {one.conversations} | {one.events} | {one.messages} | {apply:.0f} s | {compare:.0f} s "
            f"| {spent.get('rebuild', 0):.0f} s | {spent.get('check', 0):.0f} s | {'equal' if one.ok else 'FAILED'} |"
        )
    rows += [f"\n{one.store}: {problem}" for one in outcomes for problem in one.problems]
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaigns and print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.rebuild", description=__doc__.split("\n")[0])
    parser.add_argument("--store", choices=(*KINDS, "all"), default="sqlite", help="default: sqlite")
    parser.add_argument("--sample", type=float, default=1.0, help="share of the conversations, up to 1 (default)")
    parser.add_argument("--operations", type=int, default=100_000, help="random operations (default: 100000)")
    parser.add_argument("--seed", type=int, default=1, help="of sample, operations and damage (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    outcomes = []
    for kind in KINDS if options.store == "all" else (options.store,):
        given = {"sample": options.sample, "operations": options.operations, "seed": options.seed}
        outcomes.append(asyncio.run(run(kind, **given)))
        tell(f"{kind}: {'equal' if outcomes[-1].ok else 'FAILED'}")
    print(report(outcomes))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=2) + "\n", encoding="utf-8")
    return 0 if all(one.ok for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
