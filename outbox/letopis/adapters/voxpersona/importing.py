"""Import the JSON folders of the seed's bot into a history; idempotent, and harmless to both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Final
from uuid import uuid5

import orjson
from anyio import to_thread

from letopis.adapters.voxpersona import mapping
from letopis.adapters.voxpersona.chats import KEY, LABELS
from letopis.adapters.voxpersona.reading import FolderReader, FoundChat, FoundUser, Note
from letopis.ops.transfer.importer import ImportCounts, Importer, try_out
from letopis.outbox import History
from letopis.store import (
    Body,
    ConversationActivated,
    ConversationAnnotated,
    ConversationArchived,
    ConversationStarted,
    Event,
    StoreUnavailable,
)
from letopis.store.transfer.jsonl import Line, Refused

_PLACEHOLDER: Final = mapping.to_message(0, mapping.values_of({"message_id": 0, "type": mapping.QUESTION, "text": ""}))


@dataclass(slots=True, kw_only=True)
class Imported:
    """What an import did, or would do.

    :ivar users: how many folders of users there are.
    :ivar chats: how many chats they hold.
    :ivar messages: how many messages these hold.
    :ivar new: messages that the history did not have; in a dry run, all that it would accept.
    :ivar known: messages that it already had.
    :ivar refused: messages that it does not accept; a note says why.
    :ivar deleted: messages of chats that were deleted in the history since; they stay deleted.
    :ivar notes: what is wrong in the folders, and what was done about it.
    """

    users: int = 0
    chats: int = 0
    messages: int = 0
    new: int = 0
    known: int = 0
    refused: int = 0
    deleted: int = 0
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _EventLine(Line):
    """An event of any type, in the form in which the importer accepts the lines of a file."""

    made: Event
    place: str

    def event(self, *, now: Callable[[], datetime] = datetime.now) -> Event:
        """Return the event."""
        return self.made


async def import_folder(
    history: History | None,
    folder: str | os.PathLike[str],
    *,
    daily: str | os.PathLike[str] | None = None,
    timezone: tzinfo | None = None,
    reports: str | os.PathLike[str] | None = None,
    tell: Callable[[Note], None] | None = None,
) -> Imported:
    """Import the chats of all users. Repeating it imports what is new, and changes nothing else.

    The bot can keep running. Chats keep their ids, numbers and titles, and each user keeps the active chat; a chat that
    already exists in the history keeps its state there. The folders are only read.

    :param history: the destination; ``None`` for a dry run, which writes nothing.
    :param folder: the bot's folder of chats, which holds ``user_...``.
    :param daily: the bot's folder of daily files from the time before chats; they become one archived chat per user.
    :param timezone: for the times in the files; by default the machine's.
    :param reports: the folder to which paths of reports are relative; missing files are reported. By default, ``.``.
    :param tell: called with each note at once.
    :raises InvalidInput: a folder does not exist.
    :raises OutboxFull: the outbox is full; repeat the import later.
    :raises OutboxUnavailable: the outbox file cannot be written.
    """
    result = Imported()

    def note(one: Note) -> None:
        result.notes.append(one)
        if tell is not None:
            tell(one)

    users = FolderReader(Path(folder), None if daily is None else Path(daily), note).users()
    run = _Run(history, timezone, Path(reports or "."), result, note)
    while (user := await to_thread.run_sync(lambda: next(users, None))) is not None:
        result.users += 1
        result.chats += len(user.chats)
        result.messages += sum(len(chat.messages) for chat in user.chats)
        await run.take(user)
    return result


class _Run:
    def __init__(
        self,
        history: History | None,
        tz: tzinfo | None,
        reports: Path,
        result: Imported,
        tell: Callable[[Note], None],
    ) -> None:
        self._history, self._tz, self._reports, self._result, self._tell = history, tz, reports, result, tell

    async def take(self, user: FoundUser) -> None:
        """Import one user."""
        there = await self._there(user)
        for chat in user.chats:
            state = there.get(chat.conversation_id)
            if state == "deleted":
                self._result.deleted += len(chat.messages)
                continue
            if state is None:
                await self._put(self._begin(user, chat))
            counts = await self._put(self._messages(user, chat))
            self._result.new += counts.imported
            self._result.known += counts.known
            self._result.refused += counts.refused
            await self._put(self._end(user, chat, new=state is None))
            self._tell_missing(chat)
        await self._finish(user, there)

    async def _there(self, user: FoundUser) -> dict[str, str]:
        """Return the states of the chats that the history has."""
        found: dict[str, str] = {}
        if self._history is not None:
            for chat in user.chats:
                if (known := await self._history.chat(chat.conversation_id).conversation()) is not None:
                    found[chat.conversation_id] = known.state
        return found

    async def _put(self, lines: Iterator[_EventLine]) -> ImportCounts:
        given = list(lines)

        def refused(one: Refused) -> None:
            path, _, what = given[one.number].place.partition(": ")
            self._tell(Note(path, f"{what} is refused: {one.reason}"))

        if self._history is None:
            return try_out(given, refused)
        with Importer(outbox=self._history.outbox, store=self._history.store, tell=refused) as importer:
            return await importer.take(given)

    def _begin(self, user: FoundUser, chat: FoundChat) -> Iterator[_EventLine]:
        created = self._created(chat)
        about = {
            "chat_number": chat.number,
            "username": user.username or f"user_{user.user_id}",
            "timezone": str(self._tz) if self._tz is not None else str(datetime.now().astimezone().tzinfo),
        }
        started = ConversationStarted(owner_id=str(user.user_id), title=mapping.storable(chat.title))
        yield self._line(0, user, chat, started, "started", created)
        yield self._line(1, user, chat, ConversationAnnotated(metadata=about), "annotated", created)

    def _messages(self, user: FoundUser, chat: FoundChat) -> Iterator[_EventLine]:
        last = self._created(chat)
        for number, one in enumerate(chat.messages):
            # An unreadable time is kept unchanged, and the message gets the time of the one before.
            last = mapping.parse_time(one.values["timestamp"], self._tz) or last
            message = mapping.to_message(user.user_id, one.values, occurrence=one.occurrence)
            event = Event.of(message, conversation_id=chat.conversation_id, occurred_at=last)
            yield self._of(number, user, chat, event, one.place)

    def _end(self, user: FoundUser, chat: FoundChat, *, new: bool) -> Iterator[_EventLine]:
        last, number = self._created(chat), 0
        for one in chat.messages:
            last = mapping.parse_time(one.values["timestamp"], self._tz) or last
            message = mapping.to_message(user.user_id, one.values, occurrence=one.occurrence)
            if (sent := mapping.to_sent(chat.conversation_id, message, last)) is not None:
                yield self._of(number, user, chat, sent, one.place)
                number += 1
        if chat.archived and new:
            yield self._line(number, user, chat, ConversationArchived(), "archived", last)
            number += 1
        if missing := self._missing(chat):
            body = ConversationAnnotated(metadata={"missing_files": missing})
            name = uuid5(mapping.NAMESPACE, orjson.dumps(missing).decode())
            yield self._line(number, user, chat, body, f"missing {name}", last)

    async def _finish(self, user: FoundUser, there: dict[str, str]) -> None:
        """Activate the active chat, unless the user has one in the history, and keep the next number."""
        if self._history is None:
            return
        active = next((chat for chat in user.chats if chat.conversation_id == user.active), None)
        if active is not None and not there and not await self._is_live(user):
            await self._put(iter([self._line(0, user, active, ConversationActivated(), "activated", None)]))
        records = self._history.records(owner=user.user_id)
        try:
            record = await records.get(LABELS, KEY)
        except StoreUnavailable:
            return  # numbers come from the chats until the history store is back and this is repeated
        value: dict[str, Any] = {} if record is None else dict(record.value)
        wanted = {
            "username": value.get("username") or user.username,
            "next_chat_number": max(value.get("next_chat_number", 1), user.next_number),
        }
        if wanted != value:
            await records.put(LABELS, KEY, wanted)

    async def _is_live(self, user: FoundUser) -> bool:
        """Return True if a chat that the folder lacks is the user's active one: the bot runs on the history already."""
        assert self._history is not None  # noqa: S101 - of the caller
        found = await self._history.active(user.user_id, create=False)
        return found is not None and found.conversation_id not in {chat.conversation_id for chat in user.chats}

    def _created(self, chat: FoundChat) -> datetime | None:
        times = (chat.created_at, *(one.values["timestamp"] for one in chat.messages))
        return next((time for one in times if (time := mapping.parse_time(one, self._tz)) is not None), None)

    def _missing(self, chat: FoundChat) -> list[str]:
        """Return the paths of reports that no longer exist."""
        named = [one.values["file_path"] for one in chat.messages if isinstance(one.values["file_path"], str)]
        return [mapping.storable(one) for one in dict.fromkeys(named) if not self._exists(one)]

    def _exists(self, path: str) -> bool:
        try:
            return (self._reports / path).exists()
        except (OSError, ValueError):
            return False

    def _tell_missing(self, chat: FoundChat) -> None:
        if missing := self._missing(chat):
            self._tell(Note(chat.path, f"names {len(missing)} reports that are not there: the names are kept"))

    def _line(
        self, number: int, user: FoundUser, chat: FoundChat, body: Body, name: str, occurred_at: datetime | None
    ) -> _EventLine:
        event = mapping.event_of(chat.conversation_id, body, name, occurred_at)
        return self._of(number, user, chat, event, f"{chat.path}: {name}")

    def _of(self, number: int, user: FoundUser, chat: FoundChat, event: Event, place: str) -> _EventLine:
        return _EventLine(
            number=number,
            conversation_id=chat.conversation_id,
            message=_PLACEHOLDER,
            owner=str(user.user_id),
            made=event,
            place=place,
        )
