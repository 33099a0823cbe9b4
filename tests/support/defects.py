"""Plant defects in the library by name, so that a control can show that a check notices them.

A control proves that a check can see: the same run with a defect planted has to fail. A defect follows the library: the
name of a function that is gone raises ``AttributeError`` when the defect is planted.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any, Final
from unittest.mock import patch
from uuid import UUID, uuid4

from letopis.outbox.alerting import incidents
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.outbox.concurrency.clock import MICROSECONDS_PER_SECOND, Deadline, RetryTimers
from letopis.outbox.drafts import completion
from letopis.outbox.event_log import append, drafts, effects, retention, reused_ids
from letopis.outbox.event_log import lanes as outbox_lanes
from letopis.outbox.event_log.append_encoding import PreparedChange, prepare
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.event_log.erasures import end_erasures
from letopis.outbox.event_log.known_erasures import ErasureState
from letopis.outbox.event_log.records import log as record_log
from letopis.outbox.event_log.records import lookups as record_lookups
from letopis.outbox.event_log.statements import on_cursor, query_one
from letopis.outbox.file.committer import Committer
from letopis.outbox.history import path as path_changes
from letopis.outbox.history.append import Appender
from letopis.outbox.history.history import History
from letopis.outbox.history.receipts import Deliveries
from letopis.outbox.history.records import RecordReceipt, Records
from letopis.outbox.pending_reads.read_path import ReadPath
from letopis.outbox.pending_reads.record_reads import RecordReads
from letopis.outbox.relay import content_retention, dispatcher, lease
from letopis.outbox.relay import erasures as carrying
from letopis.outbox.relay.dispatcher import Dispatcher
from letopis.outbox.relay.outcome import Refusal, SendResult
from letopis.outbox.relay.poison_isolation import PoisonIsolation
from letopis.outbox.retry import circuit_breaker, fault_attribution
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.store import erasures as store_erasures
from letopis.store.database import sqlite
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import Reuse, SequenceGap
from letopis.store.maintenance import retention as content_rules
from letopis.store.model import codec
from letopis.store.model.records import SPACE_LANES, Scope, is_record_lane
from letopis.store.read.point_in_time import PointInTimeReader
from letopis.store.rules import projection
from letopis.store.rules.apply_plan import ComparedLane, LaneBatch
from letopis.store.rules.erasure_plan import ErasurePlan
from letopis.store.rules.statistics import StatisticsBuilder
from letopis.store.write import applier, lanes, loading
from letopis.store.write.contents import ContentWriter
from letopis.store.write.erasing import Eraser

Replacement = tuple[Any, str, Callable[[Any], Any]]
"""An owner, the name of one of its attributes, and what makes the defective attribute of the real one."""

DEFECTS: Final[dict[str, Callable[[], Iterable[Replacement]]]] = {}  # by what is taken away, in words

NEVER: Final = 10**9
APPENDS_IN_FLIGHT: Final = 8
READ_GAP_SECONDS: Final = 0.01
"""Between the two reads of the wrong order: something is delivered in it on any store, however quick."""

_planted_for_good = ExitStack()


@contextmanager
def planted(*names: str) -> Iterator[None]:
    """Have defects for the time of a block; an empty name is of none."""
    with ExitStack() as stack:
        for owner, attribute, make in itertools.chain.from_iterable(DEFECTS[name]() for name in names if name):
            real = getattr(owner, attribute)
            made = make(real)
            stack.enter_context(patch.object(owner, attribute, wraps(real)(made) if callable(real) else made))
        yield


def around(defective: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return what makes of a real function one that is given the real one first."""

    def replace_real(real: Any) -> Any:
        async def awaited(*given: Any, **named: Any) -> Any:
            return await defective(real, *given, **named)

        def called(*given: Any, **named: Any) -> Any:
            return defective(real, *given, **named)

        # Whoever plants a moment in it asks if it is a coroutine function.
        return awaited if iscoroutinefunction(defective) else called

    return replace_real


def plant(*names: str) -> None:
    """Plant defects for as long as this process lives."""
    _planted_for_good.enter_context(planted(*names))


