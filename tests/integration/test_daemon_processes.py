"""Daemons in processes of their own, under the signals and kills that they live with."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from letopis.console.hosted import HostedConsoles
from letopis.ops.cli.interface.exit_codes import Exit
from letopis.outbox.file.outbox_file import OutboxFile
from tests.support.daemons import DaemonProcess, Ear, ask, until
from tests.support.platforms import posix_only
from tests.support.relays import say
from tests.support.sqlite_rows import rows

pytestmark = [posix_only("Windows has no POSIX signals"), pytest.mark.usefixtures("elsewhere")]

WEDGED = """
import asyncio, time
import letopis.outbox.alerting.monitor
from letopis.ops.cli import main

async def block(self):
    await asyncio.sleep(3)
    # What a bot's or a library's mistake may do: block the event loop for ever.
    time.sleep(3600)

letopis.outbox.alerting.monitor.AlertMonitor._observe = block
main()
"""


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    found = Ear(tmp_path)
    yield found
    found.close()


def filled(path: Path, conversation: str = "c1", messages: int = 3) -> Path:
    async def fill() -> None:
        outbox = await OutboxFile.open(path)
        await say(outbox, conversation, messages)
        await outbox.close()

    asyncio.run(fill())
    return path


def pending(*paths: Path) -> int:
    count = "SELECT coalesce(sum(head - delivered), 0) FROM letopis_outbox_lanes"
    return sum(int(rows(path, count)[0][0]) for path in paths)


@pytest.mark.slow
def test_it_says_ready_and_how_it_is_and_reads_its_configuration_again_and_stops(tmp_path: Path, ear: Ear) -> None:
    path, toml = filled(tmp_path / "bot.outbox.db"), tmp_path / "letopis.toml"
    toml.write_text('[daemon]\nlog_level = "WARNING"\n')
    with DaemonProcess(folder=tmp_path, NOTIFY_SOCKET=ear.path, WATCHDOG_USEC="1000000") as daemon:
        until(lambda: ear.count("READY=1"), "READY")
        until(lambda: pending(path) == 0, "delivered")
        until(lambda: ear.count("WATCHDOG=1") > 3 and ear.count("STATUS=1 outbox"), "watchdog and status")
        assert daemon.lines == []
        toml.write_text('[daemon]\nlog_level = "INFO"\n')
        daemon.signal(signal.SIGHUP)
        until(lambda: daemon.said("the configuration was read again"), "read again")
        until(lambda: ear.count("READY=1") == 2, "READY again")
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == Exit.OK
    assert ear.last("RELOADING=1") < ear.last("READY=1")
    assert ear.count("STOPPING=1") == 1
    assert daemon.messages()[-1] == "ended: 4 events delivered since the start"
    assert {json.loads(line)["logger"] for line in daemon.lines} == {"letopis.ops.daemon"}


@pytest.mark.parametrize("times", [1, 2])
def test_a_store_that_hangs_holds_up_no_stop_for_longer_than_it_may(tmp_path: Path, ear: Ear, times: int) -> None:
    """Nor does it starve the watchdog."""
    path = filled(tmp_path / "bot.outbox.db")
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        url = f"postgresql://bot@127.0.0.1:{hanging.getsockname()[1]}/h?connect_timeout=600"
        words, manager = ("--stop-timeout", "1" if times == 1 else "600"), {"NOTIFY_SOCKET": ear.path}
        with DaemonProcess("--store", url, *words, folder=tmp_path, **manager, WATCHDOG_USEC="400000") as daemon:
            daemon.works()
            fed = ear.count("WATCHDOG=1")
            until(lambda: ear.count("WATCHDOG=1") > fed + 5, "fed")
            began = time.monotonic()
            for _ in range(times):
                daemon.signal(signal.SIGTERM)
                time.sleep(0.3)

            assert daemon.wait() == Exit.OK
    assert time.monotonic() - began < 25
    assert pending(path) == 4


def test_a_signal_during_the_start_ends_it(tmp_path: Path, ear: Ear) -> None:
    filled(tmp_path / "bot.outbox.db")
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        url = f"postgresql://bot@127.0.0.1:{hanging.getsockname()[1]}/h?connect_timeout=600"
        with DaemonProcess("--store", url, folder=tmp_path, NOTIFY_SOCKET=ear.path) as daemon:
            hanging.settimeout(60)
            peer, _ = hanging.accept()
            daemon.signal(signal.SIGINT)

            assert daemon.wait() == Exit.OK
            peer.close()
    assert ear.count("READY=1") == 0


def test_a_standby_takes_over_within_two_seconds_of_a_kill(tmp_path: Path) -> None:
    """A daemon with two files on one store moves both."""
    paths = [filled(tmp_path / name) for name in ("a.outbox.db", "b.outbox.db")]
    arguments = ("--outbox", str(tmp_path / "*.outbox.db"), "--store", str(tmp_path / "history.db"))
    with DaemonProcess(*arguments, folder=tmp_path) as first, DaemonProcess(*arguments, folder=tmp_path) as second:
        until(lambda: all(pending(path) == 0 for path in paths), "delivered")

        def holders() -> set[int]:
            return {rows(path, "SELECT pid FROM letopis_outbox_relay")[0][0] for path in paths}

        until(lambda: holders() <= {first.pid, second.pid}, "held")
        until(lambda: any(one.said("stands by") for one in (first, second)), "a standby")
        # The daemon that holds the first file is killed; either may hold the second.
        holder = rows(paths[0], "SELECT pid FROM letopis_outbox_relay")[0][0]
        victim, heir = (first, second) if holder == first.pid else (second, first)
        victim.signal(signal.SIGKILL)
        began = time.monotonic()
        until(lambda: holders() == {heir.pid}, "taken over")
        taken = time.monotonic() - began
        for path in paths:
            filled(path, messages=1)
        until(lambda: all(pending(path) == 0 for path in paths), "delivered by the heir")
        heir.end()
        assert victim.wait() == -signal.SIGKILL
    assert taken < 2
    assert rows(tmp_path / "history.db", "SELECT count(*) FROM letopis_events") == [(10,)]


def test_a_wedged_event_loop_feeds_the_watchdog_no_more(tmp_path: Path, ear: Ear) -> None:
    filled(tmp_path / "bot.outbox.db")
    with DaemonProcess(folder=tmp_path, code=WEDGED, NOTIFY_SOCKET=ear.path, WATCHDOG_USEC="400000"):
        until(lambda: ear.count("WATCHDOG=1") > 3, "fed at first")
        time.sleep(4)
        fed = ear.count("WATCHDOG=1")
        time.sleep(2)

        assert ear.count("WATCHDOG=1") == fed


def test_health_and_metrics_are_answered(tmp_path: Path, letopis: Any) -> None:
    path = filled(tmp_path / "bot.outbox.db")
    with DaemonProcess("--listen", "0", folder=tmp_path) as daemon:
        port = daemon.port()
        until(lambda: pending(path) == 0 and ask(port, "/healthz/ready")[0] == 200, "ready")
        until(lambda: "\nletopis_relay_delivered_events_total 4.0\n" in ask(port, "/metrics")[1], "counted")
        families = parse(ask(port, "/metrics")[1])
        found = {sample.name: sample.value for family in families for sample in family.samples}
        assert found["letopis_outbox_pending_events"] == 0
        assert abs(found["letopis_relay_last_progress_timestamp_seconds"] - time.time()) < 60
        assert found["process_open_fds"] > 3
        assert ask(port, "/healthz/live")[0] == 200
        healthy = [letopis("healthcheck", *more) for more in ((), ("--listen", str(port)))]
        daemon.end()
    unhealthy = [letopis("healthcheck", *more) for more in ((), ("--listen", str(port)))]

    assert [(done.code, done.out, done.err) for done in healthy] == [(0, "", "")] * 2
    assert [done.code for done in unhealthy] == [Exit.FAILED] * 2
    assert "no relay runs on 'bot.outbox.db'" in unhealthy[0].err
    assert "no answer from 127.0.0.1" in unhealthy[1].err
    # A container's health check may end with nothing else but 0 and 1.
    (tmp_path / "letopis.toml").write_text("[nonsense]\n")
    assert letopis("healthcheck").code == 1


def test_once_serves_several_and_ends_with_the_worst(tmp_path: Path, letopis: Any) -> None:
    paths = [filled(tmp_path / name) for name in ("a.outbox.db", "b.outbox.db")]
    store = ("--store", str(tmp_path / "history.db"))

    fine = letopis("relay", "--once", "--outbox", str(tmp_path / "*.outbox.db"), *store)
    worse = letopis("relay", "--once", *(f"--outbox={path}" for path in paths), *store[:1], "/no/such/dir/h.db")
    nothing = letopis("relay", "--once", "--outbox", str(tmp_path / "*.none"))

    assert (fine.code, fine.err.count("4 delivered, 0 left")) == (Exit.OK, 2)
    assert worse.code == Exit.CONFIGURATION
    assert nothing.code == Exit.NOTHING


def test_drain_waits_for_the_relay_that_works_and_says_what_is_left(tmp_path: Path, letopis: Any) -> None:
    path = filled(tmp_path / "bot.outbox.db")
    store = ("--store", "history.sqlite")
    letopis("pause")
    with DaemonProcess(*store, folder=tmp_path) as daemon:
        daemon.works()
        left, once = (letopis("relay", *how, *store) for how in (["--drain", "2"], ["--once"]))
        still = pending(path)
        with DaemonProcess("--drain", "120", *store, folder=tmp_path) as drain:
            letopis("resume")
            ended = drain.wait()
        daemon.end()
    drained = pending(path)
    filled(path, messages=1)
    alone = letopis("relay", "--drain", "60", *store)  # it delivers itself where no relay runs

    assert (left.code, once.code, still) == (Exit.LATER, Exit.LATER, 4)
    assert "another relay runs on this outbox" in left.err
    assert (ended, drained) == (Exit.OK, 0)
    assert (alone.code, pending(path)) == (Exit.OK, 0)


def test_outboxes_that_cannot_be_opened_are_told_and_stop_no_other(tmp_path: Path, letopis: Any) -> None:
    """One with a damaged page, one that was cut to nothing; and two files that are no outbox."""
    fine = filled(tmp_path / "fine.db")
    damaged, cut = filled(tmp_path / "damaged.db"), filled(tmp_path / "cut.outbox.db")
    with damaged.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3_000)
    cut.write_bytes(b"")
    (tmp_path / "text.db").write_text("not a database")
    (tmp_path / "empty.db").write_bytes(b"")
    pattern = ("--outbox", str(tmp_path / "*.db"))
    health: dict[str, Any] = {}

    def told() -> bool:
        health.update(json.loads(ask(daemon.port(), "/healthz/ready")[1]))
        logged = daemon.said("'damaged.db' cannot be used") and daemon.said("'cut.outbox.db' cannot be used")
        return bool(logged and health["outboxes"]["unusable"] == 2)

    with DaemonProcess(*pattern, "--store", "history.sqlite", "--listen", "0", folder=tmp_path) as daemon:
        until(lambda: pending(fine) == 0, "delivered from the third")
        until(told, "two unusable files")
        checked = letopis("healthcheck", *pattern)
        daemon.end()
    filled(fine, "c2", 1)
    once = letopis("relay", "--once", *pattern, "--store", "history.sqlite")

    assert (health["ready"], health["degraded"], sum(health["outboxes"].values())) == (True, True, 3)
    assert checked.code == Exit.FAILED
    assert "cut.outbox.db" in checked.err
    assert once.code not in (Exit.OK, Exit.NOTHING)
    assert "cut.outbox.db" in once.err and "damaged.db" in once.err
    assert pending(fine) == 0
    assert rows(cut, "SELECT count(*) FROM sqlite_schema") == [(0,)]
    consoles: Any = SimpleNamespace(_outboxes=pattern[1:])
    assert set(HostedConsoles.named(consoles)) == {"fine.db", "damaged.db", "cut.outbox.db"}
