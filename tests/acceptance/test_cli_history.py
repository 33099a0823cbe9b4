"""history list, show, stats, import and export, as operators run them."""

import asyncio
import json
import random
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from letopis.ops.cli.interface.exit_codes import Exit
from letopis.outbox.history import exporter
from letopis.outbox.history.history import History
from letopis.outbox.sync.blocking import BlockingHistory
from letopis.store.model.messages import Message
from tests.proof.inputs.bombs import Bomb, burst, faults
from tests.support.paths import ROOT
from tests.support.platforms import posix_only
from tests.support.sqlite_rows import change

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
    def test_a_dry_run_writes_nothing_and_counts_what_the_run_itself_will_count(
        self, letopis: Any, tmp_path: Path
    ) -> None:
        again = line("c1", "d", id="1", owner="1")
        others = [line("c1", "a"), line("c1", "b", owner="1"), line("c1", "c", owner="2"), line("c2", "a", owner="2")]
        write("in.jsonl", *others, again, again, line("c1", "not quoted", id="1"), b"{}\n", line("c1", "two\0"))

        tried = letopis("history", "import", "jsonl", "in.jsonl", "--dry-run", "--json")
        assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
        done = letopis("history", "import", "jsonl", "in.jsonl")

        assert tried.code == done.code == Exit.FAILED
        counted = {"dry_run": True, "imported": 4, "already_there": 1, "refused": 4, "pending": None}
        assert json.loads(tried.out) == counted
        assert tried.err.splitlines()[:3] == [
            "line 3: owner: an earlier line gives the conversation to another owner",
            "line 7: id: an earlier line uses it for other content",
            "line 8: conversation_id: is missing",
        ]
        assert "line 3: owner: the conversation already belongs to another owner\n" in done.err
        assert "4 imported, 1 already there, 4 refused" in done.err
        assert "4 lines were NOT imported" in done.err
        assert "not quoted" not in tried.err + done.err

    def test_the_store_need_not_be_reachable(self, letopis: Any) -> None:
        write("in.jsonl", *EXAMPLES)

        kept = letopis("--store", AWAY, "history", "import", "jsonl", "in.jsonl")
        waited = letopis("--store", AWAY, "history", "import", "jsonl", "in.jsonl", "--wait", "--timeout", "1")

        assert (kept[0], kept[2].splitlines()[0]) == (0, "8 imported, 0 already there, 0 refused")
        assert waited[0] == Exit.LATER
        assert "10 events are still pending" in waited[2]

    def test_what_the_outbox_has_pruned_is_not_imported_without_the_store(self, letopis: Any) -> None:
        """A changed line would be sent again, and block its conversation when it arrives."""
        write("in.jsonl", *EXAMPLES)
        assert letopis("history", "import", "jsonl", "in.jsonl", "--wait")[0] == 0
        change("bot.outbox.db", "DELETE FROM letopis_outbox_events", "UPDATE letopis_outbox_lanes SET pruned = head")

        code, _, err = letopis("--store", AWAY, "history", "import", "jsonl", "in.jsonl")

        assert (code, "cannot be reached" in err) == (Exit.LATER, True)

    @posix_only("Windows has no POSIX signals")
    def test_an_interruption_does_not_wait_for_a_pipe(self, tmp_path: Path) -> None:
        def pieces() -> Iterator[bytes]:
            yield orjson.dumps(line("c1", "m")) + b"\n"
            time.sleep(6)  # by then it was interrupted

        # By its code, or by the signal itself where it fell into an import.
        bomb = Bomb("an open pipe", pieces, (130, -signal.SIGINT), "interrupted", ends=False, room=1_000)

        assert faults(bomb, burst(bomb, tmp_path), 0) == []

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        """32 MB of lines, read in a process of their own that may grow by far less."""
        many = [orjson.dumps(line(f"c{number % 5}", f"{number} " + "x" * 4000)) + b"\n" for number in range(8_000)]
        empty = burst(Bomb("nothing", lambda: iter(()), (0,), ""), tmp_path)
        bomb = Bomb("many lines", lambda: iter(many), (0,), "8000 can be imported", room=24)

        assert faults(bomb, burst(bomb, tmp_path), empty.megabytes) == []


