# pyright: reportMissingImports=false
"""List ADK's sessions, with their state and without events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from google.adk.sessions.session import Session

from letopis.adapters.google_adk.session_record import ROOT, SessionRecord, app_space, user_space
from letopis.adapters.google_adk.state import Found, merged_state, read_all
from letopis.outbox import History
from letopis.store import Conversation, Page, StoreUnavailable
from letopis.store.model.identifiers import Owner

_STATES: Final = ("active", "archived")
_PAGE: Final = 200
_AT_A_TIME: Final = 8
"""How many sessions' state is read concurrently."""


class SessionListing:
    """The sessions of an application, or of one of its users."""

    def __init__(
        self, history: History, app_name: str, user_id: str | None, *, owner: Owner | None, require_complete: bool
    ) -> None:
        self._history = history
        self._app_name = app_name
        self._user_id = user_id
        self._owner = owner
        self._require_complete = require_complete
        self._users: dict[str, asyncio.Task[Found]] = {}

    async def all(self) -> list[Session]:
        """Return all sessions, in no particular order."""
        found: list[Session] = []
        after: str | None = None
        while True:
            page = await self.page(limit=_PAGE, after=after)
            found += page
            if (after := page.next) is None:
                return found

    async def page(self, *, limit: int, after: str | None) -> Page[Session]:
        """Return a page of sessions, the newest first."""
        listed = await self._history.conversations(owner=self._owner, limit=limit, after=after, states=_STATES)
        self._check(listed.complete)
        app = await read_all(self._history.records(space=app_space(self._app_name)))
        self._check(app.complete)
        limiter = asyncio.Semaphore(_AT_A_TIME)

        async def read(conversation_id: str) -> Session | None:
            async with limiter:
                return await self._session(conversation_id, app)

        sessions = await asyncio.gather(*map(read, self._wanted(listed)))
        items = tuple(one for one in sessions if one is not None)
        return Page(items, next=listed.next, complete=listed.complete)

    def _wanted(self, conversations: Iterable[Conversation]) -> list[str]:
        """Return the conversations that are sessions of the application and the user."""
        found = []
        for one in conversations:
            about = one.metadata.get(ROOT)
            if not isinstance(about, Mapping) or about.get("app_name") != self._app_name:
                continue
            if self._user_id is None or about.get("user_id") == self._user_id:
                found.append(one.conversation_id)
        return found

    async def _session(self, conversation_id: str, app: Found) -> Session | None:
        own = await read_all(self._history.records(conversation=conversation_id))
        self._check(own.complete)
        record = SessionRecord.among(own.records)
        if record is None:
            return None  # deleted since, or older than what the outbox retains
        user = await self._state_of(record.user_id)
        state = merged_state(record.state, own, app, user)
        return record.to_session(state=state, events=[], newest=None)

    async def _state_of(self, user_id: str) -> Found:
        """Return the state of a user, read once for all their sessions."""
        if user_id not in self._users:
            space = user_space(self._app_name, user_id)
            self._users[user_id] = asyncio.ensure_future(read_all(self._history.records(space=space)))
        found = await self._users[user_id]
        self._check(found.complete)
        return found

    def _check(self, complete: bool) -> None:
        if self._require_complete and not complete:
            raise StoreUnavailable("all sessions")
