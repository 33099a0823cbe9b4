"""Tell what a raw update means for a history; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from letopis.adapters.telegram_core.content import command_of, content_of, language_of
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.store import InvalidInput

MESSAGES: Final = ("message", "business_message", "channel_post", "guest_message")
EDITS: Final = ("edited_message", "edited_business_message", "edited_channel_post")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What an update means.

    :ivar update_id: its id; each update is recorded once.
    :ivar kind: the update's type, the name of the one field besides its id.
    :ivar key: where it happened; ``None`` if it has no place, like an inline query.
    :ivar payload: the content of that field.
    :ivar language: the language code of the user who caused it.
    """

    update_id: int
    kind: str
    key: ChatKey | None
    payload: Mapping[str, Any]
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said(Meaning):
    """A message that belongs to the conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Meaning):
    """A message that is a command to the bot and not part of the conversation.

    :ivar command: without the slash.
    """

    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited(Meaning):
    """A message has new content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted(Meaning):
    """Messages of a business account's chat were deleted.

    :ivar numbers: their message ids in Telegram.
    """

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMoved(Meaning):
    """A group became a supergroup, with another chat id.

    :ivar old: the chat id that it had.
    :ivar new: the chat id that it has.
    """

    old: int
    new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reacted(Meaning):
    """Someone changed their reactions to a message.

    :ivar number: the message id in Telegram.
    :ivar added: the reactions that are new.
    :ivar removed: the reactions that are gone.
    """

    number: int
    actor: str
    added: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Other(Meaning):
    """Anything else, including types that this release does not know: kept unchanged."""


def read_update(bot_id: int, update: Mapping[str, Any]) -> Meaning:
    """Return what an update means.

    :raises InvalidInput: it is not an update, because it has no ``update_id``.
    """
    update_id = update.get("update_id") if isinstance(update, Mapping) else None
    if not isinstance(update_id, int) or isinstance(update_id, bool):
        raise InvalidInput("update", "has no update_id")
    kind = next((name for name in update if name != "update_id"), "empty")
    payload = update.get(kind)
    if not isinstance(payload, Mapping):
        payload = {}
    key = _key_of(bot_id, payload)
    given: dict[str, Any] = {"update_id": update_id, "kind": kind, "key": key, "payload": payload}
    given["language"] = language_of(payload)
    if key is None:
        return Other(**given)
    if kind in MESSAGES:
        return _read_message(bot_id, given)
    if kind in EDITS:
        return Edited(**given) if content_of(payload) is not None else Other(**given)
    if kind == "deleted_business_messages":
        numbers = payload.get("message_ids")
        ids = [one for one in numbers if isinstance(one, int)] if isinstance(numbers, list) else []
        return Deleted(**given, numbers=tuple(ids))
    if kind == "message_reaction":
        return _read_reaction(given)
    return Other(**given)


def _key_of(bot_id: int, payload: Mapping[str, Any]) -> ChatKey | None:
    place = payload.get("message") if isinstance(payload.get("message"), Mapping) else payload
    assert isinstance(place, Mapping)  # noqa: S101 - both are
    try:
        return ChatKey.of_message(bot_id, place)
    except InvalidInput:
        return None


def _read_message(bot_id: int, given: dict[str, Any]) -> Meaning:
    message = given["payload"]
    chat_id = given["key"].chat_id
    if isinstance(new := message.get("migrate_to_chat_id"), int):
        return ChatMoved(**given, old=chat_id, new=new)
    if isinstance(old := message.get("migrate_from_chat_id"), int):
        return ChatMoved(**given, old=old, new=chat_id)
    # What the bot itself wrote for a business account comes back, but is already recorded on sending.
    sender = message.get("sender_business_bot")
    if content_of(message) is None or (isinstance(sender, Mapping) and sender.get("id") == bot_id):
        return Other(**given)
    if (command := command_of(message)) is not None:
        return Command(**given, command=command)
    return Said(**given)


def _read_reaction(given: dict[str, Any]) -> Meaning:
    payload = given["payload"]
    actor = payload.get("user") or payload.get("actor_chat")
    number = payload.get("message_id")
    if not isinstance(number, int) or not isinstance(actor, Mapping) or "id" not in actor:
        return Other(**given)
    before, after = _marks(payload.get("old_reaction")), _marks(payload.get("new_reaction"))
    return Reacted(
        **given,
        number=number,
        actor=str(actor["id"]),
        added=tuple(one for one in after if one not in before),
        removed=tuple(one for one in before if one not in after),
    )


def _marks(given: Any) -> list[str]:
    marks = []
    for one in given if isinstance(given, list) else []:
        if isinstance(one, Mapping):
            mark = one.get("emoji") or one.get("custom_emoji_id") or one.get("type")
            if isinstance(mark, str) and mark:
                marks.append(mark)
    return marks


def is_from_account(message: Mapping[str, Any]) -> bool:
    """Return True if a message of a business chat was written by the account itself, not by its customer."""
    sender, chat = message.get("from"), message.get("chat")
    if "business_connection_id" not in message or not isinstance(sender, Mapping) or not isinstance(chat, Mapping):
        return False
    return sender.get("id") != chat.get("id")
