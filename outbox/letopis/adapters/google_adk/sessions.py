# pyright: reportMissingImports=false
"""Provide a history to ADK as a session service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.events.event import Event
from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig, ListSessionsResponse
from google.adk.sessions.session import Session

from letopis.adapters.google_adk.appending import EventAppender
from letopis.adapters.google_adk.events import events_of
from letopis.adapters.google_adk.listing import SessionListing
from letopis.adapters.google_adk.session_record import (
    KEY,
    NAMESPACE,
    ROOT,
    SessionRecord,
    app_space,
    conversation_of,
    newest_of,
    user_space,
)
from letopis.adapters.google_adk.state import Delta, Found, merged_state, put_delta, read_all
from letopis.outbox import History
from letopis.store import (
    ABSENT,
    ConversationAnnotated,
    ConversationGone,
    ConversationStarted,
    InvalidInput,
    Page,
    RecordConflict,
    StoreUnavailable,
)
from letopis.store.cancellation import run_to_completion
from letopis.store.model.identifiers import Owner, uuid7


def _user(app_name: str, user_id: str) -> Owner | None:
    return user_id or None


class LetopisSessionService(BaseSessionService):
    """A ``BaseSessionService``: each session is a conversation of a history.

    ::

        runner = Runner(app_name="bot", agent=agent, session_service=LetopisSessionService(history))

    Events come back as they were appended, in the order of the appends, whatever their clocks say. An event and the
    state that it changes are written in one outbox transaction, durable when ``append_event`` returns, whether or not
    the history store can be reached. Appending the same event again has no effect.

    State is kept by key, in ADK's scopes: session, user and application. Two outboxes that change different keys do not
    affect each other; for the same key, the last change counts. A reader elsewhere may see an event shortly before the
    state that it changed.

    If neither the outbox nor the history store can say whether a session exists, ``StoreUnavailable`` is raised; the
    result is never ``None``.

    :param history: opened on first use, not closed here.
    :param conversation: returns the conversation id for an application, a user and a session; by default
        ``adk/app/user/session``.
    :param owner: returns the conversation's owner for an application and a user; by default the user.
    :param check_stale: ``False`` to append even if a session has changed since it was loaded. Changed state is then
        merged by key.
    :param require_complete: ``True`` to raise ``StoreUnavailable`` while the history store is unreachable and the
        outbox may not hold all events and state; by default a run gets those that the outbox retains.
    """

    def __init__(
        self,
        history: History,
        *,
        conversation: Callable[[str, str, str], str] = conversation_of,
        owner: Callable[[str, str], Owner | None] = _user,
        check_stale: bool = True,
        require_complete: bool = False,
    ) -> None:
        if not isinstance(history, History):
            raise InvalidInput("history", f"must be a History, not {type(history).__name__}")
        self._history = history
        self._conversation = conversation
        self._owner = owner
        self._appender = EventAppender(history, owner=owner, check_stale=check_stale)
        self._require_complete = require_complete
        self._locks: WeakValueDictionary[tuple[asyncio.AbstractEventLoop, str], asyncio.Lock] = WeakValueDictionary()

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
        new: bool = False,
    ) -> Session:
        """Create a session and return it.

        :param session_id: generated if not given.
        :param new: you say that no session has this id, so that it is created also while the history store is
            unavailable. If there is one after all, its events and those of the new one come together in it.
        :raises AlreadyExistsError: a session with this id exists.
        :raises StoreUnavailable: with ``session_id``, not ``new``: only the history store can tell whether it exists.
        :raises LetopisError: as for ``History.append``.
        """
        given = session_id.strip() if session_id else ""
        name = given or str(uuid7())
        conversation_id = self._conversation(app_name, user_id, name)
        records = self._history.records(conversation=conversation_id, new=new)
        if given and await records.get(NAMESPACE, KEY) is not None:
            raise AlreadyExistsError(f"Session with id {name} already exists.")
        app, user = await asyncio.gather(self._app_state(app_name), self._user_state(app_name, user_id))
        self._check_complete(app, user)
        delta = Delta.of(state)
        merged = Delta(app={**app.state, **delta.app}, user={**user.state, **delta.user}, session=delta.session)
        record = SessionRecord.new(app_name, user_id, name, now=time.time(), state=merged.merged())

        async def begin() -> None:
            async with self._history.transaction() as tx:
                await tx.put(records, NAMESPACE, KEY, record.to_json(), expected=ABSENT)
                owner = self._owner(app_name, user_id)
                about = {ROOT: {"app_name": app_name, "user_id": user_id, "session_id": name}}
                await tx.append(
                    conversation_id, ConversationStarted(), ConversationAnnotated(metadata=about), owner=owner
                )
                await put_delta(tx, self._history, conversation_id, app_name, user_id, delta, new=True)

        try:
            await run_to_completion(begin())
        except RecordConflict as error:
            raise AlreadyExistsError(f"Session with id {name} already exists.") from error
        except ConversationGone as error:
            raise AlreadyExistsError(f"Session with id {name} was deleted for good: take another id.") from error
        return record.to_session(state=merged.merged(), events=[], newest="")

    async def get_session(
        self, *, app_name: str, user_id: str, session_id: str, config: GetSessionConfig | None = None
    ) -> Session | None:
        """Return a session with its events and state; ``None`` only if it certainly does not exist.

        :param config: the newest ``num_recent_events``, limited to those from ``after_timestamp`` on.
        :raises StoreUnavailable: the history store does not answer, and the outbox does not know the session; with
            ``require_complete`` also if it may not hold all of it.
        """
        conversation_id = self._conversation(app_name, user_id, (session_id or "").strip())
        last = None if config is None else config.num_recent_events
        # Events first: an event appended meanwhile makes the session stale, and its state change is included.
        page = await self._history.messages(conversation_id, last=None if last is None else max(1, last))
        own, app, user = await asyncio.gather(
            read_all(self._history.records(conversation=conversation_id)),
            self._app_state(app_name),
            self._user_state(app_name, user_id),
        )
        record = SessionRecord.among(own.records)
        if record is None:
            if not own.complete:
                raise StoreUnavailable("the session")
            return None
        self._check_complete(own, app, user)
        if self._require_complete and not page.complete and (last is None or len(page) < last):
            raise StoreUnavailable("all events that were asked for")
        events = [] if last == 0 else events_of(page)
        if config is not None and config.after_timestamp is not None:
            events = [one for one in events if one.timestamp >= config.after_timestamp]
        return record.to_session(
            state=merged_state(record.state, own, app, user), events=events, newest=newest_of(page)
        )

    async def list_sessions(self, *, app_name: str, user_id: str | None = None) -> ListSessionsResponse:
        """Return all sessions of a user, or of the application, with their state and without events.

        Ordered by their last events, oldest first. While the history store is unreachable, only those that the outbox
        retains. For many sessions, see :meth:`list_sessions_page`.

        :raises StoreUnavailable: only with ``require_complete``.
        """
        sessions = await self._listing(app_name, user_id).all()
        return ListSessionsResponse(
            sessions=sorted(sessions, key=lambda one: (one.last_update_time, one.user_id, one.id))
        )

    async def list_sessions_page(
        self, *, app_name: str, user_id: str | None = None, limit: int = 50, after: str | None = None
    ) -> Page[Session]:
        """Return a page of sessions as :meth:`list_sessions` does, but the newest first.

        A page may hold fewer than ``limit``: continue while there is a ``next``.

        :param after: the ``next`` of the page before.
        :raises StoreUnavailable: only with ``require_complete``.
        """
        return await self._listing(app_name, user_id).page(limit=limit, after=after)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Erase a session's events and state; the user's and the application's stay. The id can be used again.

        Does nothing if the session does not exist.

        :raises LetopisError: as for ``Chat.reset``.
        """
        conversation_id = self._conversation(app_name, user_id, (session_id or "").strip())
        try:
            if await self._history.records(conversation=conversation_id).get(NAMESPACE, KEY) is None:
                return
        except StoreUnavailable:
            pass  # erased if it exists
        await run_to_completion(self._history.chat(conversation_id).reset(reason="delete_session"))

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return the state of a user, by keys without their prefix.

        :raises StoreUnavailable: the history store does not answer.
        """
        found = await self._user_state(app_name, user_id)
        if not found.complete:
            raise StoreUnavailable("the whole state of the user")
        return found.state

    async def append_event(self, session: Session, event: Event) -> Event:
        """Append an event with the state that it changes, in one transaction, and return it.

        A partial event is not stored. State with the prefix ``temp:`` stays in the session object only. A cancelled run
        does not interrupt an append that has started.

        :raises StaleSessionError: another event was appended since the session was loaded; nothing was written. Not
            with ``check_stale=False``.
        :raises SessionNotFoundError: the session does not exist, or was deleted; nothing was written.
        :raises AlreadyExistsError: another event of this session has the same id; nothing was written.
        :raises StoreUnavailable: the history store does not answer, and the outbox does not know the session.
        :raises LetopisError: as for ``History.append``.
        """
        if event.partial:
            return event
        self._apply_temp_state(session, event)
        event = self._trim_temp_delta_state(event)
        conversation_id = self._conversation(session.app_name, session.user_id, session.id)
        key = (asyncio.get_running_loop(), conversation_id)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if await run_to_completion(self._appender.append(conversation_id, session, event)):
                self._update_session_state(session, event)
                session.events.append(event)
            return event

    async def _app_state(self, app_name: str) -> Found:
        return await read_all(self._history.records(space=app_space(app_name)))

    async def _user_state(self, app_name: str, user_id: str) -> Found:
        return await read_all(self._history.records(space=user_space(app_name, user_id)))

    def _check_complete(self, *found: Found) -> None:
        if self._require_complete and not all(one.complete for one in found):
            raise StoreUnavailable("the whole state")

    def _listing(self, app_name: str, user_id: str | None) -> SessionListing:
        return SessionListing(
            self._history,
            app_name,
            user_id,
            owner=None if user_id is None else self._owner(app_name, user_id),
            require_complete=self._require_complete,
        )