class TestExport:
    def test_records_go_along_or_are_left_out(self, letopis: Any) -> None:
        record = {"record": {"owner": "42"}, "namespace": ["a"], "key": "k", "value": {"n": 1}, "put_at": WHEN}
        write("in.jsonl", line("c1", "Hello", id="1", owner="42"), record)

        first = letopis("history", "import", "jsonl", "in.jsonl", "--wait")
        assert (first.code, first.err.splitlines()[0]) == (0, "2 imported, 0 already there, 0 refused")
        whole = letopis("history", "export", "jsonl", "out.jsonl")
        assert "1 messages of 1 conversation and 1 record exported" in whole.err
        assert letopis("history", "export", "jsonl", "bare.jsonl", "--no-records").code == 0
        assert read("out.jsonl") == read("in.jsonl") and read("bare.jsonl") == read("in.jsonl")[:1]

    def test_it_gives_back_what_went_in_and_that_goes_in_again_as_nothing_new(self, letopis: Any) -> None:
        lines = write("in.jsonl", *EXAMPLES)
        first = letopis("history", "import", "jsonl", "in.jsonl")
        assert (first.code, first.out, first.err.splitlines()[0]) == (0, "", "8 imported, 0 already there, 0 refused")
        assert "10 events are pending" in first.err

        pending = letopis("history", "export", "jsonl", "pending.jsonl")
        assert letopis("relay", "--once").code == 0
        delivered = letopis("history", "export", "jsonl", "delivered.jsonl")

        assert (pending.code, pending.out) == (0, "")
        assert pending.err == delivered.err == "8 messages of 2 conversations exported\n"
        assert by_conversation(read("pending.jsonl")) == by_conversation(lines)
        assert by_conversation(read("delivered.jsonl")) == by_conversation(lines)
        keys = [[list(one) for one in by_conversation(some)] for some in (read("delivered.jsonl"), lines)]
        assert keys[0] == keys[1]

        same = letopis("history", "import", "jsonl", "delivered.jsonl")
        fresh = letopis("--outbox", "new.outbox.db", "history", "import", "jsonl", "delivered.jsonl", "--wait")
        letopis("--outbox", "new.outbox.db", "history", "export", "jsonl", "again.jsonl")

        assert same.err.splitlines()[0] == "0 imported, 8 already there, 0 refused"
        assert "8 imported, 0 already there, 0 refused\n" in fresh.err
        assert by_conversation(read("again.jsonl")) == by_conversation(lines)
        for choice, name in (("--conversation=c2", "c2"), ("--owner=42", "c1")):
            chosen = letopis("history", "export", "jsonl", "-", choice).out.splitlines()
            assert [json.loads(text)["conversation_id"] for text in chosen] == [name] * 4

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
    def test_the_list_shows_what_there_is_page_by_page(self, letopis: Any) -> None:
        code, out, _ = letopis("history", "list")

        head, *rest = out.splitlines()
        assert code == 0
        assert head.split() == ["CONVERSATION", "OWNER", "NUMBER", "ACTIVE", "MESSAGES", "PENDING", "LAST", "TITLE"]
        assert sorted(one.split()[:2] for one in rest) == [["c1", "42"], ["c2", "-"]]

        first = json.loads(letopis("history", "list", "--limit", "1", "--json").out)
        second = json.loads(letopis("history", "list", "--limit", "1", "--json", "--after", first["next"]).out)
        assert list(first) == ["conversations", "next", "complete"]
        assert list(first["conversations"][0]) == [
            *("conversation_id", "owner", "number", "title", "state", "active"),
            *("version", "messages", "tokens", "pending", "created_at", "updated_at"),
        ]
        assert sorted(page["conversations"][0]["conversation_id"] for page in (first, second)) == ["c1", "c2"]

    def test_show_marks_what_is_pending_and_goes_back_in_time(self, letopis: Any) -> None:
        pending = letopis("history", "show", "c2")
        assert (pending.code, pending.out.count("[pending]")) == (0, 4)
        assert "    Привет 🦔\n    \tзавтра\n" in pending.out
        assert letopis("history", "show", "c1", "--as-of", "2").code == Exit.NOTHING  # nothing is saved yet
        now = letopis("history", "show", "c1", "--as-of", "9999-01-01T00:00:00Z").out
        assert letopis("relay", "--once").code == 0

        latest = letopis("history", "show", "c2", "--last", "2")
        assert (latest.code, latest.out.count("user"), "pending" in latest.out) == (0, 2, False)
        assert "there are earlier ones: --before" in latest.err
        saved = letopis("history", "show", "c1", "--as-of", "9999-01-01T00:00:00Z").out
        assert now.replace("  [pending]", "") == saved == letopis("history", "show", "c1").out
        first = json.loads(letopis("history", "show", "c1", "--as-of", "2", "--json").out)
        assert (len(first["messages"]), first["conversation"]["version"]) == (1, 2)
        before = letopis("history", "show", "c1", "--as-of", "2000-01-01T00:00:00+03:00")
        assert (before.code, "there was then no conversation" in before.err) == (Exit.NOTHING, True)

    def test_show_in_json_has_its_documented_keys(self, letopis: Any) -> None:
        letopis("relay", "--once")

        found = json.loads(letopis("history", "show", "c1", "--json").out)

        assert list(found) == ["conversation", "messages", "next", "complete"]
        documented = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
        assert [key for key in (*found["messages"][0], *found["conversation"]) if f"`{key}`" not in documented] == []
        said = [one["content"] for one in EXAMPLES if one["conversation_id"] == "c1"]
        assert [one["content"] for one in found["messages"]] == said
        assert {one["saved"] for one in found["messages"]} == {"saved"}

    def test_show_tells_what_was_redacted_from_what_is_empty_and_that_all_was_deleted(self, letopis: Any) -> None:
        with BlockingHistory(Path("bot.outbox.db")) as history:
            history.chat("c1").redact("1")
            assert history.chat("c2").delete().saved(timeout=20)

        shown = letopis("history", "show", "c1").out
        found = json.loads(letopis("history", "show", "c1", "--json").out)
        assert (shown.count("(redacted)"), shown.count("(empty)"), "Hello" in shown) == (1, 1, False)
        assert [one["redacted"] for one in found["messages"]] == [True, False, False, False]
        code, out, err = letopis("history", "show", "c2")
        assert (code, "again" in out) == (0, False)
        assert err.startswith("this conversation was deleted on 20")
        assert err.endswith("Z: its messages are erased, appends are refused\n")

    def test_text_of_strangers_cannot_steer_the_terminal(self, letopis: Any) -> None:
        write("evil.jsonl", line("c\u202e9", "\x1b[2J\x1b]0;owned\x07", id="1", name="\x9b31m"))
        assert letopis("history", "import", "jsonl", "evil.jsonl").code == 0

        listed, shown = letopis("history", "list").out, letopis("history", "show", "c\u202e9").out

        assert "c\\u202e9" in listed
        assert "\\x1b[2J\\x1b]0;owned\\x07" in shown
        assert not set("\x1b\x07\x9b\u202e") & set(listed + shown)

    def test_the_outbox_or_the_store_alone_can_be_read(self, letopis: Any) -> None:
        letopis("relay", "--once")
        listed = letopis("--store", AWAY, "history", "list")
        shown = letopis("--store", AWAY, "history", "show", "c1", "--json")

        assert (listed.code, shown.code) == (0, 0)
        assert "older messages may be missing" in listed.err
        assert json.loads(shown.out)["complete"] is False
        assert len(json.loads(shown.out)["messages"]) == 4
        alone = ("--outbox", "none.db", "--store", "bot.history.db", "history")
        assert letopis(*alone, "list").code == 0
        assert letopis(*alone, "show", "c1").code == 0
        assert letopis(*alone, "export", "jsonl", "-").out.count("\n") == 8
        assert not Path("none.db").exists()