def defect(name: str) -> Callable[[Callable[[], Iterable[Replacement]]], Callable[[], Iterable[Replacement]]]:
    def enter(replacements: Callable[[], Iterable[Replacement]]) -> Callable[[], Iterable[Replacement]]:
        DEFECTS[name] = replacements
        return replacements

    return enter


def instead(
    name: str, owner: Any, attribute: str, *, make: Callable[[Any], Callable[[Any], Any]] = lambda it: lambda real: it
) -> Callable[[Any], Any]:
    """Enter a defect that is one function in the place of a real one."""

    def enter(defective: Any) -> Any:
        DEFECTS[name] = lambda: [(owner, attribute, make(defective))]
        return defective

    return enter


around_real = partial(instead, make=around)
"""Enter a defect that is one function in the place of a real one, which it is given first."""


async def nothing(*_: Any, **__: Any) -> None:
    """Stand for a coroutine that is not run."""


# --- the outbox -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _EarlyReceipt:
    conversation_id: str
    event_ids: tuple[UUID, ...]
    sequence: None = None


@defect("an append returns before it is written")
def _() -> Iterable[Replacement]:
    writing = set[asyncio.Future[Appended]]()

    async def early(self: History, conversation_id: str, *what: Any, owner: str | None = None) -> _EarlyReceipt:
        while len(writing) >= APPENDS_IN_FLIGHT:
            await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
        prepared = prepare(conversation_id, what, owner=owner)
        task = self.outbox.append(prepared)
        writing.add(task)
        task.add_done_callback(writing.discard)
        return _EarlyReceipt(conversation_id, tuple(event.event_id for event in prepared.events))

    yield History, "append", lambda real: early


@instead(CONFIRMED_UNASKED := "an append is confirmed without waiting for the store", Appender, "_append_in_store")
async def _(self: Appender, prepared: Any, timeout: float | None) -> Any:  # noqa: ASYNC109 - as the real one
    return await self.append(prepared)


@defect("a record is promised before it is written")
def _() -> Iterable[Replacement]:
    writing = set[asyncio.Task[Any]]()

    async def write(real: Any, self: Records, changes: Sequence[PreparedChange]) -> Sequence[RecordReceipt]:
        while len(writing) >= APPENDS_IN_FLIGHT:
            await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(real(self, changes))
        writing.add(task)
        task.add_done_callback(writing.discard)
        return [
            RecordReceipt(
                revision=one.event.event_id,
                _receipt=_EarlyReceipt(one.event.conversation_id, (one.event.event_id,)),  # type: ignore[arg-type]
            )
            for one in changes
        ]

    yield Records, "_write", around(write)


@defect("an append that fails is answered as if it were written")
def _() -> Iterable[Replacement]:
    values: dict[Committer, list[Any]] = {}

    def kept(real: Any, self: Committer, *args: Any, **options: Any) -> list[Any]:
        values[self] = real(self, *args, **options)
        return values[self]

    def transact(real: Any, self: Committer, members: Any, **options: Any) -> list[Any]:
        values.pop(self, None)
        try:
            return real(self, members, **options)  # type: ignore[no-any-return]
        except Exception:
            if len(values.get(self, ())) < len(members):  # it failed before all was written
                raise
            self.disconnect()  # as after any commit that failed
            return values[self]

    yield Committer, "_append", around(kept)
    yield Committer, "_run", around(kept)
    yield Committer, "_transact", around(transact)


@defect("text is not checked before it is appended")
def _() -> Iterable[Replacement]:
    yield codec, "_check", lambda real: lambda value, field, depth: None
    yield codec, "_check_object", lambda real: lambda value, field, depth: None


@around_real("content is not compared where an event id is known", reused_ids, "_other_content")
def _(real: Any, event: Any, known: Any) -> Reuse | None:
    reuse: Reuse | None = real(event, known)
    return None if reuse is Reuse.OTHER_CONTENT else reuse


