"""The drop-in for the seed's ``ConversationManager``: its methods, its answers, and what it does better."""

import asyncio
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock
from zoneinfo import ZoneInfo

import pytest

from letopis.adapters.voxpersona import (
    Conversation,
    ConversationManager,
    ConversationMessage,
    ConversationMetadata,
    generate_chat_name,
)
from letopis.store import Delivery, Message, OutboxFull
from tests.support.peers import refused_port

USER = 12345


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ConversationManager]:
    with ConversationManager(tmp_path / "chats") as made:
        yield made


@pytest.fixture
def made(manager: ConversationManager) -> str:
    return manager.create_conversation(USER, "ada")


def said(number: int, text: str = "Привет", kind: str = "user_question", **fields: Any) -> ConversationMessage:
    fields = {"timestamp": datetime.now().isoformat(), "tokens": 5} | fields  # noqa: DTZ005 - as the seed does
    return ConversationMessage(message_id=number, type=kind, text=text, **fields)


def answer(number: int, text: str = "Ответ", **fields: Any) -> ConversationMessage:
    return said(number, text, "bot_answer", **fields)


def file_of(manager: ConversationManager, name: str, user: int = USER) -> Any:
    return json.loads((manager.base_dir / f"user_{user}" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Привет    мир   тест", "Привет мир тест"),
        ("Проанализируй интервью с клиентом из отеля Москва", "Проанализируй интервью с..."),
        ("", ""),
        ("я" * 60, "я" * 60),
    ],
)
def test_a_title_is_made_of_the_first_words(text: str, title: str) -> None:
    assert generate_chat_name(text) == title
    assert generate_chat_name("Первое Второе Третье Четвертое", max_length=10) == "Первое Второе Третье..."


def test_a_chat_is_made_and_active_in_an_index_of_the_seeds_form(manager: ConversationManager) -> None:
    def index(username: str, active: str | None, *chats: Any, number: int) -> dict[str, Any]:
        about = {"user_id": USER, "username": username, "last_active_conversation_id": active}
        return {**about, "conversations": list(chats), "next_chat_number": number}

    assert manager.load_index(USER) == index("", None, number=1)
    made = manager.create_conversation(USER, "ada", "Привет, как дела?")
    (listed,) = manager.list_conversations(USER)
    assert manager.load_index(USER) == index("ada", made, listed.model_dump(), number=2)
    assert len(made) == 36
    assert manager.conversation_exists(USER, made)
    assert manager.get_active_conversation_id(USER) == made
    assert listed == manager.load_conversation(USER, made).metadata
    assert (listed.title, listed.username, listed.chat_number) == ("Привет, как дела?", "ada", 1)
    assert (listed.is_active, listed.message_count, listed.total_tokens) == (True, 0, 0)
    # Without a time zone, or the difference would raise.
    assert abs(datetime.fromisoformat(listed.created_at) - datetime.now()) < timedelta(minutes=1)  # noqa: DTZ005


@pytest.mark.parametrize("question", ["", "я" * 60, "слово " * 100, "Привет мир 🌍", "مرحبا بالعالم", "a\0b \ud800"])
def test_a_chat_begins_with_any_question(manager: ConversationManager, question: str) -> None:
    """The seed raises for one long word, and for none."""
    made = manager.create_conversation(USER, "", question)
    title = manager.load_conversation(USER, made).metadata.title
    assert 0 < len(title) <= 50


@pytest.mark.parametrize("unknown", ["another user's", "fake-uuid", "", "a\0b", "x" * 300, "../../etc"])
def test_an_unknown_chat_is_none(manager: ConversationManager, made: str, unknown: str) -> None:
    chat = manager.create_conversation(7, "bob") if unknown == "another user's" else unknown
    assert manager.load_conversation(USER, chat) is None
    assert not manager.conversation_exists(USER, chat)
    assert not manager.add_message(USER, chat, said(1))
    assert manager.get_messages(USER, chat) == []
    assert not manager.set_active_conversation(USER, chat)
    if unknown == "another user's":
        assert manager.delete_conversation(USER, chat)  # as the seed: nothing to delete
        assert [one.conversation_id for one in manager.list_conversations(7)] == [chat]
        assert (manager.load_index(USER)["next_chat_number"], manager.list_conversations(7)[0].chat_number) == (2, 1)


