"""Name the moments at which a process dies, and start bots, relays and watches that die there, or behind a gate.

How each death shows in what is left tells whether it was at the moment that was meant.
"""

import asyncio
import functools
import inspect
import itertools
import logging
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final, NoReturn

from letopis import OutboxFile
from letopis.outbox import Rules
from letopis.outbox.alerting.channels import AppriseChannel
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.outbox.event_log.append_encoding import Prepared
from letopis.outbox.event_log.retention import Pruner
from tests.campaigns.victims import Context, fork_server
from tests.proof.crash.gate import Call, Counts, Fails, enter, guard
from tests.support import victim
from tests.support.child import start_piped
from tests.support.defects import DUPLICATES_TAKEN, planted

ROUNDS: Final = 4  # so often a bot says each of the things that it says
TWICE: Final = 2 * ROUNDS
BETWEEN: Final = "prune: the mark is moved, the events are still there"
"""The one that is in the middle of a function: where SQLite is about to begin with a statement."""
COMMITTED: Final = "apply: after the store's commit, before its answer is heard"


class Who(StrEnum):
    BOT = "bot"
    RELAY = "relay"
    LEAVING = "relay that ends"
    WATCH = "watch"


class Side(StrEnum):
    BEFORE = "before"
    AFTER = "after"


Left = Mapping[str, int]
"""What a death left behind: by how much each figure of `Field` has grown since the victim was started."""
SHOWS: Final[dict[str, Callable[[Left], bool]]] = {
    "no message without an answer": lambda left: left["kept"] == left["answered"],
    "one message without an answer": lambda left: left["kept"] == left["answered"] + 1,
    "no change without an answer": lambda left: left["changes"] == left["changes_answered"],
    "one change without an answer": lambda left: left["changes"] == left["changes_answered"] + 1,
    "nothing stored": lambda left: left["stored"] == 0,
    "no change applied": lambda left: left["changes_applied"] == 0,
    "stored, nothing written off": lambda left: left["stored"] > 0 and left["written_off"] == 0,
    "written off": lambda left: left["written_off"] > 0,
    "all written off, nothing pruned": lambda left: left["pruned"] == 0 and left["written_off"] == left["owed"],
    "pruned": lambda left: left["pruned"] > 0,
    "all written off": lambda left: left["written_off"] == left["owed"],
    "no alert": lambda left: left["alerts"] == 0,
    "one alert": lambda left: left["alerts"] == 1,
}
"""What a death leaves behind, by words."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a process dies.

    :ivar function: of the real code; ``module:Class.function``.
    :ivar shows: what a death at the first such call must leave behind, or it was somewhere else.
    :ivar most: up to the how manieth call.
    :ivar counts: whether a call counts, by its arguments and, after it, by what it returned.
    """

    name: str
    who: Who
    function: str
    side: Side
    shows: str
    most: int = 1
    counts: Callable[[tuple[Any, ...], Any], bool] = lambda _, __: True


def _appends(given: tuple[Any, ...], _: Any) -> bool:
    return any(isinstance(member, Prepared) for member in given[-1])