@around_real("sequences are counted by what is still kept", append, "_read_plan")
def _(real: Any, cursor: Any, appends: Any, **given: Any) -> Any:
    plan = real(cursor, appends, **given)
    for name, lane in plan.lanes.items():
        cursor.execute("SELECT max(sequence) FROM letopis_outbox_log WHERE conversation_id = ?", (name,))
        lane.head = cursor.fetchone()[0] or 0
    return plan


@defect("what is not delivered is let go as well")
def _() -> Iterable[Replacement]:
    def page(real: str) -> str:
        assert "min(delivered, head - ?)" in real
        return real.replace("min(delivered, head - ?)", "head - ?")

    def prune(real: Any, self: retention.Pruner, connection: Any) -> bool:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints=ON")  # the table would refuse it
        return real(self, connection)  # type: ignore[no-any-return]

    yield retention, "_PAGE", page
    yield retention.Pruner, "__call__", around(prune)


def plant_weak_durability(file_name: str, pragmas: Sequence[str]) -> None:
    """Have all connections to files of this name set pragmas after the library's own settings."""
    name = "an outbox that is flushed less than it has to be"

    @around_real(name, sqlite, "set_up")
    def _(real: Any, busy_timeout: float, connection: Any) -> None:
        real(busy_timeout, connection)
        with closing(connection.cursor()) as cursor:
            cursor.execute("PRAGMA database_list")
            if str(cursor.fetchone()[2]).endswith(file_name):
                for pragma in pragmas:
                    cursor.execute(f"PRAGMA {pragma}")

    plant(name)


# --- reads ----------------------------------------------------------------------------------------------------------


@instead("a read asks the store before the outbox", ReadPath, "read")
async def _(self: ReadPath, conversation_id: str, ask: Any, merge: Any, *, newest: int | None = None) -> Any:
    found = await ask(await self._pending(conversation_id, None, None))
    await asyncio.sleep(READ_GAP_SECONDS)
    pending = await self._pending(conversation_id, None, newest)
    return merge(pending, None, None) if found is None else merge(pending, *found)


@defect("the values of a list of records are read after it")
def _() -> Iterable[Replacement]:
    class Torn:
        def __init__(self, outbox: Any) -> None:
            self._outbox = outbox
            self.origin = outbox.origin

        async def read(self, fn: Any) -> Any:
            local = await self._outbox.read(partial(fn, values=0))
            await asyncio.sleep(READ_GAP_SECONDS)
            positions = [one.position for one in local.changes.values() if one.present]
            bodies = await self._outbox.read(
                lambda connection: {position: record_lookups._body(connection, position) for position in positions}
            )
            return replace(local, bodies=bodies)

    async def torn(real: Any, self: RecordReads, *args: Any, **options: Any) -> Any:
        return await real(RecordReads(Torn(self._outbox), self._gateway), *args, **options)

    yield RecordReads, "page", around(torn)


@instead("a receipt does not look whether its message has left the path", Deliveries, "left_path")
async def _(self: Deliveries, conversation_id: str, message_ids: Any, *, delivered: bool) -> bool:
    return False


# --- the relay ------------------------------------------------------------------------------------------------------


@around_real("written off before it is delivered", Dispatcher, "_deliver")
async def _(real: Any, self: Dispatcher, due: Any) -> Any:
    await self._write_back(due, SendResult(delivered=_newest(due.batches)), [])
    return await real(self, due)


@around_real("written off by the count of what was sent, not by what was taken", PoisonIsolation, "send")
async def _(real: Any, self: PoisonIsolation, batches: Any, **options: Any) -> SendResult:
    sent: SendResult = await real(self, batches, **options)
    if sent.fault is None:
        sent.delivered.update(_newest(batches))
    return sent


@defect("newer events of a conversation are sent first")
def _() -> Iterable[Replacement]:
    async def send(real: Any, self: PoisonIsolation, batches: Any, **options: Any) -> SendResult:
        for one in batches:
            if len(one.deliveries) > 1:
                half = LaneBatch(conversation_id=one.conversation_id, deliveries=one.deliveries[1:])
                await self._apply_once([half])
        return await real(self, batches, **options)  # type: ignore[no-any-return]

    yield PoisonIsolation, "send", around(send)
    yield from DEFECTS[GAPS_TAKEN]()