def test_a_deleted_chat_is_followed_by_the_oldest_and_its_number_is_never_used_again(
    manager: ConversationManager,
) -> None:
    first, second, third = (manager.create_conversation(USER, "ada") for _ in range(3))
    manager.add_message(USER, second, said(1))
    manager.set_active_conversation(USER, third)
    assert manager.delete_conversation(USER, third)
    assert manager.get_active_conversation_id(USER) == first
    assert manager.load_conversation(USER, third) is None
    manager.delete_conversation(USER, first)
    manager.delete_conversation(USER, second)  # the last: a new chat is made
    assert [one.chat_number for one in manager.list_conversations(USER)] == [4]
    assert manager.load_index(USER)["next_chat_number"] == 5


def test_a_deletion_takes_the_reports_along(manager: ConversationManager, made: str, tmp_path: Path) -> None:
    report = tmp_path / "voxpersona_20251005_101010.txt"
    report.write_text("report", encoding="utf-8")
    manager.add_message(USER, made, answer(1, sent_as="file", file_path=str(report)))
    manager.add_message(USER, made, answer(2, sent_as="file", file_path="a\0b"))
    assert manager.delete_conversation(USER, made)
    assert not report.exists()
    (left,) = manager.list_conversations(USER)
    assert (left.title, left.is_active, left.username) == ("Новый чат", True, "ada")


@pytest.mark.parametrize("title", ["Python Programming", "д" * 500, "a\0b"])
def test_a_renamed_chat_stays_in_the_list(manager: ConversationManager, made: str, title: str) -> None:
    """With more than 50 characters, the seed loses it."""
    chat = manager.load_conversation(USER, made)
    chat.metadata.title = title
    assert manager.save_conversation(chat)
    shown = title.replace("\0", "\ufffd")
    assert manager.load_conversation(USER, made).metadata.title == shown
    assert [one.title for one in manager.list_conversations(USER)] == [shown]
    assert len(file_of(manager, made)["metadata"]["title"]) <= 50


def test_messages_come_back_as_they_were_added(manager: ConversationManager, made: str) -> None:
    messages = [
        said(1, "Что такое чай?", tokens=0, search_type="fast"),
        answer(2, "Лист.", tokens=12, sent_as="message", search_type="fast"),
        answer(3, "Отчёт " * 400, tokens=900, sent_as="file", file_path="user_1/r.txt", search_type="deep"),
    ]
    assert all(manager.add_message(USER, made, one) for one in messages)
    chat = manager.load_conversation(USER, made)
    assert chat.messages == messages
    assert manager.get_messages(USER, made, limit=2) == messages[1:]
    assert manager.get_messages(USER, made) == messages
    assert (chat.metadata.message_count, chat.metadata.total_tokens) == (3, 912)
    for number, text in enumerate(("a\0b", "half \ud83d of a smiley"), 4):  # which no store takes
        assert manager.add_message(USER, made, said(number, text))
        assert manager.get_messages(USER, made)[-1].text.count("\ufffd") == 1


def test_an_answer_counts_as_sent_in_the_history(manager: ConversationManager, made: str) -> None:
    manager.add_message(USER, made, said(1))
    manager.add_message(USER, made, answer(2, sent_as="file", file_path="r.txt"))
    question, sent = manager.history.messages(made)
    assert (question.role, question.delivery, question.id) == ("user", Delivery.APPENDED, "tg:12345:1")
    assert (sent.role, sent.delivery) == ("assistant", Delivery.SENT)
    assert sent.delivery_data == {"platform_ids": {"telegram": 2}, "sent_as": "file", "file_path": "r.txt"}


def test_a_repeated_save_adds_nothing_unless_it_has_another_text(manager: ConversationManager, made: str) -> None:
    """The bot saves again, with a new time, when it does not know what became of the first save."""
    assert manager.add_message(USER, made, answer(2, timestamp="2025-11-01T10:00:00"))
    assert manager.add_message(USER, made, answer(2, timestamp="2025-11-01T10:00:01"))
    assert [one.timestamp for one in manager.get_messages(USER, made)] == ["2025-11-01T10:00:00"]
    assert len(file_of(manager, made)["messages"]) == 1
    assert manager.add_message(USER, made, answer(2, "Другой"))
    assert [(one.message_id, one.text) for one in manager.get_messages(USER, made)] == [(2, "Ответ"), (2, "Другой")]