BOT, RELAY, LEAVING, WATCH = Who
BEFORE, AFTER = Side
APPEND: Final = "letopis.outbox.file.committer:Committer._append"
TRANSACT: Final = "letopis.outbox.file.committer:Committer._transact"
COMMIT: Final = "sqlalchemy.ext.asyncio:AsyncConnection.commit"
NOTE_CHANGE: Final = "letopis.outbox.event_log.effects:note_change"
WRITE_RECORD: Final = "letopis.outbox.history.records:Records._write"
REGISTER: Final = "letopis.outbox.relay.lease:Lease._register"
CLAIM: Final = "letopis.outbox.relay.dispatcher:Dispatcher._claim"
LOG: Final = "letopis.store.write.applier:append_to_log"
ADVANCE: Final = "letopis.store.write.lanes:Lanes.advance"
APPLY: Final = "letopis.store.write.applier:Applier._apply_once"
WRITE_BACK: Final = "letopis.outbox.relay.dispatcher:Dispatcher._write_back"
ACKNOWLEDGE: Final = "letopis.outbox.relay.lease:acknowledge"
PRUNE: Final = "letopis.outbox.event_log.retention:Pruner.__call__"
CHORES: Final = "letopis.outbox.relay.idle_work:Chores._run_chores"
RELEASE: Final = "letopis.outbox.relay.lease:LeaseLock.release"
CLAIM_ALERT: Final = "letopis.outbox.alerting.monitor:AlertMonitor._claim"
SETTLE_ALERT: Final = "letopis.outbox.alerting.monitor:AlertMonitor._settle"
ALL_ANSWERED: Final = "no message without an answer"
ONE_MORE: Final = "one message without an answer"
CHANGES_ANSWERED: Final = "no change without an answer"
CHANGE_MORE: Final = "one change without an answer"
NOTHING_STORED: Final = "nothing stored"
STORED: Final = "stored, nothing written off"
NOTHING_PRUNED: Final = "all written off, nothing pruned"
MOMENTS: Final = (
    Moment("append: before the local commit", BOT, APPEND, AFTER, ALL_ANSWERED, ROUNDS, _appends),
    Moment("append: after the local commit, before the answer", BOT, TRANSACT, AFTER, ONE_MORE, ROUNDS, _appends),
    Moment("the bot's own transaction: before the local commit", BOT, COMMIT, BEFORE, ALL_ANSWERED, TWICE),
    Moment("the bot's own transaction: after the local commit, before the answer", BOT, COMMIT, AFTER, ONE_MORE, TWICE),
    Moment("a record is put: written, before the local commit", BOT, NOTE_CHANGE, AFTER, CHANGES_ANSWERED, TWICE),
    Moment("a record is put: after the local commit, before the answer", BOT, WRITE_RECORD, AFTER, CHANGE_MORE, TWICE),
    Moment("lease: the lock is taken, the row is not written", RELAY, REGISTER, BEFORE, NOTHING_STORED),
    Moment("lease: the row is written, not committed", RELAY, REGISTER, AFTER, NOTHING_STORED),
    Moment(
        "relay: after it has read what is due", RELAY, CLAIM, AFTER, NOTHING_STORED, 3, lambda _, due: bool(due.batches)
    ),
    Moment("apply: projections and lanes are written, the log is not", RELAY, LOG, BEFORE, NOTHING_STORED, 3),
    Moment("apply: all is written, before the store's commit", RELAY, LOG, AFTER, NOTHING_STORED, 3),
    Moment("apply: records are written, their heads are not", RELAY, ADVANCE, BEFORE, "no change applied", 2),
    Moment(COMMITTED, RELAY, APPLY, AFTER, STORED, 3),
    Moment("acknowledgement: before it is written", RELAY, WRITE_BACK, BEFORE, STORED, 3),
    Moment("acknowledgement: written, not committed", RELAY, ACKNOWLEDGE, AFTER, STORED, 3),
    Moment("acknowledgement: committed", RELAY, WRITE_BACK, AFTER, "written off", 3),
    Moment(BETWEEN, RELAY, PRUNE, BEFORE, NOTHING_PRUNED),
    Moment("prune: done, not committed", RELAY, PRUNE, AFTER, NOTHING_PRUNED, 1, lambda given, _: given[0].pruned > 0),
    Moment("prune: committed", RELAY, CHORES, AFTER, "pruned"),
    Moment("lease: the row says that it is free, the lock is still held", LEAVING, RELEASE, BEFORE, "all written off"),
    Moment("alert: claimed, before it is sent", WATCH, CLAIM_ALERT, AFTER, "no alert", 1, lambda _, mine: bool(mine)),
    Moment("alert: sent, before that is kept", WATCH, SETTLE_ALERT, BEFORE, "one alert"),
    Moment("alert: sent, and that is kept", WATCH, SETTLE_ALERT, AFTER, "one alert"),
)
"""Every moment that has a name here."""


