"""Write a conversation as readable text, without I/O."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import Conversation, Delivery, RecordedMessage, Saved
from letopis.store.model.messages import Role
from letopis.store.model.parts import Data, File, Part, Reasoning, Text, ToolCall, ToolResult

Locale = Literal["en", "ru"]

BRIEF: Final = 200
"""Characters that are shown of a tool's arguments and output, and of other data."""
_BODY: Final = "    "
# Zero-width joiners hold emoji and whole scripts together; every other invisible character can deceive.
_JOINERS: Final = frozenset("\u200c\u200d")

_RUSSIAN: Final[Mapping[str, str]] = {
    "Conversation": "Разговор",
    "to": "по",
    "times: {zone}": "время: {zone}",
    "messages: {count}": "сообщений: {count}",
    "archived": "в архиве",
    "deleted": "удалён",
    "Earlier messages may be missing here.": "Более ранних сообщений здесь может не быть.",
    "No messages.": "Сообщений нет.",
    "User": "Пользователь",
    "Assistant": "Ассистент",
    "System": "Система",
    "Developer": "Разработчик",
    "Tool": "Инструмент",
    "edited": "изменено",
    "interrupted": "прервано",
    "not sent": "не отправлено",
    "not saved yet": "ещё не сохранено",
    "not saved": "не сохранено",
    "not counted: another turn came first": "не учтено: другой ход был раньше",
    "taken back": "отменено",
    "The content was removed.": "Содержание удалено.",
    "empty": "пусто",
    "file": "файл",
    "thinking left out": "рассуждение опущено",
    "call of {name}": "вызов {name}",
    "result of {name}": "результат {name}",
    "data": "данные",
    "other": "другое",
    "reactions": "реакции",
}
_ROLES: Final[Mapping[Role, str]] = {
    "user": "User",
    "assistant": "Assistant",
    "system": "System",
    "developer": "Developer",
    "tool": "Tool",
}
_DAYS: Final[Mapping[Locale, str]] = {"en": "%Y-%m-%d", "ru": "%d.%m.%Y"}


def transcript(
    conversation: Conversation | None,
    messages: Iterable[RecordedMessage],
    *,
    locale: Locale = "en",
    tz: tzinfo = UTC,
    whole: bool = True,
) -> str:
    """Return a conversation as readable text, without a line feed at its end.

    It begins with title and dates. Each day lists who wrote what and when (users without a name by their ids, if there
    are several authors), and whether a message was edited,
    interrupted, not sent, not saved or taken back. Redacted messages are shown as such, files by name, tool calls and
    other data briefly, a model's reasoning not at all. Every given message is shown.

    Content is indented, so that no message can pass for another one, and characters that could act on a terminal or
    deceive a reader are shown as their codes. The format is for reading: it may change, and cannot be imported.

    :param conversation: for the header; ``None`` for no header.
    :param messages: those of the conversation, in order.
    :param locale: the language of the words around the messages.
    :param tz: the time zone of the times.
    :param whole: False to say that earlier messages may be missing.
    :raises InvalidInput: the locale is not supported, or ``tz`` is no time zone.
    """
    if locale not in _DAYS:
        raise InvalidInput("locale", "must be en or ru")
    if not isinstance(tz, tzinfo):
        raise InvalidInput("tz", f"must be a tzinfo, not {type(tz).__name__}")
    return _Writer(locale, tz).written(conversation, tuple(messages), whole=whole)


