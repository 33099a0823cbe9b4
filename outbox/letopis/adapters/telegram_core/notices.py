"""Tell the users of a bot that something they wrote is stuck, or saved again, in their language."""

from __future__ import annotations

from dataclasses import dataclass

from letopis.adapters.telegram_core.chats import Chats
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.local_state import LocalState
from letopis.outbox import Incident


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What to tell whom.

    :ivar key: where to send it.
    """

    key: ChatKey
    text: str


async def notice_for(incident: Incident, chats: Chats, local: LocalState) -> Notice | None:
    """Return what to tell the user of an incident; ``None`` if it concerns no chat of this bot.

    The language is that of who spoke last in the chat, known to the outbox file, since the store may be away.
    """
    owner = incident.owner_id or incident.conversation_id
    key = await chats.address(owner)
    if key is None or owner is None:
        return None
    return Notice(key=key, text=incident.text(await local.language(owner.split("/")[0])))
