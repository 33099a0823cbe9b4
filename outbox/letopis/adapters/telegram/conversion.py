# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Convert python-telegram-bot's objects and exceptions to what the recorders expect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from telegram import InputFile, MessageEntity, ReplyParameters, TelegramObject, Update
from telegram.error import (
    BadRequest,
    ChatMigrated,
    Conflict,
    EndPointNotFound,
    Forbidden,
    InvalidToken,
    RetryAfter,
    TelegramError,
)

from letopis.adapters.telegram_core.bot_api_transport import BotApiTransport
from letopis.adapters.telegram_core.calls import Failure, failure_of
from letopis.adapters.telegram_core.splitting import Entity

_CODES: Final[tuple[tuple[type[TelegramError], int], ...]] = (
    (BadRequest, 400),
    (InvalidToken, 401),
    (Forbidden, 403),
    (EndPointNotFound, 404),
    (Conflict, 409),
)


def raw(thing: TelegramObject) -> dict[str, Any]:
    """Return an object as the Bot API sends it, including fields that the library does not know.

    Arbitrary callback data, which only this process can decode, become text.
    """
    return cast("dict[str, Any]", json.loads(json.dumps(thing.to_dict(), default=str)))


def update_from(given: Mapping[str, Any], bot: Any) -> Update:
    """Return the update that the Bot API sent."""
    made = Update.de_json(dict(given), bot)
    assert made is not None  # noqa: S101 - only of empty data
    return made


def payload_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a call as JSON values; files to upload are ``{"name": ...}``."""
    return {name: _plain(value) for name, value in data.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, InputFile):
        return {"name": value.filename}
    if isinstance(value, TelegramObject):
        return _plain(value.to_dict())
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return int(value.timestamp())
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def failure_from(error: BaseException) -> Failure | None:
    """Return what an exception of the library means; ``None`` if it does not come from a call."""
    if isinstance(error, RetryAfter):
        return Failure(ending="retry", reason="Telegram: 429 Too Many Requests", seconds=_seconds(error))
    if isinstance(error, ChatMigrated):
        moved = {"migrate_to_chat_id": error.new_chat_id}
        return failure_of(400, "group chat was upgraded to a supergroup chat", moved)
    if isinstance(error, TelegramError):
        # A bad request is a subclass of a network error there, hence this order.
        code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
        if code is not None:
            return failure_of(code, error.message)
        # No answer, or an unknown one: Telegram may have carried out the call.
        return Failure(ending="unknown", reason=type(error).__name__)
    return None


def _seconds(error: RetryAfter) -> float:
    # The public attribute is changing its type, and warns about it.
    told = getattr(error, "_retry_after", None)
    if told is None:
        told = error.retry_after
    return told.total_seconds() if isinstance(told, timedelta) else float(told)


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
