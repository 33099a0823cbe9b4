"""letopis outbox, pause and resume, as an operator runs them, also beside a running bot; what status says of it."""

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from letopis.ops.cli.interface.exit_codes import Exit
from letopis.ops.cli.interface.render import code_first
from letopis.store.model.messages import Message
from tests.support.fix_command import append_to
from tests.support.platforms import posix_only
from tests.support.sqlite_rows import change, rows

pytestmark = pytest.mark.usefixtures("elsewhere")

BODY = "what nobody else may read"
HOSTILE = "chat\u202eevil\u2028next"


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    """An outbox with a blocked, a retrying and a ready conversation, no relay and no store."""
    path = tmp_path / "bot.outbox.db"
    for name in ("bad", HOSTILE, "fine"):
        messages = [Message.user(f"{BODY} {number}", id=f"{name[:4]}-{number}") for number in range(2)]
        asyncio.run(append_to(path, name, *messages, owner="42"))
    change(
        path,
        "UPDATE letopis_outbox_lanes SET delivered = 1",
        "UPDATE letopis_outbox_lanes SET state = 'blocked', attempts = 4, fault_class = 'poison',"
        " fault = 'refused [poison 22021]' WHERE conversation_id = 'bad'",
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
        found = json.loads(done.out)

        assert (done.code, done.err) == (0, "")
        assert (found["outbox"], found["more"]) == ("bot.outbox.db", False)
        assert [(one["conversation_id"], one["state"], one["front"], one["behind"]) for one in found["events"]] == [
            ("bad", "blocked", True, 1),
            (HOSTILE, "retrying", True, 1),
        ]
        bad, odd = found["events"]
        charged = (bad["fault_class"], bad["fault"], bad["attempts"], bad["due_at"])
        assert charged == ("poison", "refused [poison 22021]", 4, None)
        assert odd["due_at"] == "2100-01-01T00:00:00+00:00"
        assert set(bad) == {
            *("event_id", "conversation_id", "owner_id", "sequence", "type", "schema_version", "bytes", "digest"),
            *("occurred_at", "appended_at", "front", "behind", "state", "attempts", "due_at", "fault_class", "fault"),
        }

    @pytest.mark.parametrize(
        ("choice", "count"),
        [
            ("--all", 6),
            ("--all --limit 2", 2),
            ("--conversation bad --conversation fine", 4),
            ("--state ready", 2),
            ("--state ready --fault-class poison", 0),
            ("00000000-0000-0000-0000-000000000000", 0),
        ],
    )
    def test_by_what_is_said(self, letopis: Any, outbox: Path, choice: str, count: int) -> None:
        done = letopis("outbox", "list", "--json", *choice.split())

        assert len(json.loads(done.out)["events"]) == count
        assert done.code == (Exit.OK if count else Exit.NOTHING)
        assert json.loads(done.out)["more"] is ("more than 2" in done.err) is ("limit" in choice)

    def test_a_table_for_people_in_which_no_id_can_do_harm(self, letopis: Any, outbox: Path) -> None:
        done = letopis("outbox", "list", "--all")

        assert len(done.out.splitlines()) == 7
        assert not set("\u202e\u2028") & set(done.out)
        assert "chat\\u202eevil" in done.out
        assert BODY not in done.out + done.err


class TestShow:
    def test_payload_only_when_asked_for(self, letopis: Any, outbox: Path) -> None:
        quiet = letopis("outbox", "show", stuck(outbox))
        quiet_json = letopis("outbox", "show", stuck(outbox), "--json")
        loud = letopis("outbox", "show", stuck(outbox), "--payload", "--json")

        assert BODY not in quiet.out + quiet_json.out
        assert "poison 22021: refused" in quiet.out
        [event] = json.loads(loud.out)["events"]
        assert BODY in json.dumps(event["data"])
        assert event["repairs"] == []

    def test_data_alone_is_what_fix_takes(self, letopis: Any, outbox: Path) -> None:
        assert json.loads(letopis("outbox", "show", stuck(outbox), "--data").out)["message_id"] == "bad-0"
        assert letopis("outbox", "show", "--conversation", "bad", "--data").code == Exit.USAGE


def test_a_conversation_is_retried_paused_and_resumed(letopis: Any, outbox: Path) -> None:
    def states() -> dict[str, str]:
        return dict(rows(outbox, "SELECT conversation_id, state FROM letopis_outbox_lanes"))

    assert json.loads(letopis("outbox", "retry", "--state", "blocked", "--json").out) == {"retried": ["bad"]}
    assert letopis("outbox", "retry", "--state", "blocked").code == Exit.NOTHING
    assert letopis("outbox", "retry", "--all").code == 0
    assert set(states().values()) == {"ready"}
    assert letopis("outbox", "pause", "--conversation", "fine").out == "fine\n"
    assert states()["fine"] == "paused"
    assert letopis("outbox", "resume", "--all").out == "fine\n"
    assert letopis("outbox", "resume", "--all").code == Exit.NOTHING


def test_the_whole_relay_is_paused_and_status_says_so(letopis: Any, outbox: Path) -> None:
    assert letopis("pause", "--reason", "the store\u202e moves").code == 0
    told = letopis("status").out
    for words in ("1 conversation is blocked", "paused", "the store\\u202e moves"):
        assert words in told
    relay = json.loads(letopis("status", "--json").out)["relay"]
    assert relay["pause_reason"] == "the store\u202e moves"
    assert relay["paused_since"] is not None
    assert letopis("resume").code == 0
    assert letopis("resume").code == Exit.NOTHING


class TestSkip:
    def test_nobody_to_ask_or_no_reason_is_wrong_usage_and_changes_nothing(self, letopis: Any, outbox: Path) -> None:
        for words, says in (("--reason x", "--yes"), ("--yes --reason=", "reason")):
            done = letopis("outbox", "skip", stuck(outbox), *words.split())
            assert (done.code, done.out) == (Exit.USAGE, "")
            assert says in done.err
        assert rows(outbox, "SELECT count(*) FROM letopis_outbox_repairs") == [(0,)]

    @pytest.mark.parametrize(("answer", "code", "repairs"), [("n", Exit.FAILED, 0), ("y", Exit.OK, 1)])
    def test_at_a_terminal_it_asks(
        self, letopis: Any, outbox: Path, answer: str, code: int, repairs: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = io.StringIO(f"{answer}\n")
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)

        done = letopis("outbox", "skip", stuck(outbox), "--reason", "x")

        assert (done.code, "(message.appended, " in done.err) == (code, True)
        assert rows(outbox, "SELECT count(*) FROM letopis_outbox_repairs") == [(repairs,)]

    def test_the_event_is_replaced_and_the_record_says_by_whom(self, letopis: Any, outbox: Path) -> None:
        event_id = stuck(outbox)
        done = letopis("outbox", "skip", event_id, "--reason", "nobody needs it", "--yes", "--json")

        [skipped] = json.loads(done.out)["skipped"]
        assert skipped["event_id"].replace("-", "") == event_id
        [(verb, reason, by)] = rows(outbox, "SELECT verb, reason, repaired_by FROM letopis_outbox_repairs")
        assert (verb, reason) == ("skip", "nobody needs it")
        assert by
        assert letopis("outbox", "skip", event_id, "--reason", "x", "--yes").code == Exit.NOTHING

    def test_what_is_not_at_the_front_is_refused_with_the_reason(self, letopis: Any, outbox: Path) -> None:
        found = json.loads(letopis("outbox", "list", "--conversation", "bad", "--json").out)["events"]
        done = letopis("outbox", "skip", found[1]["event_id"], "--reason", "x", "--yes")

        assert (done.code, "waits behind an earlier one" in done.err) == (Exit.FAILED, True)


class TestFix:
    def test_a_corrected_file_takes_effect_and_the_original_can_come_back(
        self, letopis: Any, outbox: Path, tmp_path: Path
    ) -> None:
        event_id = stuck(outbox)
        data = json.loads(letopis("outbox", "show", event_id, "--data").out)
        (tmp_path / "corrected.json").write_text(json.dumps({**data, "metadata": {"mended": True}}))
        done = letopis("outbox", "fix", event_id, "--file", "corrected.json", "--reason", "mended", "--yes")
        assert (done.code, done.out.split()[1]) == (0, "bad")

        change(outbox, "UPDATE letopis_outbox_lanes SET state = 'blocked' WHERE conversation_id = 'bad'")
        shown = letopis("outbox", "show", event_id, "--payload", "--json")
        [event] = json.loads(shown.out)["events"]
        assert event["data"]["metadata"] == {"mended": True}
        assert [(one["verb"], one["data"], one["reason"]) for one in event["repairs"]] == [("fix", data, "mended")]
        done = letopis("outbox", "fix", "--conversation", "bad", "--original", "--reason", "it was fine", "--yes")
        assert done.code == 0
        assert json.loads(letopis("outbox", "show", event_id, "--data").out) == data

    @pytest.mark.parametrize("content", ["{broken " + BODY, '{"message_id": "other"}', '{"role": 5}', "\xff"])
    def test_data_that_will_not_do_is_wrong_usage_and_not_quoted(
        self, letopis: Any, outbox: Path, content: str
    ) -> None:
        Path("corrected.json").write_bytes(content.encode("latin-1"))
        before = rows(outbox, "SELECT digest FROM letopis_outbox_events")
        done = letopis("outbox", "fix", stuck(outbox), "--file", "corrected.json", "--reason", "x", "--yes")

        assert (done.code, done.out) == (Exit.USAGE, "")
        assert BODY not in done.err
        assert "Traceback" not in done.err
        assert rows(outbox, "SELECT digest FROM letopis_outbox_events") == before


@posix_only("on Windows the rights of the folder apply")
def test_an_export_has_everything_pending_is_private_and_overwrites_nothing(
    letopis: Any, outbox: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in letopis("outbox", "export").out.split("\n") if line]
    assert len(lines) == 6
    assert BODY in json.dumps(lines[0]["data"])
    assert {"state", "fault", "digest", "metadata", "sequence"} <= set(lines[0])

    assert letopis("outbox", "export", "--file", "x.jsonl", "--state", "blocked").code == 0
    assert (tmp_path / "x.jsonl").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2
    assert letopis("outbox", "export", "--file", "x.jsonl").code == Exit.FAILED
    assert letopis("outbox", "export", "--file", "x.jsonl", "--force").code == 0


# status and outbox list tell one story, whatever state an outbox is in.

FAULT: Final = "the event breaks a constraint of the history store (constraint letopis_events.approved) [poison 23514]"
RELAY: Final = (
    "INSERT INTO letopis_outbox_relay (only, incarnation, holder, pid, host, boot_id, started_at, heartbeat_at,"
    " progress_at, breaker, breaker_since, breaker_reason, delivered_total)"
    " VALUES (1, 1, 'bot', 1, 'elsewhere', '', 0, 9e15, 0, '{0}', 1, {1}, 0)"
)
RUNS: Final = RELAY.format("closed", "NULL")
STATES: Final = {
    "nothing": ["UPDATE letopis_outbox_lanes SET delivered = head, pending_since = NULL", RUNS],
    "pending": [RUNS],
    "no relay": [],
    "outage": [RELAY.format("open", "'unavailable disconnected'")],
    "misconfigured": [RELAY.format("open", "'misconfigured 42P01'")],
    "blocked": [RUNS, f"UPDATE letopis_outbox_lanes SET state = 'blocked', fault_class = 'poison', fault = '{FAULT}'"],
    "blocked in an outage": [
        RELAY.format("open", "'unavailable disconnected'"),
        "UPDATE letopis_outbox_lanes SET state = 'blocked', fault_class = 'poison' WHERE conversation_id = 'c0'",
    ],
    "retrying": [RUNS, "UPDATE letopis_outbox_lanes SET state = 'retrying', attempts = 1"],
    "paused": [RUNS, "UPDATE letopis_outbox_lanes SET state = 'paused'"],
    "lost": [
        RUNS,
        "DELETE FROM letopis_outbox_events",
        (
            "UPDATE letopis_outbox_lanes SET delivered = head, pruned = head, pending_since = NULL, state = 'blocked',"
            " fault_class = 'lost', fault = 'gone [lost]'"
        ),
    ],
}


@pytest.fixture
def waiting(elsewhere: None) -> None:
    """Two conversations with three events each, that wait."""
    for name in ("c0", "c1"):
        asyncio.run(append_to("bot.outbox.db", name, Message.user("one"), Message.user("two")))


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize("state", STATES)
def test_they_never_contradict_each_other(state: str, letopis: Any) -> None:
    change("bot.outbox.db", *STATES[state])

    status = json.loads(letopis("status", "--json")[1])
    code, out, error = letopis("outbox", "list", "--json")
    text_code, table, text_error = letopis("outbox", "list")
    listed = json.loads(out)

    assert (code, text_code) == (0, 0)
    verdict = status["verdict"]
    stuck = {one["conversation_id"] for one in (*listed["events"], *listed["missing"])}
    of_lanes = sum(status["lanes"][name] for name in ("blocked", "retrying", "paused"))
    assert len(stuck) == of_lanes
    if stuck:
        assert "see `letopis outbox list`" in verdict
        assert "Everything is" not in verdict
        assert "being delivered" not in verdict
        assert all(name in table for name in stuck)
        assert (error, text_error) == ("", "")
    else:
        assert "outbox list`" not in verdict
        assert (table, text_error) == ("", f"no conversation is blocked, retrying or paused. {verdict}\n")
    assert status["healthy"] is (letopis("status", "--check")[0] == 0)
    assert letopis("status")[1].startswith(f"{verdict}\n")


@pytest.mark.usefixtures("waiting")
def test_what_is_lost_is_listed_although_its_event_is_nowhere(letopis: Any) -> None:
    change("bot.outbox.db", *STATES["lost"])

    listed = json.loads(letopis("outbox", "list", "--json").out)
    table = letopis("outbox", "list").out.splitlines()[1:]

    assert listed["events"] == []
    missing = [(one["conversation_id"], one["fault_class"]) for one in listed["missing"]]
    assert missing == [("c0", "lost"), ("c1", "lost")]
    rest = ["-", "-", "-", "blocked", "0", "-", "-", "lost:", "gone"]
    assert [line.split() for line in table] == [["missing", name, *rest] for name in ("c0", "c1")]


@pytest.mark.usefixtures("waiting")
def test_the_code_of_a_fault_comes_first_and_nothing_is_cut_in_a_pipe(letopis: Any) -> None:
    change("bot.outbox.db", *STATES["blocked"])

    head, *lines = letopis("outbox", "list").out.splitlines()

    assert head.endswith("FAULT")
    assert {line[head.index("FAULT") :] for line in lines} == {f"poison 23514: {FAULT.removesuffix(' [poison 23514]')}"}
    assert code_first("it is gone") == "it is gone"
