"""Plan when to break what: the same plan for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

Kind = Literal["kill", "cut", "outage"]

ROOM: Final = 3000
"""Events between two faults below which the relay would be done before they all fire: a few batches of it."""

SPARE: Final = 6
"""Waves of a small sample that bring no faults of their own, for those that a quick relay left nothing to hit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing to break, as soon as the relay is at work and the store has got ``after`` events."""

    kind: Kind
    after: int
    delay: float

    def sooner(self) -> Fault:
        """Return the same fault for its next try, after one that found everything delivered."""
        return replace(self, delay=self.delay / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """One run of the import: the file's first ``lines`` lines, and what breaks while they are delivered."""

    lines: int
    faults: tuple[Fault, ...]


def schedule(*, lines: int, kills: int, cuts: int, outages: int, seed: int) -> Sequence[Wave]:
    """Return the waves of a campaign.

    Where there are enough lines, there is one wave and the faults are spread over it. A small sample would be delivered
    before they all fired: it comes in as many waves as there are faults to fire, each importing the file a little
    further, from its start, so that importing twice is tried as well. The last waves are spare ones.
    """
    chance = random.Random(seed)
    order: list[Kind] = ["kill"] * kills
    order += ["cut"] * cuts
    chance.shuffle(order)
    for _ in range(outages):
        order.insert(chance.randint(len(order) // 3, 2 * len(order) // 3), "outage")
    if not order or lines // len(order) >= ROOM:
        # Not in the last part, so that every fault finds the relay at work.
        marks = sorted(chance.randint(lines // 50, lines * 9 // 10) for _ in order)
        faults = (_fault(kind, mark, chance) for kind, mark in zip(order, marks, strict=True))
        return (Wave(lines=lines, faults=tuple(faults)),)
    # Two faults a wave: the first leaves the relay something to do for the second.
    pairs = [order[place : place + 2] for place in range(0, len(order), 2)] + [[] for _ in range(SPARE)]
    return tuple(
        Wave(
            lines=lines * number // len(pairs),
            # A cut first: while the relay waits to connect again there is surely something pending.
            faults=tuple(_fault(kind, 0, chance) for kind in sorted(pair, key=("cut", "outage", "kill").index)),
        )
        for number, pair in enumerate(pairs, 1)
    )


def _fault(kind: Kind, after: int, chance: random.Random) -> Fault:
    return Fault(kind=kind, after=after, delay=chance.uniform(0, 0.015))
