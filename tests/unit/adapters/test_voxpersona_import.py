"""The importer of the seed's JSON folders: everything comes, each thing once, and no damage stops it."""

import json
import subprocess
import sys
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result

from letopis import Conversation, History
from letopis.adapters.voxpersona import ConversationManager, ConversationMessage, import_folder
from letopis.adapters.voxpersona.__main__ import command
from letopis.store.model import large_content
from tests.support.sayings import present

USER = 4711
MOSCOW = ZoneInfo("Europe/Moscow")
A, B, C = (str(UUID(int=number)) for number in (1, 2, 3))


def message(number: int, text: str = "Привет", kind: str = "user_question", **fields: Any) -> dict[str, Any]:
    base = {"timestamp": f"2025-11-01T10:00:{number % 60:02}", "message_id": number, "type": kind, "text": text}
    return base | {"tokens": 0, "sent_as": None, "file_path": None, "search_type": "fast"} | fields


def metadata(name: str, number: int, **fields: Any) -> dict[str, Any]:
    about = {"conversation_id": name, "user_id": USER, "username": "ada", "title": f"Чат {number}"}
    about |= {"created_at": f"2025-10-0{number}T09:00:00", "updated_at": "2025-11-01T10:00:00", "is_active": False}
    return about | {"message_count": 0, "total_tokens": 0, "chat_number": number} | fields


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, data: Any, user: int = USER) -> Path:
        path = self.path / f"user_{user}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = data if isinstance(data, str) else json.dumps(data, indent=2)
        path.write_text(text, encoding="utf-8")
        return path

    def chat(self, name: str, about: dict[str, Any], *messages: Any) -> None:
        self.write(f"{name}.json", {"schema_version": "1.0", "metadata": about, "messages": list(messages)})

    def index(self, active: str | None, *chats: dict[str, Any], **fields: Any) -> None:
        base = {"user_id": USER, "username": "ada", "last_active_conversation_id": active, "next_chat_number": 9}
        self.write("index.json", base | {"conversations": list(chats)} | fields)

    def only(self, about: dict[str, Any], *messages: Any, **index: Any) -> None:
        """Write one chat, and a list of it."""
        self.chat(A, about, *messages)
        self.index(A, about, **index)

    def files(self) -> dict[Path, bytes]:
        """What all files hold, without ours."""
        found = (path for path in self.path.rglob("*") if path.is_file() and "letopis" not in path.name)
        return {path: path.read_bytes() for path in found}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "chats").mkdir()
    return Folder(tmp_path / "chats")


@pytest.fixture
def sound(folder: Folder) -> Folder:
    """Two chats of one user, as the bot leaves them."""
    one = metadata(A, 1, message_count=2)
    two = metadata(B, 2, message_count=1, is_active=True)
    folder.chat(A, one, message(1), message(2, "Ответ", "bot_answer", tokens=12, sent_as="message"))
    folder.chat(B, two, message(3, "Третье"))
    folder.index(B, one, two)
    return folder


def told(result: Any) -> str:
    return "\n".join(f"{one.path}: {one.what}" for one in result.notes)


async def imported(history: History, folder: Folder, about: dict[str, Any], *messages: Any, **index: Any) -> Any:
    folder.only(about, *messages, **index)
    return await import_folder(history, folder.path)


async def chat_a(history: History) -> Conversation:
    return present(await history.chat(A).conversation())


async def active(history: History) -> str | None:
    found = await history.active(USER, create=False)
    return None if found is None else found.conversation_id


