"""Make random operations from a seed, compare the rows of conversations with a fold of their events, damage some."""

import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.store import (
    ConversationActivated,
    ConversationDeleted,
    ConversationStarted,
    ConversationStore,
    Event,
    Message,
    MessageRedacted,
    ReactionAdded,
    Text,
)
from letopis.store.database.schema import conversations, events, messages
from letopis.store.model.codec import EncodedEvent, encode
from letopis.store.model.event_types import Body
from letopis.store.model.events import to_microseconds
from letopis.store.ops.rebuild import Rebuilt, rebuild
from letopis.store.rules.fold import Fold, Folded
from letopis.store.rules.preconditions import PRECONDITION_KEY, TURN_TYPES, Precondition
from letopis.store.rules.projection import ACTIVATION_ORDER_KEY
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES, strip_event
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.random_events import Talk


async def fold_of(store: ConversationStore, name: str) -> tuple[Folded, int]:
    """Fold a conversation's events by hand; with how many they are."""
    running, after, count = Fold(), 0, 0
    while True:
        page = await store.events(name, after=after, first=2_000)
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
    return [rebuilt async for rebuilt in rebuild(store, check=True) if rebuilt.differences]


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


OWNERS: Final = ("42", "43", "Ж", "long " * 40)
_OFTEN: Final = {
    450: "plain",
    250: "message",
    60: "turn rated",
    20: "activated redacted_before",
    10: "forked",
    3: "deleted deleted_before",
}
WEIGHTS: Final = {kind: often for often, kinds in _OFTEN.items() for kind in kinds.split()}
"""How often each is made, of the sum of all; what is plain is that of a :class:`Talk`."""


