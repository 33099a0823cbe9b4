"""Apply a chat changed by a bot to the history: only the differences."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any

from letopis.adapters.voxpersona import mapping
from letopis.adapters.voxpersona.models import NEW_CHAT, short_title
from letopis.outbox import BlockingHistory
from letopis.store import Body, Conversation, ConversationAnnotated, ConversationRenamed, RecordedMessage


def save(
    history: BlockingHistory,
    chat: Conversation | None,
    metadata: Mapping[str, Any],
    tz: tzinfo | None,
    *,
    messages: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Rename, annotate, edit and append, so that the history matches a chat.

    :param chat: the chat in the history; ``None`` to create it.
    :param messages: all messages of the chat; missing ones are kept in the history.
    :raises LetopisError: as for ``History.append``.
    """
    conversation_id, user_id = metadata["conversation_id"], int(metadata["user_id"])
    title = mapping.storable(metadata.get("title")) or NEW_CHAT
    about = {name: metadata[name] for name in ("chat_number",) if metadata.get(name) is not None}
    if metadata.get("username"):
        about["username"] = mapping.storable(metadata["username"])
    if chat is None:
        history.start(user_id, conversation_id=conversation_id, title=title, activate=False, metadata=about)
    elif changes := _changes(chat, user_id, title, about):
        first, *more = changes
        history.append(conversation_id, first, *more, owner=user_id)
    if not messages:
        return
    there = history.messages(conversation_id, last=None)
    used = Counter(one["message_id"] for one in mapping.from_messages(there, tz))
    for values, known in _paired(messages, there, tz):
        text = mapping.storable(values["text"])
        if known is not None:
            if known.text != text:
                history.chat(conversation_id).edit(known.id, text)
            continue
        made = mapping.to_message(user_id, values, occurrence=used[values["message_id"]])
        used[values["message_id"]] += 1
        history.append(conversation_id, made, owner=user_id, occurred_at=mapping.parse_time(values["timestamp"], tz))


def _changes(chat: Conversation, user_id: int, title: str, about: Mapping[str, Any]) -> list[Body]:
    changes: list[Body] = []
    # The seed's files shorten long titles: that is not a new title.
    if title not in (chat.title, short_title(chat.title or "")):
        changes.append(ConversationRenamed(title=title))
    shown = mapping.metadata_of(chat, user_id, active=False, tz=None)
    if differs := {name: value for name, value in about.items() if value != shown[name]}:
        changes.append(ConversationAnnotated(metadata=differs))
    return changes


def _paired(
    given: Sequence[Mapping[str, Any]], there: Sequence[RecordedMessage], tz: tzinfo | None
) -> list[tuple[Mapping[str, Any], RecordedMessage | None]]:
    """Return each given message with its counterpart in the history, by Telegram id and type."""
    waiting: dict[tuple[Any, Any], deque[RecordedMessage]] = defaultdict(deque)
    for one in there:
        for values in mapping.from_messages([one], tz):
            waiting[_key(values)].append(one)
    return [(values, waiting[_key(values)].popleft() if waiting[_key(values)] else None) for values in given]


def _key(values: Mapping[str, Any]) -> tuple[Any, Any]:
    return values["message_id"], values["type"]
