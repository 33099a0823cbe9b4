"""Name the conversations and spaces that belong to an application, a user and a session of ADK."""

from __future__ import annotations

from hashlib import sha256
from typing import Final
from urllib.parse import quote

from letopis.store.errors import InvalidInput
from letopis.store.model.identifiers import MAX_ID_LENGTH

ROOT: Final = "google_adk"
"""The first label of all records here, and the key of a conversation's metadata that names the session."""


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
