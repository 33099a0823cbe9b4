"""letopis outbox, pause and resume, as an operator runs them, also beside a running bot."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.cli import cli
from letopis.outbox.cli.interface.exit_codes import Exit, run
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.history import History
from letopis.store.model.messages import Message
from tests.support.platforms import posix_only
from tests.support.relays import QUICK, until
from tests.support.sqlite_rows import change, rows

BODY = "what nobody else may read"
HOSTILE = "chat\u202eevil\u2028next"


Letopis = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def letopis(elsewhere: None, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Letopis:
    """Run the command in the test's folder, with no terminal and nothing of Letopis in the environment."""

    def call(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        code = run(cli, arguments)
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return subprocess.CompletedProcess(arguments, code, out.decode(), err.decode())

    return call


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    """An outbox with a blocked, a retrying and a ready conversation, no relay and no store."""
    path = tmp_path / "bot.outbox.db"

    async def fill() -> None:
        file = await OutboxFile.open(path)
        for name in ("bad", HOSTILE, "fine"):
            messages = [Message.user(f"{BODY} {number}", id=f"{name[:4]}-{number}") for number in range(2)]
            await file.append(prepare(name, messages, owner="42"))
        await file.close()

    asyncio.run(fill())
    change(path, "UPDATE letopis_outbox_lanes SET delivered = 1")
    change(
        path,
        "UPDATE letopis_outbox_lanes SET state = 'blocked', attempts = 4, fault_class = 'poison',"
        " fault = 'refused [poison 22021]' WHERE conversation_id = 'bad'",
    )
    change(
        path,
        "UPDATE letopis_outbox_lanes SET state = 'retrying', attempts = 1, due_at = 4102444800000000,"
        f" fault_class = 'unclassified', fault = 'odd' WHERE conversation_id = '{HOSTILE}'",
    )
    return path


def stuck(path: Path) -> str:
    [(found,)] = rows(
        path, "SELECT hex(event_id) FROM letopis_outbox_log WHERE conversation_id = 'bad' AND sequence = 2"
    )
    return str(found).lower()


class TestList:
    """What is pending."""

    def test_by_default_what_holds_up_a_conversation(self, letopis: Any, outbox: Path) -> None:
        done = letopis("outbox", "list", "--json")
        found = json.loads(done.stdout)

        assert (done.returncode, done.stderr) == (0, "")
        assert (found["outbox"], found["more"]) == ("bot.outbox.db", False)
        assert [(one["conversation_id"], one["state"], one["front"], one["behind"]) for one in found["events"]] == [
            ("bad", "blocked", True, 1),
            (HOSTILE, "retrying", True, 1),
        ]
        bad, odd = found["events"]
        assert (bad["fault_class"], bad["fault"], bad["attempts"], bad["due_at"]) == (
            "poison",
            "refused [poison 22021]",
            4,
            None,
        )
        assert odd["due_at"] == "2100-01-01T00:00:00+00:00"
        assert set(bad) == {
            *("event_id", "conversation_id", "owner_id", "sequence", "type", "schema_version", "bytes", "digest"),
            *("occurred_at", "appended_at", "front", "behind", "state", "attempts", "due_at", "fault_class", "fault"),
        }

    @pytest.mark.parametrize(
        ("choice", "count"),
        [
            (("--all",), 6),
            (("--conversation", "bad"), 2),
            (("--conversation", "bad", "--conversation", "fine"), 4),
            (("--state", "ready"), 2),
            (("--fault-class", "poison"), 2),
            (("--state", "ready", "--fault-class", "poison"), 0),
            (("00000000-0000-0000-0000-000000000000",), 0),
        ],
        ids=lambda one: " ".join(one) if isinstance(one, tuple) else str(one),
    )
    def test_by_what_is_said(self, letopis: Any, outbox: Path, choice: tuple[str, ...], count: int) -> None:
        done = letopis("outbox", "list", "--json", *choice)

        assert len(json.loads(done.stdout)["events"]) == count
        assert done.returncode == (Exit.OK if count else Exit.NOTHING)

    def test_a_table_for_people_in_which_no_id_can_do_harm(self, letopis: Any, outbox: Path) -> None:
        done = letopis("outbox", "list", "--all")

        assert len(done.stdout.splitlines()) == 7
        assert "\u202e" not in done.stdout and "\u2028" not in done.stdout
        assert "chat\\u202eevil" in done.stdout
        assert BODY not in done.stdout + done.stderr

    def test_a_limit_says_that_there_is_more(self, letopis: Any, outbox: Path) -> None:
        done = letopis("outbox", "list", "--all", "--limit", "2", "--json")

        assert json.loads(done.stdout)["more"] is True
        assert "more than 2" in done.stderr

    def test_no_outbox_is_made(self, letopis: Any, tmp_path: Path) -> None:
        assert letopis("outbox", "list").returncode == Exit.CONFIGURATION
        assert list(tmp_path.iterdir()) == []


class TestShow:
    def test_payload_only_when_asked_for(self, letopis: Any, outbox: Path) -> None:
        quiet = letopis("outbox", "show", stuck(outbox))
        quiet_json = letopis("outbox", "show", stuck(outbox), "--json")
        loud = letopis("outbox", "show", stuck(outbox), "--payload", "--json")

        assert BODY not in quiet.stdout + quiet_json.stdout
        assert "poison 22021: refused" in quiet.stdout
        [event] = json.loads(loud.stdout)["events"]
        assert BODY in json.dumps(event["data"])
        assert event["repairs"] == []

    def test_data_alone_is_what_fix_takes(self, letopis: Any, outbox: Path) -> None:
        done = letopis("outbox", "show", stuck(outbox), "--data")

        assert json.loads(done.stdout)["message_id"] == "bad-0"
        assert letopis("outbox", "show", "--conversation", "bad", "--data").returncode == Exit.USAGE

    def test_nothing_said_is_wrong_usage(self, letopis: Any, outbox: Path) -> None:
        done = letopis("outbox", "show")

        assert done.returncode == Exit.USAGE
        assert "--conversation" in done.stderr


class TestRetryPauseResume:
    def test_retry_makes_them_due(self, letopis: Any, outbox: Path) -> None:
        done = letopis("outbox", "retry", "--state", "blocked", "--json")

        assert json.loads(done.stdout) == {"retried": ["bad"]}
        assert rows(outbox, "SELECT state FROM letopis_outbox_lanes WHERE conversation_id = 'bad'") == [("ready",)]
        assert letopis("outbox", "retry", "--state", "blocked").returncode == Exit.NOTHING

    def test_retry_needs_to_know_which(self, letopis: Any, outbox: Path) -> None:
        assert letopis("outbox", "retry").returncode == Exit.USAGE
        assert letopis("outbox", "retry", "nonsense").returncode == Exit.USAGE
        assert letopis("outbox", "retry", "--fault-class", "\udcff").returncode == Exit.USAGE
        assert rows(outbox, "SELECT count(*) FROM letopis_outbox_lanes WHERE state = 'blocked'") == [(1,)]
        assert letopis("outbox", "retry", "--all").returncode == 0
        assert rows(outbox, "SELECT count(*) FROM letopis_outbox_lanes WHERE state = 'ready'") == [(3,)]

    def test_a_conversation_is_held_back_and_let_go(self, letopis: Any, outbox: Path) -> None:
        assert letopis("outbox", "pause", "--conversation", "fine").stdout == "fine\n"
        assert rows(outbox, "SELECT state FROM letopis_outbox_lanes WHERE conversation_id = 'fine'") == [("paused",)]
        assert letopis("outbox", "pause", "--all").returncode == Exit.USAGE
        assert letopis("outbox", "resume", "--all").stdout == "fine\n"
        assert letopis("outbox", "resume", "--all").returncode == Exit.NOTHING

    def test_the_whole_relay_is_held_back_and_status_says_so(self, letopis: Any, outbox: Path) -> None:
        assert letopis("pause", "--reason", "the store\u202e moves").returncode == 0
        told = letopis("status")
        assert "1 conversation is blocked" in told.stdout
        assert "paused" in told.stdout
        assert "the store\\u202e moves" in told.stdout
        relay = json.loads(letopis("status", "--json").stdout)["relay"]
        assert relay["pause_reason"] == "the store\u202e moves"
        assert relay["paused_since"] is not None
        assert letopis("resume").returncode == 0
        assert letopis("resume").returncode == Exit.NOTHING


class TestSkip:
    def test_nobody_to_ask_is_wrong_usage_and_changes_nothing(self, letopis: Any, outbox: Path) -> None:
        done = letopis("outbox", "skip", stuck(outbox), "--reason", "x")

        assert (done.returncode, done.stdout) == (Exit.USAGE, "")
        assert "--yes" in done.stderr
        assert rows(outbox, "SELECT count(*) FROM letopis_outbox_repairs") == [(0,)]

    @posix_only("Windows has no pseudo-terminals")
    @pytest.mark.parametrize(("answer", "code", "repairs"), [("n", Exit.FAILED, 0), ("y", Exit.OK, 1)])
    def test_at_a_terminal_it_asks(self, outbox: Path, answer: str, code: int, repairs: int) -> None:
        import pty

        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "letopis.outbox.cli", "outbox", "skip", stuck(outbox), "--reason", "x"],
            cwd=outbox.parent,
            env={key: value for key, value in os.environ.items() if not key.startswith("LETOPIS_")},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(ours, f"{answer}\n".encode())
        _, said = process.communicate(timeout=100)
        os.close(ours)
        os.close(theirs)

        assert process.returncode == code, said
        assert b"(message.appended, " in said
        assert rows(outbox, "SELECT count(*) FROM letopis_outbox_repairs") == [(repairs,)]

    def test_it_needs_a_reason(self, letopis: Any, outbox: Path) -> None:
        assert letopis("outbox", "skip", stuck(outbox), "--yes").returncode == Exit.USAGE
        assert letopis("outbox", "skip", stuck(outbox), "--yes", "--reason", " ").returncode == Exit.USAGE

    def test_the_event_is_replaced_and_the_record_says_by_whom(self, letopis: Any, outbox: Path) -> None:
        event_id = stuck(outbox)
        done = letopis("outbox", "skip", event_id, "--reason", "nobody needs it", "--yes", "--json")

        [skipped] = json.loads(done.stdout)["skipped"]
        assert skipped["event_id"].replace("-", "") == event_id
        [(verb, reason, by)] = rows(outbox, "SELECT verb, reason, repaired_by FROM letopis_outbox_repairs")
        assert (verb, reason) == ("skip", "nobody needs it")
        assert by
        assert letopis("outbox", "skip", event_id, "--reason", "x", "--yes").returncode == Exit.NOTHING

    def test_of_conversations_only_the_front(self, letopis: Any, outbox: Path) -> None:
        choice = ("--state", "blocked", "--state", "retrying")
        done = letopis("outbox", "skip", *choice, "--reason", "x", "--yes", "--json")

        assert [one["sequence"] for one in json.loads(done.stdout)["skipped"]] == [2, 2]
        assert rows(outbox, "SELECT count(*) FROM letopis_outbox_repairs") == [(2,)]

    def test_what_is_not_at_the_front_is_refused_with_the_reason(self, letopis: Any, outbox: Path) -> None:
        found = json.loads(letopis("outbox", "list", "--conversation", "bad", "--json").stdout)["events"]
        done = letopis("outbox", "skip", found[1]["event_id"], "--reason", "x", "--yes")

        assert done.returncode == Exit.FAILED
        assert "waits behind an earlier one" in done.stderr


