"""Stuck conversations, each with its fault and its event, and incidents with who was notified."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import orjson
from starlette.responses import Response

from letopis.console.pages.answers import page, problem
from letopis.console.stuck_lanes import STUCK_STATES
from letopis.console.visit import Visit
from letopis.outbox.operations.pending_events import PendingEvent

PER_PAGE: Final = 25
MAX_EDITED_CHARACTERS: Final = 200_000
"""The longest event data that can be corrected in the browser, in characters."""


@page
async def stuck(visit: Visit) -> Response:
    """List stuck conversations and incidents."""
    insight = visit.state.insight
    state = visit.query("state")
    state = state if state in STUCK_STATES else None
    fault_class = visit.query("fault")
    after = visit.query("after") or ""
    lanes = await insight.stuck(limit=PER_PAGE + 1, after=after, state=state, fault_class=fault_class)
    more = len(lanes) > PER_PAGE
    return visit.render(
        "stuck.html",
        lanes=lanes[:PER_PAGE],
        next=lanes[PER_PAGE - 1].conversation_id if more else None,
        groups=await insight.stuck_groups(),
        incidents=await insight.incidents(),
        status=await visit.state.history.status(),
        state=state,
        fault_class=fault_class,
        after=after,
        done=visit.query("done"),
        count=visit.whole("count", most=10**9) or 0,
    )


@page
async def event(visit: Visit) -> Response:
    """Show one pending event with its data, its repairs, and the possible actions."""
    _ = visit.language.gettext
    try:
        event_id = UUID(visit.request.path_params["event_id"])
    except ValueError:
        return problem(visit, 404, _("There is no such event."))
    found = await visit.state.insight.event(event_id)
    if found is None:
        text = _("No pending event has this id: it was delivered or skipped, or never appended.")
        return problem(visit, 404, text)
    entry, repairs = found
    return show_event(visit, entry, repairs=repairs)


def show_event(visit: Visit, entry: PendingEvent, *, code: int = 200, **context: object) -> Response:
    """Return the page for an event."""
    text = indented(entry.data)
    given = {"repairs": [], "wrong": "", "edited": None, **context}
    return visit.render(
        "event.html",
        code=code,
        entry=entry,
        data=text,
        metadata=None if entry.metadata is None else indented(entry.metadata),
        editable=len(text) <= MAX_EDITED_CHARACTERS,
        **given,
    )


def indented(data: str) -> str:
    """Return stored JSON, indented; unchanged if it is damaged."""
    try:
        return orjson.dumps(orjson.loads(data), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return data
