"""Read the JSON folders of the seed's bot and repair damage while reading, without a history.

The folders are not changed. A note reports everything that is repaired or cannot be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid5

from letopis.adapters.voxpersona.mapping import FIELDS, NAMESPACE, storable
from letopis.adapters.voxpersona.models import MAX_TITLE_LENGTH, NEW_CHAT, generate_chat_name, short_title
from letopis.store import InvalidInput
from letopis.store.model.identifiers import check_identifier

ARCHIVE_TITLE: Final = "Архив"
_INDEX: Final = "index.json"
_USER: Final = re.compile(r"user_(-?\d{1,20})")
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}\.json")


@dataclass(frozen=True, slots=True)
class Note:
    """Something wrong in the folders.

    :ivar path: the file or folder, below the folder that is imported.
    :ivar what: the problem, and what is done about it; without text of messages.
    """

    path: str
    what: str


Tell = Callable[[Note], None]


@dataclass(slots=True, kw_only=True)
class FoundMessage:
    """One message.

    :ivar values: all fields of the seed.
    :ivar occurrence: how many messages of the chat with the same Telegram id precede it.
    :ivar place: its file, and its index there.
    """

    values: dict[str, Any]
    occurrence: int
    place: str


@dataclass(slots=True, kw_only=True)
class FoundChat:
    """One chat, with the data from its file and from the list.

    :ivar number: its permanent number; 0 for none.
    :ivar archived: whether it holds the daily files from the time before chats.
    """

    conversation_id: str
    title: str
    created_at: str | None
    number: int
    messages: list[FoundMessage] = field(default_factory=list)
    listed: bool = True
    archived: bool = False
    path: str


@dataclass(slots=True, kw_only=True)
class FoundUser:
    """One user's chats, in the order of the list, followed by those missing from it."""

    user_id: int
    username: str
    active: str | None
    next_number: int
    chats: list[FoundChat]