class TestFix:
    def test_a_corrected_file_takes_effect_and_the_original_can_come_back(
        self, letopis: Any, outbox: Path, tmp_path: Path
    ) -> None:
        event_id = stuck(outbox)
        data = json.loads(letopis("outbox", "show", event_id, "--data").stdout)
        (tmp_path / "corrected.json").write_text(json.dumps({**data, "metadata": {"mended": True}}))
        done = letopis("outbox", "fix", event_id, "--file", "corrected.json", "--reason", "mended", "--yes")
        assert (done.returncode, done.stdout.split()[1]) == (0, "bad")

        change(outbox, "UPDATE letopis_outbox_lanes SET state = 'blocked' WHERE conversation_id = 'bad'")
        shown = letopis("outbox", "show", event_id, "--payload", "--json")
        [event] = json.loads(shown.stdout)["events"]
        assert event["data"]["metadata"] == {"mended": True}
        assert [(one["verb"], one["data"], one["reason"]) for one in event["repairs"]] == [("fix", data, "mended")]
        done = letopis("outbox", "fix", "--conversation", "bad", "--original", "--reason", "it was fine", "--yes")
        assert done.returncode == 0
        assert json.loads(letopis("outbox", "show", event_id, "--data").stdout) == data

    @pytest.mark.parametrize(
        "content",
        ["{broken " + BODY, "[1]", '{"message_id": "other", "role": "user", "content": "x"}', '{"role": 5}', "\xff"],
        ids=["no JSON", "no object", "another message", "no message", "not UTF-8"],
    )
    def test_data_that_will_not_do_is_wrong_usage_and_not_quoted(
        self, letopis: Any, outbox: Path, tmp_path: Path, content: str
    ) -> None:
        (tmp_path / "corrected.json").write_bytes(content.encode("latin-1"))
        before = rows(outbox, "SELECT digest FROM letopis_outbox_events")
        done = letopis("outbox", "fix", stuck(outbox), "--file", "corrected.json", "--reason", "x", "--yes")

        assert (done.returncode, done.stdout) == (Exit.USAGE, "")
        assert BODY not in done.stderr
        assert "Traceback" not in done.stderr
        assert rows(outbox, "SELECT digest FROM letopis_outbox_events") == before

    def test_it_is_for_one_event(self, letopis: Any, outbox: Path) -> None:
        choice = ("--state", "blocked", "--state", "retrying")
        assert letopis("outbox", "fix", *choice, "--file", "-", "--reason", "x", stdin="{}").returncode == Exit.USAGE
        assert letopis("outbox", "fix", stuck(outbox), "--reason", "x").returncode == Exit.USAGE
        assert letopis("outbox", "fix", stuck(outbox), "--file", "no.json", "--reason", "x").returncode == Exit.USAGE


