"""Count the history store's messages in the background, and follow its log from then on."""

from __future__ import annotations

import asyncio
import bisect
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from letopis.console.insight import Insight
from letopis.console.store_log import LoggedRow
from letopis.store.errors import LetopisError
from letopis.store.model.event_types import ConversationStarted, MessageAppended
from letopis.store.rules.preconditions import SUPERSEDED_KEY
from letopis.store.rules.statistics import Sums

DAY_US: Final = 86_400_000_000
MAX_OWNER_DAYS: Final = 100_000
"""Pairs of owner and day that are kept apart; what is beyond is counted for :data:`OTHERS`."""
MAX_CONVERSATIONS: Final = 200_000
"""Conversations whose owner, and whose question without an answer, are known."""
MAX_MODELS: Final = 200
OTHERS: Final = "\x00others"
"""Stands for owners or models beyond the limits; no id can be it."""
NOBODY: Final = "\x00nobody"
"""Stands for conversations without an owner."""

LATENCY_EDGES: Final = tuple(0.05 * 1.25**step for step in range(64))
"""Upper ends, in seconds, of the classes that latencies are counted in: from 50 ms to a day."""
MAX_LATENCY_SECONDS: Final = 86_400.0
"""A longer time between a question and the next answer is a pause of the conversation, not a latency."""


