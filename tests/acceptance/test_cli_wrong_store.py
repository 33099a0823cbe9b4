"""The wrong store as an operator meets it: relay, daemon, status, doctor, rebind and new-identity."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.cli.interface.exit_codes import Exit
from letopis.outbox.daemon.daemon import Daemon, DaemonSettings
from letopis.outbox.daemon.health import FileCondition
from letopis.outbox.daemon.http import HealthApp
from letopis.outbox.event_log.bound_store import StoreBinding, read_binding
from letopis.outbox.file.opening import read_snapshot
from letopis.outbox.history.history import History
from letopis.outbox.relay.store_binding import destination_of
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.model.messages import Message
from tests.support.fix_command import talk
from tests.support.relays import end, until

KINDS = ("sqlite", "postgresql")  # a file and a server; tests/integration/test_wrong_store.py has all three
SECRET = "hunter2-correct-horse"
WRONG = "another history store than this outbox's"


@pytest.fixture(autouse=True)
def nothing_set_up(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in an empty folder; a command leaves the logging of this process alone."""
    monkeypatch.setattr("letopis.outbox.daemon.daemon.configure_logging", lambda **_: None)


@pytest.fixture(params=KINDS)
def urls(request: pytest.FixtureRequest, new_store_url: Callable[[str], str]) -> tuple[str, str]:
    """Two stores of one kind, with their tables."""
    made = new_store_url(request.param), new_store_url(request.param)
    for url in made:
        assert asyncio.run(texts(url)) == []
    return made


async def texts(url: str, conversation_id: str = "c") -> list[str]:
    async with ConversationStore.open(url, migrate=True) as store:
        return [one.text for one in await store.messages(conversation_id, last=200)]


def bot(store: str | None, *said: str, relay: bool = True, path: str = "bot.outbox.db") -> None:
    """A bot that says something and ends; with its own relay all of it is delivered."""
    talk(*said, conversation="c", owner=None, path=path, store=store, deliver=relay)


def bound(path: str = "bot.outbox.db") -> StoreBinding:
    return asyncio.run(read_snapshot(path, read_binding))