async def test_chats_come_as_they_were(history: History, sound: Folder) -> None:
    before = sound.files()
    result = await import_folder(history, sound.path, timezone=MOSCOW)
    assert (result.users, result.chats, result.messages) == (1, 2, 3)
    assert (result.new, result.known, result.refused, result.notes) == (3, 0, 0, [])
    assert sound.files() == before
    first = await chat_a(history)
    assert (first.owner_id, first.title, first.message_count, first.tokens) == (str(USER), "Чат 1", 2, 12)
    assert first.metadata == {"chat_number": 1, "username": "ada", "timezone": "Europe/Moscow"}
    assert first.created_at.isoformat() == "2025-10-01T06:00:00+00:00"
    question, answer = await history.messages(A)
    assert (question.role, question.text, question.occurred_at.hour) == ("user", "Привет", 7)
    assert (answer.role, answer.delivery, answer.message.tokens) == ("assistant", "sent", 12)
    assert await active(history) == B


async def test_what_the_bot_added_meanwhile_comes_later(history: History, sound: Folder) -> None:
    await import_folder(history, sound.path)
    await history.chat(A).rename("Новое")
    await history.chat(A).activate()
    sound.chat(B, metadata(B, 2), message(3, "Третье"), message(4, "Четвёртое"))
    again = await import_folder(history, sound.path)
    assert (again.new, again.known) == (1, 3)
    assert [one.text for one in await history.messages(B)] == ["Третье", "Четвёртое"]
    assert (await chat_a(history)).title == "Новое"
    assert await active(history) == A


async def test_what_was_deleted_since_stays_deleted(history: History, sound: Folder) -> None:
    await import_folder(history, sound.path)
    await history.chat(A).delete()
    again = await import_folder(history, sound.path)
    assert (again.new, again.known, again.deleted) == (0, 1, 2)


async def test_the_bot_goes_on_where_it_was(sound: Folder) -> None:
    outbox = sound.path / "letopis.outbox.db"
    async with History(outbox) as history:
        await import_folder(history, sound.path)

    with ConversationManager(sound.path) as manager:
        assert manager.get_active_conversation_id(USER) == B
        assert [one.chat_number for one in manager.list_conversations(USER)] == [1, 2]
        made = manager.create_conversation(USER, "ada")
        assert manager.load_conversation(USER, made).metadata.chat_number == 9
        given = message(1), message(2, "Ответ", "bot_answer", tokens=12, sent_as="message")
        assert manager.get_messages(USER, A) == [ConversationMessage(**one) for one in given]
        assert manager.add_message(USER, A, ConversationMessage(**message(5, "Дальше")))
    # What the bot wrote into the files beside is known.
    async with History(outbox) as history:
        again = await import_folder(history, sound.path)
    assert (again.new, again.known, again.refused, again.notes) == (0, 4, 0, [])


async def test_the_index_alone_says_which_chat_is_active(history: History, folder: Folder) -> None:
    one, two = metadata(A, 1, is_active=True), metadata(B, 2, is_active=True)
    folder.chat(A, one)
    folder.chat(B, two | {"is_active": False})
    folder.index(A, one, two)
    result = await import_folder(history, folder.path)
    assert "marks several chats as active" in told(result)
    assert await active(history) == A


async def test_what_is_odd_about_a_chat_is_mended(history: History, folder: Folder) -> None:
    """A title that hid it, stale counters, no name of the user; an older file has no number, and another key."""
    about = metadata(A, 1, title="д" * 80, message_count=7, username="")
    old = metadata(B, 2) | {"name": "Имя"}
    del old["chat_number"], old["title"]
    folder.chat(A, about, message(1, tokens=3))
    folder.chat(B, old, message(2))
    folder.index(A, about, old, username="")
    result = await import_folder(history, folder.path)
    assert "has a title of 80 characters" in told(result) and "counts 7 messages and has 1" in told(result)
    first, second = await chat_a(history), present(await history.chat(B).conversation())
    assert (first.title, first.metadata["username"], first.tokens) == ("д" * 80, "user_4711", 3)
    assert (second.title, second.metadata["chat_number"]) == ("Имя", 0)


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"conversations": 7}', "\xff", "[" * 100_000])
async def test_a_broken_index_loses_no_chat(history: History, folder: Folder, broken: str) -> None:
    folder.chat(A, metadata(A, 1), message(1))
    folder.chat(B, metadata(B, 2), message(2))
    folder.write("index.json", broken)
    result = await import_folder(history, folder.path)
    assert (result.chats, result.new) == (2, 2)
    assert "is missing or broken" in told(result)
    assert {one.title for one in await history.conversations(owner=USER)} == {"Чат 1", "Чат 2"}