@defect("a conversation goes on behind the event that is refused")
def _() -> Iterable[Replacement]:
    async def narrow(real: Any, self: PoisonIsolation, lane: LaneBatch, fault: Any, sent: SendResult) -> bool:
        going_on: bool = await real(self, lane, fault, sent)
        place = sent.undecided[-1][0].sequence if sent.undecided else 0
        rest = tuple(one for one in lane.deliveries if one.sequence > place)
        if place and rest:
            await self._try([LaneBatch(conversation_id=lane.conversation_id, deliveries=rest)], sent)
        return going_on

    yield PoisonIsolation, "_find_failing_event", around(narrow)
    yield from DEFECTS[GAPS_TAKEN]()


@instead("an outage is charged to the events", PoisonIsolation, "_fail")
def _(self: PoisonIsolation, fault: StoreFault, lanes: Any, sent: SendResult) -> None:
    for lane in lanes:
        first, how = lane.deliveries[0], {"fault_class": str(fault.fault_class), "fault": str(fault)}
        where = {"conversation_id": lane.conversation_id, "sequence": first.sequence}
        sent.refusals.append(Refusal(**where, event=first.event, **how))


@around_real("the answer to a commit taken for final", PoisonIsolation, "_apply_once")
async def _(real: Any, self: PoisonIsolation, lanes: Any) -> Any:
    found = await real(self, lanes)
    if isinstance(found, StoreFault) and found.fault_class is FaultClass.UNKNOWN_OUTCOME:
        return StoreFault(fault_class=FaultClass.POISON, code=found.code, reason=found.reason)
    return found


@defect("probes that go to the oldest event again")
def _() -> Iterable[Replacement]:
    """Leave out what failed when it opened, and where nothing else is due, nothing: the oldest goes again."""
    yield Breaker, "probe_exclusions", lambda real: lambda self: iter((self.suspects, frozenset()))
    yield circuit_breaker, "UNCERTAIN_PROBE_WAIT_SECONDS", lambda real: 60.0


@defect("a relay that never holds the store to blame for a refusal")
def _() -> Iterable[Replacement]:
    yield fault_attribution, "STORE_FAULT_AFTER_CONVERSATIONS", lambda real: NEVER
    yield PoisonIsolation, "_try_ordinary_event", lambda real: nothing


@defect(IN_PARTS := "a replacement is applied in parts")
def _() -> Iterable[Replacement]:
    """Deliver two events at a time, wherever an append ends."""

    def next_batch(real: Any, connection: Any, **limits: Any) -> Any:
        return real(connection, **{**limits, "max_events": min(2, limits.get("max_events", 2))})

    yield outbox_lanes, "_rest_of_append", lambda real: lambda *_: []
    yield dispatcher, "next_batch", around(next_batch)


@defect("waits go by the wall clock alone")
def _() -> Iterable[Replacement]:
    def seconds(until_us: int, clock: Any) -> float:
        return max(0.0, (until_us - clock.now_us()) / MICROSECONDS_PER_SECOND)

    yield Deadline, "remaining", lambda real: lambda self, clock: seconds(self.wall_us, clock)
    yield RetryTimers, "remaining", lambda real: lambda self, name, due_at_us: seconds(due_at_us, self._clock)


def _newest(batches: Any) -> dict[str, int]:
    return {one.conversation_id: one.deliveries[-1].sequence for one in batches}


# --- the history store ----------------------------------------------------------------------------------------------

PLACES_TOO_SOON: Final = "retention keeps its place before it appends what is due there"
REDACTION_LOST: Final = "a redaction leaves the content in the history store"
RESET_KEEPS: Final = "a reset leaves the content of what came before it"
DELETION_KEEPS: Final = "what was deleted stays in the log"
REDACTED_LATER: Final = "a redaction leaves the content in the outbox until it is delivered"