def context() -> Context:
    """Return what starts the processes that die, with all imported that they need."""
    drivers = ("aiosqlite", "asyncpg", "asyncmy", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.mysql")
    return fork_server(
        "tests.proof.crash.steps",
        "tests.proof.crash.contents",
        "tests.proof.io.failing",
        "tests.support.sending",
        *drivers,
    )


# --- the process that dies ------------------------------------------------------------------------------------------

_BY_NAME: Final = {moment.name: moment for moment in MOMENTS}


def die() -> NoReturn:
    """End as by ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def plant(moment: Moment, number: int) -> None:
    """Have this process die at the so manieth call that counts."""
    owner, function_name = found(moment.function)
    real = getattr(owner, function_name)
    setattr(owner, function_name, _between(real) if moment.name == BETWEEN else wrapped(real, moment, number))


def found(function: str) -> tuple[Any, str]:
    """Return the class or module of a function of the real code, and the function's name there."""
    module, _, path = function.rpartition(":")
    owner, _, name = path.rpartition(".")
    return resolve_name(f"{module}:{owner}" if owner else module), name


def wrapped(real: Callable[..., Any], moment: Moment, number: int) -> Callable[..., Any]:
    """Return what does as ``real`` does, and dies at the so manieth call that counts."""
    calls = itertools.count(1)

    def reach(given: tuple[Any, ...], result: Any, side: Side) -> None:
        if moment.side is side and moment.counts(given, result) and next(calls) == number:
            die()

    @functools.wraps(real)
    async def awaited(*given: Any, **named: Any) -> Any:
        reach(given, None, Side.BEFORE)
        result = await real(*given, **named)
        reach(given, result, Side.AFTER)
        return result

    @functools.wraps(real)
    def called(*given: Any, **named: Any) -> Any:
        reach(given, None, Side.BEFORE)
        result = real(*given, **named)
        reach(given, result, Side.AFTER)
        return result

    return awaited if inspect.iscoroutinefunction(real) else called


def _between(prune: Callable[..., bool]) -> Callable[..., bool]:
    def watched(statement: str) -> None:
        if statement.startswith("DELETE FROM letopis_outbox_events"):
            die()

    @functools.wraps(prune)
    def pruned(self: Pruner, connection: Any) -> bool:
        driver: sqlite3.Connection = connection.connection.driver_connection
        driver.set_trace_callback(watched)
        return prune(self, connection)

    return pruned


RULES: Final = Rules(silent_after=0.1, repeat_interval=0.4, resolve_after=0.1)
"""Operators who are alerted and reminded soon, so that a test need not wait for a day."""
REMINDED_ALREADY: Final = replace(RULES, repeat_interval=3600.0)
"""No further reminder is due, however slow the machine is."""
BATCH_EVENTS: Final = 4
LOOK_INTERVAL_SECONDS: Final = 0.02


def bot(outbox: str, store: str, acks: Connection, *, moment: str, number: int) -> None:
    """Say some things, with and without the bot's own books, and send an ``Ack`` for each."""
    prepare = functools.partial(plant, _BY_NAME[moment], number)
    victim.say_all(outbox, store, acks, rounds=ROUNDS, prepare_process=prepare)


def relay(outbox: str, store: str, *, moment: str, number: int, leave: bool = False, without: bool = False) -> None:
    logging.disable()
    plant(_BY_NAME[moment], number)
    with planted(DUPLICATES_TAKEN if without else ""):
        asyncio.run(victim.deliver(Path(outbox), store, leave=leave, batch=BATCH_EVENTS, prune=True))


_children: Final = threading.Lock()
"""Starting and joining look at every child: two threads that do so take each other's exit codes."""


def guarded(
    target: Callable[..., None],
    *given: Any,
    patience: float,
    counts: Counts = lambda _: True,
    kill_at: int = 0,
    fails: Fails = lambda _: 0,
    **named: Any,
) -> tuple[list[Call], int | None, Any]:
    """Run a process that enters a gate; return the calls that it came to, how it ended, and what it sent last."""
    with _children:
        process, ours = start_piped(context(), target, *given, duplex=True, **named)
    with ours:
        assert process.pid is not None
        try:
            calls = guard(ours, process.pid, counts, kill_at=kill_at, patience=patience, fails=fails)
        finally:
            with _children:
                process.join(patience)
        told = None
        with suppress(EOFError):
            told = ours.recv() if ours.poll() else None
    return calls, process.exitcode, told


def gated(calls: tuple[str, ...], work: Callable[[], Coroutine[Any, Any, None]], way: Connection) -> None:
    logging.disable()
    enter(way, calls)
    asyncio.run(work())


def watch(outbox: str, hook: str, *, moment: str, number: int) -> None:
    async def live() -> None:
        file = await OutboxFile.open(outbox)
        watching = AlertMonitor(file, channels=(AppriseChannel(hook, private=True),), rules=RULES)
        while True:
            await watching.observe_once()
            await asyncio.sleep(LOOK_INTERVAL_SECONDS)

    logging.disable()
    plant(_BY_NAME[moment], number)
    asyncio.run(live())