async def test_chats_that_the_index_forgot_get_numbers_after_the_others(history: History, folder: Folder) -> None:
    """A broken list made the bot begin again at 1: three files, one of them listed, two with number 1."""
    folder.chat(A, metadata(A, 1), message(1))
    folder.chat(B, metadata(B, 2), message(2))
    folder.chat(C, metadata(C, 1, title="После"), message(3))
    folder.index(C, metadata(C, 1), next_chat_number=2)
    result = await import_folder(history, folder.path)
    numbers = {one.conversation_id: one.metadata["chat_number"] for one in await history.conversations(owner=USER)}
    assert numbers == {C: 1, B: 2, A: 3}
    assert told(result).count("is in no list") == 2
    assert "has number 1 of another chat" in told(result)
    record = present(await history.records(owner=USER).get(("voxpersona",), "index"))
    assert record.value == {"username": "ada", "next_chat_number": 4}


async def test_a_listed_chat_without_a_file_is_told(history: History, folder: Folder) -> None:
    folder.index(A, metadata(A, 1))
    result = await import_folder(history, folder.path)
    assert "which has no file" in told(result) and "names an active chat that is not there" in told(result)
    assert await active(history) is None


async def test_bytes_that_are_no_text_cost_no_chat(history: History, folder: Folder) -> None:
    folder.only(metadata(A, 1), message(1, "Hello, world"))
    path = folder.path / f"user_{USER}" / f"{A}.json"
    path.write_bytes(path.read_bytes().replace(b"Hello", b"Hell\xff"))
    result = await import_folder(history, folder.path)
    assert [one.text for one in await history.messages(A)] == ["Hell\ufffd, world"]
    assert "no UTF-8" in told(result)


async def test_a_file_that_was_still_to_be_renamed_gives_its_message(history: History, folder: Folder) -> None:
    """The bot was killed between the two renamings of a save."""
    folder.write(f"{A}.json.tmp", {"metadata": metadata(A, 1), "messages": [message(1), message(2, "Успел")]})
    folder.write(f"{B}.json.tmp", '{"metadata"')
    result = await imported(history, folder, metadata(A, 1), message(1))
    assert [one.text for one in await history.messages(A)] == ["Привет", "Успел"]
    assert f"{B}.json: is broken" in told(result)