class Operations:
    """Makes operations and delivers them; what is made hangs on the seed alone."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.outboxes = [Outbox(f"{number}.db", origin_id=UUID(int=number + seed * 100)) for number in (1, 2)]
        self._talks: dict[str, Talk] = {}
        self.made = 0
        self._begin()

    async def run(self, store: ConversationStore, count: int, *, at_once: int = 300) -> None:
        """Make and deliver this many; now and then a delivery is repeated, as after a lost ack."""
        target = self.made + count
        while self.made < target:
            for _ in range(self._chance.randrange(1, at_once)):
                if self.made < target:
                    self.make()
            await self.deliver(store)
        await self.deliver(store)

    async def deliver(self, store: ConversationStore) -> None:
        """Deliver what waits in every outbox, in a random order of both outboxes and lanes."""
        for outbox in self._chance.sample(self.outboxes, len(self.outboxes)):
            if self._chance.random() < 0.1:
                outbox.delivered = {
                    name: max(0, head - self._chance.choice((0, 0, 0, 1, 4))) for name, head in outbox.delivered.items()
                }
            batch = outbox.pending()
            self._chance.shuffle(batch)
            if batch:
                result = await store.apply(outbox.origin, batch)
                assert not result.refused, result.refused
                outbox.delivered.update({applied.conversation_id: applied.head for applied in result.applied})

    def make(self) -> None:
        """Make one operation, and append it to an outbox."""
        self.made += 1
        # Many short conversations, and a few long ones.
        if self._chance.random() < 0.02:
            self._begin()
        names = list(self._talks)
        name = names[-1 - min(int(self._chance.expovariate(0.1)), len(names) - 1)]
        (kind,) = self._chance.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))
        getattr(self, f"_{kind}")(name)

    # --- what can be made ------------------------------------------------------------------------------------------

    def _plain(self, name: str) -> None:
        self._append(name, self._talks[name].next(name))

    def _message(self, name: str, **metadata: Any) -> None:
        """A message with all that one can have."""
        chance = self._chance
        message = Message(
            role=chance.choice(("user", "assistant", "assistant", "tool", "system")),
            content=chance.choice((f"message {self.made}", (Text(f"part {self.made}"), Text("другая")))),
            id=f"m{self.made}",
            name=chance.choice((None, None, "Anna")),
            tokens=chance.choice((None, 0, 7, 4_000)),
            usage=chance.choice(({}, {"input": 3, "output": 4, "tier": "flex"})),
            external_ids=chance.choice(({}, {"telegram": self.made})),
            metadata=chance.choice(({}, {"model": "m1"})),
            status=chance.choice(("complete", "complete", "complete", "interrupted")),
        )
        self._talks[name].said.append(message.id)
        self._append(name, Event(type="message.appended", data=message.to_data(), metadata=metadata))

    def _turn(self, name: str) -> None:
        """A message under a condition, that looked at an older state now and then."""
        lane = max(len(outbox.lanes.get(name, ())) for outbox in self.outboxes)
        seen = max(0, lane - self._chance.choice((0, 0, 0, 1, 3)))
        version, types = self._chance.choice((None, None, seen)), self._chance.choice((None, TURN_TYPES))
        expects = Precondition(sequence=seen, version=version, types=types)
        self._message(name, **{PRECONDITION_KEY: expects.to_data(), "by": 1})

    def _rated(self, name: str) -> None:
        value = self._chance.choice((None, 1, 4.5, "useful"))
        self._append(name, ReactionAdded(message_id=self._target(name), key="rating", actor="43", value=value))

    def _activated(self, name: str) -> None:
        order = {ACTIVATION_ORDER_KEY: self.made}
        self._append(name, Event(type="conversation.activated", data=ConversationActivated().to_data(), metadata=order))

    def _deleted(self, name: str) -> None:
        self._append(name, ConversationDeleted(reason="asked"))

    def _redacted_before(self, name: str) -> None:
        """A redaction that its outbox acted upon: what is still on its way comes without content."""
        target = self._target(name)
        outbox = self._strip(
            name,
            lambda event: event.type in MESSAGE_CONTENT_TYPES and orjson.loads(event.data).get("message_id") == target,
        )
        # Now and then it comes a delivery later than what it emptied.
        if self._chance.random() < 0.8:
            self._append(name, MessageRedacted(message_id=target), outbox=outbox)

    def _deleted_before(self, name: str) -> None:
        """A deletion that its outbox acted upon: all that is still on its way comes without content."""
        outbox = self._strip(name, lambda _: True)
        if self._chance.random() < 0.5:
            self._append(name, ConversationDeleted(), outbox=outbox)

    def _strip(self, name: str, erases: Callable[[EncodedEvent], bool]) -> Outbox:
        outbox = self._outbox()
        lane = outbox.lanes.get(name, [])
        for place in range(outbox.delivered.get(name, 0), len(lane)):
            if erases(lane[place]):
                lane[place] = strip_event(lane[place])
        return outbox

    def _forked(self, name: str) -> None:
        point: dict[str, Any] = {"conversation_id": name}
        if self._chance.random() < 0.6:
            point["version"] = self._chance.randrange(0, 30)
        else:
            lanes = [outbox.lanes[name] for outbox in self.outboxes if outbox.lanes.get(name)]
            there = self._chance.choice(lanes) if lanes else []
            point["event_id"] = str(self._chance.choice(there).event_id if there else UUID(int=self.made))
        self._begin(forked_from=point)

    # --- how it is put together ------------------------------------------------------------------------------------

    def _begin(self, forked_from: dict[str, Any] | None = None) -> None:
        name = f"random-{len(self._talks)}"
        parent = None if forked_from is None else self._talks[forked_from["conversation_id"]]
        inherited = () if parent is None else parent.said[-3:]
        self._talks[name] = Talk(self._chance.getrandbits(32), elsewhere=inherited)
        if forked_from is not None or self._chance.random() < 0.9:
            owner = self._chance.choice(OWNERS)
            self._append(name, ConversationStarted(owner_id=owner, forked_from=forked_from))

    def _target(self, name: str) -> str:
        """A late message of the conversation, or one that is nowhere."""
        return self._chance.choice([*self._talks[name].said[-6:], "nowhere"])

    def _outbox(self) -> Outbox:
        return self._chance.choice(self.outboxes)

    def _append(self, name: str, what: Body | Event, *, outbox: Outbox | None = None) -> None:
        event = Event.of(what, conversation_id=name)
        self._put(name, encode(event, conversation_id=name), outbox or self._outbox())

    def _put(self, name: str, encoded: EncodedEvent, outbox: Outbox) -> None:
        # Clocks step back.
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.made + self._chance.randrange(-90, 90))
        event_id = UUID(int=self._chance.getrandbits(128))
        outbox.append_encoded(name, [replace(encoded, event_id=event_id, occurred_at=to_microseconds(moment))])