class FolderReader:
    """Reads a bot's folders.

    :param folder: the folder of the chats.
    :param daily: the folder of the daily files from the time before chats.
    :param tell: called with each note.
    :raises InvalidInput: a folder does not exist.
    """

    def __init__(self, folder: Path, daily: Path | None, tell: Tell) -> None:
        for one, name in ((folder, "folder"), (daily, "daily")):
            if one is not None and not one.is_dir():
                raise InvalidInput(name, "is no folder: give the one that holds the folders user_...")
        self._folder, self._daily, self._tell = folder, daily, tell
        self._taken: dict[str, int] = {}

    def users(self) -> Iterator[FoundUser]:
        """Yield each user, by id."""
        chats, days = _folders(self._folder, self._tell), _folders(self._daily, self._tell)
        for user_id in sorted({*chats, *days}):
            found = self._user(user_id, chats.get(user_id))
            if (folder := days.get(user_id)) is not None and (archive := self._archive(found, folder)) is not None:
                found.chats.append(archive)
            yield found

    def _note(self, path: Path, what: str) -> None:
        base = self._daily if self._daily is not None and path.is_relative_to(self._daily) else self._folder
        self._tell(Note(str(path.relative_to(base)), what))

    def _user(self, user_id: int, folder: Path | None) -> FoundUser:
        if folder is None:
            return FoundUser(user_id=user_id, username="", active=None, next_number=1, chats=[])
        index = self._index(folder)
        listed = {one["conversation_id"]: one for one in index["conversations"]}
        stems = {path.name.removesuffix(".tmp").removesuffix(".json") for path in folder.glob("*.json*")} - {"index"}
        chats = [
            chat
            for name in [*(one for one in listed if one in stems), *sorted(stems - listed.keys())]
            if (chat := self._chat(user_id, folder, name, listed.get(name))) is not None
        ]
        for name in listed.keys() - stems:
            self._note(folder / _INDEX, f"lists the chat {storable(name)}, which has no file: left out")
        active = index.get("last_active_conversation_id")
        names = {chat.path: chat.conversation_id for chat in chats}
        user = FoundUser(
            user_id=user_id,
            username=storable(index.get("username")),
            active=names.get(f"{folder.name}/{active}.json"),
            next_number=_whole(index.get("next_chat_number")) or 1,
            chats=chats,
        )
        if active is not None and user.active is None:
            self._note(folder / _INDEX, "names an active chat that is not there: none is active")
        self._number(folder, user)
        return user

    def _index(self, folder: Path) -> dict[str, Any]:
        found = self._load(folder / _INDEX)
        chats = found.get("conversations") if found is not None else None
        if found is None or not isinstance(chats, list):
            self._note(folder / _INDEX, "is missing or broken: the chats are taken from their files")
            return {**(found or {}), "conversations": []}
        good = [one for one in chats if isinstance(one, dict) and isinstance(one.get("conversation_id"), str)]
        if len(good) < len(chats):
            self._note(folder / _INDEX, f"has {len(chats) - len(good)} entries that name no chat: left out")
        if sum(bool(one.get("is_active")) for one in good) > 1:
            self._note(folder / _INDEX, "marks several chats as active: last_active_conversation_id decides")
        return {**found, "conversations": good}

    def _chat(self, user_id: int, folder: Path, name: str, listed: Mapping[str, Any] | None) -> FoundChat | None:
        path = folder / f"{name}.json"
        # A temporary file beside it is from a process killed before the rename; it may hold one more message.
        files = [one for one in (path, folder / f"{name}.json.tmp") if one.exists()]
        found = [(one, data) for one in files if (data := self._load(one)) is not None]
        if len(found) < len(files):
            self._note(path, "is broken, or the file beside it: what cannot be read is left out, the file stays")
        if not found:
            return None
        metadata = {**(listed or {}), **_object(found[0][1].get("metadata"))}
        title = storable(metadata.get("title") or metadata.get("name"))
        chat = FoundChat(
            conversation_id=self._id(user_id, path, name),
            title=title,
            created_at=metadata.get("created_at"),
            number=_whole((listed or metadata).get("chat_number")) or 0,
            listed=listed is not None,
            path=f"{folder.name}/{path.name}",
        )
        self._take_messages(chat, found)
        if listed is None:
            self._note(path, "is in no list: imported after the others")
        if len(title) > MAX_TITLE_LENGTH:
            self._note(path, f"has a title of {len(title)} characters, so that the bot lost the chat: kept whole")
        if not title:
            chat.title = _title_of(chat)
        count = metadata.get("message_count")
        if count is not None and count != len(chat.messages):
            self._note(path, f"counts {storable(count)} messages and has {len(chat.messages)}: recounted")
        return chat

    def _id(self, user_id: int, path: Path, name: str) -> str:
        try:
            check_identifier(name, "conversation_id")
        except InvalidInput:
            name = str(uuid5(NAMESPACE, f"{user_id}\n{name!a}"))
            self._note(path, "has a name that cannot be an id: it gets another one")
        if self._taken.setdefault(name, user_id) != user_id:
            name = str(uuid5(NAMESPACE, f"{user_id}\n{name}"))
            self._note(path, "has the id of another user's chat: it gets another one")
        return name

    def _take_messages(self, chat: FoundChat, files: list[tuple[Path, dict[str, Any]]]) -> None:
        seen: dict[str, list[Any]] = {}
        for path, data in files:
            given = data.get("messages", [])
            if not isinstance(given, list):
                self._note(path, "has messages that are no list: left out")
                continue
            for place, one in enumerate(given):
                if not isinstance(one, dict):
                    self._note(path, f"messages[{place}] is no object: left out")
                    continue
                values = {name: one.get(name) for name in FIELDS}
                same = seen.setdefault(storable(values["message_id"]), [])
                if (values["type"], values["text"]) in same:
                    continue  # a duplicate, from the temporary file or from a repeated save
                chat.messages.append(
                    FoundMessage(values=values, occurrence=len(same), place=f"{chat.path}: messages[{place}]")
                )
                self._check(path, place, values, again=bool(same))
                same.append((values["type"], values["text"]))

    def _check(self, path: Path, place: int, values: Mapping[str, Any], *, again: bool) -> None:
        where = f"messages[{place}]"
        if again:
            self._note(path, f"{where} has the id of another message of the chat: both are kept")
        if values["type"] not in ("user_question", "bot_answer"):
            self._note(path, f"{where} is of an unknown type: kept as that of {_author(values['type'])}")
        if storable(values["text"]) != values["text"]:
            self._note(path, f"{where} has text that no store takes: replaced")

    def _number(self, folder: Path, user: FoundUser) -> None:
        """Number the chats missing from the list, and those whose number is taken, after the others."""
        taken: set[int] = set()
        late: list[FoundChat] = []
        for chat in user.chats:
            if chat.number and chat.number in taken:
                self._note(folder / chat.path.split("/", 1)[1], f"has number {chat.number} of another chat: a new one")
                late.append(chat)
            elif not chat.number and not chat.listed:
                late.append(chat)
            taken.add(chat.number)
        user.next_number = max(user.next_number, *(number + 1 for number in taken), 1)
        for chat in late:
            chat.number, user.next_number = user.next_number, user.next_number + 1

    def _archive(self, user: FoundUser, folder: Path) -> FoundChat | None:
        """Return the daily files from the time before chats as one chat, without messages that are in a chat."""
        there = {(m.values["message_id"], m.values["type"]) for chat in user.chats for m in chat.messages}
        name = str(uuid5(NAMESPACE, f"{user.user_id}\narchive"))
        chat = FoundChat(
            conversation_id=name, title=ARCHIVE_TITLE, created_at=None, number=0, archived=True, path=folder.name
        )
        for path in sorted(folder.iterdir()):
            if _DAY.fullmatch(path.name) is None:
                continue
            if (data := self._load(path)) is None:
                self._note(path, "is broken: left out, the file stays")
                continue
            user.username = user.username or storable(data.get("username"))
            self._take_messages(chat, [(path, data)])
        chat.messages = [m for m in chat.messages if (m.values["message_id"], m.values["type"]) not in there]
        return chat if chat.messages else None

    def _load(self, path: Path) -> dict[str, Any] | None:
        try:
            raw = path.read_bytes()
            text = raw.decode("utf-8-sig", "replace")
            found = json.loads(text)
        except (OSError, ValueError, RecursionError):
            return None
        if text.count("\ufffd") > raw.count("\ufffd".encode()):
            self._note(path, "has bytes that are no UTF-8: replaced")
        return found if isinstance(found, dict) else None


def _folders(folder: Path | None, tell: Tell) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder is not None else ():
        if path.is_dir() and (name := _USER.fullmatch(path.name)) is not None:
            found[int(name[1])] = path
        elif path.is_dir():
            tell(Note(path.name, "is no folder of a user: left out"))
    return found


def _title_of(chat: FoundChat) -> str:
    first = next((storable(m.values["text"]) for m in chat.messages if m.values["text"]), "")
    return short_title(generate_chat_name(first)) or NEW_CHAT


def _author(kind: object) -> str:
    return "the user" if storable(kind).startswith("user") else "the bot"


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else 0
