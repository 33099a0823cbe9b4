"""Convert raw Telegram messages to content and metadata of a history; pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from letopis.store.model.parts import Content, Data, File, Part, Text

MEDIA: Final[Mapping[str, str | None]] = {
    "animation": "video/mp4",
    "audio": "audio/mpeg",
    "document": None,
    "live_photo": "image/jpeg",
    "photo": "image/jpeg",
    "sticker": "image/webp",
    "video": "video/mp4",
    "video_note": "video/mp4",
    "voice": "audio/ogg",
}
"""The fields of a message that hold a file, with its media type if Telegram does not give it."""
_STRUCTURED: Final = ("checklist", "contact", "dice", "game", "location", "paid_media", "poll", "rich_message", "story")
_STRUCTURED_TOO: Final = ("venue", "web_app_data")
STRUCTURED: Final = (*_STRUCTURED, *_STRUCTURED_TOO)
"""The fields of a message that hold neither text nor a file; kept as data."""
_KEPT: Final = (
    "business_connection_id",
    "caption_entities",
    "entities",
    "forward_origin",
    "media_group_id",
    "quote",
    "via_bot",
)
"""The fields of a message that are kept as metadata, unchanged."""


def content_of(message: Mapping[str, Any]) -> Content | None:
    """Return the content of a message: text or parts; ``None`` if it has none, such as a service message.

    A file is kept by its ``file_id``, as ``tg-file:...``; its bytes stay with Telegram.
    """
    parts: list[Part] = []
    words = message.get("text") or message.get("caption")
    if isinstance(words, str):
        parts.append(Text(words))
    for field, media_type in MEDIA.items():
        # An animation is also listed as a document, for old clients.
        if field == "document" and "animation" in message:
            continue
        if (found := message.get(field)) and (part := _file(field, found, media_type)) is not None:
            parts.append(part)
    for field in STRUCTURED:
        if field == "location" and "venue" in message:
            continue
        if field in message:
            parts.append(Data({field: message[field]}))
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return tuple(parts) or None


def _file(field: str, given: Any, media_type: str | None) -> File | None:
    found = given
    if isinstance(given, list):  # the sizes of a photo, the largest last
        found = given[-1]
    if not isinstance(found, Mapping) or not isinstance(found.get("file_id"), str):
        return None
    return File(f"tg-file:{found['file_id']}", found.get("mime_type") or media_type, found.get("file_name") or field)


def metadata_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a message: its sender, the message it answers, and its entities, under ``telegram``."""
    told: dict[str, Any] = {}
    sender = message.get("from")
    if isinstance(sender, Mapping):
        told["from"] = {
            name: sender[name] for name in ("id", "is_bot", "first_name", "last_name", "username") if name in sender
        }
    elif isinstance(message.get("sender_chat"), Mapping):
        told["sender_chat"] = {
            name: message["sender_chat"][name] for name in ("id", "title", "username") if name in message["sender_chat"]
        }
    answered = message.get("reply_to_message")
    if isinstance(answered, Mapping) and isinstance(answered.get("message_id"), int):
        told["reply_to"] = answered["message_id"]
    told.update({name: message[name] for name in _KEPT if name in message})
    return {"telegram": told} if told else {}


def moment_of(message: Mapping[str, Any], field: str = "date") -> datetime | None:
    """Return when a message was sent; ``None`` if it does not say so."""
    date = message.get(field)
    return datetime.fromtimestamp(date, UTC) if isinstance(date, int) and date > 0 else None


def language_of(message: Mapping[str, Any]) -> str | None:
    """Return the language code of a message's sender, as Telegram gives it."""
    sender = message.get("from")
    code = sender.get("language_code") if isinstance(sender, Mapping) else None
    return code if isinstance(code, str) else None


def command_of(message: Mapping[str, Any]) -> str | None:
    """Return the command that a message begins with, without slash and bot name; ``None`` if there is none."""
    text, entities = message.get("text"), message.get("entities")
    if not isinstance(text, str) or not isinstance(entities, list):
        return None
    for one in entities:
        if isinstance(one, Mapping) and one.get("type") == "bot_command" and one.get("offset") == 0:
            return text[1 : one.get("length", 1)].split("@")[0].lower()
    return None


def title_from(text: str, limit: int = 30) -> str:
    """Return a title from the beginning of a question: whole words, about ``limit`` characters."""
    words = text.split()
    title = ""
    for word in words:
        longer = f"{title} {word}".strip()
        if title and len(longer) > limit:
            break
        title = longer
    if len(title) > limit + 20:  # one word longer than any title
        title = title[:limit]
    return title if title == " ".join(words) else f"{title}…"
