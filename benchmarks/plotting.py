"""Draw bars with their least and greatest samples as a self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

_ROW: Final = 26
_LABELS: Final = 330
_BARS: Final = 400
_FIGURES: Final = 170


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar.

    :ivar weak: drawn hatched, for it is of another durability than the others.
    :ivar ours: drawn in the colour of the house.
    """

    label: str
    median: float
    low: float
    high: float
    ours: bool = False
    weak: bool = False


def bars(title: str, unit: str, items: Sequence[Bar]) -> str:
    """Return an ``<svg>`` element with a bar an item, on a scale from 0, without a line that is empty.

    Colours are readable on white and on black. All text is escaped.
    """
    width = _LABELS + _BARS + _FIGURES
    height = 34 + _ROW * len(items) + 8
    most = max((one.high for one in items), default=0.0) or 1.0

    def at(value: float) -> float:
        return _LABELS + _BARS * max(0.0, value) / most

    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
            f' style="max-width:100%;height:auto;font:13px sans-serif" fill="currentColor">'
        ),
        f"<title>{escape(title)}</title>",
        (
            '<defs><pattern id="weak" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<rect width="3" height="6" fill="#b8862d"/></pattern></defs>'
        ),
        f'<text x="0" y="18" font-weight="bold">{escape(title)} ({escape(unit)})</text>',
    ]
    for place, one in enumerate(items):
        top = 34 + _ROW * place
        middle = top + _ROW / 2 - 2
        length = max(1.0, at(one.median) - _LABELS)
        colour = "url(#weak)" if one.weak else "#2d7fb8" if one.ours else "#8a8f98"
        lines += [
            f'<text x="{_LABELS - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(one.label)}</text>',
            (f'<rect x="{_LABELS}" y="{top + 3}" width="{length:.1f}" height="{_ROW - 10}" fill="{colour}"/>'),
            (
                f'<line x1="{at(one.low):.1f}" x2="{at(one.high):.1f}" y1="{middle:.1f}" y2="{middle:.1f}"'
                f' stroke="currentColor" stroke-width="1.5"/>'
            ),
            f'<text x="{at(one.high) + 6:.1f}" y="{middle + 4:.1f}">{rounded(one.median)}</text>',
        ]
    lines.append("</svg>")
    return "\n".join(lines)


def rounded(value: float) -> str:
    """Return a number with three figures that count."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
