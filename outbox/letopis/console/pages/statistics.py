"""Messages, tokens and latency, by day, owner and model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.responses import Response

from letopis.console.charts import Chart, chart
from letopis.console.figures import NOBODY, OTHERS, Tally
from letopis.console.pages.answers import page
from letopis.console.visit import Visit

PERIODS: Final = (7, 30, 90, 365, 0)
"""The periods that can be chosen, in days; 0 is everything."""
MAX_BARS: Final = 120
MIN_DAYS: Final = 14
"""Days that a chart shows at least, if the period has them: one bar would fill all of its width."""
MAX_OWNERS: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@page
async def statistics(visit: Visit) -> Response:
    """Show the counts, or the progress of counting."""
    days = visit.whole("days", most=3650)
    days = days if days in PERIODS else 30
    counting = visit.state.figures
    progress = await counting.look()
    figures = counting.figures
    today = (datetime.now(UTC) - _EPOCH).days
    since = None if days == 0 else today - days + 1
    owner = visit.query("owner")
    shown = filled(figures.by_day(since=since, owner=owner), since, today)
    total = Tally()
    for _, tally in shown:
        total.add(tally)
    status = await visit.state.history.status()
    return visit.render(
        "statistics.html",
        progress=progress,
        days=days,
        periods=PERIODS,
        owner=owner or "",
        total=total,
        charts=charts(visit, grouped(shown)),
        by_day=[(_EPOCH + timedelta(days=day), tally) for day, tally in reversed(shown) if tally.messages][:60],
        by_model=figures.by_model(since=since)[:MAX_OWNERS],
        by_owner=figures.by_owner(since=since, limit=MAX_OWNERS),
        others=OTHERS,
        nobody=NOBODY,
        pending=status.pending,
    )


def filled(by_day: Mapping[int, Tally], since: int | None, today: int) -> list[tuple[int, Tally]]:
    """Return every day from the first one on, including days without messages."""
    if not by_day:
        return []
    first = min(*by_day, today - MIN_DAYS + 1)
    first = first if since is None else max(since, first)
    return [(day, by_day.get(day, Tally())) for day in range(first, max(today, max(by_day)) + 1)]


def grouped(days: list[tuple[int, Tally]]) -> list[tuple[int, int, Tally]]:
    """Group days into equal spans, as many as fit side by side: first day, last day, figures."""
    width = max(1, -(-len(days) // MAX_BARS))
    spans = []
    for start in range(0, len(days), width):
        part = days[start : start + width]
        total = Tally()
        for _, tally in part:
            total.add(tally)
        spans.append((part[0][0], part[-1][0], total))
    return spans


def charts(visit: Visit, spans: list[tuple[int, int, Tally]]) -> list[dict[str, Any]]:
    """Return the three charts with their titles."""
    _, lang = visit.language.gettext, visit.language
    labels = []
    for first, last, _tally in spans:
        begin = lang.day(_EPOCH + timedelta(days=first))
        labels.append(begin if first == last else f"{begin} – {lang.day(_EPOCH + timedelta(days=last))}")

    def drawn(values: list[float], line: list[float] | None = None) -> Chart:
        return chart(labels, values, line, ticks=4)

    return [
        {
            "title": _("Messages by day"),
            "drawing": drawn([tally.messages for *_, tally in spans]),
            "said": [lang.number(tally.messages) for *_, tally in spans],
            "number": lang.number,
        },
        {
            "title": _("Tokens by day"),
            "drawing": drawn([tally.tokens for *_, tally in spans]),
            "said": [lang.number(tally.tokens) for *_, tally in spans],
            "number": lang.number,
        },
        {
            "title": _("Time to answer by day (95th percentile)"),
            "drawing": drawn([tally.quantile(0.95) or 0.0 for *_, tally in spans]),
            "said": [lang.latency(tally.quantile(0.95)) for *_, tally in spans],
            "number": lang.latency,
        },
    ]
