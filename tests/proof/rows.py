"""Hold what one experiment of the proof did and found, as a row of its table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One experiment and its outcome.

    :ivar what: was done, in a few words.
    :ivar where: the store, driver or model that it was done to; empty where there is only one.
    :ivar count: how many of ``unit`` there were: faults that fired, not tests that ran.
    :ivar unit: what is counted: kills, states, inputs ...
    :ivar least: how many the whole proof has to reach; a short one is not held to it.
    :ivar violations: of what is promised: lost, doubled, reordered, half, changed, leaked.
    :ivar control: whether the promise was taken away on purpose, so that violations *must* be found.
    :ivar notes: other figures that say what happened, such as acknowledged events or ambiguous commits.
    :ivar problems: the first violations, in words.
    :ivar missing: why it could not be run on this machine; then it proves nothing, and says so.
    """

    what: str
    where: str = ""
    count: int = 0
    unit: str = ""
    least: int = 0
    violations: int = 0
    control: bool = False
    notes: str = ""
    problems: tuple[str, ...] = ()
    missing: str = ""

    def ok(self, *, short: bool, require: bool = False) -> bool:
        if self.missing:
            return not require
        if self.control:
            return self.violations > 0 and self.count > 0
        return self.violations == 0 and self.count >= (1 if short else max(self.least, 1))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "problems": tuple(data["problems"])})


def row_of(
    what: str,
    where: str = "",
    count: int = 0,
    least: int = 0,
    unit: str = "",
    problems: Sequence[str] = (),
    notes: str = "",
    *,
    violations: int | None = None,
    control: bool = False,
) -> Row:
    """Return the row of an experiment, each of whose violations is a problem in words if they are not counted apart."""
    found = len(problems) if violations is None else violations
    figures: dict[str, Any] = {"count": count, "least": least, "unit": unit, "violations": found}
    return Row(what=what, where=where, **figures, problems=tuple(problems[:10]), notes=notes, control=control)