class TestRelay:
    """A relay that was given another store than the bot."""

    def test_the_place_that_the_bot_named_decides_and_then_the_identity(
        self, letopis: Any, urls: tuple[str, str]
    ) -> None:
        """The hole: told nothing, it delivered everything into a new file beside the outbox, and ended with 0."""
        right, wrong = urls
        default = str(Path("bot.history.db").absolute())
        bot(right, "one", relay=False)
        for delivered in (False, True):
            for arguments, other in (((), default), (("--store", wrong), wrong)):
                code, _, err = letopis(*arguments, "relay", "--once")
                assert code == Exit.CONFIGURATION, err
                named = ("bound", "rebind") if delivered else (destination_of(right), destination_of(other))
                assert all(name in err for name in named), err
            if not delivered:
                assert bound() == StoreBinding(destination=destination_of(right))
                bot(right, "two")
                bot(right, "three", "four", relay=False)
        assert not Path("bot.history.db").exists()
        assert asyncio.run(texts(wrong)) == []
        code, out, _ = letopis("status")
        assert "2 events are pending" in out

        code, _, err = letopis("--store", right, "relay", "--once")
        assert (code, "2 delivered, 0 left" in err) == (0, True), err
        assert asyncio.run(texts(right)) == ["one", "two", "three", "four"]

    def test_the_daemon_ends_where_all_are_wrong(self, urls: tuple[str, str]) -> None:
        right, wrong = urls
        bot(right, "one")
        bot(right, "two", relay=False)

        async def serve() -> None:
            with pytest.raises(StoreFault) as found:
                async with asyncio.timeout(60):
                    await Daemon(lambda: DaemonSettings(outboxes=("bot.outbox.db",), store=wrong)).run()
            assert found.value.fault_class is FaultClass.WRONG_STORE

        asyncio.run(serve())
        assert asyncio.run(texts(wrong)) == []

    def test_the_daemon_serves_the_others(self, urls: tuple[str, str]) -> None:
        right, wrong = urls
        bot(right, "one")
        bot(right, "two", relay=False)
        bot(wrong, "other", relay=False, path="other.outbox.db")

        async def serve() -> None:
            daemon = Daemon(lambda: DaemonSettings(outboxes=("bot.outbox.db", "other.outbox.db"), store=wrong))
            task = asyncio.create_task(daemon.run())
            try:

                async def found() -> bool:
                    conditions = [one.condition for one in daemon.workers]
                    return conditions == [FileCondition.WRONG_STORE, FileCondition.WORKING] and (
                        await texts(wrong) == ["other"]
                    )

                await until(found, patience=60)
                await asyncio.sleep(1.1)  # figures are at most a second old
                answers = HealthApp(live=daemon.is_live, snapshot=daemon.snapshot)
                status, _, body = await answers._answer({"path": "/healthz/ready", "method": "GET"})
                said = json.loads(body)
                assert (status, said["ready"]) == (503, False)
                assert said["outboxes"]["wrong_store"] == 1
                assert [(one["outbox"], one["condition"], one["store"]) for one in said["delivering"]] == [
                    ("bot.outbox.db", "wrong_store", destination_of(right)),
                    ("other.outbox.db", "working", destination_of(wrong)),
                ]
            finally:
                await end(task)

        asyncio.run(serve())
        assert asyncio.run(texts(right)) == ["one"]

    def test_operators_are_told_at_once(self, letopis: Any, urls: tuple[str, str]) -> None:
        right, wrong = urls
        bot(right, "one")

        async def talk() -> None:
            async with History("bot.outbox.db", store=wrong) as history:

                async def told() -> bool:
                    status = await history.status()
                    return any(one.kind == "store_down" and one.state != "pending" for one in status.incidents)

                await history.append("c", Message.user("two"))
                await until(told, patience=10)

        asyncio.run(talk())
        code, out, _ = letopis("status", "--check")
        assert code == Exit.FAILED
        assert WRONG in out


class TestNaming:
    """Which outbox, and which store; never a secret."""

    def test_status_and_doctor(self, letopis: Any, urls: tuple[str, str]) -> None:
        right, wrong = urls
        bot(right, "one", relay=False)
        said = json.loads(letopis("status", "--json")[1])
        assert said["store"] == {"id": None, "destination": destination_of(right)}
        code, out, _ = letopis("--store", wrong, "doctor")
        assert (code, "FAIL" in out.upper(), destination_of(right) in out) == (1, True, True)

        bot(right, "two")
        said = json.loads(letopis("status", "--json")[1])
        store_id = asyncio.run(identity(right))
        assert said["store"] == {"id": store_id, "destination": destination_of(right)}
        assert len(said["outbox_id"]) == 36
        out = letopis("status")[1]
        assert f"{destination_of(right)} ({store_id[:8]})" in out
        assert said["outbox_id"][:8] in out

        for arguments, level in ((("--store", right), "ok"), (("--store", wrong), "fail")):
            checks = json.loads(letopis(*arguments, "doctor", "--json")[1])["checks"]
            [found] = [one for one in checks if one["check"] == "store_identity"]
            assert found["level"] == level
            assert store_id[:8] in found["said"]
        code, out, _ = letopis("doctor")  # told nothing: the default file, which is not there
        assert code == Exit.FAILED
        assert destination_of(right) in out
        assert not Path("bot.history.db").exists()

    def test_no_secret_is_kept_or_shown(self, letopis: Any) -> None:
        bot(f"postgresql://bot:{SECRET}@nowhere.invalid/h?sslmode=require", "one", relay=False)
        relay = ("relay", "--once")
        elsewhere = ("--store", f"mysql://bot:{SECRET}@elsewhere.invalid/h", *relay)
        doctor = ("--store", f"mysql://bot:{SECRET}@127.0.0.1:1/h", "doctor")
        shown = str([letopis(*words) for words in (("status",), ("status", "--json"), elsewhere, doctor, relay)])
        assert "nowhere.invalid" in shown
        assert SECRET not in shown
        assert SECRET.encode() not in b"".join(one.read_bytes() for one in Path().glob("bot.outbox.db*"))

    def test_verify_says_that_it_asked_another_store(self, letopis: Any, urls: tuple[str, str]) -> None:
        right, wrong = urls
        bot(right, "one")
        code, out, _ = letopis("--store", wrong, "outbox", "verify")
        assert code == Exit.FAILED
        assert "bound to history store" in out
        assert letopis("--store", right, "outbox", "verify")[0] == 0

    def test_verify_names_the_store_that_it_could_not_ask(self, letopis: Any) -> None:
        bot(f"sqlite:///{Path('history.db').absolute()}", "one")
        for arguments, asked in (
            ((), destination_of(f"sqlite:///{Path('bot.history.db').absolute()}")),
            (("--store", f"postgresql://bot:{SECRET}@127.0.0.1:1/h"), "postgresql://bot:***@127.0.0.1:1/h"),
        ):
            code, out, err = letopis(*arguments, "outbox", "verify")
            assert code == 0
            assert f"the history store {asked} was not compared" in err
            assert "--store" in err
            assert SECRET not in out + err


