"""Export conversations as sets for training and evaluation, without what must not or cannot be learned from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any, Final, TypeVar

import orjson

from letopis.outbox.history.authored import conversation_of
from letopis.outbox.history.exporter import EXPORTED_STATES, PAGE, Incomplete, all_items
from letopis.outbox.history.history import History
from letopis.store.conversation_store import ConversationStore
from letopis.store.errors import StoreUnavailable
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.events import RecordedEvent
from letopis.store.model.parts import Data, File, Part, Reasoning, Text, ToolCall, ToolResult
from letopis.store.rules.answers import answers_by_question

T = TypeVar("T")
Json = dict[str, Any]

RATING: Final = "rating"
"""The key of the reaction that is a rating."""


@dataclass(slots=True)
class TrainingSet:
    """One export in a format of :data:`FORMATS`; memory is bounded by a conversation."""

    source: History | ConversationStore
    format: str
    lines: int = 0
    conversations: int = 0

    async def of(self, *, owner: str | None, conversation: str | None) -> AsyncIterator[bytes]:
        """Yield the lines of all conversations, of one owner's, or of one, but of none that is on hold."""
        store = self.source if isinstance(self.source, ConversationStore) else self.source.store
        try:
            held = {(hold.kind, hold.subject) for hold in await store.erasures.holds()}
        except StoreUnavailable as error:
            raise Incomplete("the history store cannot be read, which knows what is on hold") from error
        seen, fresh = set[str](), True
        while fresh:  # as for any export: what is written to meanwhile moves to the front
            fresh = False
            async for item in self._listed(owner, conversation):
                name = item.conversation_id
                if name in seen:
                    continue
                seen.add(name)
                fresh = True
                if {("conversation", name), ("owner", item.owner_id)} & held:
                    continue
                events = await self._events(name) if self.format == "preference" else []
                lines = FORMATS[self.format](name, await self._messages(name), events)
                self.conversations += bool(lines)
                for line in lines:
                    self.lines += 1
                    yield orjson.dumps(line, default=dict) + b"\n"

    async def _listed(self, owner: str | None, conversation: str | None) -> AsyncIterator[Conversation]:
        if conversation is None:
            async for item in all_items(partial(self._conversations, owner)):
                yield item
        elif (known := await conversation_of(self.source, conversation)) is not None and known.state != "deleted":
            yield known

    async def _conversations(self, owner: str | None, after: str | None) -> Page[Conversation]:
        return _whole(await self.source.conversations(owner=owner, after=after, limit=PAGE, states=EXPORTED_STATES))

    async def _messages(self, name: str) -> list[RecordedMessage]:
        async def read(after: str | None) -> Page[RecordedMessage]:
            return _whole(await self.source.messages(name, first=PAGE, after=after, every=self.format == "preference"))

        return [message async for message in all_items(read)]

    async def _events(self, name: str) -> list[RecordedEvent]:
        async def read(after: str | None) -> Page[RecordedEvent]:
            if isinstance(self.source, ConversationStore):
                return await self.source.events(name, after=after or 0, first=PAGE)
            return await self.source.chat(name).events(after=after or 0, first=PAGE)

        return [event async for event in all_items(read)]


def _whole(page: Page[T]) -> Page[T]:
    if not page.complete:
        raise Incomplete("the history store cannot be read, so older messages would be missing")
    return page


def message_lines(name: str, messages: Sequence[RecordedMessage], _: object) -> list[Json]:
    """Return a line with the conversation as fine-tuning takes it; none without an answer."""
    usable = _usable(messages)
    answered = any(message.role == "assistant" for message in usable)
    return [{"conversation_id": name, "messages": _chat(usable)}] if answered else []


def preference_lines(name: str, messages: Sequence[RecordedMessage], events: Iterable[RecordedEvent]) -> list[Json]:
    """Return a line for each answer that was taken back and that another one has replaced."""
    by_id = {message.id: message for message in messages}
    path = [message for message in messages if message.on_path]
    places = {message.id: place for place, message in enumerate(path)}
    lines = []
    for question, answers in answers_by_question(events).items():
        whole = [[by_id[each] for each in answer if each in by_id] for answer in answers]
        whole = [answer for answer in whole if _complete(answer)]
        chosen = next((answer for answer in whole if all(message.on_path for message in answer)), None)
        prompt = [] if chosen is None else path[: places[chosen[0].id]]
        usable = _usable(prompt)
        # Consecutive questions have the same answers.
        if chosen is None or not usable or not prompt[-1].id == usable[-1].id == question:
            continue
        for rejected in whole:
            if rejected is not chosen:
                pair = {"prompt": _chat(usable), "chosen": _chat(chosen), "rejected": _chat(rejected)}
                scores = {"score_chosen": _rating(chosen), "score_rejected": _rating(rejected)}
                rated = {key: value for key, value in scores.items() if value is not None}
                lines.append({"conversation_id": name, "question_id": question, **pair, **rated})
    return lines


