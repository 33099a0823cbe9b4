"""Cut the newest part of a conversation that fits a model's context window, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import RecordedMessage, Seen
from letopis.store.model.identifiers import check_whole
from letopis.store.model.messages import INSTRUCTIONS, Message
from letopis.store.rules.tool_calls import MessageBlock, StrayResult, pair_tool_calls

TokenCounter = Callable[[Message], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The part of a conversation that a model is given.

    :ivar messages: in order. A tool call is followed by its results, one ``tool`` message each, in the order of the
        calls.
    :ivar tokens: their total by the given counter; ``None`` without one.
    :ivar complete: True if the whole conversation is in it, up to the message that the window was to end with.
    :ivar begins_inside: True if not even the last turn fitted, so that it begins inside that turn, without its user
        message.
    :ivar made_up: the ids of messages that are not in the history: each says ``interrupted`` for a call without a
        result.
    :ivar orphans: results that were left out because they have no call. Only known if the conversation was read from
        its beginning, otherwise empty.
    :ivar duplicates: results that were left out because their call had one already.
    :ivar seen: how much of the conversation was read: append the answer with ``after=context``. ``None`` if the window
        was not read from a history.
    :ivar reached: False if the history store was unreachable, so that older messages may be missing.
    """

    messages: tuple[Message, ...]
    tokens: int | None = None
    complete: bool = True
    begins_inside: bool = False
    made_up: tuple[str, ...] = ()
    orphans: tuple[StrayResult, ...] = ()
    duplicates: tuple[StrayResult, ...] = ()
    reached: bool = True
    seen: Seen | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowBudget:
    """The limits of a context; all given ones apply."""

    last: int | None = None
    turns: int | None = None
    tokens: int | None = None
    count: TokenCounter | None = None
    keep_system: bool = True

    def __post_init__(self) -> None:
        for name, limit in (("last", self.last), ("turns", self.turns), ("tokens", self.tokens)):
            if limit is not None:
                check_whole(limit, name, 1)
        if self.count is not None and not callable(self.count):
            raise InvalidInput("count", "must be a function from a message to its number of tokens")
        if self.tokens is not None and self.count is None:
            raise InvalidInput("count", "must be given with tokens: a function from a message to its number of tokens")

    def cost(self, messages: Iterable[Message]) -> int:
        """Return the total tokens of messages; 0 without a counter."""
        if self.count is None:
            return 0
        total = 0
        for message in messages:
            tokens = self.count(message)
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
                raise InvalidInput("count", "must return a whole number from 0")
            total += tokens
        return total


@dataclass(frozen=True, slots=True)
class FittedWindow:
    """A context. ``full`` is True if no earlier message could change it."""

    context: Context
    full: bool


def window(
    messages: Iterable[RecordedMessage | Message],
    *,
    last: int | None = None,
    turns: int | None = None,
    tokens: int | None = None,
    count: TokenCounter | None = None,
    keep_system: bool = True,
) -> Context:
    """Return the newest part of a conversation that fits the limits; without a limit, all of it.

    Messages off the active path and redacted ones are skipped. A window begins with a turn: at the first of some user
    messages in a row, or at the beginning of the conversation. Only if not even the last turn fits does it begin inside
    that turn, at a message that is no tool result; ``begins_inside`` is True then. If the last message with its results
    does not fit either, only the system messages are in it.

    A call is never separated from its results: both are in, or both are out. A result follows the message with its
    call, wherever it was recorded, as a ``tool`` message of its own. A call without a result gets a made-up one with
    the status ``interrupted``.

    :param messages: those of one conversation, in order.
    :param last: the maximum number of messages, made-up ones and system messages included.
    :param turns: the maximum number of turns. A turn is a user message, or several in a row, and everything up to the
        next one; messages before the first user message are one turn.
    :param tokens: the maximum number of tokens, system messages included.
    :param count: returns the tokens of a message; called at least once for every message as it would be in the context.
        The costs recorded with the messages are not used (:func:`by_recorded_tokens` uses them).
    :param keep_system: keep the system messages at the beginning, whatever else fits.
    :raises InvalidInput: a limit is wrong, or the system messages alone exceed it.
    """
    budget = WindowBudget(last=last, turns=turns, tokens=tokens, count=count, keep_system=keep_system)
    return fit_window(messages, budget).context


