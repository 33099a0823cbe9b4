# pyright: reportMissingImports=false
"""Offer the built-in commands of the chat menu with python-telegram-bot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from telegram import BotCommand, CallbackQuery, ForceReply, InlineKeyboardMarkup, InputFile, Message, Update
from telegram.error import BadRequest

from letopis.adapters.telegram.conversion import raw
from letopis.adapters.telegram_core.bot import BotParts
from letopis.adapters.telegram_core.buttons import MenuScreen, read_press
from letopis.adapters.telegram_core.content import command_of
from letopis.adapters.telegram_core.incoming import Recorded
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.outgoing import unrecorded
from letopis.adapters.telegram_core.texts import descriptions


async def handle(bot: Any, parts: BotParts, commands: Sequence[str], recorded: Recorded, update: Update) -> bool:
    """Handle a built-in command, a press of its buttons, or a requested title; return ``False`` for other updates."""
    message, query = update.message, update.callback_query
    if message is not None:
        key = ChatKey.of_message(parts.bot_id, raw(message))
        if recorded.titles is not None:
            await _show(
                bot, parts, key, await parts.menu.title(recorded.titles, message.text or "", key, _language(message))
            )
            return True
        name, arguments = _command(message, bot.username)
        if name not in commands:
            return False
        await _show(bot, parts, key, await parts.menu.command(name, arguments, key, _language(message)))
        return True
    return query is not None and bool(commands) and await _press(bot, parts, query)


async def _press(bot: Any, parts: BotParts, query: CallbackQuery) -> bool:
    pressed = read_press(query.data if isinstance(query.data, str) else None)
    if pressed is None or query.message is None:
        return False
    key = ChatKey.of_message(parts.bot_id, raw(query.message))
    with unrecorded():
        screen = await parts.menu.press(pressed, key, query.from_user.language_code)
        await _show(bot, parts, key, screen, instead_of=query.message if isinstance(query.message, Message) else None)
        await query.answer(screen.notice)
    return True


async def _show(
    bot: Any, parts: BotParts, key: ChatKey, screen: MenuScreen, *, instead_of: Message | None = None
) -> None:
    """Show a screen, as a new message or in place of the one whose button was pressed; it is not recorded."""
    place = key.call()
    keyboard = InlineKeyboardMarkup.de_json({"inline_keyboard": screen.keyboard()}, bot) if screen.rows else None
    with unrecorded():
        if screen.asks is not None:
            ask = ForceReply(input_field_placeholder=screen.hint, selective=True)
            asked = await bot.send_message(text=screen.text, parse_mode=None, reply_markup=ask, **place)
            owner = (await parts.chats.settled(key)).owner
            await parts.local.asked(owner, asked.message_id, screen.asks)
            return
        if screen.document is not None:
            name, text = screen.document
            file = InputFile(text.encode(), filename=name)
            await bot.send_document(document=file, caption=screen.text, parse_mode=None, reply_markup=keyboard, **place)
        elif instead_of is None or not await _replaced(instead_of, screen.text, keyboard):
            await bot.send_message(text=screen.text, parse_mode=None, reply_markup=keyboard, **place)


async def _replaced(message: Message, text: str, keyboard: InlineKeyboardMarkup | None) -> bool:
    try:
        await message.edit_text(text, parse_mode=None, reply_markup=keyboard)
    except BadRequest as error:
        return "not modified" in error.message  # the same button was pressed twice; otherwise it is too old to edit
    return True


async def describe(bot: Any, commands: Sequence[str]) -> None:
    """Register the commands with Telegram, in English and Russian."""
    for language in (None, "ru"):
        told = descriptions(language)
        await bot.set_my_commands([BotCommand(name, told[name]) for name in commands], language_code=language)


def _command(message: Message, username: str | None) -> tuple[str, str]:
    """Return a message's command and its arguments; empty if there is none, or if it is for another bot."""
    name = command_of(raw(message))
    if name is None:
        return "", ""
    first, *arguments = (message.text or "").split(maxsplit=1)
    addressed = first.partition("@")[2]
    if addressed and addressed.lower() != (username or "").lower():
        return "", ""
    return name, "".join(arguments)


def _language(message: Message) -> str | None:
    return None if message.from_user is None else message.from_user.language_code