async def identity(url: str) -> str:
    async with ConversationStore.open(url) as store:
        return str((await store.identity()).store_id)


class TestVerbs:
    """rebind and new-identity."""

    def test_rebind(self, letopis: Any, urls: tuple[str, str]) -> None:
        gone, fresh = urls
        bot(gone, "one", "two")
        assert letopis("outbox", "rebind", "--yes")[0] == Exit.USAGE  # which store?
        code, _, err = letopis("--store", fresh, "outbox", "rebind")
        assert code == Exit.USAGE
        assert "3 delivered events will be sent again" in err
        assert bound().destination == destination_of(gone)

        code, out, _ = letopis("--store", fresh, "outbox", "rebind", "--yes", "--json")
        said = json.loads(out)
        assert code == 0
        assert said["store"] == {"id": asyncio.run(identity(fresh)), "destination": destination_of(fresh)}
        assert said["before"] == {"id": asyncio.run(identity(gone)), "destination": destination_of(gone)}
        assert (said["resent"], said["lost"]) == (3, {})
        assert letopis("--store", gone, "relay", "--once")[0] == Exit.CONFIGURATION
        assert letopis("--store", fresh, "relay", "--once")[0] == 0
        assert asyncio.run(texts(fresh)) == ["one", "two"]

    def test_rebind_confirms_a_place_before_the_first_delivery(self, letopis: Any) -> None:
        bot("one-name.db", "one", relay=False)
        assert letopis("--store", "another.db", "relay", "--once")[0] == Exit.CONFIGURATION
        assert letopis("--store", "another.db", "outbox", "rebind", "--yes")[0] == 0
        bot("one-name.db", relay=False)  # what the bot says decides nothing any more
        assert letopis("--store", "another.db", "relay", "--once")[0] == 0
        assert asyncio.run(texts("another.db")) == ["one"]

    def test_new_identity(self, letopis: Any, urls: tuple[str, str]) -> None:
        copy = urls[0]
        bot(copy, "one")
        before = asyncio.run(identity(copy))
        code, _, err = letopis("--store", copy, "db", "new-identity")
        assert (code, asyncio.run(identity(copy))) == (Exit.USAGE, before), err
        code, out, _ = letopis("--store", copy, "db", "new-identity", "--yes", "--json")
        said = json.loads(out)
        assert (code, said["before"], said["id"]) == (0, before, asyncio.run(identity(copy)))
        bot(copy, "two", relay=False)
        assert letopis("--store", copy, "relay", "--once")[0] == Exit.CONFIGURATION
        assert asyncio.run(texts(copy)) == ["one"]
