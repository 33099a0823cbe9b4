# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Convert Pyrogram's objects and exceptions to the form that the recorders expect, that of the Bot API."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pyrogram import enums, types
from pyrogram.errors import FloodWait
from pyrogram.errors.rpc_error import RPCError

from letopis.adapters.telegram_core.calls import Failure, failure_of
from letopis.adapters.telegram_core.content import MEDIA
from letopis.adapters.telegram_core.splitting import Entity

METHODS: Final[Mapping[str, str]] = {
    "send_message": "sendMessage",
    "send_document": "sendDocument",
    "send_photo": "sendPhoto",
    "send_audio": "sendAudio",
    "send_voice": "sendVoice",
    "send_video": "sendVideo",
    "send_video_note": "sendVideoNote",
    "send_animation": "sendAnimation",
    "send_sticker": "sendSticker",
    "edit_message_text": "editMessageText",
    "edit_message_caption": "editMessageCaption",
    "delete_messages": "deleteMessages",
}
"""The recorded methods of a client, and their names in the Bot API."""
_PLACED: Final = ("chat_id", "message_thread_id", "direct_messages_topic_id", "business_connection_id")
_KEPT: Final = (*_PLACED, "text", "caption", "message_id", "message_ids", *MEDIA)
_UNKNOWN: Final = (ConnectionError, TimeoutError, OSError)


def raw_message(message: Any) -> dict[str, Any]:
    """Return a message as the Bot API would send it, with the fields that a history needs."""
    made: dict[str, Any] = {"message_id": message.id, "date": _seconds(message.date)}
    if message.chat is not None:
        kind = getattr(message.chat.type, "name", "").lower()
        made["chat"] = {"id": message.chat.id, "type": "private" if kind == "bot" else kind}
    if (sender := message.from_user) is not None:
        names = ("id", "is_bot", "first_name", "last_name", "username", "language_code")
        made["from"] = {name: value for name in names if (value := getattr(sender, name, None)) is not None}
    elif (chat := getattr(message, "sender_chat", None)) is not None:
        made["sender_chat"] = {"id": chat.id, "title": chat.title, "username": chat.username}
    for name in ("text", "caption"):
        if getattr(message, name, None):
            made[name] = str(getattr(message, name))
    for name in MEDIA:
        if (file := getattr(message, name, None)) is not None and getattr(file, "file_id", None):
            made[name] = _file(name, file)
    for name in ("business_connection_id", "media_group_id"):
        if getattr(message, name, None) is not None:
            made[name] = getattr(message, name)
    if _is_topic(message):
        made |= {"message_thread_id": message.message_thread_id, "is_topic_message": True}
    if (edited := getattr(message, "edit_date", None)) is not None:
        made["edit_date"] = _seconds(edited)
    if (answered := getattr(message, "reply_to_message_id", None)) is not None:
        made["reply_to_message"] = {"message_id": answered}
    if (entities := _entities_of(message)) and "text" in made:
        made["entities"] = entities
    return made


def update_id(kind: str, *names: object) -> int:
    """Return an id for an update, because MTProto gives none: the same for the same update."""
    told = "\n".join(str(one) for one in (kind, *names))
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8]) >> 1


def payload_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a method as parameters of the Bot API."""
    given = {name: _plain(arguments[name]) for name in _KEPT if arguments.get(name) is not None}
    numbers = given.get("message_ids")
    if numbers is not None and not isinstance(numbers, list):
        given["message_ids"] = [numbers]
    return given


def result_of(result: Any) -> Any:
    """Return the result of a method as the Bot API returns it."""
    return raw_message(result) if isinstance(result, types.Message) else result


def failure_from(error: BaseException) -> Failure | None:
    """Return what an exception means; ``None`` if it does not come from a call."""
    if isinstance(error, FloodWait):
        wait = error.value if isinstance(error.value, int | float) else 1
        return Failure(ending="retry", reason="Telegram: 420 FLOOD_WAIT", seconds=float(wait))
    if isinstance(error, RPCError):
        name = str(error.ID or type(error).__name__)
        found = failure_of(int(error.CODE or 400), name)
        # Worded differently than in the Bot API.
        blocked = name in ("USER_IS_BLOCKED", "PEER_ID_INVALID", "INPUT_USER_DEACTIVATED", "CHAT_WRITE_FORBIDDEN")
        return Failure(
            ending=found.ending,
            reason=found.reason,
            seconds=found.seconds,
            formatting=name.startswith("ENTIT"),
            final=found.final or blocked,
        )
    if isinstance(error, _UNKNOWN):
        return Failure(ending="unknown", reason=type(error).__name__)
    return None


def entities_for(entities: list[Entity]) -> list[Any] | None:
    """Return entities of the Bot API as the client takes them."""
    made = []
    for one in entities:
        kind = enums.MessageEntityType.__members__.get(str(one["type"]).upper())
        if kind is not None:
            about = {name: one[name] for name in ("url", "language") if name in one}
            made.append(types.MessageEntity(type=kind, offset=one["offset"], length=one["length"], **about))
    return made or None


def _entities_of(message: Any) -> list[dict[str, Any]]:
    found = []
    for one in getattr(message, "entities", None) or ():
        kind = getattr(one.type, "name", "").lower()
        about = {name: value for name in ("url", "language") if isinstance(value := getattr(one, name, None), str)}
        found.append({"type": kind, "offset": one.offset, "length": one.length, **about})
    return found


def _is_topic(message: Any) -> bool:
    """Return True if a message is in a forum topic; the thread of a reply does not count."""
    if getattr(message, "message_thread_id", None) is None:
        return False
    return bool(getattr(message, "topic_message", None) or getattr(message, "is_topic_message", None))


def _file(name: str, file: Any) -> Any:
    about = {"file_id": file.file_id, "file_unique_id": getattr(file, "file_unique_id", "")}
    for field in ("file_name", "mime_type", "file_size"):
        if getattr(file, field, None) is not None:
            about[field] = getattr(file, field)
    return [about] if name == "photo" else about


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return {"name": value.name}
    if isinstance(value, str):
        # A file by its path, or an uploaded one by its id.
        return {"name": Path(value).name} if "/" in value and "://" not in value and len(value) < 1024 else str(value)
    if isinstance(value, int | float | bool):
        return value
    if isinstance(value, list | tuple | set | frozenset | range):
        return [_plain(one) for one in value]
    return {"name": Path(str(getattr(value, "name", "file"))).name}


def _seconds(moment: Any) -> int:
    if not isinstance(moment, datetime):
        return 0
    return int((moment if moment.tzinfo is not None else moment.astimezone(UTC)).timestamp())
