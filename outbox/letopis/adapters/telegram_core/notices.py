"""Notify a bot's users, in their language, that a message of theirs is stuck or has been saved."""

from __future__ import annotations

from dataclasses import dataclass

from letopis.adapters.telegram_core.chats import Chats
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.local_state import LocalState
from letopis.outbox import Incident


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A notice and its recipient.

    :ivar key: where to send it.
    """

    key: ChatKey
    text: str


async def notice_for(incident: Incident, chats: Chats, local: LocalState) -> Notice | None:
    """Return the notice to the user about an incident; ``None`` if it concerns no chat of this bot.

    The language is that of the chat's last speaker. It comes from the outbox file, since the store may be unreachable.
    """
    owner = incident.owner_id or incident.conversation_id
    key = await chats.address(owner)
    if key is None or owner is None:
        return None
    return Notice(key=key, text=incident.text(await local.language(owner.split("/")[0])))
