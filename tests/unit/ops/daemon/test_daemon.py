"""The daemon in this process: which files it serves, what it says of them, and when it stops saying that it is well."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from letopis.ops.config.settings import AlertSettings
from letopis.ops.daemon.daemon import Daemon, DaemonSettings
from letopis.ops.daemon.fleet import Fleet
from letopis.ops.daemon.health import FileCondition
from letopis.ops.daemon.http import ListenAddress
from letopis.ops.daemon.outbox_worker import OutboxWorker
from letopis.ops.daemon.systemd import Notifier
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.conversation_store import ConversationStore
from letopis.store.errors import ConfigurationError
from tests.support.relays import say, until


class Told(Notifier):
    """A notifier that keeps what it is to say."""

    def __init__(self, *, watchdog: float | None = None) -> None:
        super().__init__({} if watchdog is None else {"WATCHDOG_USEC": str(round(watchdog * 1_000_000))})
        self.said: list[str] = []

    @property
    def listening(self) -> bool:
        return True

    def _send(self, message: str) -> None:
        self.said.append(message)

    def count(self, word: str) -> int:
        return sum(message.startswith(word) for message in self.said)


@pytest.fixture(autouse=True)
def logging_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon sets logging up for its process: here that would hide records from the tests."""
    monkeypatch.setattr("letopis.ops.daemon.daemon.configure_logging", lambda **_: None)


async def made(path: Path, *conversations: str, messages: int = 2) -> Path:
    """Add pending events to an outbox file that no process has open."""
    outbox = await OutboxFile.open(path)
    for conversation in conversations:
        await say(outbox, conversation, messages)
    await outbox.close()
    return path


@asynccontextmanager
async def running(
    *outboxes: Path | str,
    told: Told | None = None,
    stall: float = 120.0,
    fleet: Fleet | None = None,
    configure: Callable[[], DaemonSettings] | None = None,
    **settings: Any,
) -> AsyncIterator[Daemon]:
    """A daemon that has said READY; stopped in the end."""
    told, found = told or Told(), DaemonSettings(outboxes=tuple(map(str, outboxes)), **settings)
    daemon = Daemon(configure or (lambda: found), notifier=told, scan_interval=0.05, stall_timeout=stall, fleet=fleet)
    task = asyncio.create_task(daemon.run())
    try:
        await until(lambda: told.count("READY") or task.done(), patience=40)
        if task.done():
            task.result()
        yield daemon
    finally:
        daemon.stop()
        done, _ = await asyncio.wait((task,), timeout=40)
        assert done, "the daemon does not end"
    task.result()


@pytest.fixture
async def bot(tmp_path: Path) -> Path:
    return await made(tmp_path / "bot.outbox.db", "c1")


def nothing_pending(daemon: Daemon) -> Callable[[], Any]:
    async def look() -> bool:
        found = [await one.metrics() for one in daemon.workers]
        return bool(found) and all(one.pending == 0 and one.condition is FileCondition.WORKING for one in found)

    return look


async def stored(path: Path) -> int:
    async with ConversationStore.open(path) as store:
        return await store.head()


