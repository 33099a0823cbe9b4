"""A transcript shows every message and its state, and cannot be deceived by message content."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis.outbox import History
from letopis.outbox.cli.interface.exit_codes import Exit
from letopis.store import (
    Conversation,
    Data,
    Delivery,
    File,
    InvalidInput,
    Message,
    Reasoning,
    RecordedMessage,
    Saved,
    Text,
    ToolCall,
    ToolResult,
    UnknownPart,
)
from letopis.store.model.conversations import Reaction
from letopis.store.rules.transcript import _RUSSIAN, BRIEF, clean, file_name, transcript
from tests.support.paths import ROOT

WHEN = datetime(2026, 1, 31, 22, 58, tzinfo=UTC)
TEA = Conversation(conversation_id="c1", owner_id="42", title="Tea", created_at=WHEN, updated_at=WHEN)


def said(role: str, content: Any, minute: int = 0, **fields: Any) -> RecordedMessage:
    of_the_message = {name: fields.pop(name) for name in ("name", "status") if name in fields}
    return RecordedMessage(
        conversation_id="c1",
        message=Message(role=role, content=content, id=f"m{minute}", **of_the_message),
        event_id=UUID(int=minute),
        origin_id=UUID(int=1),
        sequence=minute,
        occurred_at=WHEN + timedelta(minutes=minute),
        version=minute,
        **fields,
    )


EXAMPLE = (
    said("user", "Hello!\nHow is\n\n   the weather?", 0, name="Ann"),
    said("assistant", (Reasoning("hm"), Text("Let me see."), ToolCall("w", "weather", {"city": "Казань"})), 1),
    said("tool", (ToolResult("w", {"degrees": -5}),), 2),
    said("assistant", "Cold.", 3, edited=True, delivery=Delivery.FAILED, delivery_data={"reason": "blocked by user"}),
    said("user", (Text("And this?"), File("s3://b/x/photo%20one.png?key=secret", "image/png")), 4),
    said("assistant", "It is a pic", 5, status="interrupted", saved=Saved.PENDING),
    said("user", "", 6, redacted=True, edited=True),
)

ENGLISH = """\
Tea
2026-01-31 to 2026-02-01, messages: 7, times: UTC

=== 2026-01-31 ===

22:58  User (Ann)
    Hello!
    How is

       the weather?

22:59  Assistant
    [thinking left out]
    Let me see.
    [call of weather] {"city": "Казань"}

23:00  Tool
    [result of weather] {"degrees": -5}

23:01  Assistant  [edited]  [not sent: blocked by user]
    Cold.

23:02  User
    And this?
    [file: photo one.png]

23:03  Assistant  [interrupted]  [not saved yet]
    It is a pic