async def test_reports_that_are_gone_keep_their_names(history: History, folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("report", encoding="utf-8")
    names = enumerate(("here.txt", "gone.txt", "a\0b"), 1)
    sent = [message(number, "Ответ", "bot_answer", sent_as="file", file_path=name) for number, name in names]
    folder.only(metadata(A, 1), *sent)
    for _ in range(2):
        result = await import_folder(history, folder.path, reports=tmp_path)
    assert "names 2 reports that are not there" in told(result)
    assert [one.delivery_data["file_path"] for one in await history.messages(A)][:2] == ["here.txt", "gone.txt"]
    assert (await chat_a(history)).metadata["missing_files"] == ["gone.txt", "a\ufffdb"]


async def test_days_of_before_the_chats_become_one_archive(history: History, sound: Folder, tmp_path: Path) -> None:
    daily = Folder(tmp_path / "daily")
    for day, given in {
        "2025-10-02": [message(90, "Давно"), message(91, "Ответ", "bot_answer")],
        "2025-10-03": [message(1), message(92, "Ещё")],  # the first is in a chat, too
    }.items():
        daily.write(f"{day}.json", {"user_id": USER, "username": "ada", "date": day, "messages": given, "stats": {}})
    daily.write("2025-10-04.json", "{")
    daily.write("2025-10-02.json", {"username": "eve", "messages": [message(1)]}, user=5)

    for expected in (7, 0):
        result = await import_folder(history, sound.path, daily=daily.path)
        assert result.new == expected

    (archive,) = await history.conversations(owner=USER, states=("archived",))
    assert [one.text for one in await history.messages(archive.conversation_id)] == ["Давно", "Ответ", "Ещё"]
    assert "2025-10-04.json: is broken" in told(result)
    assert len(await history.conversations(owner=5, states=("archived",))) == 1


async def test_messages_of_any_kind_are_kept(history: History, folder: Folder) -> None:
    folder.only(
        metadata(A, 1),
        message(1, timestamp="yesterday"),
        message(2, text=""),
        message(3, tokens=-5),
        message(4, type="user_voice"),
        message(0, type="system_note", tokens="many"),
        {"text": "только текст"},
        message(7, text="a\0b \ud83d"),
        message(8, "Первый"),
        message(8, "Второй"),
        message(8, "Второй"),
        "no message",
        message(2**70),
        message(10, text=None, timestamp=None),
        message(11, timestamp="2025-11-01T10:00:00+05:00"),
    )
    for _ in range(2):
        result = await import_folder(history, folder.path, timezone=timezone(timedelta(hours=3)))

    kept = await history.messages(A)
    assert (len(kept), result.known, result.refused) == (12, 12, 0)
    assert kept[0].message.metadata["timestamp"] == "yesterday"
    assert kept[0].occurred_at.isoformat() == "2025-10-01T06:00:00+00:00"
    assert [one.role for one in kept][3:6] == ["user", "assistant", "assistant"]
    assert kept[6].text == "a\ufffdb \ufffd"
    assert [one.text for one in kept][7:9] == ["Первый", "Второй"]
    assert kept[-1].occurred_at.isoformat() == "2025-11-01T05:00:00+00:00"
    assert "messages[10] is no object" in told(result)
    assert "messages[4] is of an unknown type: kept as that of the bot" in told(result)


async def test_a_message_that_is_too_large_is_told_and_the_rest_comes(
    history: History, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_content, "MAX_STRING_BYTES", 1_000_000)
    result = await imported(history, folder, metadata(A, 1), message(1), message(2, "x" * 2_000_000), message(3))
    assert (result.new, result.refused) == (2, 1)
    assert f"user_{USER}/{A}.json: messages[1] is refused" in told(result)


async def test_a_copied_chat_of_another_user_is_kept_apart(history: History, folder: Folder) -> None:
    folder.only(metadata(A, 1), message(1))
    folder.write(f"{A}.json", {"metadata": metadata(A, 1), "messages": [message(1)]}, user=9999)
    for expected in (2, 0):
        result = await import_folder(history, folder.path)
        assert result.new == expected
    assert "has the id of another user's chat" in told(result)
    assert len(await history.conversations(owner=9999)) == 1


def run(*words: str) -> Result:
    return CliRunner().invoke(command, words)


def test_the_command_imports_delivers_and_counts(sound: Folder) -> None:
    sound.write(f"{C}.json", "{")
    tried = run(str(sound.path), "--dry-run", "--json")
    assert (tried.exit_code, json.loads(tried.stdout)["new"]) == (0, 3)
    assert not list(sound.path.glob("letopis*"))
    done = run(str(sound.path), "--timezone", "Europe/Moscow", "--wait", "60", "--json")
    assert done.exit_code == 0, done.output
    assert "is broken" in done.stderr
    found = json.loads(done.stdout)
    assert (found["new"], found["pending"], len(found["notes"])) == (3, 0, 1)
    words = [sys.executable, "-m", "letopis.adapters.voxpersona", str(sound.path)]
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "0 messages imported, 3 already there, 0 refused" in again.stderr
