"""history list, show, stats, import and export, as operators run them."""

import asyncio
import json
import random
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from letopis.outbox.cli.interface.exit_codes import Exit
from letopis.outbox.history.history import History
from letopis.outbox.sync.blocking import BlockingHistory
from letopis.outbox.transfer import exporter
from letopis.outbox.transfer.importer import CHUNK_LINES
from letopis.store.model.messages import Message
from tests.proof.inputs.bombs import Bomb, burst, faults
from tests.support.daemons import until
from tests.support.paths import ROOT
from tests.support.platforms import posix_only
from tests.support.sqlite_rows import change, count

AWAY = "postgresql://bot@127.0.0.1:1/h"
WHEN = "2026-01-31T12:00:00Z"


pytestmark = pytest.mark.usefixtures("elsewhere")


def line(conversation: str, text: Any, /, **fields: Any) -> dict[str, Any]:
    """A line with its keys in the order of the normal form."""
    head = {"conversation_id": conversation, **({"id": fields.pop("id")} if "id" in fields else {})}
    owner = {"owner": fields.pop("owner")} if "owner" in fields else {}
    return {**head, "role": fields.pop("role", "user"), "content": text, **owner, "occurred_at": WHEN, **fields}


def write(name: str, *lines: Any) -> list[dict[str, Any]]:
    Path(name).write_bytes(b"".join(one if isinstance(one, bytes) else orjson.dumps(one) + b"\n" for one in lines))
    return [one for one in lines if isinstance(one, dict)]


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(one) for one in Path(name).read_bytes().splitlines()]