class TestExport:
    """Getting everything out, whatever is down."""

    def test_everything_pending_with_all_about_it(self, letopis: Any, outbox: Path, tmp_path: Path) -> None:
        done = letopis("outbox", "export")
        lines = [json.loads(line) for line in done.stdout.split("\n") if line]

        assert len(lines) == 6
        assert BODY in json.dumps(lines[0]["data"])
        assert {"state", "fault", "digest", "metadata", "sequence"} <= set(lines[0])
        assert letopis("outbox", "export", "--conversation", "none", "--file", "x.jsonl").returncode == Exit.NOTHING
        assert not (tmp_path / "x.jsonl").exists()

    @posix_only("on Windows the rights of the folder apply")
    def test_a_file_is_for_its_owner_only_and_is_not_overwritten(
        self, letopis: Any, outbox: Path, tmp_path: Path
    ) -> None:
        assert letopis("outbox", "export", "--file", "x.jsonl", "--state", "blocked").returncode == 0
        assert (tmp_path / "x.jsonl").stat().st_mode & 0o777 == 0o600
        assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2
        assert letopis("outbox", "export", "--file", "x.jsonl").returncode == Exit.FAILED
        assert letopis("outbox", "export", "--file", "x.jsonl", "--force").returncode == 0

    def test_more_than_a_page(self, letopis: Any, tmp_path: Path) -> None:
        async def fill() -> None:
            file = await OutboxFile.open(tmp_path / "bot.outbox.db")
            for name in ("a", "b", "c"):
                await file.append(prepare(name, [Message.user(str(number)) for number in range(150)]))
            await file.close()

        asyncio.run(fill())
        lines = [json.loads(line) for line in letopis("outbox", "export").stdout.splitlines()]

        assert [(one["conversation_id"], one["sequence"]) for one in lines] == [
            (name, sequence) for name in ("a", "b", "c") for sequence in range(1, 152)
        ]


async def test_beside_a_bot_with_its_relay_a_skip_takes_effect_at_once(letopis: Any, tmp_path: Path) -> None:
    """Another process repairs the file while the bot runs, and the bot's own relay continues without help."""
    async with History(tmp_path / "bot.outbox.db", policy=QUICK) as history:
        await (await history.append("good", Message.user("hello"))).saved(timeout=30)
        change(
            tmp_path / "bot.history.db",
            "CREATE TRIGGER no BEFORE INSERT ON letopis_events WHEN NEW.data LIKE '%poison%'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        await history.append("bad", Message.user("poison"))
        after = await history.append("bad", Message.user("after"))

        async def is_blocked() -> bool:
            return (await history.status()).lanes["blocked"] == 1

        await until(is_blocked)
        done = await asyncio.to_thread(
            letopis, "outbox", "skip", "--conversation", "bad", "--reason", "no use", "--yes"
        )
        assert done.returncode == 0, done.stderr
        assert await after.saved(timeout=30)
        assert [one.message.text for one in await history.messages("bad")] == ["after"]
        assert [one.type for one in await history.chat("bad").events()][1] == "event.skipped"