@defect(DUPLICATES_TAKEN := "events are inserted without a look whether they are there")
def _() -> Iterable[Replacement]:
    """Write all that is delivered: the unique index of event ids has to be dropped too."""

    def compare(lane: LaneBatch, head: int) -> ComparedLane:
        if lane.deliveries[0].sequence > head + 1:
            raise SequenceGap(conversation_id=lane.conversation_id, head=head, first=lane.deliveries[0].sequence)
        return ComparedLane(lane=lane, head=head, known=(), fresh=lane.deliveries)

    yield lanes, "compare_with_head", lambda real: compare
    yield lanes, "select_new", lambda real: lambda compared, stored: compared.fresh


@around_real("an apply is not one transaction", applier.Applier, "__init__")
def _(real: Any, self: applier.Applier, engine: Any, *args: Any, **options: Any) -> None:
    real(self, engine.execution_options(sqlite_begin="AUTOCOMMIT"), *args, **options)


@around_real(GAPS_TAKEN := "a gap in a lane is taken", lanes, "compare_with_head")
def _(real: Any, lane: LaneBatch, head: int) -> ComparedLane:
    return real(lane, max(head, lane.deliveries[0].sequence - 1))  # type: ignore[no-any-return]


@around_real(RECORDS_TWICE := "changes of records are applied without a look at the ledger", lanes, "compare_with_head")
def _(real: Any, lane: LaneBatch, head: int) -> ComparedLane:
    """Take each delivery as new."""
    if not is_record_lane(lane.conversation_id):
        return real(lane, head)  # type: ignore[no-any-return]
    return ComparedLane(lane=lane, head=head, known=(), fresh=lane.deliveries)


@instead(IDS_KEPT := "a replacement appends what the path has held under its old id", path_changes, "_unused")
def _(wanted: Any, used: Any, conversation_id: str) -> Any:
    return wanted


async def _erase_nothing(*_: Any, **__: Any) -> int:
    return 0


DEFECTS[DELETION_KEEPS] = lambda: (
    (ErasurePlan, "covers", lambda real: lambda *_, **__: False),
    (Eraser, "carry_out", lambda real: _erase_nothing),
)


@around_real(REDACTED_LATER, effects, "erase_messages")
def _(real: Any, cursor: Any, name: str, *message_ids: str) -> Any:
    return 0


@instead(FORK_RUNS_ON := "a fork reads its parent as it is now", PointInTimeReader, "version_of")
async def _(self: PointInTimeReader, connection: Any, fork: Any, head: Any) -> Any:
    return head.version


@instead(REPLY_DROPPED := "a reply that was cut off is thrown away", completion, "_recover")
async def _(outbox: Any, writer: str, key: Any) -> int:
    draft = await outbox.read(lambda connection: on_cursor(connection, drafts.find, *key))
    if draft is not None:
        await outbox.write(lambda connection: on_cursor(connection, drafts.delete, *key, draft.event_id))
    return 0


@around_real(REPLY_RENAMED := "a reply that was cut off is appended under another event id", completion, "_interrupted")
def _(real: Any, draft: Any) -> Any:
    return real(replace(draft, event_id=uuid4()))


@around_real(ASIDE_COUNTED := "what was put aside is counted", StatisticsBuilder, "take")
def _(real: Any, self: StatisticsBuilder, data: Any, *, superseded: bool = False) -> Any:
    return real(self, data)


@around_real(REWIND_SHORT := "a rewind leaves one message too many", projection._Projection, "_remove_after")
def _(real: Any, self: Any, after: int) -> int:
    """Leave the last message where it is when a path is cut before it."""
    on_path = [one.version for one in self.rows if one.left_at is None]
    kept = max(after, on_path[-2]) if after and len(on_path) > 2 else after
    return real(self, kept)  # type: ignore[no-any-return]


# --- erasures and retention -------------------------------------------------------------------------------------------