def by_conversation(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return lines in the order in which each conversation has them, whatever stands between them."""
    return sorted(lines, key=lambda one: str(one["conversation_id"]))


EXAMPLES = [
    line("c1", "Hello", id="1", owner="42"),
    line("c2", "Привет 🦔\n\tзавтра", id="Ё 1"),
    line("c1", "Hi!", id="2", role="assistant", owner="42", name="bot", tokens=3, usage={"output": 3}),
    line("c1", [{"type": "text", "text": "look"}, {"type": "file", "uri": "file:///x"}], id="3", owner="42"),
    line("c1", "", owner="42", metadata={"a": [1, 2.5, None, {"b": True}]}),
    line("c2", "ok"),
    line("c2", "ok"),
    line("c2", "again", external_ids={"telegram": 4711}),
]


@pytest.fixture
def examples(letopis: Any, elsewhere: None) -> None:
    """Have the examples in an outbox."""
    write("in.jsonl", *EXAMPLES)
    assert letopis("history", "import", "jsonl", "in.jsonl")[0] == 0


class TestImport:
    def test_it_takes_everything_once(self, letopis: Any) -> None:
        write("in.jsonl", *EXAMPLES)

        first = letopis("history", "import", "jsonl", "in.jsonl")
        again = letopis("history", "import", "jsonl", "in.jsonl")

        assert (first[0], first[1]) == (0, "")
        assert first[2].splitlines()[0] == "8 imported, 0 already there, 0 refused"
        assert "10 events are pending" in first[2]
        assert (again[0], again[2].splitlines()[0]) == (0, "0 imported, 8 already there, 0 refused")

    def test_bad_lines_are_named_and_the_rest_goes_on(self, letopis: Any) -> None:
        write(
            "in.jsonl",
            line("c1", "one", id="1"),
            b"no json\n",
            line("c1", "other words", id="1"),
            line("c1", "two\0", id="2"),
            line("c1", "three", id="3"),
            {**line("c1", "four", id="4"), "colour": "red"},
        )

        code, out, err = letopis("history", "import", "jsonl", "in.jsonl", "--json")

        assert code == Exit.FAILED
        assert json.loads(out) == {"dry_run": False, "imported": 2, "already_there": 0, "refused": 4, "pending": 3}
        assert [one.split(":")[0] for one in err.splitlines()] == ["line 2", "line 3", "line 4", "line 6"]
        assert "holds other content already" in err
        assert "other words" not in err

    def test_a_dry_run_writes_nothing(self, letopis: Any, tmp_path: Path) -> None:
        write("in.jsonl", *EXAMPLES, line("c1", "no", id="1"), line("c1", "Hello", id="1"), b"{}\n")

        code, out, err = letopis("history", "import", "jsonl", "in.jsonl", "--dry-run", "--json")

        assert code == Exit.FAILED
        assert json.loads(out) == {"dry_run": True, "imported": 8, "already_there": 1, "refused": 2, "pending": None}
        assert "line 9: id: an earlier line uses it for other content" in err
        assert "line 11: conversation_id: is missing" in err
        assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]

    def test_two_owners_of_a_conversation_are_refused_line_by_line_as_a_dry_run_says(self, letopis: Any) -> None:
        """It counts what the run itself will count."""
        again = line("c1", "d", id="1", owner="1")
        others = [line("c1", "a"), line("c1", "b", owner="1"), line("c1", "c", owner="2"), line("c2", "a", owner="2")]
        write("in.jsonl", *others, again, again)

        tried = letopis("history", "import", "jsonl", "in.jsonl", "--dry-run")
        done = letopis("history", "import", "jsonl", "in.jsonl")

        assert tried[0] == done[0] == Exit.FAILED
        assert tried[2].splitlines()[0] == "line 3: owner: an earlier line gives the conversation to another owner"
        assert done[2].splitlines()[0] == "line 3: owner: the conversation already belongs to another owner"
        assert "4 can be imported, 1 already there, 1 refused" in tried[2]
        assert "4 imported, 1 already there, 1 refused" in done[2]
        assert "1 line was NOT imported" in done[2]

    def test_the_store_need_not_be_reachable(self, letopis: Any) -> None:
        write("in.jsonl", *EXAMPLES)

        kept = letopis("--store", AWAY, "history", "import", "jsonl", "in.jsonl")
        waited = letopis("--store", AWAY, "history", "import", "jsonl", "in.jsonl", "--wait", "--timeout", "1")

        assert (kept[0], kept[2].splitlines()[0]) == (0, "8 imported, 0 already there, 0 refused")
        assert waited[0] == Exit.LATER
        assert "10 events are still pending" in waited[2]

    @posix_only("Windows has no POSIX signals")
    def test_an_interruption_does_not_wait_for_a_pipe(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "letopis.outbox.cli", "history", "import", "jsonl", "-"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        with process.stdin, process.stderr:
            for number in range(CHUNK_LINES + 1):
                process.stdin.write(orjson.dumps(line("c1", f"m{number}")) + b"\n")
            process.stdin.flush()
            until(lambda: count("bot.outbox.db", "SELECT count(*) FROM letopis_outbox_events") > CHUNK_LINES, "a chunk")
            process.send_signal(signal.SIGINT)

            assert process.wait(30) == 130
            assert process.stderr.read().strip() == b"letopis: interrupted"

    def test_what_the_outbox_has_pruned_is_not_imported_without_the_store(self, letopis: Any) -> None:
        """A changed line would be sent again, and block its conversation when it arrives."""
        write("in.jsonl", *EXAMPLES)
        assert letopis("history", "import", "jsonl", "in.jsonl", "--wait")[0] == 0
        change("bot.outbox.db", "DELETE FROM letopis_outbox_events", "UPDATE letopis_outbox_lanes SET pruned = head")

        code, _, err = letopis("--store", AWAY, "history", "import", "jsonl", "in.jsonl")

        assert (code, "cannot be reached" in err) == (Exit.LATER, True)

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        """40 MB of lines, read in a process of their own that may grow by far less."""
        many = [orjson.dumps(line(f"c{number % 5}", f"{number} " + "x" * 2000)) + b"\n" for number in range(20_000)]
        empty = burst(Bomb("nothing", lambda: iter(()), (0,), ""), tmp_path)
        bomb = Bomb("many lines", lambda: iter(many), (0,), "20000 can be imported", room=30)

        assert faults(bomb, burst(bomb, tmp_path), empty.megabytes) == []


class TestExport:
    def test_records_go_along_or_are_left_out(self, letopis: Any) -> None:
        record = {"record": {"owner": "42"}, "namespace": ["a"], "key": "k", "value": {"n": 1}, "put_at": WHEN}
        write("in.jsonl", line("c1", "Hello", id="1", owner="42"), record)

        first = letopis("history", "import", "jsonl", "in.jsonl", "--wait")
        again = letopis("history", "import", "jsonl", "in.jsonl")
        whole = letopis("history", "export", "jsonl", "out.jsonl")
        bare = letopis("history", "export", "jsonl", "bare.jsonl", "--no-records")

        assert (first[0], first[2].splitlines()[0]) == (0, "2 imported, 0 already there, 0 refused")
        assert (again[0], again[2].splitlines()[0]) == (0, "0 imported, 2 already there, 0 refused")
        assert (whole[0], bare[0]) == (0, 0)
        assert "1 messages of 1 conversation and 1 record exported" in whole[2]
        assert "1 messages of 1 conversation exported" in bare[2]
        assert read("out.jsonl") == read("in.jsonl") and read("bare.jsonl") == read("in.jsonl")[:1]

    def test_it_gives_back_what_went_in_and_that_goes_in_again_as_nothing_new(self, letopis: Any) -> None:
        lines = write("in.jsonl", *EXAMPLES)
        letopis("history", "import", "jsonl", "in.jsonl")

        pending = letopis("history", "export", "jsonl", "pending.jsonl")
        assert letopis("relay", "--once")[0] == 0
        delivered = letopis("history", "export", "jsonl", "delivered.jsonl")

        assert (pending[0], pending[1]) == (0, "")
        assert pending[2] == delivered[2] == "8 messages of 2 conversations exported\n"
        assert by_conversation(read("pending.jsonl")) == by_conversation(lines)
        assert by_conversation(read("delivered.jsonl")) == by_conversation(lines)
        keys = [[list(one) for one in by_conversation(some)] for some in (read("delivered.jsonl"), lines)]
        assert keys[0] == keys[1]

        same = letopis("history", "import", "jsonl", "delivered.jsonl")
        fresh = letopis("--outbox", "new.outbox.db", "history", "import", "jsonl", "delivered.jsonl", "--wait")
        letopis("--outbox", "new.outbox.db", "history", "export", "jsonl", "again.jsonl")

        assert same[2].splitlines()[0] == "0 imported, 8 already there, 0 refused"
        assert "8 imported, 0 already there, 0 refused\n" in fresh[2]
        assert by_conversation(read("again.jsonl")) == by_conversation(lines)

    def test_a_conversation_or_an_owner_may_be_chosen(self, letopis: Any, examples: None) -> None:
        one = letopis("history", "export", "jsonl", "-", "--conversation", "c2")
        owned = letopis("history", "export", "jsonl", "-", "--owner", "42")

        assert [json.loads(text)["conversation_id"] for text in one[1].splitlines()] == ["c2"] * 4
        assert [json.loads(text)["conversation_id"] for text in owned[1].splitlines()] == ["c1"] * 4

    def test_half_of_a_history_is_no_export(self, letopis: Any, examples: None, tmp_path: Path) -> None:
        before = sorted(path.name for path in tmp_path.iterdir())

        code, _, err = letopis("--store", AWAY, "history", "export", "jsonl", "out.jsonl")

        assert code == Exit.LATER
        assert "older messages would be missing" in err
        assert "`letopis db check` says why" in err
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    async def test_a_conversation_that_moves_while_pages_are_turned_is_not_missed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It speaks, so moves to the front, whenever another is read."""
        monkeypatch.setattr(exporter, "PAGE", 3)
        names, chance, first = [f"c{number}" for number in range(12)], random.Random(7), list[str]()
        async with History("bot.outbox.db", relay=False) as history:
            for name in names:
                await history.append(name, Message.user("first"))
            async for one in exporter.Exporter(history).of_all():
                found = json.loads(one)
                first += [found["conversation_id"]] * (found["content"] == "first")
                if len(first) < len(names):
                    await history.append(chance.choice(names), Message.user("more"))

        assert sorted(first) == sorted(names)


@pytest.mark.usefixtures("examples")
class TestListAndShow:
    def test_the_list_shows_what_there_is(self, letopis: Any) -> None:
        code, out, _ = letopis("history", "list")

        head, *rest = out.splitlines()
        assert code == 0
        assert head.split() == ["CONVERSATION", "OWNER", "NUMBER", "ACTIVE", "MESSAGES", "PENDING", "LAST", "TITLE"]
        assert sorted(one.split()[:2] for one in rest) == [["c1", "42"], ["c2", "-"]]

    def test_the_list_in_json_goes_page_by_page(self, letopis: Any) -> None:
        assert letopis("relay", "--once")[0] == 0

        first = json.loads(letopis("history", "list", "--limit", "1", "--json")[1])
        second = json.loads(letopis("history", "list", "--limit", "1", "--json", "--after", first["next"])[1])

        assert list(first) == ["conversations", "next", "complete"]
        assert list(first["conversations"][0]) == [
            *("conversation_id", "owner", "number", "title", "state", "active"),
            *("version", "messages", "tokens", "pending", "created_at", "updated_at"),
        ]
        names = [first["conversations"][0]["conversation_id"], second["conversations"][0]["conversation_id"]]
        assert sorted(names) == ["c1", "c2"]
        assert first["complete"] is True

    def test_show_marks_what_is_pending(self, letopis: Any) -> None:
        pending = letopis("history", "show", "c2")
        letopis("relay", "--once")
        saved = letopis("history", "show", "c2", "--last", "2")

        assert (pending[0], pending[1].count("[pending]")) == (0, 4)
        assert "    Привет 🦔\n    \tзавтра\n" in pending[1]
        assert (saved[0], saved[1].count("user"), "pending" in saved[1]) == (0, 2, False)
        assert "there are earlier ones: --before" in saved[2]

    def test_show_tells_what_was_redacted_from_what_is_empty(self, letopis: Any) -> None:
        with BlockingHistory(Path("bot.outbox.db"), relay=False) as history:
            history.chat("c1").redact("1")

        shown = letopis("history", "show", "c1")[1]
        found = json.loads(letopis("history", "show", "c1", "--json")[1])

        assert (shown.count("(redacted)"), shown.count("(empty)")) == (1, 1)
        assert "Hello" not in shown
        assert [one["redacted"] for one in found["messages"]] == [True, False, False, False]

    def test_show_says_that_a_conversation_was_deleted(self, letopis: Any) -> None:
        async def delete() -> None:
            async with History("bot.outbox.db") as history:
                await history.append("gone", Message.user("a secret"))
                assert await (await history.chat("gone").delete()).saved(timeout=20)

        asyncio.run(delete())
        code, out, err = letopis("history", "show", "gone")

        assert code == 0
        assert "a secret" not in out
        assert err.startswith("this conversation was deleted on 20")
        assert err.endswith("Z: its messages are erased, appends are refused\n")

    def test_show_in_json_has_its_documented_keys(self, letopis: Any) -> None:
        letopis("relay", "--once")

        found = json.loads(letopis("history", "show", "c1", "--json")[1])

        assert list(found) == ["conversation", "messages", "next", "complete"]
        documented = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
        assert [key for key in found["messages"][0] if f"`{key}`" not in documented] == []
        assert [key for key in found["conversation"] if f"`{key}`" not in documented] == []
        assert [one["content"] for one in found["messages"]] == [
            one["content"] for one in EXAMPLES if one["conversation_id"] == "c1"
        ]
        assert {one["saved"] for one in found["messages"]} == {"saved"}

    def test_show_goes_back_in_time(self, letopis: Any) -> None:
        assert letopis("history", "show", "c1", "--as-of", "2")[0] == Exit.NOTHING  # nothing is saved yet
        now = letopis("history", "show", "c1", "--as-of", "9999-01-01T00:00:00Z")[1]
        letopis("relay", "--once")

        saved = letopis("history", "show", "c1", "--as-of", "9999-01-01T00:00:00Z")[1]
        first = json.loads(letopis("history", "show", "c1", "--as-of", "2", "--json")[1])
        before = letopis("history", "show", "c1", "--as-of", "2000-01-01T00:00:00+03:00")

        assert now.replace("  [pending]", "") == saved == letopis("history", "show", "c1")[1]
        assert (len(first["messages"]), first["conversation"]["version"]) == (1, 2)
        assert (before[0], "there was then no conversation" in before[2]) == (Exit.NOTHING, True)

    def test_text_of_strangers_cannot_steer_the_terminal(self, letopis: Any) -> None:
        write("evil.jsonl", line("c\u202e9", "\x1b[2J\x1b]0;owned\x07", id="1", name="\x9b31m"))
        assert letopis("history", "import", "jsonl", "evil.jsonl")[0] == 0

        listed, shown = letopis("history", "list")[1], letopis("history", "show", "c\u202e9")[1]

        assert "c\\u202e9" in listed
        assert "\\x1b[2J\\x1b]0;owned\\x07" in shown
        assert not set("\x1b\x07\x9b\u202e") & set(listed + shown)

    def test_without_the_store_the_retained_part_is_shown_and_said_to_be_that(self, letopis: Any) -> None:
        letopis("relay", "--once")

        listed = letopis("--store", AWAY, "history", "list")
        shown = letopis("--store", AWAY, "history", "show", "c1", "--json")

        assert (listed[0], shown[0]) == (0, 0)
        assert "older messages may be missing" in listed[2]
        assert json.loads(shown[1])["complete"] is False
        assert len(json.loads(shown[1])["messages"]) == 4

    def test_a_store_alone_can_be_read(self, letopis: Any) -> None:
        letopis("relay", "--once")
        alone = ("--outbox", "none.db", "--store", "bot.history.db", "history")

        assert letopis(*alone, "list")[0] == 0
        assert letopis(*alone, "show", "c1")[0] == 0
        assert letopis(*alone, "export", "jsonl", "-")[1].count("\n") == 8
        assert not Path("none.db").exists()


# Statistics, and the states and the star in a list.

DAY = datetime(2026, 3, 1, tzinfo=UTC)


async def have_chats() -> None:
    async with History("bot.outbox.db") as history:
        await history.start("42", conversation_id="a", title="Tea")
        await history.start("42", conversation_id="b")
        answers = [Message.assistant("a", tokens=20, metadata={"model": "small\x1b[31m"})]
        answers += [Message.assistant("a", tokens=300, metadata={"model": ""})]
        for hour, message in enumerate([Message.user("q", tokens=1), *answers]):
            await history.append("a", message, occurred_at=DAY + timedelta(hours=hour))
        assert await history.drained(20)
    async with History("bot.outbox.db", relay=False) as history:
        await history.chat("b").archive()
        await history.append("c", Message.user("q"), owner="42")


@pytest.fixture
def chats(elsewhere: None) -> None:
    """Three chats: the last one pending, one archived; the mark went to the one that was there by then."""
    asyncio.run(have_chats())


@pytest.mark.usefixtures("chats")
def test_the_figures_as_a_table(letopis: Any) -> None:
    code, out, err = letopis("history", "stats", "--owner", "42", "--until", "2026-03-02", "--by", "model")

    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["CONVERSATIONS", "MESSAGES", "QUESTIONS", "ANSWERS", "TOKENS"],
        ["1", "3", "1", "2", "321"],
        [],
        ["model", "MESSAGES", "QUESTIONS", "ANSWERS", "TOKENS"],
        ['""', "1", "0", "1", "300"],
        ["small\\x1b[31m", "1", "0", "1", "20"],
        ["-", "1", "1", "0", "1"],
    ]