class _Writer:
    __slots__ = ("_day", "_locale", "_several", "_tools", "_tz")

    def __init__(self, locale: Locale, tz: tzinfo) -> None:
        self._locale = locale
        self._tz = tz
        self._day = _DAYS[locale]
        self._tools: dict[str, str] = {}
        self._several = False

    def written(self, conversation: Conversation | None, messages: tuple[RecordedMessage, ...], *, whole: bool) -> str:
        lines = self._head(conversation, messages)
        self._several = len({message.message.author for message in messages} - {None}) > 1
        if not whole:
            lines.append(f"({self._word('Earlier messages may be missing here.')})")
        if not messages and whole:
            lines.append(self._word("No messages."))
        day = ""
        for message in messages:
            moment = self._local(message.occurred_at)
            if (today := f"{moment:{self._day}}") != day:
                day = today
                lines += ["", f"=== {day} ==="]
            lines += ["", f"{moment:%H:%M}  {self._author(message)}{self._marks(message)}"]
            lines += [f"{_BODY}{line}".rstrip() for line in self._body(message)]
        return "\n".join(lines).strip("\n")

    def _word(self, text: str) -> str:
        return _RUSSIAN[text] if self._locale == "ru" else text

    def _local(self, moment: datetime) -> datetime:
        try:
            return moment.astimezone(self._tz)
        except OverflowError:  # within a day of the first or the last datetime
            return moment

    def _head(self, conversation: Conversation | None, messages: tuple[RecordedMessage, ...]) -> list[str]:
        if conversation is None:
            return []
        title = one_line(conversation.title or "")
        lines = [title or f"{self._word('Conversation')} {one_line(conversation.conversation_id)}"]
        moments = [self._local(message.occurred_at) for message in messages]
        facts = []
        if moments:
            days = [f"{moment:{self._day}}" for moment in (min(moments), max(moments))]
            facts.append(days[0] if days[0] == days[1] else f"{days[0]} {self._word('to')} {days[1]}")
        facts.append(self._word("messages: {count}").format(count=len(messages)))
        facts.append(self._word("times: {zone}").format(zone=one_line(str(self._tz))))
        if conversation.state in ("archived", "deleted"):
            facts.append(self._word(conversation.state))
        return [*lines, ", ".join(facts)]

    def _author(self, message: RecordedMessage) -> str:
        said = message.message
        name = brief(said.name or (self._several and said.author) or "")
        return self._word(_ROLES[message.role]) + (f" ({name})" if name else "")

    def _marks(self, message: RecordedMessage) -> str:
        marks = []
        if message.superseded:
            marks.append(self._word("not counted: another turn came first"))
        elif not message.on_path:
            marks.append(self._word("taken back"))
        if message.edited and not message.redacted:
            marks.append(self._word("edited"))
        if message.interrupted:
            marks.append(self._word("interrupted"))
        if message.delivery is Delivery.FAILED:
            reason = message.delivery_data.get("reason")
            why = f": {brief(reason)}" if isinstance(reason, str) and reason else ""
            marks.append(self._word("not sent") + why)
        if message.saved is not Saved.SAVED:
            marks.append(self._word("not saved yet" if message.saved is Saved.PENDING else "not saved"))
        return "".join(f"  [{mark}]" for mark in marks)

    def _body(self, message: RecordedMessage) -> list[str]:
        if message.redacted:
            return [f"({self._word('The content was removed.')})"]
        content = message.content
        parts = (Text(content),) if isinstance(content, str) else content or ()
        lines = [line for part in parts for line in self._part(part)]
        if not any(lines):
            lines = [f"({self._word('empty')})"]
        if message.reactions:
            given = (
                brief(reaction.key) + ("" if reaction.value is None else f"={brief(str(reaction.value))}")
                for reaction in message.reactions
            )
            lines.append(f"[{self._word('reactions')}: {', '.join(given)}]")
        return lines

    def _part(self, part: Part) -> list[str]:
        match part:
            case Text():
                return clean(part.text).split("\n")
            case Reasoning():
                return [f"[{self._word('thinking left out')}]"]
            case File():
                return [f"[{self._word('file')}: {file_name(part)}]"]
            case ToolCall():
                name = self._tools[part.call_id] = brief(part.name)
                return [_bracketed(self._word("call of {name}").format(name=name), part.arguments)]
            case ToolResult():
                name = self._tools.get(part.call_id) or brief(part.call_id)
                mark = "" if part.status == "ok" else f" ({brief(part.status)})"
                return [_bracketed(self._word("result of {name}").format(name=name) + mark, part.output)]
            case Data():
                return [_bracketed(self._word("data"), part.value)]
            case _:
                return [_bracketed(self._word("other"), part.value)]


def clean(text: str) -> str:
    """Return text with only visible characters, line feeds and tabs; others are shown as their codes."""
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(
        character if character.isprintable() or character in "\n\t" else _shown(character) for character in text
    )


def one_line(text: str) -> str:
    """Return cleaned text on one line."""
    return " ".join(clean(text).split())


def brief(text: str) -> str:
    """Return cleaned text on one line of at most :data:`BRIEF` characters."""
    # A result may be a whole file, of which only the beginning needs to be cleaned.
    line = one_line(text[: BRIEF * 4])
    return line if len(line) <= BRIEF and len(text) <= BRIEF * 4 else f"{line[: BRIEF - 1]}…"


def file_name(file: File) -> str:
    """Return the name of a file, or the last part of its URI without a query, which may hold a key."""
    if file.name and (name := brief(file.name)):
        return name
    try:
        address = urlsplit(file.uri)
    except ValueError:
        address = urlsplit("")
    last = "" if address.scheme == "data" else unquote(address.path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1])
    return brief(last) or brief(file.media_type or "") or "?"


def _bracketed(what: str, value: Any) -> str:
    if value is None:
        return f"[{what}]"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f"[{what}] {brief(text)}".rstrip()


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Zl", "Zp"):
        return "\n"
    if category in ("Cc", "Cs") or (category == "Cf" and character not in _JOINERS):
        return ascii(character)[1:-1]
    return character  # other spaces, and characters newer than this Python
