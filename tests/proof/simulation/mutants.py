"""Say which seeds and how much virtual time have to show each defect of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tests.proof.simulation.plan import Profile
from tests.support import defects
from tests.support.sqlite_rows import change
from tests.support.store_changes import DROP_EVENT_ID_INDEX

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


STUCK: Final = Mutant(profile="stuck", scale=0.5)
QUIET: Final = Mutant(profile="quiet", scale=0.4)
STOPPED: Final = Mutant(profile="stopped")
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
    "a relay that was taken over writes back all the same": STOPPED,
    # Without the index that would refuse an event a second time.
    defects.DUPLICATES_TAKEN: Mutant(prepare=lambda world: change(world.store_path, DROP_EVENT_ID_INDEX)),
    defects.RECORDS_TWICE: Mutant(),
    defects.FOREIGN_LANES: STOPPED,
    defects.HOLLOWED_TOO_SOON: STOPPED,
    defects.IDS_KEPT: Mutant(),
    defects.IN_PARTS: Mutant(),
    defects.RESET_KEEPS: Mutant(),
    defects.DELETION_KEEPS: QUIET,
    defects.REDACTION_LOST: QUIET,
    defects.REDACTED_LATER: QUIET,
    defects.FORK_RUNS_ON: QUIET,
    defects.REPLY_DROPPED: Mutant(),
    defects.REPLY_RENAMED: Mutant(),
    defects.CONFIRMED_UNASKED: Mutant(),
    defects.ERASURE_SKIPPED: Mutant(),
    defects.HOLD_IGNORED: Mutant(),
    defects.HOLD_OVERRUN: Mutant(),
    defects.TRIMMED_TOO_FAR: Mutant(),
    defects.TRIMMED_NEVER: Mutant(),
    defects.NOT_SWEPT: QUIET,
    "an apply is not one transaction": Mutant(),
    "each failure is an alert": QUIET,
    "no alerts": STUCK,
    "operators are told, and that they were is not recorded": STUCK,
}
"""By the name of the defect."""