# Statistics, and the states and the star in a list.

DAY = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def chats(elsewhere: None) -> None:
    """Three chats: the last one pending, one archived; the mark went to the one that was there by then."""

    async def talk() -> None:
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

    asyncio.run(talk())


@pytest.mark.usefixtures("chats")
def test_the_figures(letopis: Any) -> None:
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
    period = ("--since", "2026-03-01T04:00:00+03:00", "--until", "2026-03-01T02:00:00Z")
    figures = {"messages": 1, "questions": 0, "answers": 1, "tokens": 20}
    assert json.loads(letopis("history", "stats", *period, "--by", "model", "--json").out) == {
        **figures,
        "conversations": 1,
        "complete": True,
        "by": [{"value": "small\x1b[31m", **figures}],
    }
    alone = ("--outbox", "none.db", "--store", "bot.history.db")
    assert [json.loads(letopis("history", "stats", "--json", *where).out)["messages"] for where in ((), alone)] == [
        4,
        3,
    ]


@pytest.mark.usefixtures("chats")
def test_the_list_marks_the_active_one_and_shows_other_states(letopis: Any) -> None:
    def listed(*arguments: str) -> list[tuple[str, str, bool]]:
        found = json.loads(letopis("history", "list", "--json", *arguments).out)["conversations"]
        return [(one["conversation_id"], one["state"], one["active"]) for one in found]

    assert sorted(listed("--owner", "42")) == [("a", "active", True), ("c", "active", False)]
    assert listed("--owner", "42", "--state", "archived") == [("b", "archived", False)]
    assert len(listed("--state", "all")) == 3
    head, *rows = (
        line.split() for line in letopis("history", "list", "--owner", "42", "--state", "all").out.splitlines()
    )
    assert head[:5] == ["CONVERSATION", "OWNER", "NUMBER", "ACTIVE", "STATE"]
    assert [row[:5] for row in rows if row[0] == "c"] == [["c", "42", "-", "active", "1"]]
    assert [row[:4] for row in rows if row[0] == "a"] == [["a", "42", "1", "*"]]


def test_a_training_set_is_written_whole_or_not_at_all(letopis: Any, examples: None) -> None:
    done = letopis("history", "export", "training", "set.jsonl", "--owner", "42")
    assert (done.code, done.err) == (0, "1 line of 1 conversation exported\n")
    [written] = read("set.jsonl")
    assert [message["role"] for message in written["messages"]] == ["user", "assistant", "user"]
    pairs = letopis("history", "export", "training", "--format", "preference", "pairs.jsonl")
    away = letopis("--store", AWAY, "history", "export", "training", "away.jsonl")
    assert (pairs.code, away.code) == (Exit.NOTHING, Exit.LATER)
    assert not Path("pairs.jsonl").exists() and not Path("away.jsonl").exists()
