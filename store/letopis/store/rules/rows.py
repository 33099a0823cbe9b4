"""Hold the rows of conversations and messages while events are applied to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from letopis.store.model.conversations import Reaction
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.reducer import PROJECTION_RULES, ConversationState


@dataclass(slots=True, kw_only=True)
class ConversationRow:
    """A row of the conversations; mutable for the time of one transaction."""

    partition: int
    conversation_id: str
    conversation: ConversationState[int]
    number: int | None = None
    retained: int = 0  # forks read the events up to it, so that a deletion leaves them their content
    rules: int = PROJECTION_RULES  # that made the row; they stay when events are added: a rebuild has to find it
    new: bool = False

    def as_row(self) -> TableRow:
        """Return the values in the order of the table's columns."""
        state = self.conversation
        fork = state.forked_from
        return (
            self.partition,
            self.conversation_id,
            state.owner_id,
            self.number,
            state.title,
            state.state,
            state.version,
            state.message_count,
            state.tokens,
            state.created_at,
            state.updated_at,
            None if fork is None else fork.conversation_id,
            None if fork is None else fork.version,
            orjson.dumps(state.metadata).decode() if state.metadata else None,
            None if fork is None else fork.event_id,
            int(state.inherits),
            state.inherited_to,
            self.retained,
            self.rules,
            orjson.dumps(state.tags).decode() if state.tags else None,
            state.trimmed,
            state.reset_to,
        )


@dataclass(slots=True)
class MessageRow:
    """A row of the messages; mutable for the time of one transaction."""

    version: int
    message_id: str
    content_version: int
    delivery_version: int | None
    role: str
    state: str
    left_at: int | None = None
    redacted_at: int | None = None
    reactions: tuple[Reaction, ...] = ()
    author: str | None = None
    new: bool = False
    changed: bool = False
    arrived_erased: bool = False

    def erase(self, version: int) -> None:
        """Note that the event of ``version`` took the content and the reactions away, unless an earlier one did."""
        self.redact(version)
        self.reactions, self.changed = (), True

    def redact(self, version: int) -> None:
        """Note that the event of ``version`` took the content away, unless an earlier one did."""
        # A message that came without its content has its own version here until its redaction is applied.
        if self.redacted_at in (None, self.version):
            self.redacted_at, self.content_version = version, self.version

    def as_row(self, partition: int, conversation_id: str) -> TableRow:
        return (
            partition,
            conversation_id,
            self.version,
            self.message_id,
            self.content_version,
            self.delivery_version,
            self.role,
            self.state,
            self.left_at,
            self.redacted_at,
            reactions_to_text(self.reactions),
            self.author,
        )


def reactions_to_text(reactions: Sequence[Reaction]) -> str | None:
    """Return reactions as their column holds them."""
    if not reactions:
        return None
    return orjson.dumps([[reaction.key, reaction.actor, reaction.value] for reaction in reactions]).decode()


def reactions_from_text(text: str | None) -> tuple[Reaction, ...]:
    if text is None:
        return ()
    return tuple(Reaction(key=key, actor=actor, value=value) for key, actor, value in orjson.loads(text))
