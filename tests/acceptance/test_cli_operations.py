"""init, db, relay and status, as an operator runs them, and what they say of the wrong store."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from letopis.ops.cli.interface.exit_codes import Exit
from letopis.ops.daemon.daemon import Daemon, DaemonSettings
from letopis.ops.daemon.health import FileCondition
from letopis.ops.daemon.http import HealthApp
from letopis.ops.new_origin import assign_new_origin
from letopis.outbox import History
from letopis.outbox.event_log.bound_store import StoreBinding, read_binding
from letopis.outbox.file.opening import read_snapshot
from letopis.outbox.relay.store_binding import destination_of
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.migrations import STORE
from letopis.store.errors import OutboxUnavailable
from letopis.store.model.messages import Message
from tests.support.fix_command import append_to, talk
from tests.support.paths import ROOT
from tests.support.relays import end, until
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

        before, first = letopis(*asked, "check"), letopis(*asked, "upgrade", "--partitions", "3")
        again, after = letopis(*asked, "upgrade"), letopis(*asked, "check")
        shown, as_json = letopis(*asked, "current"), letopis(*asked, "current", "--json")
        assert SECRET not in str((before, first, again, shown, as_json, after))

        assert (before.code, "letopis db upgrade" in before.err) == (Exit.CONFIGURATION, True)
        assert (first.code, first.out, "now at revision" in first.err) == (0, "", True)
        assert (again.code, "already at revision" in again.err) == (0, True)
        assert (shown.code, "current" in shown.out, after.code) == (0, True, 0)
        found = {"revision": STORE.head, "state": "current", "head": STORE.head}
        assert {**json.loads(as_json.out), **found} == json.loads(as_json.out)
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


# The wrong store: relay, daemon, status, doctor, verify, rebind and new-identity.

RIGHT, WRONG = (
    f"sqlite:///{name}.db" for name in ("right", "wrong")
)  # of servers: tests/integration/test_wrong_store.py


async def texts(url: str) -> list[str]:
    async with ConversationStore.open(url, migrate=True) as store:
        return [one.text for one in await store.messages("c", last=200)]


async def identity(url: str) -> str:
    async with ConversationStore.open(url, migrate=True) as store:
        return str((await store.identity()).store_id)


def bot(store: str | None, *said: str, relay: bool = True, path: str = "bot.outbox.db") -> None:
    """A bot that says something and ends; with its own relay all of it is delivered."""
    talk(*said, conversation="c", owner=None, path=path, store=store, deliver=relay)


def bound(path: str = "bot.outbox.db") -> StoreBinding:
    return asyncio.run(read_snapshot(path, read_binding))


def test_the_place_that_the_bot_named_decides_and_then_the_identity(letopis: Any) -> None:
    """The hole: told nothing, it delivered everything into a new file beside the outbox, and ended with 0."""
    asyncio.run(identity(WRONG))
    bot(RIGHT, "one", relay=False)
    for delivered in (False, True):
        for arguments in ((), ("--store", WRONG)):
            code, _, err = letopis(*arguments, "relay", "--once")
            assert code == Exit.CONFIGURATION, err
            assert ("rebind" if delivered else destination_of(RIGHT)) in err
        if not delivered:
            assert bound() == StoreBinding(destination=destination_of(RIGHT))
            bot(RIGHT, "two")
            bot(RIGHT, "three", "four", relay=False)
    assert not Path("bot.history.db").exists()
    assert asyncio.run(texts(WRONG)) == []
    code, _, err = letopis("--store", RIGHT, "relay", "--once")
    assert (code, "2 delivered, 0 left" in err) == (0, True), err
    assert asyncio.run(texts(RIGHT)) == ["one", "two", "three", "four"]


def test_the_daemon_serves_the_others_and_ends_where_all_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.ops.daemon.daemon.configure_logging", lambda **_: None)
    bot(RIGHT, "one")
    bot(RIGHT, "two", relay=False)
    bot(WRONG, "other", relay=False, path="other.outbox.db")

    async def serve() -> None:
        daemon = Daemon(lambda: DaemonSettings(outboxes=("bot.outbox.db", "other.outbox.db"), store=WRONG))
        task = asyncio.create_task(daemon.run())
        try:

            async def found() -> bool:
                conditions = [one.condition for one in daemon.workers]
                return conditions == [FileCondition.WRONG_STORE, FileCondition.WORKING] and (
                    await texts(WRONG) == ["other"]
                )

            await until(found, patience=60)
            await asyncio.sleep(1.1)  # figures are at most a second old
            answers = HealthApp(live=daemon.is_live, snapshot=daemon.snapshot)
            status, _, body = await answers._answer({"path": "/healthz/ready", "method": "GET"})
            said = json.loads(body)
            assert (status, said["ready"], said["outboxes"]["wrong_store"]) == (503, False, 1)
            assert [(one["outbox"], one["condition"], one["store"]) for one in said["delivering"]] == [
                ("bot.outbox.db", "wrong_store", destination_of(RIGHT)),
                ("other.outbox.db", "working", destination_of(WRONG)),
            ]
        finally:
            await end(task)
        with pytest.raises(StoreFault) as fault:
            async with asyncio.timeout(60):
                await Daemon(lambda: DaemonSettings(outboxes=("bot.outbox.db",), store=WRONG)).run()
        assert fault.value.fault_class is FaultClass.WRONG_STORE

    asyncio.run(serve())
    assert asyncio.run(texts(RIGHT)) == ["one"]
    assert asyncio.run(texts(WRONG)) == ["other"]


def test_operators_are_told_at_once(letopis: Any) -> None:
    bot(RIGHT, "one")
    asyncio.run(identity(WRONG))

    async def talk() -> None:
        async with History("bot.outbox.db", store=WRONG) as history:

            async def told() -> bool:
                status = await history.status()
                return any(one.kind == "store_down" and one.state != "pending" for one in status.incidents)

            await history.append("c", Message.user("two"))
            await until(told, patience=10)

    asyncio.run(talk())
    code, out, _ = letopis("status", "--check")
    assert code == Exit.FAILED
    assert "another history store than this outbox's" in out


def test_status_and_doctor_name_the_store(letopis: Any) -> None:
    bot(RIGHT, "one", relay=False)
    assert json.loads(letopis("status", "--json").out)["store"] == {"id": None, "destination": destination_of(RIGHT)}
    bot(RIGHT, "two")
    said, store_id = json.loads(letopis("status", "--json").out), asyncio.run(identity(RIGHT))
    assert said["store"] == {"id": store_id, "destination": destination_of(RIGHT)}
    out = letopis("status").out
    assert f"{destination_of(RIGHT)} ({store_id[:8]})" in out
    assert said["outbox_id"][:8] in out

    asyncio.run(identity(WRONG))
    for store, level in ((RIGHT, "ok"), (WRONG, "fail")):
        checks = json.loads(letopis("--store", store, "doctor", "--json").out)["checks"]
        [found] = [one for one in checks if one["check"] == "store_identity"]
        assert (found["level"], store_id[:8] in found["said"]) == (level, True)
    code, out, _ = letopis("doctor")  # told nothing: the default file, which is not there
    assert (code, destination_of(RIGHT) in out) == (Exit.FAILED, True)
    assert not Path("bot.history.db").exists()


def test_verify_names_the_store_that_it_asked_or_could_not_ask(letopis: Any) -> None:
    bot(RIGHT, "one")
    asyncio.run(identity(WRONG))
    code, out, _ = letopis("--store", WRONG, "outbox", "verify")
    assert (code, "bound to history store" in out) == (Exit.FAILED, True)
    assert letopis("--store", RIGHT, "outbox", "verify").code == 0
    code, _, err = letopis("--store", f"postgresql://bot:{SECRET}@127.0.0.1:1/h", "outbox", "verify")
    assert (code, "the history store postgresql://bot:***@127.0.0.1:1/h was not compared" in err) == (0, True)


def test_rebind(letopis: Any) -> None:
    bot(RIGHT, "one", "two")
    fresh, gone = asyncio.run(identity(WRONG)), asyncio.run(identity(RIGHT))
    assert letopis("outbox", "rebind", "--yes").code == Exit.USAGE  # which store?
    code, _, err = letopis("--store", WRONG, "outbox", "rebind")
    assert (code, "3 delivered events will be sent again" in err) == (Exit.USAGE, True)
    assert bound().destination == destination_of(RIGHT)

    code, out, _ = letopis("--store", WRONG, "outbox", "rebind", "--yes", "--json")
    said = json.loads(out)
    assert code == 0
    assert said["store"] == {"id": fresh, "destination": destination_of(WRONG)}
    assert said["before"] == {"id": gone, "destination": destination_of(RIGHT)}
    assert (said["resent"], said["lost"]) == (3, {})
    assert letopis("--store", RIGHT, "relay", "--once").code == Exit.CONFIGURATION
    assert letopis("--store", WRONG, "relay", "--once").code == 0
    assert asyncio.run(texts(WRONG)) == ["one", "two"]


def test_rebind_confirms_a_place_before_the_first_delivery(letopis: Any) -> None:
    bot("one-name.db", "one", relay=False)
    assert letopis("--store", "another.db", "outbox", "rebind", "--yes").code == 0
    bot("one-name.db", relay=False)  # what the bot says decides nothing any more
    assert letopis("--store", "another.db", "relay", "--once").code == 0
    assert asyncio.run(texts("another.db")) == ["one"]


def test_new_identity(letopis: Any) -> None:
    bot(RIGHT, "one")
    before = asyncio.run(identity(RIGHT))
    code, _, err = letopis("--store", RIGHT, "db", "new-identity")
    assert (code, asyncio.run(identity(RIGHT))) == (Exit.USAGE, before), err
    code, out, _ = letopis("--store", RIGHT, "db", "new-identity", "--yes", "--json")
    said = json.loads(out)
    assert (code, said["before"], said["id"]) == (0, before, asyncio.run(identity(RIGHT)))
    bot(RIGHT, "two", relay=False)
    assert letopis("--store", RIGHT, "relay", "--once").code == Exit.CONFIGURATION
    assert asyncio.run(texts(RIGHT)) == ["one"]
