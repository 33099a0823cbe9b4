"""Every ready command and every button does what it says, in both languages, and only to chats of its own place."""

from pathlib import Path

import pytest

from letopis import Held, History, Message
from letopis.adapters.telegram_core.bot import BotParts
from letopis.adapters.telegram_core.buttons import MenuScreen, read_press
from letopis.adapters.telegram_core.keys import ChatKey
from tests.support.sayings import present
from tests.support.telegram_calls import PLACE

OTHER = ChatKey(bot_id=7000, chat_id=1002)


def data_of(screen: MenuScreen, part: str) -> str:
    [found] = [one.data for row in screen.rows for one in row if part in one.text]
    return found


async def press(
    parts: BotParts, screen: MenuScreen, part: str, language: str = "en", key: ChatKey = PLACE
) -> MenuScreen:
    return await parts.menu.press(present(read_press(data_of(screen, part))), key, language)


async def run(parts: BotParts, name: str, words: str = "", language: str = "en", key: ChatKey = PLACE) -> MenuScreen:
    return await parts.menu.command(name, words, key, language)


async def active(parts: BotParts) -> str | None:
    found = await parts.history.active(PLACE.owner, create=False)
    return None if found is None else found.title


async def test_new_begins_a_chat_that_is_active(parts: BotParts) -> None:
    first = await run(parts, "new", "Tea")
    second = await run(parts, "new", "Coffee", "ru")
    assert first.text == "💬 Chat “Tea” begins. Send a message."
    assert second.text == "💬 Чат «Coffee» начат. Напишите сообщение."
    assert await active(parts) == "Coffee"
    assert [one.title async for one in parts.chats.listed(PLACE)] == ["Coffee", "Tea"]


async def test_list_shows_the_active_chat_first_and_turns_pages(parts: BotParts) -> None:
    for number in range(10):
        await run(parts, "new", f"Chat {number}")
    first = await run(parts, "list")
    assert (first.text, first.rows[1][0].text, len(first.rows)) == ("Your chats (1 of 2):", "✅ Chat 9", 10)
    second = await press(parts, first, "▶️")
    assert [row[0].text for row in second.rows[1:]] == ["Chat 1", "Chat 0", "◀️"]
    assert (await press(parts, second, "◀️")).text == first.text


async def test_a_chat_is_shown_and_switched_to(parts: BotParts) -> None:
    await run(parts, "new", "Tea")
    await run(parts, "new", "Coffee")
    card = await press(parts, await run(parts, "switch"), "Tea")
    assert card.text.startswith("💬 “Tea”\nMessages: 0")
    switched = await press(parts, card, "Switch")
    assert switched.text == "✅ Now in “Tea”."
    assert await active(parts) == "Tea"
    assert not [one for row in switched.rows for one in row if "Switch" in one.text]


async def test_rename_asks_for_a_title_and_takes_the_answer(parts: BotParts) -> None:
    await run(parts, "new", "Tea")
    asked = await run(parts, "rename")
    assert asked.text == "✏️ Reply to this message with the new title of “Tea”."
    renamed = await parts.menu.title(present(asked.asks), "  Green\n tea ", PLACE, "en")
    assert renamed.text == "✅ The chat is now called “Green tea”."
    assert await active(parts) == "Green tea"
    assert (await run(parts, "rename", "Black tea")).text == "✅ The chat is now called “Black tea”."


async def test_the_answer_to_the_question_for_a_title_is_no_message(parts: BotParts) -> None:
    chat = await parts.chats.start(PLACE, title="Tea")
    await parts.local.asked(PLACE.owner, 77, chat)
    bot = {"message_id": 77, "from": {"id": 7000}, "text": "Reply"}
    message = {"message_id": 78, "chat": {"id": 1001}, "from": {"id": 1001}, "text": "Oolong", "date": 1_790_000_000}
    found = await parts.incoming.record({"update_id": 1, "message": {**message, "reply_to_message": bot}})
    assert found.titles == chat
    assert list(await parts.history.messages(chat)) == []


async def test_delete_asks_first_and_takes_files_with_it(parts: BotParts, tmp_path: Path) -> None:
    chat = await parts.chats.start(PLACE, title="Tea")
    sent, redacted, other = Message.assistant("Leaves"), Message.assistant("Leaves"), Message.user("x", id="../other")
    own = [await parts.chats.files.write(one.id, "Leaves") for one in (sent, redacted)]
    foreign = tmp_path / "other.txt"
    foreign.write_text("Leaves")
    await parts.history.append(chat, sent, redacted, other)
    for message in (sent, redacted):
        path = str(parts.chats.files.path(message.id))
        await parts.history.chat(chat).sent(message.id, sent_as="file", file_path=path)
    await parts.history.chat(chat).redact(redacted.id)  # the history does not name its file any more
    asked = await run(parts, "delete")
    assert asked.text == "🗑 Delete “Tea” for good, with all its messages?"
    kept = await press(parts, asked, "No")
    assert kept.text.startswith("💬 “Tea”")
    gone = await press(parts, asked, "Yes")
    assert gone.text == "🗑 “Tea” is deleted."
    assert await parts.chats.owned(PLACE, chat) is None
    assert [path.exists() for path in (*own, foreign)] == [False, False, True]
    assert (await press(parts, asked, "Yes")).text == "This chat is no longer there."


