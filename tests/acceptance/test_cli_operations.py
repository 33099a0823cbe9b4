"""init, db, relay and status, as an operator runs them."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from letopis.outbox import History
from letopis.outbox.cli.interface.exit_codes import Exit
from letopis.outbox.diagnostics.new_origin import assign_new_origin
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.migrations import STORE
from letopis.store.errors import OutboxUnavailable
from letopis.store.model.messages import Message
from tests.support.fix_command import append_to
from tests.support.paths import ROOT
from tests.support.relays import until
from tests.support.sayings import present
from tests.support.sqlite_rows import change, rows

SECRET = "hunter2-correct-horse"


pytestmark = pytest.mark.usefixtures("elsewhere")


def filled(path: str = "bot.outbox.db", *, conversations: int = 1, messages: int = 3) -> None:
    """Put messages into an outbox, that wait there."""
    for conversation in range(conversations):
        said = (Message.user(f"m{number}") for number in range(messages))
        asyncio.run(append_to(path, f"c{conversation}", *said, owner="42"))


class TestInit:
    def test_it_writes_the_file_creates_the_outbox_and_says_what_is_next(self, letopis: Any) -> None:
        code, out, err = letopis("init")

        assert (code, out) == (0, "letopis status\nletopis relay\n")
        assert "created bot.outbox.db" in err
        assert Path("bot.outbox.db").is_file()
        assert letopis(*out.splitlines()[0].split()[1:])[0] == 0

    def test_for_a_server_the_tables_come_next(self, letopis: Any) -> None:
        code, out, _ = letopis("init", "--store", f"postgresql://bot:{SECRET}@localhost/h", "--outbox", 'a "b".db')

        assert (code, out) == (0, "letopis db upgrade\nletopis relay\n")
        assert f"postgresql://bot:{SECRET}@localhost/h" in Path("letopis.toml").read_text()
        assert Path('a "b".db').is_file()
        assert letopis("status")[0] == 0

    def test_nothing_that_exists_is_overwritten(self, letopis: Any) -> None:
        Path("letopis.toml").write_text("# mine\n")

        code, out, err = letopis("init")

        assert (code, out) == (Exit.FAILED, "")
        assert "letopis.toml exists" in err
        assert Path("letopis.toml").read_text() == "# mine\n"
        assert not Path("bot.outbox.db").exists()


class TestNewOrigin:
    def test_a_copy_lives_on_beside_its_original(self, letopis: Any) -> None:
        """What both hold arrives once, what each says after the copy arrives too, in order."""
        filled(conversations=3)
        assert letopis("relay", "--once")[0] == 0
        filled(conversations=2, messages=2)
        shutil.copy("bot.outbox.db", "copy.outbox.db")

        code, _, err = letopis("--outbox", "copy.outbox.db", "init", "--new-origin")

        assert code == 0
        assert "4 pending events in 2 conversations" in err
        filled("copy.outbox.db", conversations=1, messages=1)
        for name in ("bot.outbox.db", "copy.outbox.db"):
            assert letopis("--outbox", name, "--store", "bot.history.db", "relay", "--once")[0] == 0
        kept = rows("bot.history.db", "SELECT conversation_id, version, data FROM letopis_events ORDER BY 1, 2")
        said = [json.loads(data)["content"] for name, _, data in kept if name == "c0" and "content" in data]
        assert said == ["m0", "m1", "m2", "m0", "m1", "m0"]
        assert len({row[0] for row in rows("bot.history.db", "SELECT origin_id FROM letopis_origins")}) == 2
        assert len(kept) == 3 * 4 + 2 * 2 + 1

    def test_sequences_start_anew_and_the_tail_goes(self, letopis: Any) -> None:
        filled(messages=3)
        letopis("relay", "--once")
        filled(messages=2)
        before = rows("bot.outbox.db", "SELECT hex(origin_id), epoch FROM letopis_outbox_origin")

        assert letopis("init", "--new-origin")[0] == 0

        assert rows("bot.outbox.db", "SELECT sequence FROM letopis_outbox_events ORDER BY position") == [(1,), (2,)]
        assert rows("bot.outbox.db", "SELECT head, delivered, pruned, owner_id FROM letopis_outbox_lanes") == [
            (2, 0, 0, "42")
        ]
        after = rows("bot.outbox.db", "SELECT hex(origin_id), epoch FROM letopis_outbox_origin")
        assert after[0][0] != before[0][0]
        assert after[0][1] == 1

    def test_a_blocked_conversation_is_delivered_as_was_promised(self, letopis: Any) -> None:
        """It stayed blocked under the new identity until an operator said `outbox retry --all`."""
        filled(conversations=2)
        change(
            "bot.outbox.db",
            "UPDATE letopis_outbox_lanes SET state = 'blocked', attempts = 4, fault_class = 'poison', fault = 'it'"
            " WHERE conversation_id = 'c0'",
            "UPDATE letopis_outbox_lanes SET state = 'paused' WHERE conversation_id = 'c1'",
        )

        code, _, err = letopis("init", "--new-origin")

        assert code == 0
        assert "8 pending events in 2 conversations will be delivered under the new identity" in err
        assert "1 of them are paused: `letopis outbox resume` continues them" in err
        assert "4 delivered, 4 left" in letopis("relay", "--once")[2]
        assert letopis("outbox", "resume", "--all")[0] == 0
        assert letopis("relay", "--once")[0] == 0

    def test_an_incident_still_ends_with_the_event_it_is_about(self) -> None:
        filled(messages=3)
        change(
            "bot.outbox.db",
            "UPDATE letopis_outbox_lanes SET delivered = 2",
            "INSERT INTO letopis_outbox_incidents (incident_id, kind, conversation_id, state, escalations, mark,"
            " opened_at, revision) VALUES (x'01', 'conversation_blocked', 'c0', 'firing', 0, 4, 0, 1)",
        )

        asyncio.run(assign_new_origin("bot.outbox.db"))

        assert rows("bot.outbox.db", "SELECT mark FROM letopis_outbox_incidents") == [(2,)]
        assert rows("bot.outbox.db", "SELECT head FROM letopis_outbox_lanes") == [(2,)]

    async def test_not_while_a_relay_has_the_file(self) -> None:
        async with History("bot.outbox.db") as history:
            await until(lambda: present(history.relay).lease.held)
            with pytest.raises(OutboxUnavailable, match="a relay runs"):
                await assign_new_origin("bot.outbox.db")
            before = history.outbox.origin.origin_id.hex.upper()

        assert rows("bot.outbox.db", "SELECT hex(origin_id) FROM letopis_outbox_origin") == [(before,)]


class TestDb:
    def test_the_tables_are_made_once_on_every_store(self, letopis: Any, empty_database_url: str) -> None:
        url = make_url(empty_database_url)
        if url.drivername == "postgresql":  # of the tests' servers the one that ignores a password
            url = url.set(password=SECRET)
        asked = ("--store", url.render_as_string(hide_password=False), "db")

        before = letopis(*asked, "check")
        first = letopis(*asked, "upgrade", "--partitions", "3")
        again = letopis(*asked, "upgrade")
        shown = letopis(*asked, "current")
        as_json = letopis(*asked, "current", "--json")
        after = letopis(*asked, "check")
        assert SECRET not in str((before, first, again, shown, as_json, after))

        assert before[0] == Exit.CONFIGURATION
        assert "letopis db upgrade" in before[2]
        assert (first[0], first[1]) == (0, "")
        assert "now at revision" in first[2]
        assert (again[0], "already at revision" in again[2]) == (0, True)
        assert (shown[0], "current" in shown[1]) == (0, True)
        assert {**json.loads(as_json[1]), "store": ""} == {
            "store": "",
            "revision": STORE.head,
            "state": "current",
            "head": STORE.head,
        }
        assert after[0] == 0
        assert asyncio.run(_partitions(empty_database_url)) == 3


async def _partitions(url: str) -> int:
    async with ConversationStore.open(url, migrate=False) as store:
        return await store.partitions()


class TestStatus:
    def test_the_documented_example_is_one(self, letopis: Any) -> None:
        text = (ROOT / "docs/reference/status-json.md").read_text(encoding="utf-8")
        example = json.loads(text.split("```json\n")[1].split("```")[0])
        filled()

        found = json.loads(letopis("status", "--json")[1])

        assert list(example) == list(found)
        assert {key: list(value) for key, value in example.items() if isinstance(value, dict)} == {
            key: list(value) for key, value in found.items() if isinstance(value, dict)
        }


class TestRelay:
    def test_once_is_for_later_where_the_store_is_down(self, letopis: Any) -> None:
        filled()

        code, _, err = letopis("relay", "--once", "--store", f"postgresql://bot:{SECRET}@127.0.0.1:1/h")

        assert code == Exit.LATER
        assert "4 left" in err
        assert SECRET not in err
        assert rows("bot.outbox.db", "SELECT attempts FROM letopis_outbox_lanes") == [(0,)]

    def test_a_server_without_tables_is_wrong_configuration(self, letopis: Any, fresh_postgresql_url: str) -> None:
        filled()

        codes = [letopis("relay", *once, "--store", fresh_postgresql_url) for once in ([], ["--once"])]

        assert [code for code, _, _ in codes] == [Exit.CONFIGURATION] * 2
        assert all("letopis db upgrade" in err for _, _, err in codes)

    @pytest.mark.parametrize(
        ("toml", "code", "says"),
        [
            ("attempts = 0", Exit.FAILED, "1 conversation is blocked: see `letopis outbox list`"),
            ('base = 60\njitter = "none"', Exit.LATER, "2 left"),
        ],
        ids=["blocked", "tried again later"],
    )
    def test_its_code_says_what_became_of_a_refused_event(self, letopis: Any, toml: str, code: Exit, says: str) -> None:
        Path("letopis.toml").write_text(f"[relay]\n{toml}\n")
        filled(conversations=1)
        letopis("relay", "--once")
        change(
            "bot.history.db",
            "CREATE TRIGGER no BEFORE INSERT ON letopis_events WHEN NEW.conversation_id = 'c1'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        filled(conversations=3, messages=1)

        done = letopis("relay", "--once")

        assert (done.code, says in done.err) == (code, True)
        assert rows("bot.history.db", "SELECT count(*) FROM letopis_messages") == [(3 + 2,)]
