"""The launchers that every other test stands on: found or own servers, restart, crash, death with the parent."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.daemons import until
from tests.support.paths import ROOT
from tests.support.platforms import linux_only
from tests.support.required import missing
from tests.support.servers import (
    MariaDBServer,
    OwnMariaDBServer,
    OwnPostgresServer,
    PostgresServer,
    ServerUnavailable,
    mariadb,
    postgresql,
)
from tests.support.servers.processes import free_port


def own(kind: str) -> OwnPostgresServer | OwnMariaDBServer:
    """An own server, not yet started; without its program a skip, or a failure where it is required."""
    try:
        return PostgresServer.own() if kind == "postgresql" else MariaDBServer.own()
    except ServerUnavailable as exc:
        missing(kind, exc)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_an_own_server_outlives_the_thread_that_started_it(kind: str) -> None:
    server = own(kind)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    with server:
        time.sleep(0.3)

        assert server.running


@linux_only("only Linux has the parent-death signal")
@pytest.mark.parametrize("kind", ["PostgresServer", "MariaDBServer"])
def test_an_own_server_dies_with_a_killed_parent(kind: str) -> None:
    own("postgresql" if kind == "PostgresServer" else "mariadb")
    code = (
        f"import time; from tests.support.servers import {kind}\n"
        f"server = {kind}.own().start(); print(server.pid, server.log.parent, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        assert psutil.pid_exists(int(pid))

        parent.kill()

    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(pid)).wait(timeout=20)
    assert not psutil.pid_exists(int(pid))
    shutil.rmtree(folder)


def test_the_maintenance_database_is_never_dropped(postgresql_server: PostgresServer) -> None:
    with pytest.raises(ValueError, match="not a database of a test run"):
        postgresql_server.drop_database(postgresql_server.url)


@pytest.mark.parametrize(
    ("variable", "find", "scheme"),
    [
        (postgresql.ENVIRONMENT, PostgresServer.find, "postgresql"),
        (mariadb.ENVIRONMENT, MariaDBServer.find, "mysql"),
    ],
)
def test_a_named_server_that_does_not_answer_is_said_and_not_replaced(
    variable: str, find: Callable[[], object], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"{scheme}://someone@127.0.0.1:{free_port()}/x")

    with pytest.raises(ServerUnavailable, match=variable):
        find()


def test_without_a_local_server_postgresql_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(postgresql.ENVIRONMENT, raising=False)
    monkeypatch.setattr(PostgresServer, "local", PostgresServer.local.set(port=free_port()))
    try:
        found = PostgresServer.find()
    except ServerUnavailable as exc:
        missing("postgresql", exc)

    with found as server:
        assert isinstance(server, OwnPostgresServer)
        assert server.version()
        folder = server.log.parent
    assert not Path(folder).exists()


INTERRUPTED = """
import os, threading
import pytest
from pathlib import Path

@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_it(kind, request, new_store_url):
    pool = request.getfixturevalue(f"{kind}_stores")
    Path(__file__).with_name(kind).write_text(" ".join((pool.take(), new_store_url(kind))))
    threading.Event().wait(600)
"""


@pytest.mark.slow
@linux_only("it signals a group of processes")
def test_an_interrupted_run_leaves_no_database(
    postgresql_server: PostgresServer, mariadb_server: MariaDBServer, tmp_path: Path
) -> None:
    (tmp_path / "test_some.py").write_text(INTERRUPTED)
    arguments = ("-p", "tests.conftest", "-p", "no:cacheprovider", "-n", "2", f"--rootdir={tmp_path}")
    command = (sys.executable, "-m", "pytest", *arguments, str(tmp_path / "test_some.py"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    marks = [tmp_path / "postgresql", tmp_path / "mariadb"]
    until(lambda: run.poll() is not None or all(mark.exists() and mark.read_text() for mark in marks), "it runs")
    made = [url for mark in marks for url in mark.read_text().split()]
    there = set(postgresql_server.databases("letopis")) | set(mariadb_server.databases("letopis"))
    assert len(made) == 4
    assert set(made) <= there

    os.killpg(run.pid, signal.SIGINT)

    assert run.wait(120) != 0
    left = set(postgresql_server.databases("letopis")) | set(mariadb_server.databases("letopis"))
    assert not left & set(made)