def test_what_cannot_be_saved_is_false_and_no_error(
    manager: ConversationManager, made: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(type(manager.history), "append", Mock(side_effect=OutboxFull("no space")))
    assert manager.add_message(USER, made, said(1, "private")) is False
    assert "no space" in caplog.text
    assert "private" not in caplog.text


def test_messages_of_other_programs_are_shown(manager: ConversationManager, made: str) -> None:
    foreign = Message.user("Hi", id="tg:12345:77"), Message.assistant("Hello", id="x")
    manager.history.append(made, Message.system("Be brief."), *foreign, owner=USER)
    asked, answered = manager.get_messages(USER, made)
    assert (asked.type, asked.text, asked.message_id) == ("user_question", "Hi", 77)
    assert (answered.type, answered.text, answered.message_id > 0) == ("bot_answer", "Hello", True)


def test_saving_an_older_copy_of_a_chat_loses_nothing(manager: ConversationManager, made: str) -> None:
    """The seed would drop the message that came while a user typed the new title."""
    manager.add_message(USER, made, said(1))
    loaded = manager.load_conversation(USER, made)
    manager.add_message(USER, made, answer(2))
    loaded.metadata.title = "Новое"
    loaded.messages[0].text = "Исправлено"
    loaded.messages.append(said(3, "Третье"))
    assert manager.save_conversation(loaded)
    assert manager.save_conversation(loaded)
    chat = manager.load_conversation(USER, made)
    assert [one.text for one in chat.messages] == ["Исправлено", "Ответ", "Третье"]
    assert chat.metadata.title == "Новое"


def test_saving_a_chat_that_is_not_there_makes_it(manager: ConversationManager) -> None:
    metadata = ConversationMetadata("c" * 36, USER, "ada", "Чат", "2025-01-01", "2025-01-01", True, 1, 5, 9)
    assert manager.save_conversation(Conversation(metadata, [said(1)]))
    chat = manager.load_conversation(USER, "c" * 36)
    assert (chat.metadata.title, chat.metadata.chat_number, len(chat.messages)) == ("Чат", 9, 1)


def test_a_saved_index_renames_and_switches(manager: ConversationManager) -> None:
    first, second = (manager.create_conversation(USER, "ada") for _ in range(2))
    index = manager.load_index(USER)
    index["conversations"][0]["title"] = "Первый"
    index |= {"last_active_conversation_id": first, "next_chat_number": 10, "username": "lovelace"}
    assert manager.save_index(USER, index)
    again = manager.load_index(USER)
    assert [one["title"] for one in again["conversations"]] == ["Первый", "Новый чат"]
    assert (again["last_active_conversation_id"], again["next_chat_number"]) == (first, 10)
    assert again["username"] == "lovelace"
    assert manager.conversation_exists(USER, second)


def test_statistics_count_what_the_seed_counts(manager: ConversationManager) -> None:
    old = (datetime.now() - timedelta(days=31)).isoformat()  # noqa: DTZ005 - as the seed does
    first, second = (manager.create_conversation(USER, "ada") for _ in range(2))
    for chat, one in (
        (first, said(1, tokens=0)),
        (first, answer(2, tokens=1_500, search_type="fast", sent_as="message")),
        (second, said(3, tokens=0, search_type="deep")),
        (second, answer(4, tokens=500, search_type="deep", sent_as="file")),
        (second, answer(5, tokens=7, timestamp=old)),
    ):
        manager.add_message(USER, chat, one)

    assert manager.get_user_stats(USER) == {
        "total_questions": 2,
        "total_answers": 2,
        "fast_searches": 1,
        "deep_searches": 1,
        "total_tokens": 2_000,
        "files_sent": 1,
        "conversations_count": 2,
        "total_messages": 4,
    }
    assert manager.get_user_stats(USER, days_back=60)["total_messages"] == 5
    assert set(manager.get_user_stats(99).values()) == {0}
    assert manager.format_user_stats_for_display(99).endswith("Сохраненных файлов: 0\n\n")
    text = manager.format_user_stats_for_display(USER)
    assert "📝 Всего токенов: 2,000\n" in text
    assert text.endswith("💡 Средняя длина вопроса: 1000.0 токенов\n🎯 Глубоких поисков: 50.0%\n")


def test_chats_made_at_once_have_different_numbers_and_all_messages_of_threads(manager: ConversationManager) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: manager.create_conversation(USER, "ada"), range(8)))
    found = manager.list_conversations(USER)
    assert sorted(one.chat_number for one in found) == list(range(1, 9))
    made = found[0].conversation_id
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda number: manager.add_message(USER, made, said(number)), range(1, 21)))
    assert sorted(one["message_id"] for one in file_of(manager, made)["messages"]) == list(range(1, 21))


