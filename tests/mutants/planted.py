"""The controls: defects that tests are known to catch, one change each. A run that misses one fails."""

from __future__ import annotations

from typing import Final

from tests.mutants.lines import OUTBOX
from tests.mutants.mutations import Mutant
from tests.support.reports import ROOT

PLANTED: Final = (
    (OUTBOX / "event_log/acknowledge.py", "WHEN state = 'paused' THEN 'paused' ", ""),
    (OUTBOX / "pending_reads/lineage.py", "s.sequence IS NULL AND ", ""),
    ("store/letopis/store/rules/apply_plan.py", "if self.deleted:", "if False:"),
    (OUTBOX / "relay/lease.py", "if _sign_of_life(connection) == sign else 0", "if True else 0"),
    (OUTBOX / "retry/circuit_breaker.py", "if self.state is BreakerState.OPEN:", "if False:"),
    ("store/letopis/store/write/redaction.py", "await connection.execute(self._remove_reactions, place)", "pass"),
)


def planted() -> list[Mutant]:
    """Return the controls.

    :raises ValueError: the code has changed, and a defect has no place in it, or several.
    """
    found = []
    for path, old, new in PLANTED:
        text = (ROOT / path).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{path} has {text.count(old)} places for the control {old!r}")
        start = text.index(old)
        line = text.count("\n", 0, start) + 1
        found.append(Mutant(path=str(path), start=start, end=start + len(old), new=new, lines=(line, line)))
    return found
