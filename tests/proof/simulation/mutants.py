"""Mutants: the library without one of the things that a promise rests on; the simulation has to notice each."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from letopis.outbox import append, drain, incidents, tail
from letopis.outbox.breaker import Breaker
from letopis.outbox.clock import SECOND_US, Clock, Deadline, Waits
from letopis.outbox.isolation import Isolation, Refusal, Sent
from letopis.outbox.watch import Watch
from letopis.outbox.writer import Writer
from letopis.store import apply
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.plan import Compared, LaneBatch
from tests.proof.simulation.plan import Profile

if TYPE_CHECKING:
    from tests.proof.simulation.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A change to the library, in a Python process of its own.

    :ivar profile: of the seeds that are to show it; ``scale``: of their virtual time.
    """

    apply: Callable[[World], None]
    profile: Profile
    scale: float


MUTANTS: Final[dict[str, Mutant]] = {}
"""By what is taken away, in words."""


def mutant(
    name: str, profile: Profile = "storm", *, scale: float = 1.0
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Enter a mutant."""

    def enter(change: Callable[[World], None]) -> Callable[[World], None]:
        MUTANTS[name] = Mutant(apply=change, profile=profile, scale=scale)
        return change

    return enter


def change(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put in place of a function what ``make`` makes of it.

    :raises AttributeError: there is no such function any more: the mutant has to follow the library.
    """
    real = getattr(owner, name)
    setattr(owner, name, wraps(real)(make(real)))


# --- the outbox -----------------------------------------------------------------------------------------------------


@mutant("an append that fails is answered as if it were written")
def _(world: World) -> None:
    values: dict[Writer, list[Any]] = {}

    def run(real: Any) -> Any:
        def noted(self: Writer, *args: Any, **options: Any) -> list[Any]:
            values[self] = real(self, *args, **options)
            return values[self]

        return noted

    def transact(real: Any) -> Any:
        def swallowed(self: Writer, members: Any, **options: Any) -> list[Any]:
            values.pop(self, None)
            try:
                return real(self, members, **options)  # type: ignore[no-any-return]
            except Exception:
                if self not in values:
                    raise
                return values[self]

        return swallowed

    change(Writer, "_run", run)
    change(Writer, "_transact", transact)


@mutant("content is not compared where an event id is known")
def _(world: World) -> None:
    def find(real: Any) -> Any:
        return lambda *args: {one: (name, place, None) for one, (name, place, _) in real(*args).items()}

    change(append, "_find_ids", find)


@mutant("sequences are counted by what is still kept")
def _(world: World) -> None:
    _keep(world, 0)

    def find(real: Any) -> Any:
        def counted(cursor: Any, names: set[str]) -> Any:
            lanes = real(cursor, names)
            for name, lane in lanes.items():
                cursor.execute("SELECT max(sequence) FROM letopis_outbox_events WHERE conversation_id = ?", (name,))
                lane.head = cursor.fetchone()[0] or 0
            return lanes

        return counted

    change(append, "_find_lanes", find)


@mutant("what is not delivered is let go as well", "stuck", scale=0.5)
def _(world: World) -> None:
    _keep(world, 2)
    assert "min(delivered, head - ?)" in tail._PAGE
    tail._PAGE = tail._PAGE.replace("min(delivered, head - ?)", "head - ?")  # type: ignore[misc]

    def prune(real: Any) -> Any:
        def unchecked(self: tail.Pruner, connection: Any) -> bool:
            connection.exec_driver_sql("PRAGMA ignore_check_constraints=ON")  # the table would refuse it
            return real(self, connection)  # type: ignore[no-any-return]

        return unchecked

    change(tail.Pruner, "__call__", prune)


def _keep(world: World, last: int) -> None:
    for place in world.places:
        place.plan = replace(place.plan, keep_last=last, keep_for=0.0)


# --- the relay ------------------------------------------------------------------------------------------------------


@mutant("written off before it is delivered")
def _(world: World) -> None:
    def deliver(real: Any) -> Any:
        async def early(self: drain.Drain, due: Any) -> Any:
            await self._write_back(due, Sent(delivered=_last(due.batches)), [])
            return await real(self, due)

        return early

    change(drain.Drain, "_deliver", deliver)


@mutant("written off by the count of what was sent, not by what was taken", "stuck", scale=0.5)
def _(world: World) -> None:
    def send(real: Any) -> Any:
        async def counted(self: Isolation, batches: Any, **options: Any) -> Sent:
            sent: Sent = await real(self, batches, **options)
            if sent.fault is None:
                sent.delivered.update(_last(batches))
            return sent

        return counted

    change(Isolation, "send", send)


def _last(batches: Any) -> dict[str, int]:
    return {one.conversation_id: one.deliveries[-1].sequence for one in batches}


@mutant("newer events of a conversation are sent first")
def _(world: World) -> None:
    _take_gaps()

    def send(real: Any) -> Any:
        async def reversed_(self: Isolation, batches: Any, **options: Any) -> Sent:
            for one in batches:
                if len(one.deliveries) > 1:
                    half = LaneBatch(conversation_id=one.conversation_id, deliveries=one.deliveries[1:])
                    await self._once([half])
            return await real(self, batches, **options)  # type: ignore[no-any-return]

        return reversed_

    change(Isolation, "send", send)


@mutant("a conversation goes on behind the event that is refused", "stuck", scale=0.5)
def _(world: World) -> None:
    _take_gaps()

    def narrow(real: Any) -> Any:
        async def past(self: Isolation, lane: LaneBatch, fault: Any, sent: Sent, unsure: Any) -> bool:
            going_on: bool = await real(self, lane, fault, sent, unsure)
            place = sent.refusals[-1].sequence if sent.refusals else 0
            rest = tuple(one for one in lane.deliveries if one.sequence > place)
            if place and rest:
                await self._try([LaneBatch(conversation_id=lane.conversation_id, deliveries=rest)], sent)
            return going_on

        return past

    change(Isolation, "_narrow", narrow)


@mutant("an outage is charged to the events")
def _(world: World) -> None:
    def fail(real: Any) -> Any:
        def charged(self: Isolation, fault: StoreFault, lanes: Any, sent: Sent) -> None:
            sent.refusals += [
                Refusal(
                    conversation_id=lane.conversation_id,
                    sequence=lane.deliveries[0].sequence,
                    event=lane.deliveries[0].event,
                    fault_class=str(fault.fault_class),
                    fault=str(fault),
                )
                for lane in lanes
            ]

        return charged

    change(Isolation, "_fail", fail)


@mutant("the answer to a commit taken for final")
def _(world: World) -> None:
    def once(real: Any) -> Any:
        async def final(self: Isolation, lanes: Any) -> Any:
            found = await real(self, lanes)
            if isinstance(found, StoreFault) and found.fault_class is FaultClass.UNKNOWN_OUTCOME:
                return StoreFault(fault_class=FaultClass.POISON, code=found.code, reason=found.reason)
            return found

        return final

    change(Isolation, "_once", once)


@mutant("the store is not asked again once it was away", "quiet", scale=0.4)
def _(world: World) -> None:
    change(Breaker, "probe", lambda real: lambda self: False)


@mutant("waits go by the wall clock alone", "outage", scale=0.15)
def _(world: World) -> None:
    def remaining(real: Any) -> Any:
        return lambda self, clock: max(0.0, (self.wall_us - clock.now_us()) / SECOND_US)

    def lane(real: Any) -> Any:
        return lambda self, name, due_at_us: max(0.0, (due_at_us - _clock(self).now_us()) / SECOND_US)

    change(Deadline, "remaining", remaining)
    change(Waits, "remaining", lane)


def _clock(waits: Waits) -> Clock:
    return waits._clock


@mutant("a relay that was taken over writes back all the same", "stopped")
def _(world: World) -> None:
    change(drain, "holds", lambda real: lambda connection, incarnation: True)


# --- the history store ----------------------------------------------------------------------------------------------


@mutant("events are inserted without a look whether they are there")
def _(world: World) -> None:
    connection = sqlite3.connect(world.store_path)
    connection.execute("DROP INDEX uq_letopis_events_event_id")
    connection.close()

    def compare(real: Any) -> Any:
        return lambda lane, head: Compared(lane=lane, head=head, known=(), fresh=lane.deliveries)

    change(apply, "compare", compare)
    change(apply, "absorb", lambda real: lambda compared, stored: compared.fresh)


@mutant("an apply is not one transaction")
def _(world: World) -> None:
    def begin(real: Any) -> Any:
        def alone(self: apply.Applier, engine: Any, *args: Any, **options: Any) -> None:
            real(self, engine.execution_options(sqlite_begin="AUTOCOMMIT"), *args, **options)

        return alone

    change(apply.Applier, "__init__", begin)


def _take_gaps() -> None:
    def compare(real: Any) -> Any:
        def lenient(lane: LaneBatch, head: int) -> Compared:
            return real(lane, max(head, lane.deliveries[0].sequence - 1))  # type: ignore[no-any-return]

        return lenient

    change(apply, "compare", compare)


# --- the alerts -----------------------------------------------------------------------------------------------------


@mutant("each failure is an alert", "quiet", scale=0.4)
def _(world: World) -> None:
    def open_(real: Any) -> Any:
        return lambda kind, memory, seen, rules: real(kind, memory, seen, replace(rules, hold=0.0))

    change(incidents, "_open_wide", open_)


@mutant("no alerts", "stuck", scale=0.5)
def _(world: World) -> None:
    change(Watch, "_tell_in_background", lambda real: lambda self: None)


@mutant("people are told, and nobody notes that they were", "stuck", scale=0.5)
def _(world: World) -> None:
    def claim(real: Any) -> Any:
        async def all_(self: Watch, errands: Any) -> Any:
            return tuple(errands)

        return all_

    async def settle(self: Watch, *args: Any, **options: Any) -> None:
        return

    change(Watch, "_claim", claim)
    change(Watch, "_settle", lambda real: settle)
