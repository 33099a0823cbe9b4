"""The texts of the menu and of smart send, in Russian and English."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from letopis.outbox.alerting.language import language_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The texts of one language."""

    new: str = "💬 Chat “{title}” begins. Send a message."
    untitled: str = "New chat"
    chats: str = "Your chats ({page} of {pages}):"
    no_chats: str = "You have no chats yet. Send a message, and one begins."
    chat: str = "💬 “{title}”\nMessages: {messages}, last on {date}"
    switched: str = "✅ Now in “{title}”."
    ask_title: str = "✏️ Reply to this message with the new title of “{title}”."
    title_hint: str = "New title"
    renamed: str = "✅ The chat is now called “{title}”."
    ask_delete: str = "🗑 Delete “{title}” for good, with all its messages?"
    deleted: str = "🗑 “{title}” is deleted."
    gone: str = "This chat is no longer there."
    history: str = "🕘 “{title}”, the last {count} messages:"
    empty: str = "There are no messages here yet."
    stats: str = (
        "📊 The last 30 days\nChats: {conversations}\nQuestions: {questions}\nAnswers: {answers}\nTokens: {tokens}"
    )
    stats_all: str = "📊 All the time\nMessages: {messages}\nTokens: {tokens}"
    ask_search: str = "🔎 Write what to look for after the command: /search words"
    found: str = "🔎 Found for “{query}”:"
    not_found: str = "🔎 Nothing found for “{query}”."
    incomplete: str = "⚠️ The history is not reachable at present, so something may be missing here."
    failed: str = "⚠️ That does not work at present. Nothing is lost; please try again later."
    whole_in_file: str = "📎 The whole answer is in the file."
    file_name: str = "answer"
    you: str = "You"
    bot: str = "Bot"
    b_new: str = "➕ New chat"
    b_chats: str = "📋 Chats"
    b_stats: str = "📊 Statistics"
    b_open: str = "✅ Switch to it"
    b_rename: str = "✏️ Rename"
    b_delete: str = "🗑 Delete"
    b_yes: str = "🗑 Yes, delete"
    b_no: str = "↩️ No"
    b_history: str = "🕘 History"
    b_back: str = "◀️"
    b_next: str = "▶️"
    d_new: str = "begin a new chat"
    d_list: str = "your chats"
    d_switch: str = "switch to another chat"
    d_rename: str = "rename this chat"
    d_delete: str = "delete this chat"
    d_history: str = "the last messages of this chat"
    d_stats: str = "statistics"
    d_search: str = "search in all chats"


ENGLISH: Final = Texts()
RUSSIAN: Final = Texts(
    new="💬 Чат «{title}» начат. Напишите сообщение.",
    untitled="Новый чат",
    chats="Ваши чаты ({page} из {pages}):",
    no_chats="Чатов пока нет. Напишите сообщение, и чат появится.",
    chat="💬 «{title}»\nСообщений: {messages}, последнее {date}",
    switched="✅ Вы в чате «{title}».",
    ask_title="✏️ Ответьте на это сообщение новым названием чата «{title}».",
    title_hint="Новое название",
    renamed="✅ Теперь чат называется «{title}».",
    ask_delete="🗑 Удалить чат «{title}» навсегда, со всеми сообщениями?",
    deleted="🗑 Чат «{title}» удалён.",
    gone="Этого чата больше нет.",
    history="🕘 «{title}», последние сообщения ({count}):",
    empty="Здесь пока нет сообщений.",
    stats="📊 За 30 дней\nЧатов: {conversations}\nВопросов: {questions}\nОтветов: {answers}\nТокенов: {tokens}",
    stats_all="📊 За всё время\nСообщений: {messages}\nТокенов: {tokens}",
    ask_search="🔎 Напишите после команды, что искать: /search слова",
    found="🔎 Найдено по запросу «{query}»:",
    not_found="🔎 По запросу «{query}» ничего не найдено.",
    incomplete="⚠️ История сейчас недоступна, поэтому здесь может быть не всё.",
    failed="⚠️ Сейчас не получается. Ничего не потеряно, попробуйте позже.",
    whole_in_file="📎 Полный ответ в файле.",
    file_name="otvet",
    you="Вы",
    bot="Бот",
    b_new="➕ Новый чат",
    b_chats="📋 Чаты",
    b_stats="📊 Статистика",
    b_open="✅ Перейти",
    b_rename="✏️ Переименовать",
    b_delete="🗑 Удалить",
    b_yes="🗑 Да, удалить",
    b_no="↩️ Нет",
    b_history="🕘 История",
    d_new="начать новый чат",
    d_list="ваши чаты",
    d_switch="перейти в другой чат",
    d_rename="переименовать этот чат",
    d_delete="удалить этот чат",
    d_history="последние сообщения чата",
    d_stats="статистика",
    d_search="поиск по всем чатам",
)
COMMANDS: Final = ("new", "list", "switch", "rename", "delete", "history", "stats", "search")
"""The built-in commands, in the order of the menu."""


def texts_for(language: str | None) -> Texts:
    """Return the texts for a language code from Telegram (``ru``, ``en-GB``); English for other languages."""
    return RUSSIAN if language_of(language) == "ru" else ENGLISH


def descriptions(language: str | None) -> dict[str, str]:
    """Return the description of each built-in command, for ``setMyCommands``."""
    texts = texts_for(language)
    return {name: str(getattr(texts, f"d_{name}")) for name in COMMANDS}
