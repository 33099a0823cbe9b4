"""Pair tool calls with their results, in whatever order they were recorded, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from letopis.store.model.identifiers import derived_event_id
from letopis.store.model.messages import EMPTY, Message
from letopis.store.model.parts import Data, File, Part, Text, ToolCall, ToolResult


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayResult:
    """A tool result that belongs to no call, or to one that has a result already.

    :ivar message_id: the id of the message with the result.
    """

    message_id: str
    result: ToolResult


@dataclass(slots=True)
class CallWithResult:
    """A tool call, and the message with its result once that is found."""

    part: ToolCall
    result: Message | None = None


@dataclass(slots=True)
class MessageBlock:
    """A message and the results of its tool calls, which stay together."""

    message: Message
    calls: list[CallWithResult] = field(default_factory=list)

    @property
    def begins_turn(self) -> bool:
        """True if the user speaks, so that the answer follows."""
        return self.message.role == "user"

    def in_order(self) -> tuple[tuple[Message, ...], tuple[str, ...]]:
        """Return the message and its results in the order of the calls, and the ids of the made-up ones."""
        if not self.calls:
            return (self.message,), ()
        messages, made_up = [self.message], []
        for number, call in enumerate(self.calls):
            if call.result is None:
                missing = _interrupted(self.message, call.part, number)
                made_up.append(missing.id)
                messages.append(missing)
            else:
                messages.append(call.result)
        return tuple(messages), tuple(made_up)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedMessages:
    """Messages as blocks, and the results that belong to none."""

    blocks: list[MessageBlock]
    orphans: tuple[StrayResult, ...]  # results without a call
    duplicates: tuple[StrayResult, ...]  # results after the first one of a call


def pair_tool_calls(messages: Iterable[Message]) -> PairedMessages:
    """Return messages as blocks, each call of an assistant with its result."""
    # Some models reuse ids: a result belongs to the nearest call of its id before it, or without one to the first call
    # after it. The first of several results of a call wins, but one after the call over one before it.
    running = _Pairing()
    for message in messages:
        running.add(message)
    return running.result()


def repair_tool_calls(
    messages: Sequence[Message],
    *,
    beginning: bool = True,
    waits: Callable[[Message, ToolCall], bool] = lambda message, call: False,
    apart: bool = False,
) -> list[Message]:
    """Return messages in their order, but each call with its result, and no result without its call."""
    # A call without a result gets a made-up one directly after its message. There, too, goes a result recorded before
    # the call, or after another message; ``apart`` leaves those after their calls where they are. ``waits`` is asked
    # for a call without a result that may be left alone. Without a user message there is no turn to go on with.
    if beginning and not any(message.role == "user" for message in messages):
        return list(messages)
    places = {message.id: index for index, message in enumerate(messages)}
    said_before = list(
        accumulate((index if _is_said(message) else -1 for index, message in enumerate(messages)), max, initial=-1)
    )
    in_place, moved = set[int](), dict[int, list[Message]]()
    blocks = pair_tool_calls(messages).blocks
    latest = {call.part.call_id: block for block in blocks for call in block.calls}
    for block in blocks:
        at = places[block.message.id]
        for number, call in enumerate(block.calls):
            result = call.result
            where = -1 if result is None else places[result.id]
            if result is None or (where < at and not beginning):  # that result may belong to an earlier call
                if latest[call.part.call_id] is not block or not waits(messages[at], call.part):
                    moved.setdefault(at, []).append(_interrupted(block.message, call.part, number))
            elif where >= at and (apart or said_before[where] <= at):
                in_place.update(map(id, result.content or ()))
            else:
                moved.setdefault(at, []).append(result)
    repaired: list[Message] = []
    for index, message in enumerate(messages):
        repaired += _with_results(message, in_place)
        repaired += moved.get(index, ())
    return repaired


def _is_said(message: Message) -> bool:
    """Return True if no result of an earlier message may follow: it says something, or calls tools itself."""
    content = message.content
    if message.role == "tool" or not isinstance(content, tuple):
        return message.role != "tool" and bool(content)
    return any(isinstance(part, Text | File | Data | ToolCall) for part in content)


def _with_results(message: Message, in_place: set[int]) -> tuple[Message, ...]:
    """Return a message with those of its results that are in place; nothing if nothing is left of it."""
    content = message.content if isinstance(message.content, tuple) else ()
    if all(not isinstance(part, ToolResult) or id(part) in in_place for part in content):
        return (message,)
    alone = message.role == "tool"  # its other parts belong to its results
    parts = [part for part in content if id(part) in in_place or not (alone or isinstance(part, ToolResult))]
    return (replace(message, content=tuple(parts)),) if parts else ()


class _Pairing:
    __slots__ = ("_blocks", "_duplicates", "_early", "_first", "_latest", "_place")

    def __init__(self) -> None:
        self._blocks: list[MessageBlock] = []
        self._latest: dict[str, tuple[MessageBlock, list[CallWithResult]]] = {}
        self._first: dict[str, list[CallWithResult]] = {}
        self._early: dict[str, list[tuple[int, Message, ToolResult]]] = {}
        self._duplicates: list[tuple[int, StrayResult]] = []
        self._place = 0

    def add(self, message: Message) -> None:
        content = message.content
        if (
            content is None
            or isinstance(content, str)
            or not any(isinstance(part, ToolCall | ToolResult) for part in content)
        ):
            self._blocks.append(MessageBlock(message))
            return
        rest, results = _split_results(message, content)
        block = None if rest is None else MessageBlock(rest)
        if block is not None:
            self._blocks.append(block)
        pieces = iter(results)
        for part in content:
            if isinstance(part, ToolResult):
                self._answer(message, next(pieces), part)
            elif isinstance(part, ToolCall) and message.role == "assistant" and block is not None:
                self._call(block, part)

    def _call(self, block: MessageBlock, part: ToolCall) -> None:
        call = CallWithResult(part)
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
        elif not _set_result(latest[1], piece):
            self._duplicates.append((self._place, StrayResult(message_id=source.id, result=result)))

    def result(self) -> PairedMessages:
        orphans: list[tuple[int, StrayResult]] = []
        for call_id, results in self._early.items():
            calls = self._first.get(call_id)
            for number, piece, result in results:
                if calls is None or not _set_result(calls, piece):
                    stray = StrayResult(message_id=piece.id, result=result)
                    (orphans if calls is None else self._duplicates).append((number, stray))
        return PairedMessages(
            blocks=self._blocks, orphans=tuple(_in_order(orphans)), duplicates=tuple(_in_order(self._duplicates))
        )


def _set_result(calls: list[CallWithResult], piece: Message) -> bool:
    """Give the first call without a result its result. Return True if there was one."""
    for call in calls:
        if call.result is None:
            call.result = piece
            return True
    return False


def _in_order(strays: list[tuple[int, StrayResult]]) -> Iterator[StrayResult]:
    return (stray for _, stray in sorted(strays, key=lambda one: one[0]))


def _split_results(message: Message, content: tuple[Part, ...]) -> tuple[Message | None, list[Message]]:
    """Return a message without its results, and each result as a tool message of its own."""
    # In a tool message other parts (a picture beside the result) stay with the result before them. The pieces keep the
    # id of the message; its cost counts once.
    results = sum(1 for part in content if isinstance(part, ToolResult))
    if message.role == "tool":
        if results <= 1:
            return (None, [message]) if results else (message, [])
        rest: list[Part] = []
        pieces: list[list[Part]] = [[]]
        for part in content:
            if isinstance(part, ToolResult) and any(isinstance(earlier, ToolResult) for earlier in pieces[-1]):
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
        if left is None and number == 0
        else replace(message, role="tool", name=name, content=tuple(parts), tokens=0, usage=EMPTY)
        for number, parts in enumerate(pieces)
    ]


def _interrupted(message: Message, call: ToolCall, place: int) -> Message:
    """Return a made-up result for a call without one; always the same for the same call."""
    made = str(derived_event_id(message.id, f"no result of call {place}"))
    return Message.tool((ToolResult(call.call_id, status="interrupted"),), id=made, name=call.name)
