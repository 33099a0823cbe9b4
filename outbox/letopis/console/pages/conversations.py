"""The list of conversations, optionally by owner, and the search in their messages."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from letopis.console.pages.answers import page
from letopis.console.visit import Visit
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import Page
from letopis.store.read.paging import DEFAULT_STATES, STATES
from letopis.store.search.results import Hit

PER_PAGE: Final = 25


@page
async def conversations(visit: Visit) -> Response:
    """List conversations by last activity, of all owners or one; or list the messages found by a search."""
    history, query, owner, after = visit.state.history, visit.query("q"), visit.query("owner"), visit.query("after")
    state = visit.query("state")
    states = STATES if state == "all" else (state,) if state in STATES else DEFAULT_STATES
    hits: Page[Hit] | None = None
    wrong = ""
    found = None
    try:
        if query is None:
            found = await history.conversations(owner=owner, after=after, limit=PER_PAGE, states=states)
        else:
            hits = await history.search(query, owner=owner, after=after, limit=PER_PAGE)
    except InvalidInput as error:
        if error.field not in ("query", "owner", "after"):
            raise
        wrong = error.reason
    shown = hits if found is None else found
    return visit.render(
        "conversations.html",
        conversations=found,
        hits=hits,
        query=query or "",
        owner=owner or "",
        state=state if state in (*STATES, "all") else "active",
        wrong=wrong,
        complete=shown is None or shown.complete,
        unindexed=0 if shown is None else shown.unindexed,
        next=None if shown is None else shown.next,
        after=after,
    )
