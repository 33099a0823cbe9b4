"""Say which seeds and how much virtual time have to show each defect of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tests.proof.simulation.plan import Profile
from tests.support.damage import DROP_EVENT_ID_INDEX
from tests.support.defects import (
    CONFIRMED_UNASKED,
    DELETION_KEEPS,
    DUPLICATES_TAKEN,
    ERASURE_SKIPPED,
    FOREIGN_LANES,
    FORK_RUNS_ON,
    HOLD_IGNORED,
    HOLD_OVERRUN,
    HOLLOWED_TOO_SOON,
    IN_PARTS,
    NOT_SWEPT,
    PUT_BACK_DROPPED,
    RECORDS_TWICE,
    REDACTED_LATER,
    REDACTION_LOST,
    REPLY_DROPPED,
    REPLY_RENAMED,
    RESET_KEEPS,
    TRIMMED_NEVER,
    TRIMMED_TOO_FAR,
    plant,
)
from tests.support.sqlite_rows import change

if TYPE_CHECKING:
    from tests.proof.simulation.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """How a defect is shown."""

    profile: Profile = "storm"
    scale: float = 1.0
    prepare: Callable[[World], None] | None = None


def keeping(last: int) -> Callable[[World], None]:
    """Have all outboxes keep so few delivered events."""

    def prepare(world: World) -> None:
        for place in world.places:
            place.plan = replace(place.plan, keep_last=last, keep_for=0.0)

    return prepare


def without_the_index(world: World) -> None:
    """Drop the index of the history store that would refuse an event a second time."""
    change(world.store_path, DROP_EVENT_ID_INDEX)


STUCK: Final = Mutant(profile="stuck", scale=0.5)
QUIET: Final = Mutant(profile="quiet", scale=0.4)
MUTANTS: Final = {
    "an append that fails is answered as if it were written": Mutant(),
    "content is not compared where an event id is known": Mutant(),
    "sequences are counted by what is still kept": Mutant(prepare=keeping(0)),
    "what is not delivered is let go as well": replace(STUCK, prepare=keeping(2)),
    "written off before it is delivered": Mutant(),
    "written off by the count of what was sent, not by what was taken": STUCK,
    "newer events of a conversation are sent first": Mutant(),
    "a conversation goes on behind the event that is refused": STUCK,
    "an outage is charged to the events": Mutant(),
    "the answer to a commit taken for final": Mutant(),
    "the store is not asked again once it was away": QUIET,
    "waits go by the wall clock alone": Mutant(profile="outage", scale=0.15),
    "a relay that was taken over writes back all the same": Mutant(profile="stopped"),
    DUPLICATES_TAKEN: Mutant(prepare=without_the_index),
    RECORDS_TWICE: Mutant(),
    FOREIGN_LANES: Mutant(profile="stopped"),
    HOLLOWED_TOO_SOON: Mutant(profile="stopped"),
    PUT_BACK_DROPPED: Mutant(),
    IN_PARTS: Mutant(),
    RESET_KEEPS: Mutant(),
    DELETION_KEEPS: QUIET,
    REDACTION_LOST: QUIET,
    REDACTED_LATER: QUIET,
    FORK_RUNS_ON: QUIET,
    REPLY_DROPPED: Mutant(),
    REPLY_RENAMED: Mutant(),
    CONFIRMED_UNASKED: Mutant(),
    ERASURE_SKIPPED: Mutant(),
    HOLD_IGNORED: Mutant(),
    HOLD_OVERRUN: Mutant(),
    TRIMMED_TOO_FAR: Mutant(),
    TRIMMED_NEVER: Mutant(),
    NOT_SWEPT: QUIET,
    "an apply is not one transaction": Mutant(),
    "each failure is an alert": QUIET,
    "no alerts": STUCK,
    "operators are told, and that they were is not recorded": STUCK,
}
"""By the name of the defect."""


def apply(name: str, world: World) -> None:
    """Plant a defect in this process, and prepare the world for it."""
    prepare = MUTANTS[name].prepare
    if prepare is not None:
        prepare(world)
    plant(name)
