"""Context: the newest part of a conversation that fits what a model can take in; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from letopis.store.conversation import RecordedMessage
from letopis.store.errors import InvalidInput
from letopis.store.messages import Message
from letopis.store.pairing import Block, StrayResult, paired

Count = Callable[[Message], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a model is given of a conversation.

    :ivar messages: in order. Each call of a tool is followed by its results, one ``tool`` message a result, in the
        order of the calls.
    :ivar tokens: what they count, by the counter that was given; ``None`` without one.
    :ivar complete: whether all of the conversation is in it.
    :ivar begins_inside: whether not even the last turn fitted, so that it begins inside of that, with no user message.
    :ivar made_up: the ids of those that are not in the history: each says ``interrupted`` where a call has no result.
    :ivar orphans: results that were left out, because their call is nowhere in the conversation. Known where the
        reading got to its beginning, else empty.
    :ivar duplicates: results that were left out, because their call had one already.
    :ivar reached: ``False`` where the history store could not be reached, so that older messages may be missing.
    """

    messages: tuple[Message, ...]
    tokens: int | None = None
    complete: bool = True
    begins_inside: bool = False
    made_up: tuple[str, ...] = ()
    orphans: tuple[StrayResult, ...] = ()
    duplicates: tuple[StrayResult, ...] = ()
    reached: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much may be in a context; all limits that are given hold.

    :raises InvalidInput: a limit is no whole number from 1, or ``tokens`` comes without ``count``.
    """

    last: int | None = None
    turns: int | None = None
    tokens: int | None = None
    count: Count | None = None
    keep_system: bool = True

    def __post_init__(self) -> None:
        for name, limit in (("last", self.last), ("turns", self.turns), ("tokens", self.tokens)):
            if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
                raise InvalidInput(name, "must be a whole number from 1")
        if self.count is not None and not callable(self.count):
            raise InvalidInput("count", "must be a function from a message to its number of tokens")
        if self.tokens is not None and self.count is None:
            raise InvalidInput("count", "must be given with tokens: a function from a message to its number of tokens")

    def cost(self, messages: Iterable[Message]) -> int:
        """Return what messages count; 0 without a counter.

        :raises InvalidInput: the counter gives something else than a number of tokens.
        """
        if self.count is None:
            return 0
        total = 0
        for message in messages:
            one = self.count(message)
            if not isinstance(one, int) or one < 0:
                raise InvalidInput("count", "must return a whole number from 0")
            total += one
        return total


@dataclass(frozen=True, slots=True)
class Fitted:
    """A context, and whether nothing that lies before the messages looked at could change it."""

    context: Context
    full: bool


def window(
    messages: Iterable[RecordedMessage | Message],
    *,
    last: int | None = None,
    turns: int | None = None,
    tokens: int | None = None,
    count: Count | None = None,
    keep_system: bool = True,
) -> Context:
    """Return the newest part of a conversation that fits; without a limit, all of it, with its calls put in order.

    What has left the active path is skipped, and so is what was redacted. A window begins where a turn begins: with a
    user message, or at the very beginning. Only where not even the last turn fits does it begin inside of that one, at
    a message that is no tool result; ``begins_inside`` says so. Where the last message with its results does not fit
    either, nothing but the system messages is in it.

    A call is never separated from its results: both are in, or both are out. A result stands right after the message
    with its call, wherever it was recorded, as a ``tool`` message of its own. A call without a result gets one that is
    made up, with the status ``interrupted``.

    :param messages: of one conversation, in order.
    :param last: at most so many messages, the made-up ones and the system messages included.
    :param turns: at most so many turns. A turn is a user message and all up to the next; what was said before the first
        user message counts as one.
    :param tokens: at most so many, as ``count`` counts them, the system messages included. ``count`` is asked about
        every message as it would be in the context, at least once; what the messages say of their own cost is not used
        (:func:`by_recorded_tokens` uses it).
    :param keep_system: keep the system messages at the beginning, whatever else fits.
    :raises InvalidInput: a limit is wrong, or the system messages alone are beyond it.
    """
    room = Room(last=last, turns=turns, tokens=tokens, count=count, keep_system=keep_system)
    return fitted(messages, room).context


def by_recorded_tokens(default: int | Count) -> Count:
    """Return a counter that believes what messages say they cost, for ``count=``.

    That is what the bot recorded as ``tokens``, which may be the cost of a whole request: use it where it is the
    length of the message.

    :param default: for messages that do not say: a number, or a counter.
    """

    def count(message: Message) -> int:
        if message.tokens is not None:
            return message.tokens
        return default if isinstance(default, int) else default(message)

    return count


def fitted(
    messages: Iterable[RecordedMessage | Message],
    room: Room,
    *,
    beginning: bool = True,
    system: Sequence[Message] = (),
) -> Fitted:
    """Return the context of a conversation, or of its newest part.

    :param beginning: whether ``messages`` begin where the conversation does. Otherwise ``system`` holds the system
        messages from there.
    :raises InvalidInput: as :func:`window`.
    """
    said = [one if isinstance(one, Message) else one.message for one in messages if is_visible(one)]
    if not beginning:
        # Results whose call was not read: taken for results of a later call of the same id they would do harm.
        first = next((place for place, message in enumerate(said) if message.role != "tool"), len(said))
        said = said[first:]
    found = paired(said)
    blocks = found.blocks
    kept = tuple(system)
    if beginning and room.keep_system:
        kept = tuple(block.message for block in takewhile(lambda block: block.message.role == "system", blocks))
        blocks = blocks[len(kept) :]
    spent = room.cost(kept)
    _check_system(room, len(kept), spent)
    back = _Backward(blocks, room, number=len(kept), cost=spent)
    start, inside = _boundary(blocks, back.start, whole=beginning and back.start == 0)
    parts = back.parts[: len(blocks) - start][::-1]
    return Fitted(
        Context(
            messages=(*kept, *(message for part in parts for message in part.messages)),
            tokens=None if room.count is None else spent + sum(part.cost for part in parts),
            complete=beginning and start == 0,
            begins_inside=inside,
            made_up=tuple(made for part in parts for made in part.made_up),
            orphans=found.orphans if beginning else (),
            duplicates=found.duplicates,
        ),
        back.full,
    )


def is_visible(message: RecordedMessage | Message) -> bool:
    """Whether a model may see a message: it is on the active path, and not redacted."""
    return isinstance(message, Message) or (message.on_path and not message.redacted)


@dataclass(frozen=True, slots=True)
class _Part:
    messages: tuple[Message, ...]
    made_up: tuple[str, ...]
    cost: int


class _Backward:
    """Takes blocks in from the newest back, until the next one would break a limit."""

    __slots__ = ("full", "parts", "start")

    def __init__(self, blocks: Sequence[Block], room: Room, *, number: int, cost: int) -> None:
        self.parts: list[_Part] = []
        self.start = len(blocks)
        self.full = False
        turns = 0
        while self.start > 0 and not self.full:
            block = blocks[self.start - 1]
            messages, made_up = block.laid_out()
            number += len(messages)
            if room.last is not None and number > room.last:
                self.full = True
                return
            part = _Part(messages, made_up, room.cost(messages))
            cost += part.cost
            if room.tokens is not None and cost > room.tokens:
                self.full = True
                return
            self.parts.append(part)
            self.start -= 1
            turns += block.begins_turn
            self.full = turns == room.turns or number == room.last


def _boundary(blocks: Sequence[Block], start: int, *, whole: bool) -> tuple[int, bool]:
    """Return where a window may begin that fits from ``start`` on, and whether that is inside a turn."""
    if whole:
        return start, False
    places = range(start, len(blocks))
    turn = next((place for place in places if blocks[place].begins_turn), None)
    if turn is not None:
        return turn, False
    # A tool message that says nothing of a call cannot stand alone either.
    inside = next((place for place in places if blocks[place].message.role != "tool"), len(blocks))
    return inside, inside < len(blocks)


def _check_system(room: Room, number: int, cost: int) -> None:
    if room.tokens is not None and cost > room.tokens:
        raise InvalidInput(
            "tokens", f"the system messages at the beginning alone count {cost}: allow more, or keep_system=False"
        )
    if room.last is not None and number > room.last:
        raise InvalidInput(
            "last", f"the system messages at the beginning alone are {number}: allow more, or keep_system=False"
        )
