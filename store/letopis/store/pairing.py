"""Pairing: every tool call with its result, whatever the order in which they were recorded; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from letopis.store.identifiers import derived_event_id
from letopis.store.messages import EMPTY, Message, Part, ToolCall, ToolResult


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayResult:
    """A tool result that belongs to no call, or to one that has a result already.

    :ivar message_id: the message that holds it.
    """

    message_id: str
    result: ToolResult


@dataclass(slots=True)
class Call:
    """One call of a tool, and the message with its result once that is found."""

    part: ToolCall
    result: Message | None = None


@dataclass(slots=True)
class Block:
    """What must not be torn apart: a message, and the results of the calls that it makes."""

    message: Message
    calls: list[Call] = field(default_factory=list)

    @property
    def begins_turn(self) -> bool:
        """Whether a person speaks: what follows is the answer."""
        return self.message.role == "user"

    def laid_out(self) -> tuple[tuple[Message, ...], tuple[str, ...]]:
        """Return the message and its results, in the order of the calls, and the ids of those that are made up."""
        if not self.calls:
            return (self.message,), ()
        messages, made_up = [self.message], []
        for place, call in enumerate(self.calls):
            if call.result is None:
                missing = _interrupted(self.message, call.part, place)
                made_up.append(missing.id)
                messages.append(missing)
            else:
                messages.append(call.result)
        return tuple(messages), tuple(made_up)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A run of messages as blocks, and the results that found no place in them.

    :ivar orphans: results whose call is nowhere in the run. ``duplicates``: results after the first of a call.
    """

    blocks: list[Block]
    orphans: tuple[StrayResult, ...]
    duplicates: tuple[StrayResult, ...]


def paired(messages: Iterable[Message]) -> Paired:
    """Return messages as blocks, each call of an assistant with its result.

    Some models use an id again. So a result belongs to the nearest call of its id before it, and to the first call of
    its id after it only where none is before; of several for one call the first wins, one after the call over one
    before it.
    """
    running = _Pairing()
    for message in messages:
        running.take(message)
    return running.result()


class _Pairing:
    __slots__ = ("_blocks", "_duplicates", "_early", "_first", "_latest", "_place")

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._latest: dict[str, tuple[Block, list[Call]]] = {}
        self._first: dict[str, list[Call]] = {}
        self._early: dict[str, list[tuple[int, Message, ToolResult]]] = {}
        self._duplicates: list[tuple[int, StrayResult]] = []
        self._place = 0

    def take(self, message: Message) -> None:
        content = message.content
        if isinstance(content, str) or not any(isinstance(part, ToolCall | ToolResult) for part in content):
            self._blocks.append(Block(message))
            return
        rest, results = _parted(message, content)
        block = None if rest is None else Block(rest)
        if block is not None:
            self._blocks.append(block)
        pieces = iter(results)
        for part in content:
            if isinstance(part, ToolResult):
                self._answer(message, next(pieces), part)
            elif isinstance(part, ToolCall) and message.role == "assistant" and block is not None:
                self._call(block, part)

    def _call(self, block: Block, part: ToolCall) -> None:
        call = Call(part)
        block.calls.append(call)
        latest = self._latest.get(part.call_id)
        if latest is not None and latest[0] is block:
            latest[1].append(call)
            return
        calls = [call]
        self._latest[part.call_id] = (block, calls)
        self._first.setdefault(part.call_id, calls)

    def _answer(self, source: Message, piece: Message, result: ToolResult) -> None:
        self._place += 1
        latest = self._latest.get(result.call_id)
        if latest is None:
            self._early.setdefault(result.call_id, []).append((self._place, piece, result))
        elif not _give(latest[1], piece):
            self._duplicates.append((self._place, StrayResult(message_id=source.id, result=result)))

    def result(self) -> Paired:
        orphans: list[tuple[int, StrayResult]] = []
        for call_id, results in self._early.items():
            calls = self._first.get(call_id)
            for place, piece, result in results:
                if calls is None or not _give(calls, piece):
                    stray = StrayResult(message_id=piece.id, result=result)
                    (orphans if calls is None else self._duplicates).append((place, stray))
        return Paired(
            blocks=self._blocks, orphans=tuple(_in_order(orphans)), duplicates=tuple(_in_order(self._duplicates))
        )


def _give(calls: list[Call], piece: Message) -> bool:
    """Give the first call without a result its result; whether there was one."""
    for call in calls:
        if call.result is None:
            call.result = piece
            return True
    return False


def _in_order(strays: list[tuple[int, StrayResult]]) -> Iterator[StrayResult]:
    return (stray for _, stray in sorted(strays, key=lambda one: one[0]))


def _parted(message: Message, content: tuple[Part, ...]) -> tuple[Message | None, list[Message]]:
    """Return what is left of a message without its results, and each result as a tool message of its own.

    In a tool message other parts (a picture beside the result) stay with the result before them. The pieces keep the
    id of the message; what it cost is told once.
    """
    results = sum(1 for part in content if isinstance(part, ToolResult))
    if message.role == "tool":
        if results <= 1:
            return (None, [message]) if results else (message, [])
        rest: list[Part] = []
        pieces: list[list[Part]] = [[]]
        for part in content:
            if isinstance(part, ToolResult) and any(isinstance(one, ToolResult) for one in pieces[-1]):
                pieces.append([])
            pieces[-1].append(part)
    else:
        if not results:
            return message, []
        rest = [part for part in content if not isinstance(part, ToolResult)]
        pieces = [[part] for part in content if isinstance(part, ToolResult)]
    left = replace(message, content=tuple(rest)) if rest else None
    name = message.name if message.role == "tool" else None
    return left, [
        replace(message, role="tool", name=name, content=tuple(parts))
        if left is None and place == 0
        else replace(message, role="tool", name=name, content=tuple(parts), tokens=0, usage=EMPTY)
        for place, parts in enumerate(pieces)
    ]


def _interrupted(message: Message, call: ToolCall, place: int) -> Message:
    """Return a result that says that there is none; always the same for the same call."""
    made = str(derived_event_id(message.id, f"no result of call {place}"))
    return Message.tool((ToolResult(call.call_id, status="interrupted"),), id=made, name=call.name)
