# pyright: reportMissingImports=false
"""Send the parts of an answer through aiogram."""

from __future__ import annotations

from pathlib import Path

from aiogram.types import FSInputFile, MessageEntity, ReplyParameters

from letopis.adapters.aiogram.conversion import failure_from
from letopis.adapters.telegram_core.bot_api_transport import BotApiTransport
from letopis.adapters.telegram_core.calls import Failure
from letopis.adapters.telegram_core.splitting import Entity


class AiogramTransport(BotApiTransport):
    """Sends to one chat through aiogram."""

    def failure_of(self, error: Exception) -> Failure | None:
        """Return what an exception means."""
        return failure_from(error)

    async def _document(self, path: Path, name: str) -> FSInputFile:
        return FSInputFile(path, filename=name)

    def _entity(self, entity: Entity) -> MessageEntity:
        return MessageEntity.model_validate(entity)

    def _reply(self, message_id: int) -> ReplyParameters:
        return ReplyParameters(message_id=message_id, allow_sending_without_reply=True)
