"""Judge which rows of the table are reached, and which figures may be compared at all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure


class NotComparable(Exception):
    """Two figures must not be put side by side; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One figure divided by another, round by round: what made the machine slow in a round made both slow."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One comparison with what is asked for.

    :ivar got: ``None`` where it could not be measured or must not be compared; ``note`` says why.
    """

    what: str
    wanted: str
    got: str | None
    reached: bool | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a row of the table came to.

    :ivar reached: ``None`` where a condition is open and none has failed.
    """

    number: int
    work: str
    conditions: tuple[Condition, ...]

    @property
    def reached(self) -> bool | None:
        """Return True if all conditions are met."""
        found = [one.reached for one in self.conditions]
        return False if False in found else None if None in found or not found else True


class Figures:
    """The figures of a run, by key."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._figures: dict[str, Figure] = {}
        for one in figures:
            if one.key in self._figures:
                raise ValueError(f"two figures are called {one.key!r}")
            self._figures[one.key] = one

    def get(self, key: str) -> Figure | None:
        """Return a figure, if it was measured."""
        return self._figures.get(key)

    def under(self, prefix: str) -> list[Figure]:
        """Return the figures whose keys begin so."""
        return [one for key, one in self._figures.items() if key.startswith(prefix)]


def compare(one: Figure, other: Figure) -> Ratio:
    """Return ``one`` divided by ``other``.

    :raises NotComparable: the units differ; one is durable and the other is not; or something speaks against either.
    """
    for figure in (one, other):
        if figure.objections:
            raise NotComparable(f"{figure.name}: {'; '.join(figure.objections)}")
        if not figure.samples:
            raise NotComparable(f"{figure.name} has no samples")
    if one.unit != other.unit or one.more_is_better != other.more_is_better:
        raise NotComparable(f"{one.name} is in {one.unit}, {other.name} in {other.unit}")
    if (one.durability is None) != (other.durability is None):
        raise NotComparable(f"the durability of {one.name if one.durability is None else other.name} is not known")
    if (
        one.durability is not None
        and other.durability is not None
        and one.durability.durable != other.durability.durable
    ):
        raise NotComparable(f"unequal durability: {one.name} is {one.durability}, {other.name} is {other.durability}")
    if len(one.samples) == len(other.samples):
        ratios = [a / b for a, b in zip(one.samples, other.samples, strict=True) if b]
    else:
        ratios = [one.median / other.median] if other.median else []
    if not ratios:
        raise NotComparable(f"{other.name} is zero")
    return Ratio(median=statistics.median(ratios), low=min(ratios), high=max(ratios))


def at_least(figures: Figures, key: str, other: str, share: float, *, what: str) -> Condition:
    """Ask that a figure is at least ``share`` times another."""
    return _ratio(figures, key, other, what=what, wanted=f"at least {share:g}", meets=lambda ratio: ratio >= share)


def at_most(figures: Figures, key: str, other: str, share: float, *, what: str) -> Condition:
    """Ask that a figure is at most ``share`` times another."""
    return _ratio(figures, key, other, what=what, wanted=f"at most {share:g}", meets=lambda ratio: ratio <= share)


def below(figures: Figures, key: str, limit: float, *, what: str, detail: str | None = None) -> Condition:
    """Ask that a figure, or a detail of it, is below a limit."""
    wanted = f"below {limit:g}"
    figure = figures.get(key)
    if figure is None or (detail is not None and detail not in figure.details):
        return Condition(what=what, wanted=wanted, got=None, reached=None, note="not measured")
    if figure.objections:
        return Condition(what=what, wanted=wanted, got=None, reached=None, note="; ".join(figure.objections))
    value = figure.median if detail is None else figure.details[detail]
    unit = figure.unit if detail is None else detail.rpartition(" ")[2]
    return Condition(what=what, wanted=f"{wanted} {unit}", got=f"{value:.3g} {unit}", reached=value < limit)


def ahead(
    figures: Figures, key: str, rivals: str, times: float, *, what: str, only: Callable[[Figure], bool]
) -> Condition:
    """Ask that a figure is at least ``times`` that of the best of its rivals that may be compared with it.

    Rivals of another durability are left out and named: they are no reason to be content, or not.
    """
    wanted = f"at least {times:g}"
    figure = figures.get(key)
    if figure is None:
        return Condition(what=what, wanted=wanted, got=None, reached=None, note="not measured")
    best: tuple[float, Ratio, Figure] | None = None
    left_out = []
    for rival in figures.under(rivals):
        if not only(rival):
            continue
        try:
            ratio = compare(figure, rival)
        except NotComparable as reason:
            left_out.append(str(reason))
            continue
        # How many times better: of what is better when it is less, the other way round.
        better = ratio.median if figure.more_is_better else 1 / ratio.median
        if best is None or better < best[0]:
            best = (better, ratio, rival)
    note = f"left out: {'; '.join(left_out)}" if left_out else ""
    if best is None:
        return Condition(what=what, wanted=wanted, got=None, reached=None, note=note or "no rival was measured")
    better, _, rival = best
    return Condition(
        what=what, wanted=wanted, got=f"{better:.2f} times {rival.name}", reached=better >= times, note=note
    )


def _ratio(
    figures: Figures, key: str, other: str, *, what: str, wanted: str, meets: Callable[[float], bool]
) -> Condition:
    one, another = figures.get(key), figures.get(other)
    if one is None or another is None:
        return Condition(what=what, wanted=wanted, got=None, reached=None, note="not measured")
    try:
        ratio = compare(one, another)
    except NotComparable as reason:
        return Condition(what=what, wanted=wanted, got=None, reached=None, note=str(reason))
    return Condition(what=what, wanted=wanted, got=str(ratio), reached=meets(ratio.median))


def unequal(figures: Sequence[Figure]) -> str | None:
    """Return the sentence that must stand beside a table of these figures; ``None`` where all are equally durable."""
    durable = [one.name for one in figures if one.durability is not None and one.durability.durable]
    weak = [
        f"{one.name} ({one.durability})" for one in figures if one.durability is not None and not one.durability.durable
    ]
    if not weak or not durable:
        return None
    return f"Not of equal durability, so no comparison: {', '.join(weak)} may lose what was acknowledged."