@pytest.mark.usefixtures("chats")
def test_the_figures_in_json(letopis: Any) -> None:
    period = ("--since", "2026-03-01T04:00:00+03:00", "--until", "2026-03-01T02:00:00Z")
    code, out, _ = letopis("history", "stats", *period, "--by", "model", "--json")

    assert code == 0
    assert json.loads(out) == {
        "messages": 1,
        "questions": 0,
        "answers": 1,
        "tokens": 20,
        "conversations": 1,
        "complete": True,
        "by": [{"value": "small\x1b[31m", "messages": 1, "questions": 0, "answers": 1, "tokens": 20}],
    }
    code, out, _ = letopis("history", "stats", "--json")
    assert list(json.loads(out)) == ["messages", "questions", "answers", "tokens", "conversations", "complete"]
    assert json.loads(out)["messages"] == 4


@pytest.mark.usefixtures("chats")
def test_the_store_is_counted_alone(letopis: Any) -> None:
    code, out, _ = letopis("history", "stats", "--json", "--outbox", "none.db", "--store", "bot.history.db")

    assert code == 0
    assert json.loads(out)["messages"] == 3


@pytest.mark.usefixtures("chats")
def test_the_list_marks_the_active_one_and_shows_other_states(letopis: Any) -> None:
    def listed(*arguments: str) -> list[tuple[str, str, bool]]:
        found = json.loads(letopis("history", "list", "--json", *arguments)[1])["conversations"]
        return [(one["conversation_id"], one["state"], one["active"]) for one in found]

    assert sorted(listed("--owner", "42")) == [("a", "active", True), ("c", "active", False)]
    assert listed("--owner", "42", "--state", "archived") == [("b", "archived", False)]
    assert len(listed("--state", "all")) == 3
    _, out, _ = letopis("history", "list", "--owner", "42", "--state", "all")
    head, *rows = (line.split() for line in out.splitlines())
    assert head[:5] == ["CONVERSATION", "OWNER", "NUMBER", "ACTIVE", "STATE"]
    assert [row[:5] for row in rows if row[0] == "c"] == [["c", "42", "-", "active", "1"]]
    assert [row[:4] for row in rows if row[0] == "a"] == [["a", "42", "1", "*"]]