@around_real(COUNTED_TOO_SOON := "an erasure counts as carried out from its first step on", carrying, "carry_out_step")
def _(real: Any, connection: Any, erasure: Any, **more: Any) -> Any:
    state = "UPDATE letopis_outbox_erasures SET state = ? WHERE erasure_id = ? AND state = ?"
    begun, done = str(ErasureState.BEGUN), str(ErasureState.CARRIED_OUT)
    connection.exec_driver_sql(state, (begun, erasure.erasure_id.bytes, done))
    going_on = real(connection, erasure, **more)
    connection.exec_driver_sql(state, (done, erasure.erasure_id.bytes, begun))
    return going_on


@around_real(PLACES_TOO_SOON, content_retention, "due_content")
async def _(real: Any, store: Any, retention: Any, *args: Any, **options: Any) -> Any:
    found = await real(store, retention, *args, **options)
    if found.moved:
        await content_retention.keep_places(store, retention, found)
    return found


@instead(ERASURE_SKIPPED := "an outbox acknowledges an erasure that it has not carried out", carrying, "carry_out_step")
def _(connection: Any, erasure: Any, **_: Any) -> bool:
    end_erasures(connection, erasure.number, erasure.erasure_id)
    return False


@instead(HOLD_OVERRUN := "what arrives erases in spite of a hold", loading.Loader, "_find_holds")
async def _(self: loading.Loader, transaction: Any, lanes: Any) -> list[bool]:
    return [False for _ in lanes]


@around_real(TRIMMED_TOO_FAR := "retention takes one message too many", content_rules._Look, "upto")
async def _(real: Any, self: Any, *given: Any) -> Any:
    found = await real(self, *given)
    return found and found + 1


# --- records --------------------------------------------------------------------------------------------------------


_NUMBERS = itertools.count()


@instead(FOREIGN_LANES := "changes of a record go through several lanes", Scope, "lane")
def _(self: Scope, namespace: bytes) -> str:
    """Change a record in whatever lane, and compact there."""
    return f"{self.name}:{next(_NUMBERS) % SPACE_LANES}" if self.in_lanes else self.name


@around_real(HOLLOWED_TOO_SOON := "the value is taken away on which a condition rests", effects, "note_change")
def _(real: Any, cursor: Any, change: Any, *, lane: int, **more: Any) -> Any:
    before = query_one(cursor, record_log._NEWEST, (lane, *change.place)) if change.key else None
    if before is not None and before[3]:
        record_log._hollow(cursor, before[1])
    return real(cursor, change, lane=lane, **more)


# --- the alerts -----------------------------------------------------------------------------------------------------


@around_real("each failure is an alert", incidents, "_fired")
def _(real: Any, incident: Any, memory: Any, rules: Any) -> Any:
    return real(incident, memory, replace(rules, hold=0.0))


@defect("operators are told, and that they were is not recorded")
def _() -> Iterable[Replacement]:
    async def claim_all(self: AlertMonitor, errands: Any, **options: Any) -> Any:
        return tuple(errands)

    yield AlertMonitor, "_claim", lambda real: claim_all
    yield AlertMonitor, "_settle", lambda real: nothing


# --- what is not done at all ----------------------------------------------------------------------------------------

for _name, _owner, _attribute, _defective in (
    ("the store is not asked again once it was away", Breaker, "begin_probe", lambda self: False),
    (
        "a relay that convicts no event of what looks like an outage",
        fault_attribution,
        "EVENT_FAULT_AFTER_FAILURES",
        NEVER,
    ),
    ("a relay that was taken over writes back all the same", lease, "is_current_lease", lambda *_: True),
    (RESET_KEEPS, projection._Projection, "erase", lambda self, upto: None),
    (REDACTION_LOST, projection._Projection, "_redact", lambda self, message: None),
    (LATE_TAKEN := "an answer that came too late is taken", loading, "detect_conflicts", lambda *_, **__: {}),
    ("no alerts", AlertMonitor, "_notify_in_background", lambda self: None),
    (HOLD_IGNORED := "an erasure is recorded in spite of a hold", store_erasures, "refuse_held", nothing),
    (TRIMMED_NEVER := "retention passes over what is due", content_rules._Look, "upto", nothing),
    (NOT_SWEPT := "large content stays in the store when no event shows it", ContentWriter, "sweep", nothing),
):
    instead(_name, _owner, _attribute)(_defective)