class TestFiles:
    """Which files are served."""

    async def test_a_pattern_takes_files_in_as_they_come_and_lets_them_go(self, tmp_path: Path) -> None:
        async with running(tmp_path / "*.db", store=str(tmp_path / "all.history.db")) as daemon:
            assert daemon.workers == ()
            path = await made(tmp_path / "late.outbox.db", "c1")
            await until(nothing_pending(daemon))
            assert [served.path.name for served in daemon.workers] == ["late.outbox.db"]
            assert (await daemon.snapshot()).ready

            for name in (path, *tmp_path.glob("late.outbox.db-*")):
                name.unlink()
            await until(lambda: daemon.workers == ())
            delivered = daemon._totals().delivered

        assert delivered == 3, "what a file did is counted when it is gone, too"

    async def test_a_file_that_cannot_be_used_disturbs_no_other(self, tmp_path: Path) -> None:
        """And it is served as soon as it can be."""
        one = await made(tmp_path / "a.outbox.db", "a1")
        late = tmp_path / "late.outbox.db"
        async with running(one, late) as daemon:
            await until(lambda: daemon.workers[0].condition is FileCondition.WORKING)
            shown = await daemon.snapshot()
            assert (shown.files["unusable"], shown.sound) == (1, False)
            assert "there is no outbox" in (daemon.workers[1].problem or "")
            await made(late, "b1")
            await until(nothing_pending(daemon), patience=40)

        assert await stored(tmp_path / "late.history.db") == 3

    async def test_an_outbox_never_delivers_into_itself(self, tmp_path: Path) -> None:
        path = await made(tmp_path / "a.outbox.db", "a1")
        with pytest.raises(ConfigurationError, match="same file"):
            async with running(path, store=str(path)):
                pytest.fail("it delivers into itself")

    async def test_whatever_a_relay_raises_it_is_started_again(
        self, bot: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deliver = OutboxWorker._deliver
        failures = 2

        async def failing(worker: OutboxWorker) -> None:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise RuntimeError("postgresql://bot:hunter2@db/x")
            await deliver(worker)

        monkeypatch.setattr(OutboxWorker, "_deliver", failing)
        async with running(bot) as daemon:
            await until(nothing_pending(daemon), patience=40)

        assert failures < 0


class TestWatchdog:
    """It is fed by progress, and by nothing else."""

    async def test_a_relay_that_hangs_stops_it(self, bot: Path, caplog: pytest.LogCaptureFixture) -> None:
        told = Told(watchdog=0.2)
        hang = asyncio.Event()

        async def hangs(**_: Any) -> Any:
            await hang.wait()

        async with running(bot, told=told, stall=1.5, listen=None) as daemon:
            await until(nothing_pending(daemon))
            relay = daemon.workers[0]._relay
            relay._dispatcher.run_batches = hangs  # type: ignore[method-assign]
            await until(lambda: not daemon.is_live())
            await asyncio.sleep(0.2)
            fed = told.count("WATCHDOG")
            await asyncio.sleep(1)
            starved = told.count("WATCHDOG") == fed
            hang.set()

        assert starved
        assert [record.levelname for record in caplog.records if "watchdog" in record.message] == ["CRITICAL"]

    async def test_a_standby_and_a_file_that_cannot_be_used_do_not_stop_it(self, tmp_path: Path, bot: Path) -> None:
        told = Told(watchdog=0.2)
        async with running(bot), running(bot, tmp_path / "gone.db", told=told, stall=8.0) as standby:
            await asyncio.sleep(1)
            assert [one.condition for one in standby.workers] == [FileCondition.STANDBY, FileCondition.UNUSABLE]
            fed = told.count("WATCHDOG")
            await asyncio.sleep(1)
            assert told.count("WATCHDOG") >= fed + 5


class TestReload:
    """What a reload changes, and what it does not."""

    @asynccontextmanager
    async def served(self, path: Path, told: Told, box: dict[str, Any]) -> AsyncIterator[Daemon]:
        def configure() -> DaemonSettings:
            if "error" in box:
                raise box["error"]
            found: DaemonSettings = box["settings"]
            return found

        box["settings"] = DaemonSettings(outboxes=(str(path),))
        async with running(told=told, configure=configure) as daemon:
            await until(lambda: daemon.workers[0].condition is FileCondition.WORKING)
            yield daemon

    async def test_policy_and_alerts_are_taken_over_without_a_break(self, bot: Path) -> None:
        told, box = Told(), dict[str, Any]()
        async with self.served(bot, told, box) as daemon:
            relay, watch = daemon.workers[0]._relay, daemon.workers[0]._watch
            assert relay is not None and watch is not None
            box["settings"] = replace(
                box["settings"],
                policy=RetryPolicy(attempts=9),
                alerts=AlertSettings(channels=("https://example.org/hook",), language="ru", stuck_after=60.0),
            )
            daemon.reload()
            await until(lambda: told.count("READY") == 2)

            assert daemon.workers[0]._relay is relay
            assert relay.policy.attempts == 9
            assert [channel.name for channel in watch.channels] == ["webhook example.org"]
            assert (watch.locale, watch.rules.stuck_after, watch.rules.watch_relay) == ("ru", 60.0, False)
        order = [one.split("=")[0] for one in told.said if one.startswith(("READY", "RELOADING", "STOPPING"))]
        assert order == ["READY", "RELOADING", "READY", "STOPPING"]

    @pytest.mark.parametrize(
        ("found", "logged"),
        [
            (ConfigurationError("letopis.toml: 'polcy' is not known"), ("ERROR", "left as it was")),
            ("postgresql://x:y@z/h", ("WARNING", "a change of outboxes and store takes a restart")),
        ],
        ids=["a typing error", "what takes a restart"],
    )
    async def test_what_cannot_be_taken_over_changes_nothing_and_is_said(
        self, bot: Path, caplog: pytest.LogCaptureFixture, found: Any, logged: tuple[str, str]
    ) -> None:
        other = await made(bot.with_name("other.outbox.db"), "c1")
        told, box = Told(), dict[str, Any]()
        async with self.served(bot, told, box) as daemon:
            if isinstance(found, str):
                box["settings"] = replace(box["settings"], outboxes=(str(bot), str(other)), store=found)
            else:
                box["error"] = found
            daemon.reload()
            await until(lambda: told.count("READY") == 2)
            await asyncio.sleep(0.3)
            assert [(one.path, one.condition) for one in daemon.workers] == [(bot, FileCondition.WORKING)]
            reported = not isinstance(found, str)
            await until(lambda: any("reload failed" in one for one in told.said) is reported, patience=20)

        level, text = logged
        assert [record.levelname for record in caplog.records if text in record.message] == [level]


async def test_the_lag_of_a_follower_is_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.ops.daemon.daemon.LAG_INTERVAL_SECONDS", 0.05)
    path, store = await made(tmp_path / "bot.outbox.db", "c1", messages=5), tmp_path / "history.db"
    async with running(path, store=str(store), listen=ListenAddress(host="127.0.0.1", port=0)) as daemon:
        await until(nothing_pending(daemon), patience=40)
        async with ConversationStore.open(store) as history:
            batches = history.follower("warehouse", batch=2).batches()
            for _ in range(2):
                assert len(await anext(batches)) == 2
            await batches.aclose()

        async def shown() -> bool:
            daemon._snapshot = None
            return (await daemon.snapshot()).lags == {"follower.warehouse": 4}  # of six; what was not done counts

        await until(shown, patience=40)
