"""Decide which file operation of the simulation fails, when and how, and count each fault that the code met."""

import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.proof.simulation.driver import Line, error
from tests.proof.simulation.strands import running_loop, wait

BAD: Final = "\N{SKULL AND CROSSBONES}"
"""A message with this in it is one that the history store refuses, as long as it does."""

_WRITES: Final = ("INSERT", "UPDATE", "DELETE")
Say = Callable[[str], None]


def _io(text: str = "disk I/O error") -> sqlite3.Error:
    return error(sqlite3.OperationalError, "SQLITE_IOERR", text)


def _busy() -> sqlite3.Error:
    return error(sqlite3.OperationalError, "SQLITE_BUSY", "database is locked")


OUTAGES: Final[Mapping[str, Callable[[], sqlite3.Error]]] = {
    "away": _io,
    "locked": _busy,
    "full": lambda: error(sqlite3.OperationalError, "SQLITE_FULL", "database or disk is full"),
    "hangs": _io,
    "without tables": lambda: error(sqlite3.OperationalError, "SQLITE_ERROR", "no such table: letopis_events"),
    "read-only": lambda: error(sqlite3.OperationalError, "SQLITE_READONLY", "attempt to write a readonly database"),
}
"""What an unavailable store answers."""
FOR_AN_OPERATOR: Final = ("without tables", "read-only", "full")
"""Those that an operator has to end, who is alerted at once."""

REFUSALS: Final[Mapping[str, Callable[[], sqlite3.Error]]] = {
    "too big": lambda: error(sqlite3.DataError, "SQLITE_TOOBIG", "string or blob too big"),
    "constraint": lambda: error(sqlite3.IntegrityError, "SQLITE_CONSTRAINT_CHECK", "CHECK constraint failed"),
    "mismatch": lambda: error(sqlite3.IntegrityError, "SQLITE_MISMATCH", "datatype mismatch"),
}


@dataclass
class _Weather:
    """What the weather of a store and of an outbox share."""

    chance: random.Random
    fired: Counter[str]
    say: Say
    rate: float = 0.0
    _planned: dict[Line, str] = field(default_factory=dict)

    def _lose_answer(self, line: Line, sql: str, plan: str, what: str) -> None:
        """Have a commit that took effect end in an error, if that is the plan."""
        if sql == "COMMIT" and self._planned.get(line) == plan:
            self._planned.pop(line)
            self._fire(what)
            raise _io()

    def _strike(self, line: Line, what: str, failure: sqlite3.Error, *, ended: bool = True) -> None:
        """Raise as planned, the transaction being rolled back if it is ended."""
        self._planned.pop(line)
        self._fire(what)
        if ended:
            _give_up(line)
        raise failure

    def _fire(self, what: str) -> None:
        self.fired[what] += 1
        self.say(f"fault {what}")


@dataclass
class StoreWeather(_Weather):
    """What fails between the relays and the history store."""

    outage: str | None = None
    refuses: str | None = "too big"

    def before(self, line: Line, sql: str, params: Any) -> None:
        """Fail a statement, or a connection that is about to be made, if it is to fail."""
        if self.outage is not None:
            self._away(self.outage)
        if self.refuses is not None and sql.startswith("INSERT INTO letopis_events") and BAD in str(params):
            self._fire(f"refuses: {self.refuses}")
            raise REFUSALS[self.refuses]()
        if self.rate == 0.0:
            return
        if sql.startswith("BEGIN IMMEDIATE") or (sql.startswith(_WRITES) and not line.in_transaction):
            self._planned.pop(line, None)
            if self.chance.random() < self.rate:
                self._planned[line] = self.chance.choice(
                    ("before", "within", "slow", "conflict", "lost", "ambiguous", "ambiguous", "ambiguous", "locked")
                )
        plan = self._planned.get(line)
        if plan is None:
            if sql == "CONNECT" and self.chance.random() < self.rate:
                self._fire("store: no connection")
                raise _io("unable to open database file")
            return
        if plan == "before":
            self._strike(line, "store: lost at the beginning", _io())
        elif plan == "locked" and sql.startswith("BEGIN"):
            self._strike(line, "store: lock not to be had", _busy())
        elif plan in ("within", "conflict") and self.chance.random() < 0.2:
            kind = sqlite3.OperationalError
            conflict = error(kind, "SQLITE_BUSY_SNAPSHOT", "database is locked")
            self._strike(line, f"store: {plan}", _io() if plan == "within" else conflict)
        elif plan == "slow" and self.chance.random() < 0.1:
            self._planned.pop(line)
            self._fire("store: slow")
            wait(self.chance.choice((0.5, 5.0, 25.0, 70.0)))
        elif plan == "lost" and sql == "COMMIT":
            self._strike(line, "store: lost before the commit", _io())

    def after(self, line: Line, sql: str) -> None:
        """Have the answer to a commit that took effect get lost."""
        self._lose_answer(line, sql, "ambiguous", "store: committed, and the answer lost")

    def clear(self) -> None:
        """Let all be well from now on."""
        self.rate, self.outage, self.refuses = 0.0, None, None
        self._planned.clear()

    def _away(self, outage: str) -> None:
        self._fire(f"outage: {outage}")
        if outage == "hangs":
            wait(self.chance.uniform(1.0, 90.0))
        raise OUTAGES[outage]()


@dataclass
class OutboxWeather(_Weather):
    busy_until: float = 0.0
    full_until: float = 0.0

    def before(self, line: Line, sql: str, params: Any) -> None:
        """Fail a statement, if it is to fail."""
        now = running_loop().now
        if sql.startswith("BEGIN IMMEDIATE"):
            if now < self.busy_until:
                self._fire("outbox: busy")
                wait(0.2)
                raise _busy()
            self._planned.pop(line, None)
            if self.rate and self.chance.random() < self.rate:
                self._planned[line] = self.chance.choice(("within", "lost", "after", "full"))
        if now < self.full_until and sql.startswith("INSERT INTO letopis_outbox_events"):
            self._full(line)
        plan = self._planned.get(line)
        if plan is None or not line.in_transaction:
            return
        # After some errors SQLite rolls back on its own.
        if plan == "within" and self.chance.random() < 0.3:
            self._strike(line, "outbox: fails within a transaction", _io(), ended=self.chance.random() < 0.5)
        elif plan == "full" and self.chance.random() < 0.3:
            self._planned.pop(line)
            self._full(line)
        elif plan == "lost" and sql == "COMMIT":
            self._strike(line, "outbox: fails before the commit", _io(), ended=self.chance.random() < 0.5)

    def after(self, line: Line, sql: str) -> None:
        """Have a commit that took effect end in an error."""
        self._lose_answer(line, sql, "after", "outbox: committed, and ends in an error")

    def clear(self) -> None:
        """Let all be well from now on."""
        self.rate = self.busy_until = self.full_until = 0.0
        self._planned.clear()

    def _full(self, line: Line) -> None:
        self._fire("outbox: disk full")
        _give_up(line)
        raise OUTAGES["full"]()


def _give_up(line: Line) -> None:
    if isinstance(line, sqlite3.Connection) and line.in_transaction:
        sqlite3.Connection.rollback(line)
