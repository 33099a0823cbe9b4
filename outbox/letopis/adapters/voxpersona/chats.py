"""Read and create a user's chats in a history, with the numbers that the seed's bot gives them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import tzinfo
from enum import Enum
from typing import Any, Final
from uuid import uuid4

from letopis.adapters.voxpersona.mapping import metadata_of, number_of, storable
from letopis.adapters.voxpersona.models import generate_chat_name, short_title
from letopis.outbox import BlockingHistory
from letopis.store import (
    ABSENT,
    Conversation,
    ConversationActivated,
    ConversationAnnotated,
    ConversationStarted,
    InvalidInput,
    Record,
    RecordConflict,
    StoreUnavailable,
)

LABELS: Final = ("voxpersona",)
KEY: Final = "index"
"""The place of the owner's record, which holds the user's name and the next number."""
_ATTEMPTS: Final = 5
_PAGE: Final = 100


class Unknown(Enum):
    """A value that cannot be known while the history store is unreachable."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatIndex:
    """The chats of a user.

    :ivar chats: in the order in which they were created.
    :ivar complete: False if the history store is unreachable, and chats may be missing.
    """

    user_id: int
    username: str
    active: str | None
    next_number: int
    chats: tuple[Conversation, ...]
    complete: bool

    @classmethod
    def empty(cls, user_id: int) -> ChatIndex:
        """Return the list for a user without chats."""
        return cls(user_id=user_id, username="", active=None, next_number=1, chats=(), complete=False)

    def metadata(self, tz: tzinfo | None) -> list[dict[str, Any]]:
        """Return each chat as in the seed's list."""
        return [metadata_of(one, self.user_id, active=one.conversation_id == self.active, tz=tz) for one in self.chats]

    def to_data(self, tz: tzinfo | None) -> dict[str, Any]:
        """Return the seed's ``index.json``."""
        return {
            "user_id": self.user_id,
            "username": self.username,
            "last_active_conversation_id": self.active,
            "conversations": self.metadata(tz),
            "next_chat_number": self.next_number,
        }


class UserChats:
    """The chats of all users of a bot."""

    def __init__(self, history: BlockingHistory) -> None:
        self._history = history

    def find(self, user_id: int, conversation_id: str) -> Conversation | Unknown | None:
        """Return a user's chat; ``None`` if there is none, or if it is another user's."""
        try:
            found = self._history.chat(conversation_id).conversation()
            if found is None and not self._history.messages(conversation_id, last=1).complete:
                return UNKNOWN
        except InvalidInput:  # no conversation can have such an id
            return None
        if found is None or found.state == "deleted" or found.owner_id not in (None, str(user_id)):
            return None
        return found

    def active(self, user_id: int) -> str | None:
        """Return the id of a user's active chat."""
        found = self._history.active(user_id, create=False)
        return None if found is None else found.conversation_id

    def index(self, user_id: int) -> ChatIndex:
        """Return the chats of a user."""
        chats, complete, after = dict[str, Conversation](), True, None
        while True:
            page = self._history.conversations(owner=user_id, after=after, limit=_PAGE)
            chats |= {one.conversation_id: one for one in page}
            complete = complete and page.complete
            if (after := page.next) is None:
                break
        ordered = sorted(chats.values(), key=lambda one: (one.created_at, number_of(one), one.conversation_id))
        record = self._record(user_id)
        value: Mapping[str, Any] = record.value if isinstance(record, Record) else {}
        return ChatIndex(
            user_id=user_id,
            username=value.get("username") or "",
            active=self.active(user_id),
            next_number=max([value.get("next_chat_number") or 1, *(number_of(one) + 1 for one in ordered)]),
            chats=tuple(ordered),
            complete=complete and record is not UNKNOWN,
        )

    def create(self, user_id: int, username: str, first_question: str) -> str:
        """Create a chat with the user's next number, make it active, and return its id.

        If neither the outbox nor the history store knows the number, it is 0, like that of the oldest chats.

        :raises LetopisError: as for ``History.append``; nothing was written.
        """
        conversation_id = str(uuid4())
        title, username = storable(short_title(generate_chat_name(first_question))), storable(username)
        for _ in range(_ATTEMPTS):
            record = self._record(user_id)
            number = 0 if record is UNKNOWN else self._next_number(user_id, record)
            # Another process was first, or the history store that knows the number became unreachable.
            with suppress(RecordConflict, StoreUnavailable):
                self._begin(user_id, username, conversation_id, title, number, record)
                return conversation_id
        self._begin(user_id, username, conversation_id, title, 0, UNKNOWN)
        return conversation_id

    def set_index(self, user_id: int, *, username: str | None, next_number: int | None) -> None:
        """Set a user's name and next number; the number never goes back."""
        record = self._record(user_id)
        value: dict[str, Any] = dict(record.value) if isinstance(record, Record) else {}
        wanted = {
            "username": storable(username) or value.get("username", ""),
            "next_chat_number": max(next_number or 1, value.get("next_chat_number", 1)),
        }
        if record is not UNKNOWN and wanted != value:
            self._history.records(owner=user_id).put(LABELS, KEY, wanted)

    def _next_number(self, user_id: int, record: Record | None) -> int:
        return self.index(user_id).next_number if record is None else int(record.value["next_chat_number"])

    def _begin(
        self,
        user_id: int,
        username: str,
        conversation_id: str,
        title: str,
        number: int,
        record: Record | Unknown | None,
    ) -> None:
        with self._history.transaction() as tx:
            tx.append(
                conversation_id,
                ConversationStarted(owner_id=str(user_id), title=title),
                ConversationAnnotated(metadata={"chat_number": number, "username": username}),
                ConversationActivated(),
                owner=user_id,
            )
            if record is not UNKNOWN:
                tx.put(
                    self._history.records(owner=user_id),
                    LABELS,
                    KEY,
                    {"username": username, "next_chat_number": number + 1},
                    expected=ABSENT if record is None else record.revision,
                )

    def _record(self, user_id: int) -> Record | Unknown | None:
        try:
            return self._history.records(owner=user_id).get(LABELS, KEY)
        except StoreUnavailable:
            return UNKNOWN
