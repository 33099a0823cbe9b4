"""The list of conversations, optionally by owner, and the search for conversations and in their messages."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from starlette.responses import Response

from letopis.console.pages.answers import page
from letopis.console.visit import Visit
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import Conversation, Page
from letopis.store.read.paging import DEFAULT_STATES, STATES
from letopis.store.search.results import Hit

PER_PAGE: Final = 25
MAX_MATCHES: Final = 10
"""Conversations that a search lists above the messages."""
MAX_TITLES: Final = 1_000
"""Conversations whose titles a search reads, those of the last activity: no index holds titles."""
TITLES_PER_READ: Final = 200
MAX_ID_LENGTH: Final = 255
MAX_TRAIL_LENGTH: Final = 4_000
GAP: Final = "-"
"""Stands in a trail for pages that it has no room for."""


@page
async def conversations(visit: Visit) -> Response:
    """List conversations by last activity, of all owners or one; or list what a search finds."""
    history, query, owner, after = visit.state.history, visit.query("q"), visit.query("owner"), visit.query("after")
    state = visit.query("state")
    states = STATES if state == "all" else (state,) if state in STATES else DEFAULT_STATES
    hits: Page[Hit] | None = None
    wrong = ""
    listed = None
    matches: list[Conversation] = []
    try:
        if query is None:
            listed = await history.conversations(owner=owner, after=after, limit=PER_PAGE, states=states)
        else:
            matches = [] if after else await find(visit, query, owner)
            hits = await history.search(query, owner=owner, after=after, limit=PER_PAGE)
    except InvalidInput as error:
        if error.field not in ("query", "owner", "after"):
            raise
        wrong = "" if matches else error.reason  # an id need not have a word in it
    shown = hits if listed is None else listed
    # Pages are read forward, so a page carries the cursors of those before it; that of the first page is empty.
    back = [] if after is None else (visit.query("back") or "").split("~")
    trail = "~".join((*back, after or ""))
    return visit.render(
        "conversations.html",
        conversations=listed,
        matches=matches,
        max_titles=MAX_TITLES,
        hits=hits,
        query=query or "",
        owner=owner or "",
        state=state if state in (*STATES, "all") else "active",
        wrong=wrong,
        complete=shown is None or shown.complete,
        unindexed=0 if shown is None else shown.unindexed,
        next=None if shown is None else shown.next,
        after=after,
        back=back,
        gap=GAP,
        trail=trail if len(trail) <= MAX_TRAIL_LENGTH else GAP,
        done=visit.query("done"),
    )


async def find(visit: Visit, text: str, owner: str | None) -> list[Conversation]:
    """Return conversations, in any state, whose id begins with a text, whose owner it is, or whose title has it.

    At most ``MAX_MATCHES``, in this order. Case does not matter in titles, of which the newest ``MAX_TITLES`` are read.
    """
    history, matches = visit.state.history, dict[str, Conversation]()

    def add(candidates: Iterable[Conversation | None]) -> None:
        for conversation in candidates:
            if conversation is not None and owner in (None, conversation.owner_id):
                matches.setdefault(conversation.conversation_id, conversation)

    text = text.strip()
    if text.isprintable() and 0 < len(text) <= MAX_ID_LENGTH:
        ids = await visit.state.insight.conversation_ids(text, limit=MAX_MATCHES)
        add([await history.chat(name).conversation() for name in ids])
        if owner is None:
            with suppress(InvalidInput):
                add(await history.conversations(owner=text, limit=MAX_MATCHES, states=STATES))
    after = None
    for _ in range(MAX_TITLES // TITLES_PER_READ):
        if len(matches) >= MAX_MATCHES or not text:
            break
        titled = await history.conversations(owner=owner, after=after, limit=TITLES_PER_READ, states=STATES)
        add(item for item in titled if text.casefold() in (item.title or "").casefold())
        if (after := titled.next) is None:
            break
    return list(matches.values())[:MAX_MATCHES]
