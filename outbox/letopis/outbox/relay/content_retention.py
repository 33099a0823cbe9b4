"""Take content away that the rules of retention keep no longer, in idle moments: append what says so."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any, ClassVar, Final, NamedTuple
from uuid import UUID

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.idle_work import TaskLook
from letopis.outbox.relay.outcome import RelayStats, log_context, logger
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.store_identity import expect_store
from letopis.store.errors import ConfigurationError, ConversationGone, LetopisError
from letopis.store.maintenance.retention import DueContent, Place, RetentionStep
from letopis.store.model.records import Namespace
from letopis.store.rules.retention import ContentRetention

_RECORD: Final = (
    "UPDATE letopis_outbox_relay SET trimmed = trimmed + ?, checkpoints = checkpoints + ?, retained_at = ?,"
    " retention_due = coalesce(?, retention_due)"
)
ROUND_SECONDS: Final = 3600.0
"""Time between two rounds of a chore, and until a failed step is repeated."""
PRUNE_SECONDS: Final = 0.1
"""Time after which a step waits no longer for the checkpoints of a namespace: deliveries go on beside many."""

REST: Final = 99.0
"""How many times as long as a step took, with all that it led to, a relay rests: 1 append in 100 meets it."""
MAX_REST_SECONDS: Final = 60.0

MISSING_ADAPTER: Final = (
    "the retention of checkpoints needs langgraph where the relay runs: pip install 'letopis[langgraph]'"
)


class Pruned(NamedTuple):
    """A namespace of records that had checkpoints due, and how many were deleted, or would be."""

    conversation_id: str
    namespace: Namespace
    rule: str
    checkpoints: int


async def due_content(
    store: ConversationStore, retention: ContentRetention, places: Mapping[Place, int], **options: Any
) -> RetentionStep:
    """Return the content that is due next, from some places in the log on, for an outbox that appends it."""
    finder = (await store.runtime.prepared()).retention
    return await store.runtime.connected(partial(finder.step, retention=retention, places=places, **options))


async def keep_places(store: ConversationStore, retention: ContentRetention, step: RetentionStep) -> None:
    """Keep how far a step has read the log, once the events of what was due are appended."""
    finder = (await store.runtime.prepared()).retention
    await store.runtime.write(partial(finder.keep, retention=retention, step=step))


async def prune_checkpoints(
    outbox: OutboxFile, store: ConversationStore, retention: ContentRetention, *, dry_run: bool = False
) -> AsyncIterator[Pruned]:
    """Delete the checkpoints that adapters keep in records and the rules keep no longer, a namespace at a time.

    :raises ConfigurationError: the adapter's framework is not installed.
    :raises StoreUnavailable: the history store does not answer.
    """
    try:
        adapters = await asyncio.to_thread(_adapters)
    except (LookupError, ModuleNotFoundError) as error:
        raise ConfigurationError(MISSING_ADAPTER) from error
    for prune in adapters:
        async for pruned in prune(outbox, store, retention, dry_run=dry_run):
            yield pruned


def _adapters() -> list[Callable[..., AsyncIterator[Pruned]]]:
    # The library names no adapter: what is installed says what it keeps.
    if not (installed := entry_points(group="letopis.checkpoints")):
        raise LookupError
    return [entry_point.load() for entry_point in installed]


async def append_trims(outbox: OutboxFile, found: Sequence[DueContent]) -> int:
    """Append the events that take content away; return how many were appended."""
    # A process that dies before the places are kept finds the same again, and a second event changes nothing.
    appends = [outbox.append(prepare(due.conversation_id, [due.body])) for due in found]
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, ConversationGone):
            raise outcome
    return sum(not isinstance(outcome, BaseException) for outcome in outcomes)


@dataclass(slots=True)
class RetentionSettings:
    """What the chores of one relay go by; may change while it runs."""

    rules: ContentRetention | None
    rests: bool = False  # one that only drains does not


class RetentionChore(ABC):
    """A chore of one relay, on the history store: a round an hour, of bounded steps."""

    # Once an hour, so that a conversation gets one event for what an hour has made due, and not one for each message.
    name: ClassVar[str]
    done: ClassVar[str]
    """What a round has done, for the log."""

    def __init__(
        self,
        outbox: OutboxFile,
        store: ConversationStore,
        clock: Clock,
        *,
        settings: RetentionSettings,
        stats: RelayStats,
        look: TaskLook | None = None,
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._clock = clock
        self._settings = settings
        self._look = look or TaskLook(clock)
        self._stats = stats
        self._count = 0  # in this round
        self._began: float | None = None
        self._rest = clock.after(0)

    def due(self, store_id: UUID | None) -> bool:
        """Return True if a step is due; to be asked when what the last one led to was delivered and carried out."""
        if self._began is not None and self._settings.rests:
            self._rest = self._clock.after(min((self._clock.monotonic() - self._began) * REST, MAX_REST_SECONDS))
        self._began = None
        resting = self._rest.remaining(self._clock) > 0
        rules = self._settings.rules
        return rules is not None and store_id is not None and self._look.due(self.name) and not resting

    async def step(self, store_id: UUID | None) -> bool:
        """Take a step; return True if the next is worth taking at once.

        A step that fails is logged and repeated in the next round: it delays no delivery.
        """
        if (rules := self._settings.rules) is None:
            return False
        more = False
        try:
            with expect_store(store_id):
                more = await self._work(rules)
        except Exception as error:  # a step that fails must not keep the relay from delivering
            logger.warning(
                "a step of the retention of %s failed, it is repeated in the next round: %s",
                self.name,
                error if isinstance(error, LetopisError) else type(error).__name__,
                extra=log_context(),
            )
        if not more:
            self._look.done(self.name, ROUND_SECONDS)
            if self._count:
                logger.info(self.done, self._count, extra=log_context())
            self._count = 0
            self._end_round()
        return more

    @abstractmethod
    async def _work(self, rules: ContentRetention) -> bool:
        """Take a step; return True if there is more to do in this round."""

    def _end_round(self) -> None:  # noqa: B027 - a chore may have nothing to forget
        """Begin anew with the next step."""

    async def close(self) -> None:  # noqa: B027 - nor to stop
        """Stop in the middle of a step; the next round goes on."""

    async def _record(self, *, trimmed: int = 0, checkpoints: int = 0, left: int | None = None) -> None:
        values = (trimmed, checkpoints, self._clock.now_us(), left)
        await self._outbox.write(lambda connection: connection.exec_driver_sql(_RECORD, values))


class ContentTrimmer(RetentionChore):
    """Takes content out of conversations: looks at some events that have come of age, and appends what takes it out."""

    name = "content"
    done = "retention takes content of %d conversations out of the history"
    _now: int | None = None  # when this round began, by the clock of the store

    async def _work(self, rules: ContentRetention) -> bool:
        began, more = self._clock.monotonic(), await self._trim(rules)
        self._began = began if more else None
        return more

    def _end_round(self) -> None:
        self._now = None

    async def _trim(self, rules: ContentRetention) -> bool:
        runtime, origin_id = self._store.runtime, self._outbox.origin.origin_id
        finder = (await runtime.prepared()).retention
        places = await runtime.connected(partial(finder.places, retention=rules))
        found = await due_content(self._store, rules, places, origin_id=origin_id, now=self._now)
        self._now = found.now
        trimmed = await append_trims(self._outbox, found.due)
        if found.moved:
            await keep_places(self._store, rules, found)
        left = await runtime.connected(partial(finder.behind, retention=rules)) if found.more else 0
        self._count += trimmed
        self._stats.trimmed += trimmed
        await self._record(trimmed=trimmed, left=left)
        return found.more


class CheckpointPruner(RetentionChore):
    """Deletes checkpoints, in a task beside deliveries that a step does not wait for long."""

    name = "checkpoints"
    done = "retention deleted %d checkpoints"
    _round: AsyncIterator[Pruned] | None = None
    _pruning: asyncio.Future[Pruned | None] | None = None

    def due(self, store_id: UUID | None) -> bool:
        rules = self._settings.rules
        return rules is not None and rules.limits_checkpoints and super().due(store_id)

    async def _work(self, rules: ContentRetention) -> bool:
        if self._round is None:
            self._round = prune_checkpoints(self._outbox, self._store, rules)
        if self._pruning is None:
            self._pruning = asyncio.ensure_future(anext(self._round, None))
        await asyncio.wait((self._pruning,), timeout=PRUNE_SECONDS)
        if not self._pruning.done():
            return True
        pruning, self._pruning = self._pruning, None
        if (pruned := pruning.result()) is None:
            return False
        self._count += pruned.checkpoints
        self._stats.checkpoints += pruned.checkpoints
        await self._record(checkpoints=pruned.checkpoints)
        return True

    def _end_round(self) -> None:
        self._round = None

    async def close(self) -> None:
        if self._pruning is not None:
            self._pruning.cancel()
            await asyncio.gather(self._pruning, return_exceptions=True)
        self._pruning = self._round = None
