"""Say what is on hold, to whatever is about to carry out an erasure in the outbox file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from letopis.outbox.event_log.statements import query_all

if TYPE_CHECKING:
    from letopis.store.erasures import Erasure

_OF_OWNERS: Final = " UNION ".join(
    f"SELECT conversation_id FROM letopis_outbox_{table} WHERE owner_id IN (SELECT value FROM json_each(?1))"  # noqa: S608
    for table in ("lanes", "drafts", "unconfirmed")
)


@dataclass(frozen=True, slots=True)
class HeldSubjects:
    """What is on hold in the history store, and stays as it is."""

    conversations: frozenset[str] = frozenset()
    owners: frozenset[str] = frozenset()

    def forbids(self, erasure: Erasure) -> bool:
        """Return True if an erasure as a whole is set aside: its owner, person or conversation is on hold."""
        return erasure.subject in (self.conversations if erasure.kind == "conversation" else self.owners)

    def spared(self, cursor: Any) -> frozenset[str]:
        """Return the conversations of this file that are on hold, themselves or by their owner."""
        if not self.owners:
            return self.conversations
        owners = orjson.dumps(sorted(self.owners)).decode()
        return self.conversations.union(row[0] for row in query_all(cursor, _OF_OWNERS, (owners,)))
