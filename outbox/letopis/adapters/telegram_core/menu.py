"""Carry out the built-in commands of a chat menu, and return what to show."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from letopis.adapters.telegram_core.buttons import (
    Button,
    MenuScreen,
    Press,
    button,
    file_name,
    long_name,
    short_name,
    shortened,
)
from letopis.adapters.telegram_core.chats import Chats
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.splitting import TEXT_LIMIT, units
from letopis.adapters.telegram_core.texts import Texts, texts_for
from letopis.store import Conversation, Hit, InvalidInput, LetopisError, RecordedMessage

logger: Final = logging.getLogger("letopis.adapters.telegram")

_PAGE: Final = 8
"""How many chats one screen shows."""
_SHOWN: Final = 20
"""How many messages /history shows."""
_FOUND: Final = 5
_MAX_TITLE: Final = 200
_PERIOD: Final = timedelta(days=30)


class Menu:
    """The built-in commands of one bot: new, list, switch, rename, delete, history, stats, search.

    Each method returns the screen to show. A screen's texts are plain text, without markup.

    :param tz: the time zone for displayed times.
    """

    def __init__(self, chats: Chats, *, tz: tzinfo = UTC) -> None:
        self._chats = chats
        self._history = chats.history
        self._tz = tz

    async def command(self, name: str, arguments: str, key: ChatKey, language: str | None) -> MenuScreen:
        """Carry out a command.

        :param name: without the slash, one of ``COMMANDS``.
        :param arguments: the text after it.
        :param language: as Telegram gives it.
        """
        texts, given = texts_for(language), " ".join(arguments.split())

        async def run(place: ChatKey) -> MenuScreen:
            match name:
                case "new":
                    return await self._new(place, texts, given)
                case "rename" if given:
                    active = await self._chats.active(place)
                    return await self._renamed(place, texts, active.conversation_id, given)
                case "search":
                    return await self._search(place, texts, given)
                case "stats":
                    return await self._stats(place, texts)
                case "rename" | "delete" | "history":
                    active = await self._chats.active(place)
                    return await self._about(place, texts, name, active)
                case _:
                    return await self._list(place, texts, 0)

        return await self._carried_out(key, texts, run)

    async def press(self, press: Press, key: ChatKey, language: str | None) -> MenuScreen:
        """Handle a press of a button."""
        texts = texts_for(language)

        async def run(place: ChatKey) -> MenuScreen:
            match press.action:
                case "new":
                    return await self._new(place, texts, "")
                case "list":
                    return await self._list(place, texts, int(press.argument) if press.argument.isdecimal() else 0)
                case "stats":
                    return await self._stats(place, texts)
            found = await self._named(place, press.argument)
            if found is None:
                return MenuScreen(text=texts.gone, rows=((button(texts.b_chats, "list", "0"),),))
            return await self._about(place, texts, press.action, found)

        return await self._carried_out(key, texts, run)

    async def title(self, conversation_id: str, title: str, key: ChatKey, language: str | None) -> MenuScreen:
        """Give a conversation the requested title."""
        texts = texts_for(language)
        return await self._carried_out(
            key, texts, lambda place: self._renamed(place, texts, conversation_id, " ".join(title.split()))
        )

    async def _carried_out(
        self, key: ChatKey, texts: Texts, run: Callable[[ChatKey], Awaitable[MenuScreen]]
    ) -> MenuScreen:
        try:
            return await run(await self._chats.settled(key))
        except LetopisError as error:
            logger.warning("a command of the chat menu failed: %s", error)
            return MenuScreen(text=texts.failed)

    async def _about(self, place: ChatKey, texts: Texts, action: str, one: Conversation) -> MenuScreen:
        match action:
            case "switch":
                await self._history.chat(one.conversation_id).activate(owner=place.owner)
                return self._card(place, texts, one, texts.switched, active=True)
            case "rename":
                text = texts.ask_title.format(title=self._title(texts, one))
                return MenuScreen(text=text, asks=one.conversation_id, hint=texts.title_hint)
            case "delete":
                name = short_name(place, one.conversation_id)
                rows = ((button(texts.b_yes, "erase", name), button(texts.b_no, "chat", name)),)
                return MenuScreen(text=texts.ask_delete.format(title=self._title(texts, one)), rows=rows)
            case "erase":
                return await self._delete(place, texts, one)
            case "history":
                return await self._messages(place, texts, one)
            case _:
                active = await self._history.active(place.owner, create=False)
                is_active = active is not None and active.conversation_id == one.conversation_id
                return self._card(place, texts, one, texts.chat, active=is_active)

    async def _new(self, place: ChatKey, texts: Texts, title: str) -> MenuScreen:
        first = await self._history.active(place.owner, create=False) is None
        if first:
            async for _ in self._chats.listed(place):
                first = False
                break
        await self._chats.start(place, title=title[:_MAX_TITLE] or None, first=first)
        return MenuScreen(text=texts.new.format(title=shortened(title) or texts.untitled), rows=(self._bottom(texts),))

    async def _list(self, place: ChatKey, texts: Texts, page: int) -> MenuScreen:
        chats = [one async for one in self._chats.listed(place)]
        if not chats:
            return MenuScreen(text=texts.no_chats, rows=((button(texts.b_new, "new"),),))
        pages = (len(chats) + _PAGE - 1) // _PAGE
        page = min(page, pages - 1)
        rows: list[tuple[Button, ...]] = [(button(texts.b_new, "new"), button(texts.b_stats, "stats"))]
        for one in chats[page * _PAGE : (page + 1) * _PAGE]:
            number = "" if one.number is None else f"{one.number}. "
            label = f"{'✅ ' if one.active else ''}{number}{self._title(texts, one)}"
            rows.append((button(label, "chat", short_name(place, one.conversation_id)),))
        turn = []
        if page > 0:
            turn.append(button(texts.b_back, "list", str(page - 1)))
        if page + 1 < pages:
            turn.append(button(texts.b_next, "list", str(page + 1)))
        if turn:
            rows.append(tuple(turn))
        return MenuScreen(text=texts.chats.format(page=page + 1, pages=pages), rows=tuple(rows))

    async def _renamed(self, place: ChatKey, texts: Texts, conversation_id: str, title: str) -> MenuScreen:
        one = await self._chats.owned(place, conversation_id)
        if one is None:
            return MenuScreen(text=texts.gone)
        if not title:
            return await self._about(place, texts, "rename", one)
        await self._history.chat(conversation_id).rename(title[:_MAX_TITLE])
        return MenuScreen(text=texts.renamed.format(title=shortened(title)), rows=(self._bottom(texts),))

    async def _delete(self, place: ChatKey, texts: Texts, one: Conversation) -> MenuScreen:
        await self._chats.delete(one.conversation_id, reason="deleted by the user")
        return MenuScreen(text=texts.deleted.format(title=self._title(texts, one)), rows=(self._bottom(texts),))

    async def _messages(self, place: ChatKey, texts: Texts, one: Conversation) -> MenuScreen:
        page = await self._history.messages(one.conversation_id, last=_SHOWN)
        title = self._title(texts, one)
        if not page:
            return MenuScreen(text=texts.empty, rows=(self._bottom(texts),))
        head = texts.history.format(title=title, count=len(page))
        if not page.complete:
            head = f"{head}\n{texts.incomplete}"
        body = "\n\n".join(self._line(texts, message) for message in page)
        rows = (self._bottom(texts),)
        if units(head) + units(body) + 2 <= TEXT_LIMIT:
            return MenuScreen(text=f"{head}\n\n{body}", rows=rows)
        whole = await self._history.chat(one.conversation_id).transcript(last=200, tz=self._tz)
        del place
        return MenuScreen(text=head, rows=rows, document=(file_name(title, ".txt"), whole))

    def _line(self, texts: Texts, message: RecordedMessage) -> str:
        who = texts.you if message.role == "user" else texts.bot
        moment = message.occurred_at.astimezone(self._tz)
        return f"{who}, {moment:%d.%m %H:%M}\n{message.text or '📎'}"

    async def _stats(self, place: ChatKey, texts: Texts) -> MenuScreen:
        since = datetime.now(UTC) - _PERIOD
        lately = await self._history.statistics(owner=place.owner, since=since)
        ever = await self._history.statistics(owner=place.owner)
        text = texts.stats.format(
            conversations=lately.conversations,
            questions=lately.questions,
            answers=lately.answers,
            tokens=lately.tokens,
        )
        text += "\n\n" + texts.stats_all.format(messages=ever.messages, tokens=ever.tokens)
        if not (lately.complete and ever.complete):
            text += f"\n\n{texts.incomplete}"
        return MenuScreen(text=text, rows=(self._bottom(texts),))

    async def _search(self, place: ChatKey, texts: Texts, query: str) -> MenuScreen:
        if not query:
            return MenuScreen(text=texts.ask_search)
        try:
            page = await self._history.search(query[:1000], owner=place.owner, limit=_FOUND)
        except InvalidInput:  # no word in it, or too many
            return MenuScreen(text=texts.not_found.format(query=shortened(query, 100)))
        note = "" if page.complete else f"\n\n{texts.incomplete}"
        if not page:
            return MenuScreen(text=texts.not_found.format(query=shortened(query, 100)) + note)
        lines, rows = list[str](), dict[str, tuple[Button, ...]]()
        for hit in page:
            lines.append(self._hit(texts, hit))
            one = await self._chats.owned(place, hit.conversation_id)
            if one is not None and hit.conversation_id not in rows:
                name = short_name(place, hit.conversation_id)
                rows[hit.conversation_id] = (button(f"💬 {self._title(texts, one)}", "chat", name),)
        text = texts.found.format(query=shortened(query, 100)) + "\n\n" + "\n\n".join(lines) + note
        return MenuScreen(text=text, rows=(*rows.values(), self._bottom(texts)))

    def _hit(self, texts: Texts, hit: Hit) -> str:
        who = texts.you if hit.message.role == "user" else texts.bot
        moment = hit.message.occurred_at.astimezone(self._tz)
        return f"{who}, {moment:%d.%m.%Y %H:%M}\n{hit.snippet}"

    def _card(self, place: ChatKey, texts: Texts, one: Conversation, text: str, *, active: bool) -> MenuScreen:
        name, date = short_name(place, one.conversation_id), one.updated_at.astimezone(self._tz)
        rows: list[tuple[Button, ...]] = [
            (button(texts.b_rename, "rename", name), button(texts.b_delete, "delete", name)),
            (button(texts.b_history, "history", name), button(texts.b_chats, "list", "0")),
        ]
        if not active:
            rows.insert(0, (button(texts.b_open, "switch", name),))
        shown = text.format(title=self._title(texts, one), messages=one.message_count, date=f"{date:%d.%m.%Y %H:%M}")
        return MenuScreen(text=shown, rows=tuple(rows))

    def _bottom(self, texts: Texts) -> tuple[Button, ...]:
        return (button(texts.b_chats, "list", "0"), button(texts.b_new, "new"))

    def _title(self, texts: Texts, one: Conversation) -> str:
        return shortened(one.title or "") or texts.untitled

    async def _named(self, place: ChatKey, name: str) -> Conversation | None:
        conversation_id = long_name(place, name)
        if conversation_id is not None:
            return await self._chats.owned(place, conversation_id)
        async for one in self._chats.listed(place):
            if short_name(place, one.conversation_id) == name:
                return one
        return None
