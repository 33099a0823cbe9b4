# pyright: reportMissingImports=false
"""Append an event of ADK with the state that it changes, in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from google.adk.errors._stale_session_error import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.sessions.session import Session

from letopis.adapters.google_adk.events import message_of, moment_of
from letopis.adapters.google_adk.session_record import KEY, NAMESPACE, SessionRecord, has_seen, newest_of
from letopis.adapters.google_adk.state import Delta, put_delta
from letopis.outbox import History
from letopis.store import ConversationGone, IdReused, Message, Page, RecordedMessage, VersionConflict
from letopis.store.model.identifiers import Owner

_STALE: Final = "The session has been modified in storage since it was loaded: reload it before appending more events."


class EventAppender:
    """Appends events to sessions.

    :param owner: returns the owner of a session's conversation for its application and user.
    :param check_stale: refuse an event for a session that has changed since it was loaded.
    """

    def __init__(self, history: History, *, owner: Callable[[str, str], Owner | None], check_stale: bool) -> None:
        self._history = history
        self._owner = owner
        self._check_stale = check_stale

    async def append(self, conversation_id: str, session: Session, event: Event) -> bool:
        """Append an event, unless it is stored. Return True if the session object does not hold it yet.

        :raises SessionNotFoundError: there is no such session.
        :raises StaleSessionError: the session has changed since it was loaded.
        :raises AlreadyExistsError: another event has the same id.
        """
        message = message_of(event)
        records = self._history.records(conversation=conversation_id)
        stored, page = await asyncio.gather(
            records.get(NAMESPACE, KEY), self._history.messages(conversation_id, last=1)
        )
        if stored is None:
            raise SessionNotFoundError(f"Session {session.id} not found.")
        newest, record = newest_of(page), SessionRecord.of(stored)
        held = any(one.id == event.id for one in session.events)
        if not ((held or newest == message.id) and await self._is_stored(conversation_id, message)):
            if self._check_stale and newest is not None and not has_seen(session, record, newest):
                raise StaleSessionError(_STALE)
            delta = Delta.of(event.actions.state_delta)
            record = record.after(event.timestamp, delta.merged())
            await self._write(conversation_id, record, delta, message, event, page)
            session.last_update_time = event.timestamp
            session._storage_update_marker = record.marker(message.id)
        return not held

    async def _write(
        self,
        conversation_id: str,
        record: SessionRecord,
        delta: Delta,
        message: Message,
        event: Event,
        page: Page[RecordedMessage],
    ) -> None:
        assert page.seen is not None  # noqa: S101 - a history read it
        try:
            async with self._history.transaction() as tx:
                receipt = await tx.append(
                    conversation_id,
                    message,
                    owner=self._owner(record.app_name, record.user_id),
                    occurred_at=moment_of(event),
                    after=page.seen if self._check_stale else None,
                )
                if receipt.sequence <= page.seen.sequence:
                    return  # it already existed
                await put_delta(tx, self._history, conversation_id, record.app_name, record.user_id, delta)
                records = self._history.records(conversation=conversation_id)
                await tx.put(records, NAMESPACE, KEY, record.to_json())
        except VersionConflict as error:
            raise StaleSessionError(_STALE) from error
        except ConversationGone as error:
            raise SessionNotFoundError(f"Session {record.session_id} not found.") from error
        except IdReused as error:
            raise _exists(event.id) from error

    async def _is_stored(self, conversation_id: str, message: Message) -> bool:
        found = await self._history.chat(conversation_id).message(message.id)
        if found is None:
            return False
        if found.message != message and not found.edited:
            raise _exists(message.id)
        return True


def _exists(event_id: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"Event with id {event_id} already exists, with other content.")
