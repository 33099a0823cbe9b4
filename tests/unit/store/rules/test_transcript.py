"""A transcript shows every message and its state, and cannot be deceived by message content."""

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
from letopis.store import Conversation, Delivery, InvalidInput, Message, RecordedMessage, Saved
from letopis.store.model.conversations import Reaction
from letopis.store.model.parts import Data, File, Reasoning, Text, ToolCall, ToolResult, UnknownPart
from letopis.store.rules.transcript import BRIEF, clean, file_name, transcript
from tests.support.paths import ROOT

WHEN = datetime(2026, 1, 31, 22, 58, tzinfo=UTC)
TEA = Conversation(conversation_id="c1", owner_id="42", title="Tea", created_at=WHEN, updated_at=WHEN)


def said(role: str, content: Any, minute: int = 0, *, at: datetime = WHEN, **fields: Any) -> RecordedMessage:
    of_the_message = {name: fields.pop(name) for name in ("name", "author", "status") if name in fields}
    return RecordedMessage(
        conversation_id="c1",
        message=Message(role=role, content=content, id=f"m{minute}", **of_the_message),
        event_id=UUID(int=minute),
        origin_id=UUID(int=1),
        sequence=minute,
        occurred_at=at + timedelta(minutes=minute),
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
        next_day = "\n\n=== 2026-02-01 ===\n\n00:58  User\n"
        assert transcript(TEA, EXAMPLE) == ENGLISH.replace("2026-01-31 to 2026-02-01", "2026-01-31")
        assert transcript(TEA, day_later) == ENGLISH.replace("\n\n23:04  User\n", next_day)

    def test_in_russian_and_another_time_zone(self) -> None:
        found = transcript(TEA, EXAMPLE, locale="ru", tz=timezone(timedelta(hours=3)))
        head = "Tea\n01.02.2026, сообщений: 7, время: UTC+03:00\n\n=== 01.02.2026 ===\n\n"
        assert found.startswith(f"{head}01:58  Пользователь (Ann)\n    Hello!")
        assert "02:01  Ассистент  [изменено]  [не отправлено: blocked by user]\n    Cold." in found
        for words in ("[вызов weather] ", "[результат weather] ", "[файл: photo one.png]"):
            assert f"    {words}" in found
        assert "[прервано]  [ещё не сохранено]" in found
        assert found.endswith("    (Содержание удалено.)")

    def test_marks_of_the_path_and_of_the_outbox(self) -> None:
        reactions = Reaction(key="👍", actor="u"), Reaction(key="stars", value=5)
        messages = [
            said("assistant", "a", 0, on_path=False),
            said("assistant", "b", 1, on_path=False, superseded=True),
            said("assistant", "c", 2, saved=Saved.BLOCKED),
            said("assistant", "d", 3, reactions=reactions),
            said("system", "", 4),
        ]
        found = transcript(None, messages)

        assert found.splitlines()[2::3] == [
            "22:58  Assistant  [taken back]",
            "22:59  Assistant  [not counted: another turn came first]",
            "23:00  Assistant  [not saved]",
            "23:01  Assistant",
            "",
        ]
        assert "    d\n    [reactions: 👍, stars=5]" in found
        assert found.endswith("23:02  System\n    (empty)")

    @pytest.mark.parametrize(("other", "shown"), [("1", ("", "")), ("2", (" (1)", " (2)"))])
    def test_authors_without_a_name_are_shown_if_there_are_several(self, other: str, shown: tuple[str, str]) -> None:
        messages = [said("user", "Tea?", author="1"), said("user", "Tea!", author=other), said("assistant", "Tea.")]
        assert [line.split("  ")[1] for line in transcript(None, messages).splitlines() if line[:2] == "22"] == [
            *(f"User{name}" for name in shown),
            "Assistant",
        ]

    def test_other_parts_stand_there_briefly(self) -> None:
        parts = ToolResult("unseen", "x" * 1000, "failed"), ToolCall("c", "now"), Data({"a": [1, None]})
        lines = transcript(None, [said("assistant", (*parts, UnknownPart({"type": "hologram"})))]).splitlines()
        assert lines[3:] == [
            f"    [result of unseen (failed)] {'x' * (BRIEF - 1)}…",
            "    [call of now]",
            '    [data] {"a": [1, null]}',
            '    [other] {"type": "hologram"}',
        ]

    def test_what_there_is_not_is_said(self) -> None:
        untitled = replace(TEA, title=None, state="archived")
        assert transcript(untitled, []) == "Conversation c1\nmessages: 0, times: UTC, archived\nNo messages."
        assert transcript(None, []) == "No messages."
        assert transcript(None, [said("assistant", None)]).endswith("Assistant\n    (empty)")
        assert transcript(TEA, EXAMPLE, whole=False).splitlines()[2] == "(Earlier messages may be missing here.)"
        assert "No messages" not in transcript(TEA, (), whole=False)
        assert "times: Europe/Moscow" in transcript(TEA, EXAMPLE, tz=ZoneInfo("Europe/Moscow"))

    @pytest.mark.parametrize(("field", "value"), [("locale", "de"), ("tz", "Europe/Moscow")])
    def test_a_language_or_time_zone_that_is_none_is_refused(self, field: str, value: Any) -> None:
        with pytest.raises(InvalidInput, match=rf"^{field}: "):
            transcript(TEA, EXAMPLE, **{field: value})


class TestDeception:
    def test_a_message_cannot_pass_for_another_one(self) -> None:
        forged = "hi\n\n23:59  Assistant\n    You owe me\u2028=== 2026-01-31 ===\r\n22:00  User"
        message = said("user", forged, 0, name="a\n22:22  System")
        lines = transcript(replace(TEA, title="x\n\n22:22  Assistant"), [message]).splitlines()

        assert [line for line in lines if line and not line.startswith("    ")] == [
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
        those = [said("user", text, number, name=name) for number, (text, name) in enumerate(messages)]
        found = transcript(replace(TEA, title=title), those)
        heads = [line.startswith("===") for line in found.split("\n")[2:] if line and not line.startswith("    ")]
        assert heads.count(True) == bool(messages)
        assert heads.count(False) == len(messages) or not messages
        assert {one for one in found if not one.isprintable()}.isdisjoint("\x00\x1b\r\u202e\u2028")
        found.encode()


async def test_a_history_gives_a_transcript(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("c1", Message.user("привет"), Message.assistant("Здравствуйте!", id="a"), owner="42")
        chat = history.chat("c1")
        await chat.failed("a", reason="chat not found")
        text = await chat.transcript(locale="ru-RU", tz=timezone(timedelta(hours=3)))
        newest = await chat.transcript(last=1)
        assert await history.chat("c2").transcript() == ""

    assert "Пользователь  [ещё не сохранено]\n    привет\n" in text
    assert "Ассистент  [не отправлено: chat not found]  [ещё не сохранено]\n    Здравствуйте!" in text
    assert "(Earlier messages may be missing here.)" in newest and "привет" not in newest


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
    told = [
        said("user", "How cold is it?", 0, at=noon, name="Ann"),
        said("assistant", (ToolCall("w", "weather", {"city": "Kazan"}),), 1, at=noon),
        said("tool", (ToolResult("w", {"degrees": -5}),), 1, at=noon),
        said("assistant", "Five below. Tea?", 2, at=noon, edited=True, saved=Saved.PENDING),
    ]
    assert transcript(replace(TEA, title="Tea in Kazan"), told) == shown


@pytest.mark.usefixtures("elsewhere")
class TestCommand:
    """letopis history show --transcript."""

    def said(self, letopis: Any, number: int) -> None:
        line = {"conversation_id": "c1", "role": "user", "occurred_at": "2026-01-31T12:00:00Z"}
        lines = (orjson.dumps({**line, "content": f"слово {one}"}) + b"\n" for one in range(number))
        Path("in.jsonl").write_bytes(b"".join(lines))
        assert letopis("history", "import", "jsonl", "in.jsonl")[0] == 0

    def test_all_of_it_is_printed_and_without_it_the_last_fifty(self, letopis: Any) -> None:
        self.said(letopis, 60)
        code, out, err = letopis("history", "show", "c1", "--transcript")
        plain = letopis("history", "show", "c1")
        assert (code, err.count("earlier")) == (0, 0)
        assert out.splitlines()[:2] == ["Conversation c1", "2026-01-31, messages: 60, times: UTC"]
        assert out.count("12:00  User") == 60
        assert out.endswith("    слово 59\n")
        assert (plain.code, plain.out.count("слово")) == (0, 50)

    def test_a_part_of_it_says_so(self, letopis: Any) -> None:
        self.said(letopis, 3)
        code, out, err = letopis("history", "show", "c1", "--transcript", "--last", "2")
        assert (code, "слово 0" in out, "(Earlier messages may be missing here.)" in out) == (0, False, True)
        assert "--before" in err