async def test_a_hold_keeps_the_files_of_answers(parts: BotParts) -> None:
    chat = await parts.chats.start(PLACE, title="Tea")
    answer = Message.assistant("Leaves")
    file = await parts.chats.files.write(answer.id, "Leaves")
    await parts.history.append(chat, answer)
    await parts.history.store.erasures.hold("conversation", chat, reason="a court asked")
    with pytest.raises(Held):
        await parts.chats.redact(chat, answer.id, reason=None)
    with pytest.raises(Held):
        await parts.chats.delete(chat, reason=None)
    assert file.exists()
    await parts.history.store.erasures.release("conversation", chat)
    await parts.chats.redact(chat, answer.id, reason=None)
    assert not file.exists()


async def test_after_the_first_chat_is_deleted_the_next_begins(parts: BotParts) -> None:
    await press(parts, await press(parts, await run(parts, "new", "Tea"), "Chats"), "Tea")
    await press(parts, await run(parts, "delete"), "Yes")
    assert (await run(parts, "new", "Coffee")).text == "💬 Chat “Coffee” begins. Send a message."
    assert await active(parts) == "Coffee"


async def test_history_shows_the_last_messages_or_sends_them_as_a_file(parts: BotParts) -> None:
    assert (await run(parts, "history")).text == "There are no messages here yet."
    chat = (await parts.chats.active(PLACE)).conversation_id
    await parts.history.append(chat, Message.user("What is tea?"), Message.assistant("A leaf."))
    short = await run(parts, "history", language="ru")
    assert short.text.startswith("🕘 «Новый чат», последние сообщения (2):")
    assert "What is tea?" in short.text
    assert "Бот," in short.text
    await parts.history.append(chat, Message.assistant("A leaf. " * 1000))
    name, text = present((await run(parts, "history")).document)
    assert (name, text.count("A leaf.")) == ("New chat.txt", 1001)


async def test_stats_count_what_was_said(parts: BotParts) -> None:
    chat = (await parts.chats.active(PLACE)).conversation_id
    await parts.history.append(chat, Message.user("What is tea?"), Message.assistant("A leaf.", tokens=7))
    screen = await run(parts, "stats")
    assert "Questions: 1\nAnswers: 1\nTokens: 7" in screen.text
    assert "Вопросов: 1" in (await run(parts, "stats", language="ru")).text


async def test_search_finds_in_the_chats_of_this_place_alone(parts: BotParts) -> None:
    for key, text in ((PLACE, "Green tea with mint"), (OTHER, "Green tea of a stranger")):
        chat = (await parts.chats.active(key)).conversation_id
        await parts.history.append(chat, Message.user(text), owner=key.owner)
    found = await run(parts, "search", "teas")
    assert "mint" in found.text
    assert "stranger" not in found.text
    assert (await press(parts, found, "💬")).text.startswith("💬")
    assert (await run(parts, "search", "coffee")).text == "🔎 Nothing found for “coffee”."
    assert (await run(parts, "search", "!!!")).text == "🔎 Nothing found for “!!!”."
    assert (await run(parts, "search")).text == "🔎 Write what to look for after the command: /search words"


async def test_nobody_reaches_the_chats_of_another_place(parts: BotParts) -> None:
    theirs = await parts.history.start(OTHER.owner, conversation_id="imported-1", title="Secret")
    await run(parts, "new", "Mine")
    listed = await run(parts, "list", key=OTHER)
    for screen in (listed, await press(parts, listed, "Secret", key=OTHER)):
        for one in (button for row in screen.rows for button in row):
            answer = await parts.menu.press(present(read_press(one.data)), PLACE, "en")
            shown = [answer.text, *(button.text for row in answer.rows for button in row)]
            assert not any("Secret" in text for text in shown)
    gone = MenuScreen(text="This chat is no longer there.")
    assert await parts.menu.title("imported-1", "Stolen", PLACE, "en") == gone
    chat = present(await parts.history.chat(theirs.conversation_id).conversation())
    assert (chat.title, chat.state) == ("Secret", "active")


async def test_while_the_store_is_away_the_menu_says_what_may_be_missing(alone: History, tmp_path: Path) -> None:
    parts = BotParts.of(alone, 7000, files=tmp_path)
    await run(parts, "new", "Tea")
    chat = (await parts.chats.active(PLACE)).conversation_id
    await alone.append(chat, Message.user("What is tea?"))
    assert "✅ Tea" in [one.text for row in (await run(parts, "list")).rows for one in row]
    for name, words in (("history", ""), ("stats", ""), ("search", "tea")):
        assert "may be missing" in (await run(parts, name, words)).text
    assert (await run(parts, "rename", "Oolong")).text == "✅ The chat is now called “Oolong”."
