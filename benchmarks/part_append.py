"""Measure rows 1 and 2 of the table, and what the peers need for the same, at their defaults and at FULL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

from benchmarks.append_limit import AppendLimit
from benchmarks.letopis_subject import Letopis
from benchmarks.parts import Bench
from benchmarks.peers import PEERS
from benchmarks.subjects import Missed, Seat, Subject, in_rounds, warm_up
from benchmarks.witness import Witness, watching

FULL: Final = ("WAL", "FULL")
CROWD: Final = 64


async def append(bench: Bench) -> None:
    """Measure Letopis, the limit and all peers at FULL, one at a time and 64 at once."""
    subjects: list[tuple[Callable[[], Subject], str, tuple[str, str] | None]] = [
        (Letopis, "", None),
        (AppendLimit, "", None),
        *((peer, "FULL", FULL) for peer in PEERS),
    ]
    await _measure(bench, "append", subjects)


async def peers(bench: Bench) -> None:
    """Measure the peers and Letopis with default settings."""
    subjects: list[tuple[Callable[[], Subject], str, tuple[str, str] | None]] = [
        (Letopis, "", None),
        *((peer, "", None) for peer in PEERS),
    ]
    await _measure(bench, "peers", subjects)


async def _measure(
    bench: Bench, prefix: str, subjects: Sequence[tuple[Callable[[], Subject], str, tuple[str, str] | None]]
) -> None:
    async with AsyncExitStack() as stack:
        add = stack.enter_context(watching())
        seats = []
        for make, variant, force in subjects:
            folder = bench.new_folder()
            witness = Witness(folder, force=force)
            add(witness)
            subject = make()
            try:
                await subject.open(folder)
            except Missed as reason:
                bench.miss(f"{subject.title} ({prefix})", str(reason))
                continue
            stack.push_async_callback(subject.close)
            seat = Seat(subject, witness, variant)
            await warm_up(seat)
            seats.append(seat)
        seconds = bench.scale.seconds(0.3)
        for at_once in (1, CROWD):
            await in_rounds(seats, at_once=at_once, rounds=bench.scale.rounds, seconds=seconds, chance=bench.chance)
            for seat in seats:
                bench.add(seat.figure(f"{prefix}.{at_once}", at_once))
