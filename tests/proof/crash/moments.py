"""Name the moments at which a process dies, and how each shows in what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from letopis.outbox.event_log.append_encoding import Prepared

ROUNDS: Final = 4  # so often a bot says each of the things that it says
BETWEEN: Final = "prune: the mark is moved, the events are still there"
"""The one that is in the middle of a function: where SQLite is about to begin with a statement."""


class Who(StrEnum):
    """Who dies."""

    BOT = "bot"
    RELAY = "relay"
    LEAVING = "relay that ends"
    WATCH = "watch"


class Side(StrEnum):
    """On which side of the call."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a death left behind, compared with the moment before the victim was started.

    :ivar kept: messages in the outbox file; ``answered`` those of them that the victim was promised.
    :ivar stored: events in the history store; ``written_off`` those that the outbox counts as delivered.
    :ivar owed: events that waited for the victim.
    :ivar pruned: events pruned from the outbox file.
    :ivar alerts: that went out.
    :ivar changes: of records in the outbox file; ``changes_answered`` those that the victim was promised;
        ``changes_applied`` those that the history store has applied.
    """

    kept: int
    answered: int
    stored: int
    written_off: int
    owed: int
    pruned: int
    alerts: int
    changes: int
    changes_answered: int
    changes_applied: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where a process dies.

    :ivar function: of the real code; ``module:Class.function``.
    :ivar counts: whether a call counts, by its arguments and, after it, by what it returned.
    :ivar most: up to the how manieth call.
    :ivar shows: whether what a death at the first such call left behind is what it must be, or it was somewhere else.
    """

    name: str
    who: Who
    function: str
    side: Side
    counts: Callable[[tuple[Any, ...], Any], bool] = lambda _, __: True
    most: int = 1
    shows: Callable[[Left], bool]


def _appends(given: tuple[Any, ...], _: Any) -> bool:
    return any(isinstance(member, Prepared) for member in given[-1])


