# pyright: reportMissingImports=false
"""Keep ADK's state in records, one per key, so that writers of different keys do not affect each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.adk.sessions.state import State
from pydantic_core import PydanticSerializationError, to_jsonable_python

from letopis.adapters._envelope import from_record, to_record
from letopis.adapters.google_adk.session_record import ROOT, app_space, user_space
from letopis.outbox import History, Records, Transaction
from letopis.store.model.records import ABSENT, Record

logger = logging.getLogger("letopis.adapters.google_adk")

STATE: Final = (ROOT, "state")
"""The namespace of the values of a scope, by key."""
_MARK: Final = "="
"""The prefix of each record key, because a key of ADK may be empty."""
_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Changed state by scope, as JSON, with keys without their prefix. Temporary state is left out."""

    app: Mapping[str, Any] = field(default_factory=dict)
    user: Mapping[str, Any] = field(default_factory=dict)
    session: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> Delta:
        """Split state as an agent gives it by the prefixes of its keys."""
        app, user, session = dict[str, Any](), dict[str, Any](), dict[str, Any]()
        for key, value in (state or {}).items():
            if key.startswith(State.APP_PREFIX):
                app[key.removeprefix(State.APP_PREFIX)] = _to_json(value)
            elif key.startswith(State.USER_PREFIX):
                user[key.removeprefix(State.USER_PREFIX)] = _to_json(value)
            elif not key.startswith(State.TEMP_PREFIX):
                session[key] = _to_json(value)
        return cls(app=app, user=user, session=session)

    def merged(self) -> dict[str, Any]:
        """Return all of the state as an agent sees it."""
        return {
            **self.session,
            **{State.APP_PREFIX + key: value for key, value in self.app.items()},
            **{State.USER_PREFIX + key: value for key, value in self.user.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Records that were read.

    :ivar complete: ``False`` if the history store could not be reached, so that only records retained by this outbox
        are here.
    """

    records: tuple[Record, ...]
    complete: bool

    @property
    def state(self) -> dict[str, Any]:
        """The values of a scope, by key."""
        return {one.key.removeprefix(_MARK): from_record(one.value) for one in self.records if one.namespace == STATE}


async def read_all(records: Records) -> Found:
    """Return all records of this adapter in a scope."""
    found: list[Record] = []
    complete, after = True, None
    while True:
        page = await records.list((ROOT,), limit=_AT_ONCE, after=after, incomplete=True)
        found += page
        complete = complete and page.complete
        if (after := page.next) is None:
            return Found(records=tuple(found), complete=complete)


def merged_state(snapshot: Mapping[str, Any], own: Found, app: Found, user: Found) -> dict[str, Any]:
    """Return the state of a session as an agent sees it.

    :param snapshot: the state that the session last saw, for keys that the history store cannot answer at present.
    """
    session = own.state if own.complete else {}  # the snapshot is at least as new as the records put with it
    known = Delta(app=app.state, user=user.state, session=session).merged()
    return known if own.complete and app.complete and user.complete else {**snapshot, **known}


async def put_delta(
    tx: Transaction,
    history: History,
    conversation_id: str,
    app_name: str,
    user_id: str,
    delta: Delta,
    *,
    new: bool = False,
) -> None:
    """Put changed state, each value under its key in its scope.

    :param new: the session is new: if it exists after all, its values are kept.
    """
    for scope, values in (
        (history.records(conversation=conversation_id), delta.session),
        (history.records(space=app_space(app_name)), delta.app),
        (history.records(space=user_space(app_name, user_id)), delta.user),
    ):
        absent = new and values is delta.session
        for key, given in values.items():
            value = to_record(given)
            if absent:
                await tx.put(scope, STATE, _MARK + key, value, expected=ABSENT, on_exists="keep")
            else:
                await tx.put(scope, STATE, _MARK + key, value)


def _to_json(value: Any) -> Any:
    """Return a value as JSON, or as its ``repr`` if that is not possible, as ADK's own services do."""
    try:
        return to_jsonable_python(value, inf_nan_mode="constants")
    except (PydanticSerializationError, RecursionError):
        logger.warning("a value of the session's state is no JSON and is stored as text")
        return to_jsonable_python(value, inf_nan_mode="constants", serialize_unknown=True)