@dataclass(slots=True)
class Tally(Sums):
    """Messages, what they cost, and how long answers took.

    :ivar latencies: answers by class of latency, as ``LATENCY_EDGES`` has them.
    """

    timed: int = 0
    seconds: float = 0.0
    latencies: dict[int, int] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        for name in ("messages", "questions", "answers", "tokens", "timed", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for index, count in other.latencies.items():
            self.latencies[index] = self.latencies.get(index, 0) + count

    def time(self, seconds: float) -> None:
        """Count the latency of an answer."""
        self.timed += 1
        self.seconds += seconds
        index = min(bisect.bisect_left(LATENCY_EDGES, seconds), len(LATENCY_EDGES) - 1)
        self.latencies[index] = self.latencies.get(index, 0) + 1

    @property
    def mean(self) -> float | None:
        """The mean latency in seconds; ``None`` without one."""
        return self.seconds / self.timed if self.timed else None

    def quantile(self, share: float) -> float | None:
        """Return the latency that a share of the answers did not exceed, to a quarter; ``None`` without one."""
        if not self.timed:
            return None
        left = share * self.timed
        for index in sorted(self.latencies):
            left -= self.latencies[index]
            if left <= 0:
                return LATENCY_EDGES[index]
        return LATENCY_EDGES[-1]


class MessageFigures:
    """Figures of messages that grow with a log; memory is bounded.

    Counts as :class:`~letopis.store.rules.statistics.Statistics` does: a superseded message with its tokens alone. A
    latency is the time from a user's message to the assistant's next one in the same conversation. Days are those of
    UTC, by ``occurred_at``.
    """

    def __init__(self) -> None:
        self._days: dict[int, Tally] = {}
        self._models: dict[tuple[int, str], Tally] = {}
        self._owners: dict[tuple[int, str], Tally] = {}
        self._model_names: set[str] = set()
        self._owner_of: dict[str, str] = {}
        self._asked: dict[str, int] = {}

    def take(self, rows: Iterable[LoggedRow]) -> None:
        """Count events, which must come in the order of the log; those of other types are ignored."""
        for row in rows:
            if row.type == MessageAppended.type:
                self._message(row)
            elif row.type == ConversationStarted.type:
                self._started(row)

    def days(self) -> list[int]:
        """Return the days with messages, as numbers of days since 1970, in order."""
        return sorted(self._days)

    def by_day(self, *, since: int | None = None, owner: str | None = None) -> dict[int, Tally]:
        """Return the figures of each day, from a day on; of one owner only if one is named."""
        if owner is None:
            return {day: self._days[day] for day in self.days() if since is None or day >= since}
        found = {day: tally for (day, name), tally in self._owners.items() if name == owner}
        return {day: found[day] for day in sorted(found) if since is None or day >= since}

    def by_model(self, *, since: int | None = None) -> list[tuple[str | None, Tally]]:
        """Return the figures of each model, most answers first; ``None`` stands for answers without one."""
        return [
            (name or None, tally)
            for name, tally in sorted(_summed(self._models, since), key=lambda one: (-one[1].answers, one[0]))
        ]

    def by_owner(self, *, since: int | None = None, limit: int) -> list[tuple[str, Tally]]:
        """Return the figures of the owners with the most messages."""
        return sorted(_summed(self._owners, since), key=lambda one: (-one[1].messages, one[0]))[:limit]

    def total(self, *, since: int | None = None) -> Tally:
        """Return the figures of all days from a day on."""
        total = Tally()
        for tally in self.by_day(since=since).values():
            total.add(tally)
        return total

    def _started(self, row: LoggedRow) -> None:
        data = _object(row.data)
        owner = data.get("owner_id")
        if isinstance(owner, str) and len(self._owner_of) < MAX_CONVERSATIONS:
            self._owner_of.setdefault(row.conversation_id, owner)

    def _message(self, row: LoggedRow) -> None:
        data = _object(row.data)
        role, tokens, metadata = data.get("role"), data.get("tokens"), data.get("metadata")
        day = row.occurred_at // DAY_US
        tallies = [_of(self._days, day), self._owner(day, self._owner_of.get(row.conversation_id, NOBODY))]
        if role == "assistant":
            model = metadata.get("model") if isinstance(metadata, Mapping) else None
            tallies.append(self._model(day, model if isinstance(model, str) else ""))
        superseded = row.metadata is not None and SUPERSEDED_KEY in row.metadata
        seconds = None if superseded else self._latency(row, role)
        for tally in tallies:
            tally.take(str(role), tokens if isinstance(tokens, int) else 0, superseded=superseded)
            if seconds is not None:
                tally.time(seconds)

    def _latency(self, row: LoggedRow, role: Any) -> float | None:
        if role == "user":
            if len(self._asked) < MAX_CONVERSATIONS:
                self._asked[row.conversation_id] = row.occurred_at
            return None
        asked = self._asked.pop(row.conversation_id, None) if role == "assistant" else None
        if asked is None:
            return None
        seconds = (row.occurred_at - asked) / 1_000_000
        return seconds if 0 <= seconds <= MAX_LATENCY_SECONDS else None

    def _owner(self, day: int, owner: str) -> Tally:
        if (day, owner) not in self._owners and len(self._owners) >= MAX_OWNER_DAYS:
            owner = OTHERS
        return _of(self._owners, (day, owner))

    def _model(self, day: int, model: str) -> Tally:
        if model not in self._model_names:
            if len(self._model_names) >= MAX_MODELS:
                model = OTHERS
            self._model_names.add(model)
        return _of(self._models, (day, model))


def _of(tallies: dict[Any, Tally], key: Any) -> Tally:
    if (found := tallies.get(key)) is None:
        found = tallies[key] = Tally()
    return found


def _summed(tallies: Mapping[tuple[int, str], Tally], since: int | None) -> Iterator[tuple[str, Tally]]:
    sums: dict[str, Tally] = {}
    for (day, name), tally in tallies.items():
        if since is None or day >= since:
            _of(sums, name).add(tally)
    return iter(sums.items())


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:  # damaged in the store: `letopis db verify` reports it
        return {}
    return found if isinstance(found, Mapping) else {}


logger = logging.getLogger("letopis.console")

PAGE: Final = 250
"""Log positions read at a time: a few milliseconds of work between two requests."""
MAX_PAUSE_SECONDS: Final = 0.05
"""After a batch, the count pauses for as long as that took, at most this long, so that requests get their turn."""
STEP_SECONDS: Final = 0.15
"""Time that a page waits for the count before it shows the progress."""
IDLE_SECONDS: Final = 600.0
"""The log is no longer followed when the figures have not been viewed for this long; the next view continues."""
POLL_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CountProgress:
    """How far the count has got.

    :ivar counted: log positions counted so far.
    :ivar total: log positions in all; 0 before the store was first read.
    :ivar available: whether the history store answers.
    """

    counted: int
    total: int
    available: bool

    @property
    def done(self) -> bool:
        """True if everything has been counted."""
        return self.available and self.counted >= self.total

    @property
    def percent(self) -> int:
        """The share that has been counted."""
        return 100 if not self.total else self.counted * 100 // self.total


class LogFigures:
    """Reads the whole log once, when the figures are first requested, and then everything added to it.

    Nothing is stored: a new process counts again. The count runs between requests, a few milliseconds at a time.
    """

    def __init__(self, insight: Insight) -> None:
        self._insight = insight
        self.figures = MessageFigures()
        self._positions: list[int] = []
        self._heads: tuple[int, ...] = ()
        self._available = True
        self._task: asyncio.Task[None] | None = None
        self._stepped = asyncio.Event()
        self._asked_at = time.monotonic()

    @property
    def progress(self) -> CountProgress:
        """How far the count has got."""
        return CountProgress(counted=sum(self._positions), total=sum(self._heads), available=self._available)

    async def look(self) -> CountProgress:
        """Start or continue the count, wait briefly for it, and return the progress."""
        self._asked_at = time.monotonic()
        if self._task is None or self._task.done():
            self._stepped = asyncio.Event()
            self._task = asyncio.create_task(self._follow(), name="letopis-console-figures")
        try:
            async with asyncio.timeout(STEP_SECONDS):
                await self._stepped.wait()
        except TimeoutError:
            logger.debug("the figures are not complete yet")
        return self.progress

    async def close(self) -> None:
        """Stop counting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while time.monotonic() - self._asked_at < IDLE_SECONDS:
            try:
                await self._count()
            except LetopisError as error:
                self._available = False
                logger.warning("the messages of the history store cannot be counted: %s", error)
            self._stepped.set()
            await asyncio.sleep(POLL_SECONDS)

    async def _count(self) -> None:
        """Count up to the current end of the log."""
        found = await self._insight.heads()
        self._available = found is not None
        if found is None:
            return
        if len(found.heads) != len(self._positions) or any(
            head < position for head, position in zip(found.heads, self._positions, strict=False)
        ):  # the first count, or a store that was restored from a backup
            self.figures, self._positions = MessageFigures(), [0] * len(found.heads)
        self._heads = found.heads
        for partition, head in enumerate(found.heads):
            while (position := self._positions[partition]) < head:
                began, limit = time.monotonic(), min(PAGE, head - position)
                rows = await self._insight.log_in_brief(partition=partition, after=position, limit=limit)
                if rows is None:
                    self._available = False
                    return
                self.figures.take(rows)
                self._positions[partition] = position + limit
                await asyncio.sleep(min(time.monotonic() - began, MAX_PAUSE_SECONDS))
