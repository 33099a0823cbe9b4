"""Compute the shapes of charts, which the templates draw as SVG; no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HEIGHT: Final = 100.0
"""The height of the drawing; its width is 10 for each bar. The page stretches both."""
STEP: Final = 10.0
_GAP: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: its position, its height and its text.

    :ivar part: a second bar in front of it, on the same baseline: height and top.
    """

    x: float
    y: float
    width: float
    height: float
    label: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A bar chart, optionally with a line over the bars.

    :ivar width: the width of the drawing.
    :ivar top: the value at the upper edge.
    :ivar lines: the grid lines: value and position, the largest first.
    :ivar line: the vertices of the line, in the form of SVG's ``points``; empty if there is no line.
    :ivar labels: some of the bars' labels, to be shown below: the first, those between, the last.
    """

    width: float
    top: float
    bars: tuple[Bar, ...]
    line: str
    lines: tuple[tuple[float, float], ...]
    labels: tuple[str, ...]


def chart(
    labels: Sequence[str], values: Sequence[float], line: Sequence[float] | None = None, *, ticks: int = 5
) -> Chart:
    """Return the shapes of a chart.

    :param labels: the bars' labels.
    :param values: the bars' values, none below zero.
    :param line: values of a line over the bars, on the same scale.
    :param ticks: how many labels to show below.
    """
    top = nice_top(max([*values, *(line or ()), 0]))
    bars = tuple(
        Bar(
            x=round(index * STEP + _GAP / 2, 2),
            y=round(HEIGHT - _scaled(value, top), 2),
            width=STEP - _GAP,
            height=round(_scaled(value, top), 2),
            label=label,
            value=value,
        )
        for index, (label, value) in enumerate(zip(labels, values, strict=True))
    )
    points = " ".join(
        f"{index * STEP + STEP / 2:g},{round(HEIGHT - _scaled(value, top), 2):g}"
        for index, value in enumerate(line or ())
    )
    return Chart(
        width=max(len(bars), 1) * STEP,
        top=top,
        bars=bars,
        line=points,
        lines=tuple((value, round(HEIGHT - _scaled(value, top), 2)) for value in (top, top / 2)),
        labels=some_of(labels, ticks),
    )


def nice_top(largest: float) -> float:
    """Return a round number that is at least as large, and at least 4: 4, 10, 20, 40, 100 ..."""
    if largest <= 4:
        return 4
    power = 10 ** math.floor(math.log10(largest))
    for factor in (1, 2, 4, 6, 8, 10):
        if factor * power >= largest:
            return float(factor * power)
    return float(10 * power)


def some_of(labels: Sequence[str], count: int) -> tuple[str, ...]:
    """Return at most ``count`` labels, spread evenly, the first and the last among them."""
    if len(labels) <= count:
        return tuple(labels)
    return tuple(labels[round(step * (len(labels) - 1) / (count - 1))] for step in range(count))


def _scaled(value: float, top: float) -> float:
    return 0.0 if value <= 0 else max(HEIGHT * value / top, 1.0)