def by_recorded_tokens(default: int | TokenCounter) -> TokenCounter:
    """Return a counter, for ``count=``, that uses the tokens recorded with messages.

    A bot may have recorded the cost of a whole request as ``tokens``: use this only if it is the length of the message.

    :param default: for messages without recorded tokens: a number, or a counter.
    """

    def count(message: Message) -> int:
        if message.tokens is not None:
            return message.tokens
        return default if isinstance(default, int) else default(message)

    return count


def fit_window(
    messages: Iterable[RecordedMessage | Message],
    budget: WindowBudget,
    *,
    beginning: bool = True,
    system: Sequence[Message] = (),
) -> FittedWindow:
    """Return the context of a conversation, or of its newest part, whose system messages are then ``system``."""
    visible = [
        message if isinstance(message, Message) else message.message for message in messages if is_visible(message)
    ]
    if not beginning:
        # The calls of these results were not read; later calls of the same id must not get them.
        first = next((index for index, message in enumerate(visible) if message.role != "tool"), len(visible))
        visible = visible[first:]
    paired = pair_tool_calls(visible)
    blocks = paired.blocks
    kept_system = tuple(system)
    if beginning and budget.keep_system:
        kept_system = tuple(
            block.message for block in takewhile(lambda block: block.message.role in INSTRUCTIONS, blocks)
        )
        blocks = blocks[len(kept_system) :]
    system_cost = budget.cost(kept_system)
    _check_system(budget, len(kept_system), system_cost)
    back = _Backward(blocks, budget, number=len(kept_system), cost=system_cost)
    start, inside = _boundary(blocks, back.start, whole=beginning and back.start == 0)
    parts = back.parts[: len(blocks) - start][::-1]
    return FittedWindow(
        Context(
            messages=(*kept_system, *(message for part in parts for message in part.messages)),
            tokens=None if budget.count is None else system_cost + sum(part.cost for part in parts),
            complete=beginning and start == 0,
            begins_inside=inside,
            made_up=tuple(made for part in parts for made in part.made_up),
            orphans=paired.orphans if beginning else (),
            duplicates=paired.duplicates,
        ),
        back.full,
    )


def is_visible(message: RecordedMessage | Message) -> bool:
    """Return True if a model may see a message: it is on the active path and not redacted."""
    return isinstance(message, Message) or (message.on_path and not message.redacted)


@dataclass(frozen=True, slots=True)
class _Part:
    messages: tuple[Message, ...]
    made_up: tuple[str, ...]
    cost: int


class _Backward:
    """Collects blocks from the newest back, until the next one would exceed a limit."""

    __slots__ = ("full", "parts", "start")

    def __init__(self, blocks: Sequence[MessageBlock], budget: WindowBudget, *, number: int, cost: int) -> None:
        self.parts: list[_Part] = []
        self.start = len(blocks)
        self.full = False
        turns = 0
        while self.start > 0 and not self.full:
            block = blocks[self.start - 1]
            messages, made_up = block.in_order()
            number += len(messages)
            if budget.last is not None and number > budget.last:
                self.full = True
                return
            part = _Part(messages, made_up, budget.cost(messages))
            cost += part.cost
            if budget.tokens is not None and cost > budget.tokens:
                self.full = True
                return
            self.parts.append(part)
            self.start -= 1
            # The first of what was read may follow another question of the same turn.
            turns += self.start > 0 and _begins_turn(blocks, self.start)
            self.full = turns == budget.turns or number == budget.last


def _begins_turn(blocks: Sequence[MessageBlock], place: int) -> bool:
    """Return True if a turn begins at a place: consecutive user messages are one question."""
    return blocks[place].begins_turn and not (place and blocks[place - 1].begins_turn)


def _boundary(blocks: Sequence[MessageBlock], start: int, *, whole: bool) -> tuple[int, bool]:
    """Return where a window that fits from ``start`` on may begin, and True if that is inside a turn."""
    if whole:
        return start, False
    places = range(start, len(blocks))
    turn = next((index for index in places if _begins_turn(blocks, index)), None)
    if turn is not None:
        return turn, False
    # A tool message cannot stand alone, even without a result in it.
    inside = next((index for index in places if blocks[index].message.role != "tool"), len(blocks))
    return inside, inside < len(blocks)


def _check_system(budget: WindowBudget, number: int, cost: int) -> None:
    if budget.tokens is not None and cost > budget.tokens:
        raise InvalidInput(
            "tokens", f"the system messages at the beginning alone count {cost}: allow more, or keep_system=False"
        )
    if budget.last is not None and number > budget.last:
        raise InvalidInput(
            "last", f"the system messages at the beginning alone are {number}: allow more, or keep_system=False"
        )
