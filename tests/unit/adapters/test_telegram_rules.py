"""Keys, meanings of updates and calls, and the data of buttons: what is decided without a history."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis import Data, File, InvalidInput, Text
from letopis.adapters.telegram_core.bot import bot_id_of
from letopis.adapters.telegram_core.buttons import (
    DATA_LIMIT,
    button,
    file_name,
    long_name,
    read_press,
    short_name,
    shortened,
)
from letopis.adapters.telegram_core.calls import failure_of, numbers_in, read_call
from letopis.adapters.telegram_core.content import content_of, metadata_of, title_from
from letopis.adapters.telegram_core.keys import ChatKey, author_of, message_id
from letopis.adapters.telegram_core.texts import COMMANDS, ENGLISH, RUSSIAN, descriptions, texts_for
from letopis.adapters.telegram_core.updates import (
    ChatMoved,
    Command,
    Deleted,
    Edited,
    Other,
    Reacted,
    Said,
    read_update,
)
from letopis.store.model.identifiers import check_identifier
from tests.support.sayings import present

BOT = 7000
KEYS = st.builds(
    ChatKey,
    bot_id=st.integers(1, 10**10),
    chat_id=st.integers(-(10**14), 10**14),
    topic_id=st.none() | st.integers(1, 10**9),
    direct_topic_id=st.none() | st.integers(1, 10**15),
    business_id=st.none() | st.text(min_size=1, max_size=32).filter(lambda text: text.isprintable()),
)


def raw(text: str | None = "Hello", chat: int = 1001, **more: Any) -> dict[str, Any]:
    message = {"message_id": 5, "date": 1_790_000_000, "chat": {"id": chat}, "from": {"id": 1001}, **more}
    return message if text is None else {**message, "text": text}


@given(KEYS)
def test_a_place_can_be_read_back_from_its_owner_and_its_conversations(key: ChatKey) -> None:
    """So no two share an owner."""
    assert check_identifier(key.owner, "owner") == key.owner
    assert ChatKey.parse(key.owner) == ChatKey.parse(key.later_conversation()) == key


@pytest.mark.parametrize("owner", [None, "", "42", "tg:x:1", "tg:7000:updates", "tg:1:2:z3"])
def test_other_owners_are_no_place(owner: str | None) -> None:
    assert ChatKey.parse(owner) is None


def test_topics_and_business_chats_are_places_of_their_own_and_threads_are_not() -> None:
    answer = raw(chat=-100, message_thread_id=9)
    business = raw(business_connection_id="a:b/c")
    direct = raw(chat=-100, direct_messages_topic={"topic_id": 77})
    assert ChatKey.of_message(BOT, answer).owner == "tg:7000:-100"
    assert ChatKey.of_message(BOT, {**answer, "is_topic_message": True}).owner == "tg:7000:-100:t9"
    assert ChatKey.of_message(BOT, business).owner == "tg:7000:1001:ba%3Ab%2Fc"
    assert ChatKey.of_message(BOT, direct).call() == {"chat_id": -100, "direct_messages_topic_id": 77}


def test_a_token_names_its_bot_and_is_not_quoted_when_it_is_none() -> None:
    assert bot_id_of("7000:secret") == 7000
    with pytest.raises(InvalidInput) as raised:
        bot_id_of("secret")
    assert "secret" not in str(raised.value).replace("a secret", "")


COMMAND = [{"type": "bot_command", "offset": 0, "length": 13}]
GONE = {"business_connection_id": "b", "chat": {"id": 1001}, "message_ids": [5, 6]}
REACTED = {"old_reaction": [{"type": "emoji", "emoji": "👎"}], "new_reaction": [{"type": "emoji", "emoji": "👍"}]}
REACTION = {"chat": {"id": 1001}, "message_id": 5, "user": {"id": 1001}, **REACTED}
THOUGHT = {"chat": {"id": 1001}, "thought": "tea"}


@pytest.mark.parametrize(
    ("kind", "payload", "meaning", "fields"),
    [
        ("message", raw(), Said, {}),
        ("message", raw("/new@fake_bot Tea", entities=COMMAND), Command, {"command": "new"}),
        ("message", raw("/new without an entity"), Said, {}),
        ("message", raw(None, new_chat_members=[{"id": 5}]), Other, {}),
        ("business_message", raw(business_connection_id="b", sender_business_bot={"id": BOT}), Other, {}),
        ("edited_message", raw("New"), Edited, {}),
        ("deleted_business_messages", GONE, Deleted, {"numbers": (5, 6)}),
        ("message", raw(None, chat=-5, migrate_to_chat_id=-1005), ChatMoved, {"old": -5, "new": -1005}),
        ("message_reaction", REACTION, Reacted, {"added": ("👍",), "removed": ("👎",)}),
        ("telepathy", THOUGHT, Other, {"kind": "telepathy", "key": ChatKey(bot_id=BOT, chat_id=1001)}),
        ("inline_query", {"id": "1", "query": "q"}, Other, {"key": None}),
    ],
)
def test_an_update_is_understood_or_kept_raw(
    kind: str, payload: dict[str, Any], meaning: type, fields: dict[str, Any]
) -> None:
    found = read_update(BOT, {"update_id": 1, kind: payload})
    assert type(found) is meaning
    assert {name: getattr(found, name) for name in fields} == fields


@pytest.mark.parametrize("given", [{}, {"message": {}}, {"update_id": "1"}, {"update_id": True}])
def test_what_has_no_update_id_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="update_id"):
        read_update(BOT, given)


def test_files_are_kept_by_reference_beside_their_words() -> None:
    photo = raw(None, photo=[{"file_id": "small"}, {"file_id": "large"}], caption="A leaf")
    animation = raw(None, animation={"file_id": "a"}, document={"file_id": "a"})
    assert content_of(photo) == (Text("A leaf"), File("tg-file:large", "image/jpeg", "photo"))
    assert content_of(animation) == (File("tg-file:a", "video/mp4", "animation"),)
    assert content_of(raw(None, location={"latitude": 1, "longitude": 2}, venue={"title": "T"})) == (
        Data({"venue": {"title": "T"}}),
    )


def test_who_wrote_and_what_it_answers_is_metadata() -> None:
    told = metadata_of(raw(reply_to_message={"message_id": 3}, media_group_id="g"))
    assert told == {"telegram": {"from": {"id": 1001}, "reply_to": 3, "media_group_id": "g"}}


@pytest.mark.parametrize(
    ("message", "author"),
    [
        ({"from": {"id": 1001}}, "tg:7000:1001"),
        ({"from": {"id": 1001}, "message_thread_id": 7, "is_topic_message": True}, "tg:7000:1001"),
        ({"from": {"id": 1087968824, "is_bot": True}, "sender_chat": {"id": -100}}, None),
        ({"sender_chat": {"id": -100}}, None),
        ({"from": "nobody"}, None),
        ({"from": {}}, None),
    ],
)
def test_the_author_is_the_owner_of_a_private_chat(message: dict[str, Any], author: str | None) -> None:
    assert author_of(7000, {"chat": {"id": -100}, **message}) == author


def test_a_title_is_the_beginning_of_a_question() -> None:
    assert title_from("What is tea?") == "What is tea?"
    assert title_from("What is the difference between green and black tea?") == "What is the difference between…"
    assert len(title_from("x" * 500)) == 31


def test_calls_that_write_to_a_conversation_are_told_from_others() -> None:
    said = present(read_call(BOT, "sendMessage", {"chat_id": 1001, "text": "Hi", "message_thread_id": 3}))
    assert (said.content, said.sent_as, said.key.topic_id) == ("Hi", "message", 3)
    file = present(read_call(BOT, "sendDocument", {"chat_id": "1001", "document": {"name": "a.txt"}, "caption": "A"}))
    assert (file.content, file.sent_as) == ((Text("A"), File("tg-upload:a.txt", None, "a.txt")), "file")
    edit = present(read_call(BOT, "editMessageText", {"chat_id": 1001, "message_id": 5, "text": "Ho"}))
    assert (edit.does, edit.numbers, edit.content) == ("edit", (5,), "Ho")
    gone = present(read_call(BOT, "deleteMessages", {"chat_id": 1001, "message_ids": [5, 6]}))
    assert (gone.does, gone.numbers) == ("delete", (5, 6))
    for method in ("sendChatAction", "getMe", "sendMessageDraft", "answerCallbackQuery", "editMessageReplyMarkup"):
        assert read_call(BOT, method, {"chat_id": 1001, "message_id": 5}) is None
    assert read_call(BOT, "sendMessage", {"chat_id": "@channel", "text": "Hi"}) is None


def test_an_answer_of_telegram_is_final_or_not() -> None:
    assert failure_of(429, "Too Many Requests", {"retry_after": 3}).seconds == 3
    assert failure_of(500, "Internal Server Error").ending == "unknown"
    assert failure_of(400, "Bad Request: can't parse entities").formatting
    assert failure_of(403, "Forbidden: bot was blocked by the user").final
    assert failure_of(400, "moved", {"migrate_to_chat_id": -1005}).moved_to == -1005


def test_ids_are_found_in_every_kind_of_result() -> None:
    assert numbers_in({"message_id": 5, "chat": {"id": 1}}) == (5,)
    assert numbers_in([{"message_id": 5}, {"message_id": 6}]) == (5, 6)
    assert numbers_in(True) == numbers_in(None) == ()
    assert message_id(1001, 5) == "tg:1001:5"


@given(KEYS, st.text(min_size=1, max_size=255))
def test_every_button_fits_whatever_the_conversation_is_called(key: ChatKey, other: str) -> None:
    for name in (key.owner, key.later_conversation(), other):
        made = button("Title", "history", short_name(key, name))
        assert len(made.data.encode()) <= DATA_LIMIT
        press = present(read_press(made.data))
        assert (press.action, press.argument) == ("history", short_name(key, name))
        assert long_name(key, press.argument) in (name, None)


def test_other_data_is_no_press_of_ours() -> None:
    assert read_press("lt:explode:1") is None
    assert read_press("other:new:") is None
    assert read_press(None) is None


def test_what_is_shown_is_cut_and_what_is_a_file_is_named() -> None:
    assert shortened("One\ntwo  " + "x" * 60) == "One two " + "x" * 31 + "…"
    assert file_name('A/B: "C"?', ".txt") == "A_B_ _C_.txt"
    assert file_name("///", ".txt") == "_.txt"


def test_both_languages_say_everything() -> None:
    from dataclasses import fields
    from string import Formatter

    for spec in fields(ENGLISH):
        english, russian = getattr(ENGLISH, spec.name), getattr(RUSSIAN, spec.name)
        names = [{name for _, name, _, _ in Formatter().parse(text) if name} for text in (english, russian)]
        assert names[0] == names[1], spec.name
        assert english != russian or not any(character.isalpha() for character in english), spec.name
    assert texts_for("ru-RU") is RUSSIAN
    assert texts_for("de") is texts_for(None) is ENGLISH
    assert list(descriptions("ru")) == list(COMMANDS)
    assert all(1 <= len(text) <= 256 for language in ("en", "ru") for text in descriptions(language).values())
