"""Prove that an identifier is its bytes: not folded, trimmed, normalised or taken for a pattern."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from letopis.store import ConversationStarted, InvalidInput, Message, MessageSent
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox, assert_no_gaps

HOSTILE = (
    "chat",
    "Chat",
    "CHAT",
    "chat ",
    " chat",
    "chat  ",
    "cha%",
    "c_at",
    "%",
    "_",
    "*",
    "ch\u00e4t",
    "cha\u0308t",
    "chät".upper(),
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    "e",
    "ﬁ",
    "fi",
    "ß",
    "ss",
    "ı",
    "i",
    "I",
    "İ",
    "е",  # Cyrillic
    "ё",
    "Ё",
    "0",
    "00",
    "0x30",
    "1e0",
    "1",
    "NULL",
    "null",
    "None",
    "true",
    "''",
    "'; DROP TABLE letopis_events; --",
    '"',
    "`",
    "\\",
    "\\'",
    "a\\0b",
    "{}",
    "[1]",
    "$1",
    ":name",
    "%s",
    "%(name)s",
    "?",
    "👋",
    "👋🏽",
    "👨‍👩‍👧",
    "\u200b",
    "\u200bchat",
    "\ufeffchat",
    "\u00a0",
    "\u202echat",
    "\u2028",
    "x" * 255,
    "x" * 254 + "y",
    "я" * 255,
    "😀" * 255,
    "😀" * 254 + "😁",
    "漢字",
    "\U0010ffff",
    "\ue000",
)


class IdentifierConformance(StoreConformance):
    """Keep conversations, messages and owners with similar identifiers apart."""

    async def test_every_conversation_keeps_to_itself(self, store: DestinationStore) -> None:
        outbox = Outbox()
        for index, name in enumerate(HOSTILE):
            outbox.append(name, Message.user(f"first in {index}"))
        await outbox.deliver(store)
        for index, name in enumerate(HOSTILE):
            outbox.append(name, Message.user(f"second in {index}"))
        result = await outbox.deliver(store)

        assert len(result.applied) == len(HOSTILE)
        for index, name in enumerate(HOSTILE):
            page = await store.messages(name)
            assert [message.text for message in page] == [f"first in {index}", f"second in {index}"]
            assert {message.conversation_id for message in page} == {name}
            conversation = await store.conversation(name)
            assert conversation is not None and conversation.conversation_id == name
        assert await store.lane_heads(outbox.origin.origin_id, HOSTILE) == dict.fromkeys(HOSTILE, 2)
        assert {conversation.conversation_id for conversation in await store.conversations(limit=1000)} == set(HOSTILE)
        await assert_no_gaps(store)

    async def test_every_message_keeps_to_itself(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("chat", *(Message.user("x", id=name) for name in HOSTILE))
        await outbox.deliver(store)
        for index, name in enumerate(HOSTILE):
            outbox.append("chat", MessageSent(message_id=name, platform_ids={"n": index}))
            await outbox.deliver(store)

        page = await store.messages("chat")

        assert [(message.id, message.delivery_data) for message in page] == [
            (name, {"platform_ids": {"n": index}}) for index, name in enumerate(HOSTILE)
        ]

    async def test_every_owner_keeps_to_themselves(self, store: DestinationStore) -> None:
        outbox = Outbox()
        for index, name in enumerate(HOSTILE):
            outbox.append(f"chat-{index}", ConversationStarted(owner_id=name, title=name))
        await outbox.deliver(store)

        for index, name in enumerate(HOSTILE):
            [conversation] = await store.conversations(owner=name)
            assert (conversation.conversation_id, conversation.owner_id) == (f"chat-{index}", name)
            assert (conversation.title, conversation.number) == (name, 1)

    async def test_a_list_goes_on_behind_every_id(self, store: DestinationStore) -> None:
        """The cursor holds an id, and ids compare in one order only if the database compares bytes."""
        outbox = Outbox()
        moment = Message.user("x")
        for name in HOSTILE:
            outbox.append(name, moment)
        for lane in outbox.lanes.values():
            object.__setattr__(lane[0], "occurred_at", 1_700_000_000_000_000)
        await outbox.deliver(store)

        seen: list[str] = []
        after = None
        while True:
            page = await store.conversations(after=after, limit=3)
            seen.extend(conversation.conversation_id for conversation in page)
            if (after := page.next) is None:
                break

        assert seen == sorted(HOSTILE, key=str.encode, reverse=True)

    async def test_an_invalid_identifier_is_refused_by_every_read(self, store: DestinationStore) -> None:
        origin_id = Outbox().origin.origin_id
        names: tuple[Any, ...] = ("", "x" * 256, "a\0b", "a\nb", "\ud800", 7, b"chat")
        for name in names:
            for read in (store.conversation, store.messages, store.events):
                with pytest.raises(InvalidInput, match="conversation_id"):
                    await read(name)
            with pytest.raises(InvalidInput, match="conversation_id"):
                await store.lane_heads(origin_id, [name])
            with pytest.raises(InvalidInput, match="owner"):
                await store.conversations(owner=name)
