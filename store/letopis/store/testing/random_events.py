"""Make random events of a conversation from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from letopis.store import (
    ConversationRenamed,
    Event,
    Message,
    MessageEdited,
    MessageFailed,
    MessageSent,
    Text,
)
from letopis.store.model.event_types import (
    ConversationAnnotated,
    ConversationArchived,
    ConversationRestored,
    ConversationRewound,
    ConversationStarted,
    MessageRedacted,
    ReactionAdded,
    ReactionRemoved,
)
from letopis.store.model.parts import Content

START = datetime(2026, 1, 1, tzinfo=UTC)


class Talk:
    """A source of random events: message ids are used again now and then, and clocks step back.

    :param erasing: make redactions too.
    :param elsewhere: ids of messages that the conversation inherits.
    """

    def __init__(self, seed: int, *, erasing: bool = True, elsewhere: Sequence[str] = ()) -> None:
        self.chance = random.Random(seed)
        self.number = 0
        self.said: list[str] = []
        self._erasing = erasing
        self._elsewhere = elsewhere

    def next(self, conversation_id: str) -> Event:
        """Return the next event; changes go to recent messages, known or not."""
        self.number += 1
        chance = self.chance
        known = [*self.said[-6:], *self._elsewhere, "nowhere"]
        target = chance.choice(known)
        what: object
        match chance.randrange(22):
            case 0:
                what = ConversationStarted(owner_id=chance.choice([None, "1"]), title=chance.choice([None, "t"]))
            case 1:
                what = ConversationRenamed(title=f"title {self.number}")
            case 2:
                what = ConversationAnnotated(metadata={chance.choice("abc"): chance.choice([None, self.number])})
            case 3:
                what = chance.choice([ConversationArchived(), ConversationRestored()])
            case 4 | 5:
                content: Content = f"edit {self.number}" if chance.random() < 0.7 else (Text("part"),)
                what = MessageEdited(message_id=target, content=content)
            case 6 | 7:
                what = MessageSent(message_id=target, platform_ids={"n": self.number}, file_path="/a/b")
            case 8:
                what = MessageFailed(message_id=target, reason="blocked")
            case 9 | 10:
                what = ReactionAdded(message_id=target, key=chance.choice("+-"), actor=chance.choice([None, "1"]))
            case 11:
                what = ReactionRemoved(message_id=target, key=chance.choice("+-"), actor=chance.choice([None, "1"]))
            case 12 if self._erasing:
                what = MessageRedacted(message_id=target)
            case 13:
                what = ConversationRewound(to_message_id=target if chance.random() < 0.9 else None)
            case 14:
                what = Event(type=chance.choice(["custom.x", "weather.changed"]), data={"message_id": target})
            case _:
                again = bool(self.said) and chance.random() < 0.05
                message_id = chance.choice(self.said) if again else f"{conversation_id}-{self.number}"
                self.said.append(message_id)
                message = Message(
                    role=chance.choice(["user", "assistant", "tool", "system"]),
                    content=f"message {self.number}",
                    id=message_id,
                    tokens=chance.choice([None, 0, 3]),
                    metadata=chance.choice([{}, {"n": self.number}]),
                )
                what = Event(type="message.appended", data=message.to_data())
        moment = START + timedelta(seconds=self.number + chance.choice([0, 0, 0, -5, 5]))
        return replace(Event.of(what, conversation_id=conversation_id), occurred_at=moment)
