# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Convert aiogram's objects and exceptions to what the recorders expect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiogram.client.default import Default
from aiogram.exceptions import (
    AiogramError,
    TelegramAPIError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramEntityTooLarge,
    TelegramForbiddenError,
    TelegramMigrateToChat,
    TelegramNetworkError,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.methods import TelegramMethod
from aiogram.types import FSInputFile, InputFile, MessageEntity, ReplyParameters, TelegramObject

from letopis.adapters.telegram_core.bot_api_transport import BotApiTransport
from letopis.adapters.telegram_core.calls import Failure, failure_of
from letopis.adapters.telegram_core.splitting import Entity

_CODES: tuple[tuple[type[Exception], int], ...] = (
    (TelegramBadRequest, 400),
    (TelegramUnauthorizedError, 401),
    (TelegramForbiddenError, 403),
    (TelegramNotFound, 404),
    (TelegramConflictError, 409),
    (TelegramEntityTooLarge, 413),
    (TelegramServerError, 500),
)


def raw(thing: Any) -> Any:
    """Return an aiogram object as the Bot API sends it, including fields that aiogram does not know."""
    if isinstance(thing, list):
        return [raw(one) for one in thing]
    if isinstance(thing, TelegramObject):
        return thing.model_dump(mode="json", by_alias=True, exclude_none=True, warnings=False)
    return thing


def payload_of(method: TelegramMethod[Any]) -> dict[str, Any]:
    """Return the parameters of a method, without the bot's defaults; files to upload are ``{"name": ...}``."""
    given = method.model_dump(by_alias=True, exclude_none=True, warnings=False)
    return {name: _plain(value) for name, value in given.items() if not isinstance(value, Default)}


def _plain(value: Any) -> Any:
    if isinstance(value, InputFile):
        return {"name": value.filename}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items() if one is not None and not isinstance(one, Default)}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def failure_from(error: BaseException) -> Failure | None:
    """Return what an aiogram exception means; ``None`` if it does not come from a call."""
    if isinstance(error, TelegramRetryAfter):
        return Failure(ending="retry", reason="Telegram: 429 Too Many Requests", seconds=float(error.retry_after))
    if isinstance(error, TelegramMigrateToChat):
        moved = {"migrate_to_chat_id": error.migrate_to_chat_id}
        return failure_of(400, "group chat was upgraded to a supergroup chat", moved)
    if isinstance(error, TelegramAPIError):
        code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
        if code is not None:
            return failure_of(code, error.message)
        # No answer, or an unknown one: Telegram may have carried out the call.
        kind = "network" if isinstance(error, TelegramNetworkError) else "answer"
        return Failure(ending="unknown", reason=f"{type(error).__name__}: no {kind}")
    if isinstance(error, AiogramError):
        return Failure(ending="unknown", reason=type(error).__name__)
    return None


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