def test_a_store_that_is_away_costs_nothing(tmp_path: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{asyncio.run(refused_port())}/nowhere"
    with ConversationManager(tmp_path, store=url) as manager:
        made = manager.create_conversation(USER, "ada", "Чат")
        assert manager.add_message(USER, made, said(1))
        assert manager.add_message(USER, made, answer(2))
        assert manager.add_message(USER, "only-the-store-knows-it", answer(3))
        assert manager.get_active_conversation_id(USER) == "only-the-store-knows-it"
        assert len(manager.load_conversation(USER, made).messages) == 2
        assert manager.get_user_stats(USER)["total_messages"] == 3
        assert manager.set_active_conversation(USER, made)
        # A user that the outbox does not know: nobody can tell the next number.
        other = manager.create_conversation(7, "bob")
        assert manager.load_conversation(7, other).metadata.chat_number == 0


def test_a_bot_gets_objects_of_its_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own: Any = ModuleType("conversations")
    for kind in (Conversation, ConversationMessage, ConversationMetadata):
        setattr(own, kind.__name__, type(kind.__name__, (kind,), {}))
    monkeypatch.setitem(sys.modules, "conversations", own)
    with ConversationManager(tmp_path) as manager:
        made = manager.create_conversation(USER, "ada")
        manager.add_message(USER, made, said(1))
        assert type(manager.load_conversation(USER, made)) is own.Conversation
        assert type(manager.list_conversations(USER)[0]) is own.ConversationMetadata
        assert type(manager.get_messages(USER, made)[0]) is own.ConversationMessage


def test_classes_of_pydantic_are_not_validated(tmp_path: Path) -> None:
    """Or a chat with a long title would vanish, as in the seed."""
    pydantic = pytest.importorskip("pydantic", reason="needs pydantic, of the group adapters")
    own = ModuleType("own")
    title = (str, pydantic.Field(max_length=5))
    own.ConversationMessage = pydantic.create_model("ConversationMessage", text=(str, ...))
    own.ConversationMetadata = pydantic.create_model("ConversationMetadata", title=title)
    own.Conversation = pydantic.create_model("Conversation", metadata=(own.ConversationMetadata, ...))
    with ConversationManager(tmp_path, models=own) as manager:
        made = manager.create_conversation(USER, "ada", "Длинное название")
        assert manager.load_conversation(USER, made).metadata.title == "Длинное название"


def test_times_are_those_of_the_chosen_zone(tmp_path: Path) -> None:
    with ConversationManager(tmp_path, timezone=ZoneInfo("Asia/Tokyo")) as manager:
        made = manager.create_conversation(USER, "ada")
        manager.add_message(USER, made, said(1, timestamp="2025-11-01T09:00:00"))
        (kept,) = manager.history.messages(made)
        assert kept.occurred_at.isoformat() == "2025-11-01T00:00:00+00:00"
        assert manager.get_messages(USER, made)[0].timestamp == "2025-11-01T09:00:00"


def test_the_files_are_what_the_seed_would_have_written(manager: ConversationManager) -> None:
    made = manager.create_conversation(USER, "", "Чат")
    message = answer(2, tokens=7, sent_as="message")
    manager.add_message(USER, made, message)
    chat = manager.load_conversation(USER, made)
    data, index = file_of(manager, made), file_of(manager, "index")
    assert data["schema_version"] == "1.0"
    assert data["messages"] == [message.model_dump()]
    assert data["metadata"] == chat.metadata.model_dump() | {"updated_at": message.timestamp}
    assert data["metadata"]["username"] == "user_12345"  # the seed's classes refuse an empty one
    assert index["conversations"] == [data["metadata"]]
    assert index["next_chat_number"] == 2
    assert not list(manager.base_dir.rglob("*.tmp"))
    (manager.base_dir / "user_12345" / f"{made}.json").write_text('{"schema', encoding="utf-8")  # it was damaged
    assert manager.add_message(USER, made, answer(3))
    assert [one["message_id"] for one in file_of(manager, made)["messages"]] == [2, 3]


def test_an_id_never_leaves_the_folder(manager: ConversationManager) -> None:
    outside = manager.base_dir / "config.json"
    outside.write_text("{}", encoding="utf-8")
    manager.ensure_user_directory(USER)
    assert manager.ensure_user_directory(USER) == manager.base_dir / "user_12345"
    assert manager.delete_conversation(USER, "../config")
    assert outside.exists()


def test_files_that_cannot_be_written_cost_nothing(manager: ConversationManager) -> None:
    (manager.base_dir / "user_12345").write_text("no folder", encoding="utf-8")
    made = manager.create_conversation(USER, "ada")
    assert manager.add_message(USER, made, said(1))
    assert len(manager.get_messages(USER, made)) == 1
