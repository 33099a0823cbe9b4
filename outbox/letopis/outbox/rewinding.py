"""Rewinding: undo, pop, clear and regenerate: messages leave the path, and the log keeps them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from letopis.outbox.reading import Reading
from letopis.outbox.receipts import Receipt
from letopis.outbox.saying import Saying
from letopis.outbox.targets import cuts_path, holds_message
from letopis.store.conversation import RecordedMessage, Seen
from letopis.store.errors import InvalidInput, VersionConflict
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.identifiers import check_identifier
from letopis.store.vocabulary import ConversationRewound

T = TypeVar("T")

FEWEST: Final = 16
"""Messages of the first page back; each one after it is twice as long."""
MOST: Final = 1_000
_TRIES: Final = 5


class _Back:
    """The path of a conversation from its end, read back as far as it is needed."""

    def __init__(self, history: Reading, conversation_id: str) -> None:
        self._history = history
        self._conversation_id = conversation_id
        self._size = FEWEST
        self._next: str | None = None
        self._begun = False
        self.messages: list[RecordedMessage] = []
        """In order; the newest is the last."""
        self.seen: Seen | None = None
        self.complete = True

    async def further(self) -> bool:
        """Read one more page; ``False`` where there is none."""
        if self._begun and self._next is None:
            return False
        page = await self._history.messages(self._conversation_id, last=self._size, before=self._next)
        if not self._begun:
            self.seen = page.seen
        self._begun = True
        self.messages[:0] = page
        self._next, self._size = page.next, min(self._size * 2, MOST)
        self.complete = self.complete and page.complete
        return True

    async def until(self, found: Callable[[Sequence[RecordedMessage]], T | None]) -> T | None:
        """Read back until ``found`` finds something; ``None`` where it never does, and all of the path was read.

        :raises StoreFault: it does not in what the outbox holds, and the history store cannot be read at present.
        """
        while await self.further():
            if (there := found(self.messages)) is not None:
                return there
        if not self.complete:
            raise StoreFault(
                fault_class=FaultClass.UNAVAILABLE,
                code="away",
                reason="the history store cannot be read, and what the outbox holds does not reach that far back",
            )
        return None


class Rewinding(Saying, Reading):
    """The part of a history that takes back what was said."""

    async def rewind(self, conversation_id: str, *, to: str | None, reason: str | None = None) -> Receipt:
        """Take the messages after one off the path; with ``to=None`` all of them. The log keeps them.

        In a fork, ``to`` may be a message that it inherits. While the history store is away, what cannot be looked
        for is taken as being there; a target that is not has no effect then.

        :param to: the id of the last message that stays.
        :raises InvalidInput: there is no such message on the path; nothing was written.
        """
        check_identifier(conversation_id, "conversation_id")
        if to is not None:
            check_identifier(to, "to")
            if await self._is_on_path(conversation_id, to) is False:
                raise InvalidInput("to", "no message on the path of this conversation has this id")
        return await self.append(conversation_id, ConversationRewound(to_message_id=to, reason=reason))

    async def clear(self, conversation_id: str, *, reason: str | None = "clear") -> Receipt:
        """Take all messages off the path, those that a fork inherits too. The log keeps them."""
        return await self.rewind(conversation_id, to=None, reason=reason)

    async def undo(self, conversation_id: str, turns: int = 1) -> Receipt | None:
        """Take the last turns off the path: back to before the last user message, or the last ``turns`` of them.

        A turn begins with a user message and holds all up to the next one. Where there are fewer turns, all of them
        go; what comes before the first one, a system message for example, stays. ``None`` where there is no turn: then
        nothing was written.

        :raises InvalidInput: ``turns`` is no whole number from 1.
        :raises StoreFault: the history store is away, and the outbox alone does not reach back far enough.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        """
        if not isinstance(turns, int) or isinstance(turns, bool) or turns < 1:
            raise InvalidInput("turns", "must be a whole number from 1")

        async def once(back: _Back) -> Receipt | None:
            starts = await back.until(lambda messages: _whole_turns(messages, turns))
            if starts is None:  # all of the path was read, so its beginning is the beginning
                starts = _starts(back.messages)[-turns:]
            if not starts:
                return None
            target = back.messages[starts[0] - 1].id if starts[0] else None
            return await self._rewound(conversation_id, target, "undo", back.seen)

        return await self._undisturbed(conversation_id, once)

    async def pop(self, conversation_id: str) -> RecordedMessage | None:
        """Take the last message off the path and return it; ``None`` where there is none.

        :raises StoreFault: the history store is away, and the outbox alone does not hold the message before it.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        """

        async def once(back: _Back) -> RecordedMessage | None:
            await back.until(lambda messages: True if len(messages) > 1 else None)
            if not back.messages:
                return None
            target = back.messages[-2].id if len(back.messages) > 1 else None
            await self._rewound(conversation_id, target, "pop", back.seen)
            return back.messages[-1]

        return await self._undisturbed(conversation_id, once)

    async def regenerate(self, conversation_id: str) -> tuple[RecordedMessage, ...]:
        """Take the last answer off the path, and return the messages that are to be answered again.

        Everything after the last user message leaves the path: the answer, tool calls and their results. Returned are
        the user messages that came in a row with that one, oldest first; before them stands an earlier answer, or
        nothing. Where the last user message has no answer yet, nothing is written. Where there is no user message, the
        tuple is empty and nothing is written.

        :raises StoreFault: the history store is away, and the outbox alone does not reach back far enough.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        """

        async def once(back: _Back) -> tuple[RecordedMessage, ...]:
            asked = await back.until(lambda messages: _last_asked(messages, whole=False))
            if asked is None:
                asked = _last_asked(back.messages, whole=True) or ()
            if asked and back.messages[-1] != asked[-1]:
                await self._rewound(conversation_id, asked[-1].id, "regenerate", back.seen)
            return asked

        return await self._undisturbed(conversation_id, once)

    async def _rewound(self, conversation_id: str, to: str | None, reason: str, seen: Seen | None) -> Receipt:
        return await self.append(conversation_id, ConversationRewound(to_message_id=to, reason=reason), after=seen)

    async def _undisturbed(self, conversation_id: str, once: Callable[[_Back], Awaitable[T]]) -> T:
        """Decide from what was read, again where something was said in between: that must not go with the rest."""
        for _ in range(_TRIES - 1):
            try:
                return await once(_Back(self, conversation_id))
            except VersionConflict:
                continue
        return await once(_Back(self, conversation_id))

    async def _is_on_path(self, conversation_id: str, message_id: str) -> bool | None:
        """Whether a message is on the path; ``None`` where that cannot be known at present."""
        pending, cut = await self.outbox.read(
            lambda connection: (
                holds_message(connection, conversation_id, message_id),
                cuts_path(connection, conversation_id),
            )
        )
        places = await self._reach.read(lambda store: store.path_of(conversation_id, (message_id,)))
        if places is not None and (there := places.get(message_id)) is not None and not (there.on_path and cut):
            return there.on_path
        if places == {} and not pending:
            found = await self.conversation(conversation_id)
            if found is None or not found.inherits:
                return False
        back = _Back(self, conversation_id)
        while await back.further():
            if any(one.id == message_id for one in back.messages):
                return True
        return False if back.complete else None


def _starts(messages: Sequence[RecordedMessage]) -> list[int]:
    return [place for place, one in enumerate(messages) if one.role == "user"]


def _whole_turns(messages: Sequence[RecordedMessage], turns: int) -> list[int] | None:
    """Return where the last turns begin, once the message before them is there too."""
    starts = _starts(messages)
    return starts[-turns:] if len(starts) >= turns and starts[-turns] > 0 else None


def _last_asked(messages: Sequence[RecordedMessage], *, whole: bool) -> tuple[RecordedMessage, ...] | None:
    """Return the user messages in a row of which the last one is the last, once what comes before them is known."""
    starts = _starts(messages)
    if not starts:
        return None
    first = last = starts[-1]
    while first > 0 and messages[first - 1].role == "user":
        first -= 1
    return tuple(messages[first : last + 1]) if first > 0 or whole else None
