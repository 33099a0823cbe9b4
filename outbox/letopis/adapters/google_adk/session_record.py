# pyright: reportMissingImports=false
"""Keep the record that says that a session exists: one per conversation, put again with each event.

It holds the whole state as the session saw it, for reads while the history store is unreachable. Otherwise the records
of the single keys count, because another outbox may have changed some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

from google.adk.events.event import Event
from google.adk.sessions.session import Session

from letopis.adapters._envelope import from_record, to_record
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.identifiers import MAX_ID_LENGTH
from letopis.store.model.records import Record

ROOT: Final = "google_adk"
"""The first label of all records here, and the key of a conversation's metadata that names the session."""
NAMESPACE: Final = (ROOT,)
KEY: Final = "session"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """What is known of a session besides its events.

    :ivar begun: generated with the session, so that a session deleted and created again under its id is a different
        one.
    :ivar updated: the timestamp of its newest event, or when it was made.
    :ivar state: merged, with the prefixes of the scopes.
    """

    app_name: str
    user_id: str
    session_id: str
    begun: str
    updated: float
    state: Mapping[str, Any]

    @classmethod
    def new(
        cls, app_name: str, user_id: str, session_id: str, *, now: float, state: Mapping[str, Any]
    ) -> SessionRecord:
        """Return the record of a new session."""
        return cls(
            app_name=app_name, user_id=user_id, session_id=session_id, begun=uuid4().hex, updated=now, state=state
        )

    @classmethod
    def of(cls, record: Record) -> SessionRecord:
        """Return the contents of a record, without fields that only a newer release knows."""
        value = from_record(record.value)
        return cls(**{one.name: value[one.name] for one in fields(cls)})

    @classmethod
    def among(cls, records: Sequence[Record]) -> SessionRecord | None:
        """Find this record among all records of a conversation; ``None`` if the session does not exist."""
        return next((cls.of(one) for one in records if one.namespace == NAMESPACE and one.key == KEY), None)

    def after(self, updated: float, state: Mapping[str, Any]) -> SessionRecord:
        """Return the record after an event that changed some state."""
        return replace(self, updated=updated, state={**self.state, **state})

    def to_json(self) -> Any:
        """Return the record's stored form."""
        value = {
            "app_name": self.app_name,
            "user_id": self.user_id,
            "session_id": self.session_id,
            "begun": self.begun,
            "updated": self.updated,
            "state": dict(self.state),
        }
        return to_record(value)

    def marker(self, newest: str) -> str:
        """Return the marker that shows whether a session object has seen the newest event."""
        return f"{self.begun}:{newest}"

    def to_session(self, *, state: dict[str, Any], events: list[Event], newest: str | None) -> Session:
        """Return the session as ADK knows it.

        :param newest: the id of the newest event, read or not; ``None`` if it is not known.
        """
        session = Session(
            id=self.session_id,
            app_name=self.app_name,
            user_id=self.user_id,
            state=state,
            events=events,
            last_update_time=self.updated,
        )
        if newest is not None:
            session._storage_update_marker = self.marker(newest)
        return session


def has_seen(session: Session, record: SessionRecord, newest: str) -> bool:
    """Return True if a session object was read or written after the newest event was appended."""
    if session._storage_update_marker is not None:
        return session._storage_update_marker == record.marker(newest)
    # Created by the caller: its last event shows it.
    return newest == (session.events[-1].id if session.events else "")


def newest_of(page: Page[RecordedMessage]) -> str | None:
    """Return the id of the newest message of a page; empty if there is none, ``None`` if that is not known."""
    if page:
        return page[-1].id
    return "" if page.complete else None


def conversation_of(app_name: str, user_id: str, session_id: str) -> str:
    """Return the id of a session's conversation: ``adk/app/user/session``, or a digest if the names are long.

    Two sessions never share an id, whatever characters their names contain.
    """
    return _joined("adk", app_name, user_id, session_id)


def app_space(app_name: str) -> str:
    """Return the space of the state that all users of an application share."""
    return _joined(f"{ROOT}.app", app_name)


def user_space(app_name: str, user_id: str) -> str:
    """Return the space of the state that all sessions of a user share."""
    return _joined(f"{ROOT}.user", app_name, user_id)


def _joined(kind: str, *parts: str) -> str:
    name = "/".join((kind, *map(_escaped, parts)))
    return name if len(name) <= MAX_ID_LENGTH else f"{kind}/#{sha256(name.encode()).hexdigest()}"


def _escaped(part: str) -> str:
    """Return a part without slashes and other characters that identifiers exclude; only a digest begins with ``#``."""
    if not isinstance(part, str):
        raise InvalidInput("session", f"app name, user id and session id must be text, not {type(part).__name__}")
    try:
        part.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("session", f"has a lone surrogate at {error.start}: it is not text") from None
    return "".join(one if one.isprintable() and one not in "/%#" else quote(one, safe="") for one in part)
