"""Run the scripted cases with defects planted: without the rules, the wrong side is found at fault."""

from __future__ import annotations

import logging
from typing import Final

from tests.proof.blame.scripted import Case, run
from tests.support.defects import planted

LIMIT: Final = 30.0
REFUSES_EVERYBODY: Final = "a relay that never holds the store to blame for a refusal"
CONTROLS: Final = (
    "probes that go to the oldest event again",
    "a relay that convicts no event of what looks like an outage",
    REFUSES_EVERYBODY,
)
"""The defects: the last in a store that refuses everything, the others beside an event that fails like an outage."""


def without(control: str, case: Case) -> str:
    """Run a case with a defect planted; return what was wrong, empty where nothing was."""
    logging.disable()
    with planted(control):
        came = run(case)
    if case.everybody:
        return f"{came.at_worst} conversations were blocked" if came.at_worst else ""
    if came.waits > LIMIT:
        return f"a sound conversation waited {came.waits:.1f} s"
    return "" if came.blocked else "the bad event was never found"
