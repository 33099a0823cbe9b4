"""The audit log: what operators did."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from letopis.console.pages.answers import page
from letopis.console.visit import Visit

PER_PAGE: Final = 50


@page
async def audit(visit: Visit) -> Response:
    """List actions, newest first."""
    before = visit.whole("before", least=1)
    entries = await visit.state.insight.audit(limit=PER_PAGE + 1, before=before)
    more = len(entries) > PER_PAGE
    entries = entries[:PER_PAGE]
    return visit.render("audit.html", entries=entries, next=entries[-1].entry_id if more else None, before=before)