def otel_lines(name: str, messages: Sequence[RecordedMessage], _: object) -> list[Json]:
    """Return a line with the attributes that OpenTelemetry's conventions give to the last answer; none without one."""
    usable = _usable(messages)
    while usable and usable[-1].role != "assistant":
        usable.pop()
    if not usable:
        return []
    said = [{"role": message.role, "parts": _otel_parts(message)} for message in usable]
    return [
        {
            "gen_ai.conversation.id": name,
            "gen_ai.input.messages": said[:-1],
            "gen_ai.output.messages": [{**said[-1], "finish_reason": "stop"}],
        }
    ]


FORMATS: Final[Mapping[str, Callable[[str, Sequence[RecordedMessage], Iterable[RecordedEvent]], list[Json]]]] = {
    "messages": message_lines,
    "preference": preference_lines,
    "otel": otel_lines,
}


def _usable(messages: Iterable[RecordedMessage]) -> list[RecordedMessage]:
    """Return messages without the turns of which something is redacted, was cut off, or lacks a result."""
    turns: list[list[RecordedMessage]] = [[]]
    for message in messages:
        if message.role == "user" and turns[-1] and turns[-1][-1].role != "user":
            turns.append([])
        turns[-1].append(message)
    return [message for turn in turns if _complete(turn) for message in turn]


def _complete(messages: Sequence[RecordedMessage]) -> bool:
    parts = [part for message in messages for part in _parts(message)]
    calls = sorted(part.call_id for part in parts if isinstance(part, ToolCall))
    results = sorted(part.call_id for part in parts if isinstance(part, ToolResult))
    return calls == results and not any(message.redacted or message.interrupted for message in messages)


def _parts(message: RecordedMessage) -> tuple[Part, ...]:
    content = message.content
    return content if isinstance(content, tuple) else (Text(content),) if content else ()


def _rating(answer: Iterable[RecordedMessage]) -> float | None:
    ratings = [
        reaction.value
        for message in answer
        for reaction in message.reactions
        if reaction.key == RATING and isinstance(reaction.value, int | float)
    ]
    return mean(ratings) if ratings else None


def _json(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=dict).decode()


def _chat(messages: Iterable[RecordedMessage]) -> list[Json]:
    """Return messages as those of Chat Completions, files as texts that name them."""
    items: list[Json] = []
    for message in messages:
        words, calls, results = list[str](), list[Json](), list[Json]()
        for part in _parts(message):
            match part:
                case Text():
                    words.append(part.text)
                case File():
                    words.append(f"[{part.name or part.media_type or 'file'}]")
                case Data():
                    words.append(_json(part.value))
                case ToolCall():
                    function = {"name": part.name, "arguments": _json({} if part.arguments is None else part.arguments)}
                    calls.append({"id": part.call_id, "type": "function", "function": function})
                case ToolResult():
                    results.append({"role": "tool", "tool_call_id": part.call_id, "content": _json(part.output)})
        if words or calls:
            called = {"tool_calls": calls} if calls else {}
            items.append({"role": message.role, "content": "\n".join(words) if words else None, **called})
        items += results
    return items


def _otel_parts(message: RecordedMessage) -> list[Json]:
    parts: list[Json] = []
    for part in _parts(message):
        match part:
            case Text() | Reasoning():
                parts.append({"type": part.kind, "content": part.text})
            case ToolCall():
                parts.append({"type": "tool_call", "id": part.call_id, "name": part.name, "arguments": part.arguments})
            case ToolResult():
                parts.append({"type": "tool_call_response", "id": part.call_id, "response": part.output})
            case File():
                about = {"mime_type": part.media_type, "modality": (part.media_type or "").partition("/")[0] or None}
                parts.append({"type": "uri", **about, "uri": part.uri})
            case Data():
                parts.append({"type": "text", "content": _json(part.value)})
    return parts
