"""Tell what a call of the Bot API means for a history; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from letopis.adapters.telegram_core.content import MEDIA, STRUCTURED, content_of
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.store.model.parts import Content, Data, File, Part, Text

_SENDS: Final = re.compile(
    r"send(?!ChatAction|MessageDraft|Invoice|Gift|ChatJoin)[A-Z]\w*|copyMessages?|forwardMessages?"
)
_EDITS: Final = re.compile(r"editMessage(Text|Caption|Media|Checklist)")
Does = Literal["send", "edit", "delete"]
Ending = Literal["retry", "refused", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BotApiCall:
    """What a call does to a conversation.

    :ivar key: the place that it writes to.
    :ivar content: what is sent, or the new content; ``None`` for a deletion.
    :ivar numbers: the message ids in Telegram that it edits or deletes.
    :ivar sent_as: how it is sent: ``message``, ``photo``, ``file``, ...
    """

    does: Does
    method: str
    key: ChatKey
    content: Content | None = None
    numbers: tuple[int, ...] = ()
    sent_as: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The outcome of a call that returned no result.

    :ivar ending: ``retry`` if it was not carried out and should be repeated, ``refused`` if it never will be, and
        ``unknown`` if Telegram may have carried it out, as after a timeout.
    :ivar seconds: with ``retry``: how long to wait.
    :ivar reason: without any text of a message.
    :ivar formatting: it was refused because of its entities or markup.
    :ivar final: this chat will accept no other message either, as when the user has blocked the bot.
    :ivar moved_to: the new id of the group.
    """

    ending: Ending
    reason: str
    seconds: float = 0.0
    formatting: bool = False
    final: bool = False
    moved_to: int | None = None


def failure_of(code: int, description: str, parameters: Mapping[str, Any] | None = None) -> Failure:
    """Return what an answer of the Bot API with ``ok: false`` means.

    :param code: the ``error_code``.
    """
    told = parameters or {}
    after, moved = told.get("retry_after"), told.get("migrate_to_chat_id")
    reason = f"Telegram: {code} {description}"[:200]
    if code == 429 or after is not None:
        return Failure(ending="retry", reason=reason, seconds=float(after or 1))
    if code >= 500:
        return Failure(ending="unknown", reason=reason)
    return Failure(
        ending="refused",
        reason=reason,
        formatting=code == 400 and "can't parse" in description.lower(),
        final=code in (401, 403) or (code == 400 and "chat not found" in description.lower()),
        moved_to=moved if isinstance(moved, int) else None,
    )


def read_call(bot_id: int, method: str, payload: Mapping[str, Any]) -> BotApiCall | None:
    """Return what a call does; ``None`` if it belongs to no conversation, or names its chat by a username.

    :param method: its name in the Bot API, for example ``sendMessage``.
    :param payload: its parameters, as JSON values. Files to upload are mappings with a ``name``.
    """
    key = ChatKey.of_call(bot_id, payload)
    if key is None:
        return None
    if _SENDS.fullmatch(method):
        return BotApiCall(does="send", method=method, key=key, content=_sent(method, payload), sent_as=_kind(method))
    if _EDITS.fullmatch(method) and isinstance(payload.get("message_id"), int):
        content = _sent(method, payload)
        return BotApiCall(does="edit", method=method, key=key, content=content, numbers=(payload["message_id"],))
    if method in ("deleteMessage", "deleteMessages", "deleteBusinessMessages"):
        given = payload.get("message_ids", [payload.get("message_id")])
        numbers = tuple(one for one in given if isinstance(one, int)) if isinstance(given, Sequence) else ()
        return BotApiCall(does="delete", method=method, key=key, numbers=numbers) if numbers else None
    return None


def numbers_in(result: Any) -> tuple[int, ...]:
    """Return the message ids in the result of a call, as JSON values: a message, an id, or a list of them."""
    found = result if isinstance(result, list) else [result]
    return tuple(
        one["message_id"] for one in found if isinstance(one, Mapping) and isinstance(one.get("message_id"), int)
    )


def chat_in(result: Any) -> int | None:
    """Return the chat id in the result of a call; ``None`` if it has none."""
    first = result[0] if isinstance(result, list) and result else result
    chat = first.get("chat") if isinstance(first, Mapping) else None
    number = chat.get("id") if isinstance(chat, Mapping) else None
    return number if isinstance(number, int) else None


def content_in(result: Any) -> Content | None:
    """Return the content of a sent message, from the result of the call."""
    return content_of(result) if isinstance(result, Mapping) else None


def _kind(method: str) -> str:
    kind = method.removeprefix("send")
    if kind == method:
        return re.sub(r"Messages?", "", method)
    kind = kind[:1].lower() + re.sub(r"([A-Z])", r"_\1", kind[1:]).lower()
    return {"document": "file", "rich_message": "message"}.get(kind, kind)


def _sent(method: str, payload: Mapping[str, Any]) -> Content:
    parts: list[Part] = []
    words = payload.get("text") or payload.get("caption")
    if isinstance(words, str) and words:
        parts.append(Text(words))
    media = payload.get("media")
    for one in media if isinstance(media, list) else [media] if isinstance(media, Mapping) else []:
        if isinstance(one, Mapping):
            if isinstance(one.get("caption"), str) and one["caption"]:
                parts.append(Text(one["caption"]))
            parts.append(_file(one.get("media"), str(one.get("type", "file"))))
    parts.extend(_file(payload[name], name) for name in MEDIA if payload.get(name) is not None)
    rest = {name: payload[name] for name in STRUCTURED if payload.get(name) is not None}
    for name in ("question", "options", "emoji", "latitude", "longitude", "phone_number", "first_name", "title"):
        if payload.get(name) is not None:
            rest[name] = payload[name]
    if "from_chat_id" in payload:
        rest |= {name: payload[name] for name in ("from_chat_id", "message_id", "message_ids") if name in payload}
    if rest or not parts:
        parts.append(Data({"method": method, **rest}))
    return parts[0].text if len(parts) == 1 and isinstance(parts[0], Text) else tuple(parts)


def _file(given: Any, kind: str) -> File:
    if isinstance(given, str):
        known = "://" in given
        return File(given if known else f"tg-file:{given}", MEDIA.get(kind), kind)
    name = given.get("name") if isinstance(given, Mapping) else None
    return File(f"tg-upload:{name or kind}", MEDIA.get(kind), name if isinstance(name, str) else kind)
