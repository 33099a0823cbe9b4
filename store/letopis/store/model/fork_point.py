"""Name the point up to which a fork reads its parent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

from letopis.store.errors import InvalidInput
from letopis.store.model.identifiers import check_identifier, check_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkPoint:
    """The point up to which a fork reads its parent.

    :ivar version: that of the last event that it reads; ``None`` if it was pending when the fork was made.
    :ivar event_id: the id of the same event.
    """

    conversation_id: str
    version: int | None = None
    event_id: UUID | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return the fork point that ``conversation.started`` names.

        :raises InvalidInput: it names no conversation, or no place in it.
        """
        field_ = "data.forked_from"
        conversation_id = check_identifier(given.get("conversation_id"), f"{field_}.conversation_id")
        version, event_id = given.get("version"), given.get("event_id")
        if version is not None:
            check_whole(version, f"{field_}.version", 0)
        if event_id is not None:
            try:
                event_id = UUID(event_id)
            except (TypeError, ValueError, AttributeError) as error:
                raise InvalidInput(f"{field_}.event_id", "must be a UUID, as text") from error
        if version is None and event_id is None:
            raise InvalidInput(field_, "must name a version or an event_id")
        return cls(conversation_id=conversation_id, version=version, event_id=event_id)

    def to_data(self) -> dict[str, Any]:
        """Return it as ``conversation.started`` holds it."""
        data: dict[str, Any] = {"conversation_id": self.conversation_id}
        if self.version is not None:
            data["version"] = self.version
        if self.event_id is not None:
            data["event_id"] = str(self.event_id)
        return data
