"""Make random operations with every event type, as several outboxes would deliver them, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import orjson

from letopis.store import (
    ConversationActivated,
    ConversationAnnotated,
    ConversationArchived,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRestored,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    Event,
    Message,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
    Text,
)
from letopis.store.model.codec import EncodedEvent, digest_of, encode
from letopis.store.model.event_types import Body
from letopis.store.model.events import to_microseconds
from letopis.store.rules.preconditions import PRECONDITION_KEY, TURN_TYPES, Precondition
from letopis.store.rules.projection import ACTIVATION_ORDER_KEY
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES, strip_event
from letopis.store.testing.outbox import Outbox

OWNERS: Final = ("42", "43", "Ж", "long " * 40)
KEYS: Final = ("+1", "-1", "rating", "❤")

# How often each is drawn, of the sum of all.
WEIGHTS: Final[dict[str, int]] = {
    "message": 400,
    "again": 8,
    "turn": 60,
    "edited": 70,
    "sent": 60,
    "failed": 20,
    "reacted": 60,
    "unreacted": 30,
    "rewound": 40,
    "cleared": 5,
    "redacted": 20,
    "redacted_before": 15,
    "archived": 10,
    "restored": 8,
    "annotated": 30,
    "renamed": 25,
    "activated": 20,
    "started": 12,
    "deleted": 3,
    "deleted_before": 2,
    "forked": 10,
    "custom": 30,
    "unknown": 15,
    "misshapen": 5,
}


@dataclass(slots=True, kw_only=True)
class Known:
    """What the generator remembers of a conversation."""

    name: str
    messages: list[str] = field(default_factory=list)
    parent: str | None = None


class Operations:
    """Makes operations and delivers them; what is made hangs on the seed alone."""

    def __init__(self, seed: int, *, outboxes: int = 2, prefix: str = "random") -> None:
        self._chance = random.Random(seed)
        self._prefix = prefix
        self.outboxes = [
            Outbox(f"{number}.db", origin_id=UUID(int=number + 1 + seed * 100)) for number in range(outboxes)
        ]
        self.conversations: list[Known] = []
        self.made = 0
        self._order = 0
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
        known = self.conversations[-1 - min(int(self._chance.expovariate(0.1)), len(self.conversations) - 1)]
        (kind,) = self._chance.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))
        if (special := getattr(self, f"_{kind}", None)) is not None:
            special(known)
        else:
            self._append(known, self._plain(kind, known))

    # --- what can be made ------------------------------------------------------------------------------------------

    def _plain(self, kind: str, known: Known) -> Body | Event:
        """Return what a conversation is told without more ado."""
        chance, made = self._chance, self.made
        match kind:
            case "edited":
                content: Any = chance.choice((f"edit {made}", (Text(f"edit {made}"),)))
                return MessageEdited(message_id=self._target(known), content=content)
            case "sent":
                return MessageSent(
                    message_id=self._target(known),
                    platform_ids={"telegram": made},
                    sent_as=chance.choice((None, "file")),
                    file_path=chance.choice((None, "/srv/reply.html")),
                )
            case "failed":
                return MessageFailed(message_id=self._target(known), reason=chance.choice((None, "gone")))
            case "reacted" | "unreacted":
                key, actor = chance.choice(KEYS), chance.choice((None, "42", "43"))
                if kind == "unreacted":
                    return ReactionRemoved(message_id=self._target(known), key=key, actor=actor)
                value = chance.choice((None, 1, 4.5, "useful"))
                return ReactionAdded(message_id=self._target(known), key=key, actor=actor, value=value)
            case "rewound":
                return ConversationRewound(to_message_id=self._target(known))
            case "cleared":
                return ConversationRewound()
            case "redacted":
                return MessageRedacted(message_id=self._target(known), reason="asked")
            case "archived":
                return ConversationArchived(reason=chance.choice((None, "old")))
            case "restored":
                return ConversationRestored()
            case "annotated":
                note: Any = chance.choice((None, made, {"b": 1, "a": [made]}))
                return ConversationAnnotated(metadata={chance.choice("xyz"): note})
            case "renamed":
                return ConversationRenamed(title=f"title {made} " * chance.choice((1, 1, 40)))
            case "activated":
                self._order += 1
                order = {ACTIVATION_ORDER_KEY: self._order}
                return Event(type="conversation.activated", data=ConversationActivated().to_data(), metadata=order)
            case "started":
                owner = chance.choice((None, *OWNERS))
                return ConversationStarted(owner_id=owner, title=chance.choice((None, f"start {made}")))
            case "deleted":
                return ConversationDeleted(reason="asked")
            case "custom":
                return Event(type="custom.paid", data={"message_id": self._target(known), "sum": made})
        assert kind == "unknown"
        type_name, version = chance.choice((("weather.changed", 1), ("message.edited", 2), ("message.pinned", 1)))
        return Event(type=type_name, schema_version=version, data={"message_id": self._target(known)})

    def _message(self, known: Known, **metadata: Any) -> None:
        chance = self._chance
        message_id = f"m{self.made}"
        message = Message(
            role=chance.choice(("user", "assistant", "assistant", "tool", "system")),
            content=chance.choice((f"message {self.made}", (Text(f"part {self.made}"), Text("другая")))),
            id=message_id,
            name=chance.choice((None, None, "Anna")),
            tokens=chance.choice((None, 0, 7, 4_000)),
            usage=chance.choice(({}, {"input": 3, "output": 4, "tier": "flex"})),
            external_ids=chance.choice(({}, {"telegram": self.made})),
            metadata=chance.choice(({}, {"model": "m1"})),
            status=chance.choice(("complete", "complete", "complete", "interrupted")),
        )
        known.messages.append(message_id)
        self._append(known, Event(type="message.appended", data=message.to_data(), metadata=metadata))

    def _again(self, known: Known) -> None:
        """An id that is there already, in another event: a caller that makes its own events may do so."""
        message = Message.user(f"again {self.made}", id=self._target(known))
        self._append(known, Event(type="message.appended", data=message.to_data()))

    def _turn(self, known: Known) -> None:
        """A message under a condition, that looked at an older state now and then."""
        outbox = self._outbox()
        lane = len(outbox.lanes.get(known.name, ()))
        seen = max(0, lane - self._chance.choice((0, 0, 0, 1, 3)))
        expects = Precondition(
            sequence=seen,
            version=self._chance.choice((None, None, seen)),
            types=self._chance.choice((None, TURN_TYPES)),
        )
        message_id = f"m{self.made}"
        message = Message.user(f"turn {self.made}", id=message_id, tokens=5)
        known.messages.append(message_id)
        event = Event(
            type="message.appended", data=message.to_data(), metadata={PRECONDITION_KEY: expects.to_data(), "by": 1}
        )
        self._append(known, event, outbox=outbox)

    def _redacted_before(self, known: Known) -> None:
        """A redaction that its outbox acted upon: what is still on its way comes without content."""
        outbox, target = self._outbox(), self._target(known)
        lane = outbox.lanes.get(known.name, [])
        for place in range(outbox.delivered.get(known.name, 0), len(lane)):
            event = lane[place]
            if event.type in MESSAGE_CONTENT_TYPES and orjson.loads(event.data).get("message_id") == target:
                lane[place] = strip_event(event)
        # Now and then it comes a delivery later than what it emptied.
        if self._chance.random() < 0.8:
            self._append(known, MessageRedacted(message_id=target), outbox=outbox)

    def _deleted_before(self, known: Known) -> None:
        """A deletion that its outbox acted upon: all that is still on its way comes without content."""
        outbox = self._outbox()
        lane = outbox.lanes.get(known.name, [])
        for place in range(outbox.delivered.get(known.name, 0), len(lane)):
            lane[place] = strip_event(lane[place])
        if self._chance.random() < 0.5:
            self._append(known, ConversationDeleted(), outbox=outbox)

    def _forked(self, known: Known) -> None:
        fork = self._begin(started=False)
        fork.parent = known.name
        fork.messages = known.messages[-3:]
        point: dict[str, Any] = {"conversation_id": known.name}
        if self._chance.random() < 0.6:
            point["version"] = self._chance.randrange(0, 30)
        else:
            lanes = [outbox.lanes[known.name] for outbox in self.outboxes if outbox.lanes.get(known.name)]
            there = self._chance.choice(lanes) if lanes else []
            point["event_id"] = str(self._chance.choice(there).event_id if there else UUID(int=self.made))
        self._append(fork, ConversationStarted(owner_id=self._chance.choice(OWNERS), forked_from=point))

    def _misshapen(self, known: Known) -> None:
        """What only a damaged or a later writer would send under a known name."""
        type_name = self._chance.choice(("message.edited", "message.appended", "conversation.annotated"))
        encoded = encode(Event(type="custom.x", data={"message_id": 5}), conversation_id=known.name)
        digest = digest_of(known.name, type_name, 1, encoded.data, encoded.metadata, encoded.salt or b"")
        self._put(known, replace(encoded, type=type_name, digest=digest), self._outbox())

    # --- how it is put together ------------------------------------------------------------------------------------

    def _begin(self, *, started: bool = True) -> Known:
        known = Known(name=f"{self._prefix}-{len(self.conversations)}")
        self.conversations.append(known)
        if started and self._chance.random() < 0.9:
            self._append(known, ConversationStarted(owner_id=self._chance.choice(OWNERS)))
        return known

    def _target(self, known: Known) -> str:
        """A message of the conversation, mostly a late one; of its parent, or nowhere, now and then."""
        if not known.messages or self._chance.random() < 0.03:
            return f"m{self._chance.randrange(0, self.made + 1)}"
        return known.messages[-1 - min(int(self._chance.expovariate(0.3)), len(known.messages) - 1)]

    def _outbox(self) -> Outbox:
        return self._chance.choice(self.outboxes)

    def _append(self, known: Known, what: Body | Event, *, outbox: Outbox | None = None) -> None:
        event = Event.of(what, conversation_id=known.name)
        self._put(known, encode(event, conversation_id=known.name), outbox or self._outbox())

    def _put(self, known: Known, encoded: EncodedEvent, outbox: Outbox) -> None:
        # Clocks step back.
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.made + self._chance.randrange(-90, 90))
        event_id = UUID(int=self._chance.getrandbits(128))
        outbox.append_encoded(known.name, [replace(encoded, event_id=event_id, occurred_at=to_microseconds(moment))])