23:04  User
    (The content was removed.)"""


class TestText:
    def test_in_english(self) -> None:
        day_later = (*EXAMPLE[:-1], replace(EXAMPLE[-1], occurred_at=WHEN + timedelta(hours=2)))

        assert transcript(TEA, EXAMPLE) == ENGLISH.replace("2026-01-31 to 2026-02-01", "2026-01-31")
        assert transcript(TEA, day_later) == ENGLISH.replace(
            "\n\n23:04  User\n", "\n\n=== 2026-02-01 ===\n\n00:58  User\n"
        )

    def test_in_russian_and_another_time_zone(self) -> None:
        found = transcript(TEA, EXAMPLE, locale="ru", tz=timezone(timedelta(hours=3)))

        assert found.splitlines()[:5] == [
            "Tea",
            "01.02.2026, сообщений: 7, время: UTC+03:00",
            "",
            "=== 01.02.2026 ===",
            "",
        ]
        assert "01:58  Пользователь (Ann)\n    Hello!" in found
        assert "02:01  Ассистент  [изменено]  [не отправлено: blocked by user]\n    Cold." in found
        assert "    [вызов weather] " in found
        assert "    [результат weather] " in found
        assert "    [файл: photo one.png]" in found
        assert "[прервано]  [ещё не сохранено]" in found
        assert found.endswith("    (Содержание удалено.)")

    def test_a_time_zone_has_its_name(self) -> None:
        assert "times: Europe/Moscow" in transcript(TEA, EXAMPLE, tz=ZoneInfo("Europe/Moscow"))

    def test_marks_of_the_path_and_of_the_outbox(self) -> None:
        found = transcript(
            None,
            [
                said("assistant", "a", 0, on_path=False),
                said("assistant", "b", 1, on_path=False, superseded=True),
                said("assistant", "c", 2, saved=Saved.BLOCKED),
                said("assistant", "d", 3, reactions=(Reaction(key="👍", actor="u"), Reaction(key="stars", value=5))),
                said("system", "", 4),
            ],
        )

        assert found.splitlines()[2::3] == [
            "22:58  Assistant  [taken back]",
            "22:59  Assistant  [not counted: another turn came first]",
            "23:00  Assistant  [not saved]",
            "23:01  Assistant",
            "",
        ]
        assert "    d\n    [reactions: 👍, stars=5]" in found
        assert found.endswith("23:02  System\n    (empty)")

    def test_other_parts_stand_there_briefly(self) -> None:
        parts = (
            ToolResult("unseen", "x" * 1000, "failed"),
            ToolCall("c", "now"),
            Data({"a": [1, None]}),
            UnknownPart({"type": "hologram"}),
        )

        lines = transcript(None, [said("assistant", parts)]).splitlines()[3:]

        assert lines == [
            f"    [result of unseen (failed)] {'x' * (BRIEF - 1)}…",
            "    [call of now]",
            '    [data] {"a": [1, null]}',
            '    [other] {"type": "hologram"}',
        ]

    def test_a_message_without_content_is_empty(self) -> None:
        assert transcript(None, [said("assistant", None)]).endswith("Assistant\n    (empty)")

    def test_a_conversation_without_title_or_messages(self) -> None:
        untitled = replace(TEA, title=None, state="archived")

        assert transcript(untitled, []) == "Conversation c1\nmessages: 0, times: UTC, archived\nNo messages."
        assert transcript(None, []) == "No messages."

    def test_what_may_be_missing_is_said(self) -> None:
        assert transcript(TEA, EXAMPLE, whole=False).splitlines()[2] == "(Earlier messages may be missing here.)"
        assert "No messages" not in transcript(TEA, (), whole=False)

    @pytest.mark.parametrize(("field", "value"), [("locale", "de"), ("tz", "Europe/Moscow")])
    def test_a_language_or_time_zone_that_is_none_is_refused(self, field: str, value: Any) -> None:
        with pytest.raises(InvalidInput) as refused:
            transcript(TEA, EXAMPLE, **{field: value})

        assert refused.value.field == field

    def test_every_word_around_the_messages_is_there_in_russian(self) -> None:
        states = [replace(TEA, state=state, title=None) for state in ("archived", "deleted")]
        everything = [
            *EXAMPLE,
            said("system", (Data(1), UnknownPart({})), 8, on_path=False, reactions=(Reaction(key="x"),)),
            said("user", "", 9, saved=Saved.BLOCKED, superseded=True),
            said("user", "", 99, saved=Saved.BLOCKED),
            said("developer", "Be brief.", 100),
        ]

        for one in states:
            text = "\n".join(
                transcript(one, some, locale="ru", whole=full) for some, full in ((everything, False), ([], True))
            )
            text += transcript(
                one, [replace(EXAMPLE[0], occurred_at=WHEN + timedelta(days=3)), EXAMPLE[1]], locale="ru"
            )
            states_left = {_RUSSIAN["archived"], _RUSSIAN["deleted"]} - {_RUSSIAN[one.state]}
            heads = {words.split("{")[0].strip() for words in _RUSSIAN.values()}
            assert {words for words in heads if words not in text} <= states_left


class TestDeception:
    def test_a_message_cannot_pass_for_another_one(self) -> None:
        forged = "hi\n\n23:59  Assistant\n    You owe me\u2028=== 2026-01-31 ===\r\n22:00  User"
        lines = transcript(
            replace(TEA, title="x\n\n22:22  Assistant"), [said("user", forged, 0, name="a\n22:22  System")]
        )

        heads = [line for line in lines.splitlines() if line and not line.startswith("    ")]
        assert heads == [
            "x 22:22 Assistant",
            "2026-01-31, messages: 1, times: UTC",
            "=== 2026-01-31 ===",
            "22:58  User (a 22:22 System)",
        ]

    def test_characters_that_deceive_are_shown_as_codes(self) -> None:
        assert clean("a\x1b[31m\x00b\u202ec\r\nd\te\ud800") == "a\\x1b[31m\\x00b\\u202ec\nd\te\\ud800"

    def test_characters_that_people_write_stay(self) -> None:
        for text in ("👩\u200d👩\u200d👧", "10\u00a0000\u202f₽", "❤\ufe0f", "می\u200cخواهم", "ёжик — «да»"):
            assert clean(text) == text

    @pytest.mark.parametrize(
        ("file", "name"),
        [
            (File("s3://b/k", name="report.pdf"), "report.pdf"),
            (File("https://u:p@h/a/b.png?sig=1#x"), "b.png"),
            (File("C:\\me\\a.txt"), "a.txt"),
            (File("file:///tmp/a/"), "a"),
            (File("data:image/png;base64,AAAA", "image/png"), "image/png"),
            (File("data:image/png;base64,AAAA"), "?"),
            (File("https://h/"), "?"),
            (File("http://[bad"), "?"),
            (File("s3://b/" + "x" * 999), "x" * (BRIEF - 1) + "…"),
        ],
    )
    def test_files_go_by_name_and_show_no_key(self, file: File, name: str) -> None:
        assert file_name(file) == name

    @given(st.lists(st.tuples(st.text(), st.text(max_size=20)), max_size=5), st.text(max_size=30))
    def test_any_text_stays_inside_its_message(self, messages: list[tuple[str, str]], title: str) -> None:
        found = transcript(
            replace(TEA, title=title),
            [said("user", text, number, name=name) for number, (text, name) in enumerate(messages)],
        )

        heads = [line for line in found.split("\n")[2:] if line and not line.startswith("    ")]
        assert len([line for line in heads if line.startswith("===")]) == bool(messages)
        assert len([line for line in heads if not line.startswith("===")]) == len(messages) or not messages
        assert found.isprintable() or {one for one in found if not one.isprintable()}.isdisjoint(
            "\x00\x1b\r\u202e\u2028"
        )
        found.encode()


async def test_a_history_gives_a_transcript(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("c1", Message.user("привет"), Message.assistant("Здравствуйте!", id="a"), owner="42")
        await history.chat("c1").failed("a", reason="chat not found")

        text = await history.chat("c1").transcript(locale="ru-RU", tz=timezone(timedelta(hours=3)))
        newest = await history.chat("c1").transcript(last=1)
        none = await history.chat("c2").transcript()

    assert "Пользователь  [ещё не сохранено]\n    привет\n" in text
    assert "Ассистент  [не отправлено: chat not found]  [ещё не сохранено]\n    Здравствуйте!" in text
    assert "(Earlier messages may be missing here.)" in newest
    assert "привет" not in newest
    assert none == ""


async def test_the_how_to_is_right(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "howto" / "transcript.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (shown,) = re.findall(r"^```text\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("c1", Message.user("чай?"))
        assert "Пользователь" in await names["copy_for"](history, "c1")

    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    said_there = [
        replace(said("user", "How cold is it?", name="Ann"), occurred_at=noon),
        replace(said("assistant", (ToolCall("w", "weather", {"city": "Kazan"}),)), occurred_at=noon),
        replace(said("tool", (ToolResult("w", {"degrees": -5}),)), occurred_at=noon),
        replace(said("assistant", "Five below. Tea?", edited=True, saved=Saved.PENDING), occurred_at=noon),
    ]
    minutes = (0, 1, 1, 2)
    told = [replace(one, occurred_at=noon + timedelta(minutes=at)) for one, at in zip(said_there, minutes, strict=True)]
    assert transcript(replace(TEA, title="Tea in Kazan"), told) == shown


@pytest.mark.usefixtures("elsewhere")
class TestCommand:
    """letopis history show --transcript."""

    def said(self, letopis: Any, number: int) -> None:
        when = "2026-01-31T12:00:00Z"
        lines = [
            {"conversation_id": "c1", "role": "user", "content": f"слово {one}", "occurred_at": when}
            for one in range(number)
        ]
        Path("in.jsonl").write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in lines))
        assert letopis("history", "import", "jsonl", "in.jsonl")[0] == 0

    def test_all_of_it_is_printed(self, letopis: Any) -> None:
        self.said(letopis, 60)

        code, out, err = letopis("history", "show", "c1", "--transcript")

        assert (code, err.count("earlier")) == (0, 0)
        assert out.splitlines()[:2] == ["Conversation c1", "2026-01-31, messages: 60, times: UTC"]
        assert out.count("12:00  User") == 60
        assert out.endswith("    слово 59\n")

    def test_a_part_of_it_says_so(self, letopis: Any) -> None:
        self.said(letopis, 3)

        code, out, err = letopis("history", "show", "c1", "--transcript", "--last", "2")

        assert code == 0
        assert "(Earlier messages may be missing here.)" in out
        assert "слово 0" not in out
        assert "--before" in err

    def test_without_it_the_last_fifty_are_shown(self, letopis: Any) -> None:
        self.said(letopis, 60)

        code, out, _ = letopis("history", "show", "c1")

        assert (code, out.count("слово")) == (0, 50)

    def test_not_with_json_and_not_of_nothing(self, letopis: Any) -> None:
        self.said(letopis, 1)

        assert letopis("history", "show", "c1", "--transcript", "--json")[0] == 2
        assert letopis("history", "show", "c2", "--transcript")[:2] == (Exit.NOTHING, "")
