# pyright: reportMissingImports=false
"""Send the parts of an answer through python-telegram-bot."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from telegram import InputFile, MessageEntity, ReplyParameters

from letopis.adapters.telegram.conversion import failure_from
from letopis.adapters.telegram_core.bot_api_transport import BotApiTransport
from letopis.adapters.telegram_core.calls import Failure
from letopis.adapters.telegram_core.splitting import Entity


class PtbTransport(BotApiTransport):
    """Sends to one chat through python-telegram-bot."""

    def failure_of(self, error: Exception) -> Failure | None:
        """Return what an exception means."""
        return failure_from(error)

    async def _document(self, path: Path, name: str) -> Any:
        return InputFile(await asyncio.to_thread(path.read_bytes), filename=name)

    def _entity(self, entity: Entity) -> Any:
        return MessageEntity.de_json(dict(entity), None)

    def _reply(self, message_id: int) -> Any:
        return ReplyParameters(message_id=message_id, allow_sending_without_reply=True)