MOMENTS: Final = (
    Moment(
        name="append: before the local commit",
        who=Who.BOT,
        function="letopis.outbox.file.committer:Committer._append",
        side=Side.AFTER,
        counts=_appends,
        most=ROUNDS,
        shows=lambda left: left.kept == left.answered,
    ),
    Moment(
        name="append: after the local commit, before the answer",
        who=Who.BOT,
        function="letopis.outbox.file.committer:Committer._transact",
        side=Side.AFTER,
        counts=_appends,
        most=ROUNDS,
        shows=lambda left: left.kept == left.answered + 1,
    ),
    Moment(
        name="the bot's own transaction: before the local commit",
        who=Who.BOT,
        function="sqlalchemy.ext.asyncio:AsyncConnection.commit",
        side=Side.BEFORE,
        most=2 * ROUNDS,
        shows=lambda left: left.kept == left.answered,
    ),
    Moment(
        name="the bot's own transaction: after the local commit, before the answer",
        who=Who.BOT,
        function="sqlalchemy.ext.asyncio:AsyncConnection.commit",
        side=Side.AFTER,
        most=2 * ROUNDS,
        shows=lambda left: left.kept == left.answered + 1,
    ),
    Moment(
        name="a record is put: written, before the local commit",
        who=Who.BOT,
        function="letopis.outbox.event_log.effects:note_change",
        side=Side.AFTER,
        most=2 * ROUNDS,
        shows=lambda left: left.changes == left.changes_answered,
    ),
    Moment(
        name="a record is put: after the local commit, before the answer",
        who=Who.BOT,
        function="letopis.outbox.history.records:Records._write",
        side=Side.AFTER,
        most=2 * ROUNDS,
        shows=lambda left: left.changes == left.changes_answered + 1,
    ),
    Moment(
        name="lease: the lock is taken, the row is not written",
        who=Who.RELAY,
        function="letopis.outbox.relay.lease:Lease._register",
        side=Side.BEFORE,
        shows=lambda left: left.stored == 0,
    ),
    Moment(
        name="lease: the row is written, not committed",
        who=Who.RELAY,
        function="letopis.outbox.relay.lease:Lease._register",
        side=Side.AFTER,
        shows=lambda left: left.stored == 0,
    ),
    Moment(
        name="relay: after it has read what is due",
        who=Who.RELAY,
        function="letopis.outbox.relay.dispatcher:Dispatcher._claim",
        side=Side.AFTER,
        counts=lambda _, due: bool(due.batches),
        most=3,
        shows=lambda left: left.stored == 0,
    ),
    Moment(
        name="apply: projections and lanes are written, the log is not",
        who=Who.RELAY,
        function="letopis.store.write.applier:append_to_log",
        side=Side.BEFORE,
        most=3,
        shows=lambda left: left.stored == 0,
    ),
    Moment(
        name="apply: all is written, before the store's commit",
        who=Who.RELAY,
        function="letopis.store.write.applier:append_to_log",
        side=Side.AFTER,
        most=3,
        shows=lambda left: left.stored == 0,
    ),
    Moment(
        name="apply: records are written, their heads are not",
        who=Who.RELAY,
        function="letopis.store.write.lanes:Lanes.advance",
        side=Side.BEFORE,
        most=2,
        shows=lambda left: left.changes_applied == 0,
    ),
    Moment(
        name="apply: after the store's commit, before its answer is heard",
        who=Who.RELAY,
        function="letopis.store.write.applier:Applier._apply_once",
        side=Side.AFTER,
        most=3,
        shows=lambda left: left.stored > 0 and left.written_off == 0,
    ),
    Moment(
        name="acknowledgement: before it is written",
        who=Who.RELAY,
        function="letopis.outbox.relay.dispatcher:Dispatcher._write_back",
        side=Side.BEFORE,
        most=3,
        shows=lambda left: left.stored > 0 and left.written_off == 0,
    ),
    Moment(
        name="acknowledgement: written, not committed",
        who=Who.RELAY,
        function="letopis.outbox.relay.lease:acknowledge",
        side=Side.AFTER,
        most=3,
        shows=lambda left: left.stored > 0 and left.written_off == 0,
    ),
    Moment(
        name="acknowledgement: committed",
        who=Who.RELAY,
        function="letopis.outbox.relay.dispatcher:Dispatcher._write_back",
        side=Side.AFTER,
        most=3,
        shows=lambda left: left.written_off > 0,
    ),
    Moment(
        name=BETWEEN,
        who=Who.RELAY,
        function="letopis.outbox.event_log.retention:Pruner.__call__",
        side=Side.BEFORE,
        shows=lambda left: left.pruned == 0 and left.written_off == left.owed,
    ),
    Moment(
        name="prune: done, not committed",
        who=Who.RELAY,
        function="letopis.outbox.event_log.retention:Pruner.__call__",
        side=Side.AFTER,
        counts=lambda given, _: given[0].pruned > 0,
        shows=lambda left: left.pruned == 0 and left.written_off == left.owed,
    ),
    Moment(
        name="prune: committed",
        who=Who.RELAY,
        function="letopis.outbox.relay.idle_work:Chores._run_chores",
        side=Side.AFTER,
        shows=lambda left: left.pruned > 0,
    ),
    Moment(
        name="lease: the row says that it is free, the lock is still held",
        who=Who.LEAVING,
        function="letopis.outbox.relay.lease:LeaseLock.release",
        side=Side.BEFORE,
        shows=lambda left: left.written_off == left.owed,
    ),
    Moment(
        name="alert: claimed, before it is sent",
        who=Who.WATCH,
        function="letopis.outbox.alerting.monitor:AlertMonitor._claim",
        side=Side.AFTER,
        counts=lambda _, mine: bool(mine),
        shows=lambda left: left.alerts == 0,
    ),
    Moment(
        name="alert: sent, before that is kept",
        who=Who.WATCH,
        function="letopis.outbox.alerting.monitor:AlertMonitor._settle",
        side=Side.BEFORE,
        shows=lambda left: left.alerts == 1,
    ),
    Moment(
        name="alert: sent, and that is kept",
        who=Who.WATCH,
        function="letopis.outbox.alerting.monitor:AlertMonitor._settle",
        side=Side.AFTER,
        shows=lambda left: left.alerts == 1,
    ),
)
"""Every moment that has a name here."""
