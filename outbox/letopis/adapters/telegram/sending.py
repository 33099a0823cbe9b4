# pyright: reportMissingImports=false
"""Send the parts of an answer through python-telegram-bot."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from telegram import InputFile, MessageEntity, ReplyParameters

from letopis.adapters.telegram.conversion import failure_from
from letopis.adapters.telegram_core.calls import Failure
from letopis.adapters.telegram_core.splitting import Entity


@dataclass(slots=True, kw_only=True)
class PtbTransport:
    """Sends to one place; implements the ``Transport`` of smart send.

    :ivar place: the parameters that say where: chat, topic, business connection.
    :ivar options: further parameters of every part, for example ``disable_notification``.
    """

    bot: Any
    place: Mapping[str, Any]
    reply_markup: Any = None
    reply_to: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    async def send_text(self, text: str, entities: Sequence[Entity], *, last: bool) -> int:
        """Send a message."""
        sent = await self.bot.send_message(
            text=text,
            entities=_entities(entities),
            parse_mode=None,
            reply_markup=self.reply_markup if last else None,
            **self._common(),
        )
        return int(sent.message_id)

    async def send_file(self, path: Path, name: str, caption: str, entities: Sequence[Entity]) -> int:
        """Send a document."""
        content = await asyncio.to_thread(path.read_bytes)
        sent = await self.bot.send_document(
            document=InputFile(content, filename=name),
            caption=caption,
            caption_entities=_entities(entities),
            parse_mode=None,
            reply_markup=self.reply_markup,
            **{name: value for name, value in self._common().items() if name != "link_preview_options"},
        )
        return int(sent.message_id)

    def failure_of(self, error: Exception) -> Failure | None:
        """Return what an exception means."""
        return failure_from(error)

    def _common(self) -> dict[str, Any]:
        common = {**self.place, **self.options}
        if self.reply_to is not None:
            # The question may have been deleted meanwhile; the answer goes out all the same.
            common["reply_parameters"] = ReplyParameters(message_id=self.reply_to, allow_sending_without_reply=True)
        return common


def _entities(entities: Sequence[Entity]) -> list[MessageEntity] | None:
    return [MessageEntity.de_json(dict(one), None) for one in entities] or None
