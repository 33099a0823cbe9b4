# pyright: reportMissingImports=false
"""Offer the built-in commands of the chat menu with aiogram."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiogram import Bot, F, Router
from aiogram.dispatcher.event.bases import SkipHandler
from aiogram.exceptions import TelegramBadRequest
from aiogram.filters import Command, CommandObject
from aiogram.types import (
    BotCommand,
    BufferedInputFile,
    CallbackQuery,
    ForceReply,
    InlineKeyboardMarkup,
    Message,
    TelegramObject,
)

from letopis.adapters.aiogram.conversion import raw
from letopis.adapters.telegram_core.bot import BotParts
from letopis.adapters.telegram_core.buttons import PREFIX, MenuScreen, read_press
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.outgoing import unrecorded
from letopis.adapters.telegram_core.texts import descriptions

_FOLLOWED: Final = ("edited_message", "edited_business_message", "deleted_business_messages")
"""Updates that change recorded messages, and that a bot receives only if it has a handler for them."""

PartsOf = Callable[[Bot], BotParts]


def menu_router(parts_of: PartsOf, commands: Sequence[str]) -> Router:
    """Return a router for the built-in commands, their buttons, and the updates that change a history."""
    router = Router(name="letopis")

    async def command(message: Message, command: CommandObject, bot: Bot) -> None:
        parts, key = parts_of(bot), ChatKey.of_message(bot.id, raw(message))
        screen = await parts.menu.command(command.command.lower(), command.args or "", key, _language(message))
        await show(bot, parts, key, screen)

    async def press(query: CallbackQuery, bot: Bot) -> None:
        pressed = read_press(query.data)
        if pressed is None or query.message is None:
            raise SkipHandler
        parts, key = parts_of(bot), ChatKey.of_message(bot.id, raw(query.message))
        with unrecorded():
            screen = await parts.menu.press(pressed, key, query.from_user.language_code)
            shown = query.message if isinstance(query.message, Message) else None
            await show(bot, parts, key, screen, instead_of=shown)
            await query.answer(screen.notice)

    async def skip(_: TelegramObject) -> None:
        raise SkipHandler

    if commands:
        router.message.register(command, Command(*commands, ignore_case=True))
        router.callback_query.register(press, F.data.startswith(f"{PREFIX}:"))
    for name in _FOLLOWED:
        router.observers[name].register(skip)
    return router


async def show_titled(bot: Bot, parts: BotParts, message: Message, conversation_id: str) -> None:
    """Use a message as the requested title."""
    key = ChatKey.of_message(bot.id, raw(message))
    screen = await parts.menu.title(conversation_id, message.text or "", key, _language(message))
    await show(bot, parts, key, screen)


async def show(
    bot: Bot, parts: BotParts, key: ChatKey, screen: MenuScreen, *, instead_of: Message | None = None
) -> None:
    """Show a screen, as a new message or in place of the one whose button was pressed; it is not recorded."""
    place = key.call()
    keyboard = InlineKeyboardMarkup.model_validate({"inline_keyboard": screen.keyboard()}) if screen.rows else None
    with unrecorded():
        if screen.asks is not None:
            asked = await bot.send_message(
                text=screen.text,
                parse_mode=None,
                reply_markup=ForceReply(input_field_placeholder=screen.hint, selective=True),
                **place,
            )
            owner = (await parts.chats.settled(key)).owner
            await parts.local.asked(owner, asked.message_id, screen.asks)
            return
        if screen.document is not None:
            name, text = screen.document
            file = BufferedInputFile(text.encode(), filename=name)
            await bot.send_document(document=file, caption=screen.text, parse_mode=None, reply_markup=keyboard, **place)
        elif instead_of is not None:
            await _instead(instead_of, screen.text, keyboard)
        else:
            await bot.send_message(text=screen.text, parse_mode=None, reply_markup=keyboard, **place)


async def _instead(message: Message, text: str, keyboard: InlineKeyboardMarkup | None) -> None:
    edit: Callable[..., Awaitable[Any]] = message.edit_text
    try:
        await edit(text=text, parse_mode=None, reply_markup=keyboard)
    except TelegramBadRequest as error:
        if "not modified" in error.message:
            return  # the same button was pressed twice
        await message.answer(text, parse_mode=None, reply_markup=keyboard)  # too old to be edited


async def describe_commands(bot: Bot, commands: Sequence[str]) -> None:
    """Register the commands with Telegram, in English and Russian."""
    for language in (None, "ru"):
        told = descriptions(language)
        await bot.set_my_commands(
            [BotCommand(command=name, description=told[name]) for name in commands], language_code=language
        )


def _language(message: Message) -> str | None:
    return None if message.from_user is None else message.from_user.language_code
