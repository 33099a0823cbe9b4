"""What is answered with `saved` can be read: ids that were used before, from one outbox and from a second one."""

from __future__ import annotations

import pytest

from letopis.store import (
    ConversationStore,
    EventIdReused,
    InvalidInput,
    Message,
    MessageEdited,
    Reuse,
    Saved,
)
from tests.conformance.talk import deliver, lose_acknowledgements, prune_all
from tests.support.relays import sql
from tests.support.sayings import Bots

pytestmark = pytest.mark.same_sql

CHAT = "chat-1"


async def test_a_redacted_id_is_refused(bots: Bots) -> None:
    bot, _ = bots
    await bot.append(CHAT, Message.user("secret", id="m"))
    await bot.chat(CHAT).redact("m")
    for _ in range(2):
        for text in ("secret", "other"):
            with pytest.raises(EventIdReused, match="erased") as refused:
                await bot.append(CHAT, Message.user(text, id="m"))
            assert refused.value.reason is Reuse.ERASED
        await deliver(bot)
    for edit in (bot.chat(CHAT).edit("m", "new"), bot.append(CHAT, MessageEdited(message_id="m", content="new"))):
        with pytest.raises(InvalidInput, match="erased"):
            await edit


async def test_the_words_of_a_second_outbox_are_never_saved_and_nowhere(bots: Bots, store: ConversationStore) -> None:
    one, two = bots
    message = Message.user("the words", id="m")
    await one.append(CHAT, Message.user("before", id="first"), message)
    await deliver(one)
    twin = await two.append(CHAT, message)
    await deliver(two)
    assert await twin.saved(60)  # it is there, and read
    assert not await twin.superseded(5)

    await one.append("other", Message.user("x", id="x"), message)
    await one.chat("other").pop()
    await deliver(one)
    late = await two.append("other", message)
    after = await two.append("other", Message.user("and then", id="after"))
    await deliver(two)

    assert not await late.saved(5)
    assert await late.superseded(60)
    assert await late.state() is Saved.SAVED
    assert await after.saved(60)  # the lane continues
    assert [found.id for found in await two.messages("other")] == ["x", "after"]
    assert [found.id for found in await two.messages("other", every=True)] == ["x", "m", "after"]
    assert [found.id for found in await store.messages("other")] == ["x", "after"]


async def test_a_redacted_id_from_a_second_outbox_waits_for_a_person(bots: Bots, store: ConversationStore) -> None:
    one, two = bots
    await one.append(CHAT, Message.user("secret", id="m"))
    await one.chat(CHAT).redact("m")
    await deliver(one)

    late = await two.append(CHAT, Message.user("secret", id="m"))
    await deliver(two)

    assert not await late.saved(5)
    assert not await late.superseded(5)
    assert await late.state() is Saved.BLOCKED
    [(state, fault)] = await sql(two.outbox, "SELECT state, fault FROM letopis_outbox_lanes")
    assert state == "blocked"
    assert "erased" in fault and "secret" not in fault
    assert [found.text for found in await store.messages(CHAT)] == [""]


async def test_an_edit_of_what_another_outbox_redacted_is_put_aside(bots: Bots, store: ConversationStore) -> None:
    one, two = bots
    await one.append(CHAT, Message.user("secret", id="m"))
    await deliver(one)
    edit = await two.chat(CHAT).edit("m", "new words")
    await one.chat(CHAT).redact("m")
    await deliver(one)
    await deliver(two)

    assert not await edit.saved(5)
    assert await edit.superseded(60)
    assert [found.text for found in await two.messages(CHAT)] == [""]
    assert "new words" not in repr(await store.events(CHAT))


async def test_a_deleted_conversation_saves_no_twin(bots: Bots) -> None:
    one, two = bots
    message = Message.user("the words", id="m")
    await one.append(CHAT, message)
    await deliver(one)
    late = await two.append(CHAT, message)
    await one.chat(CHAT).delete()
    await deliver(one)
    await deliver(two)

    assert not await late.saved(5)
    assert await late.superseded(60)


async def test_an_id_that_the_outbox_has_pruned_is_seen_to_by_the_store(bots: Bots) -> None:
    bot, _ = bots
    message = Message.user("the words", id="m")
    await bot.append(CHAT, Message.user("before", id="first"), message)
    await bot.chat(CHAT).pop()
    await deliver(bot)
    await bot.outbox.write(prune_all)

    late = await bot.append(CHAT, message)
    await deliver(bot)
    assert not await late.saved(5)
    assert await late.superseded(60)

    await bot.chat(CHAT).redact("first")
    await deliver(bot)
    await bot.outbox.write(prune_all)
    erased = await bot.append(CHAT, Message.user("before", id="first"))
    await deliver(bot)
    assert not await erased.saved(5)
    assert await erased.state() is Saved.BLOCKED


async def test_an_event_that_its_own_lane_sends_again_is_no_reuse(bots: Bots, store: ConversationStore) -> None:
    bot, _ = bots
    said = await bot.append(CHAT, Message.user("first", id="first"), Message.user("m", id="m"))
    await bot.chat(CHAT).pop()
    await bot.chat(CHAT).redact("first")
    await deliver(bot)
    # The acknowledgement was lost: all of it goes again.
    await lose_acknowledgements(bot)
    await deliver(bot)

    assert await said.saved(60)
    assert not await said.superseded(5)
    assert await said.state() is Saved.SAVED
    assert len(await store.events(CHAT)) == 5


async def test_sent_and_failed_of_an_unknown_message_are_refused(bots: Bots) -> None:
    bot, _ = bots
    await bot.append(CHAT, Message.user("first", id="first"))
    for call in (bot.chat(CHAT).sent("nowhere"), bot.chat(CHAT).failed("nowhere")):
        with pytest.raises(InvalidInput, match="no message of this conversation"):
            await call
    await bot.chat(CHAT).sent("first")
