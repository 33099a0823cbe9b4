"""Run two servers of which one replicates the other; the primary can be stopped and the replica promoted."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from tests.support.daemons import until
from tests.support.servers.base import ServerUnavailable
from tests.support.servers.mariadb import MariaDBServer
from tests.support.servers.postgresql import OwnPostgresServer, PostgresServer

SECONDS = 20.0  # for a replica to catch up


class Pair(ABC):
    """A primary and its replica."""

    def __init__(self, primary: Any, replica: Any) -> None:
        self.primary = primary
        self.replica = replica
        self.url = _both(primary.create_database(), replica)
        self.settle()

    def freeze(self) -> None:
        """Stop the primary with SIGSTOP, all its processes: the kernel keeps accepting connections for it."""
        signal_all(self.primary.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Crash the primary."""
        self.primary.kill()

    @abstractmethod
    def promote(self) -> None:
        """Make the replica writable; return when it is."""

    @abstractmethod
    def demote(self) -> None:
        """Make the primary refuse writes, on the connections that it has as well."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until the replica holds what the primary holds."""


class _Replica(OwnPostgresServer):
    """A streaming replica, made by ``pg_basebackup`` from a server that runs."""

    def __init__(self, primary: OwnPostgresServer) -> None:
        super().__init__()
        self._primary = primary

    def _installation(self) -> list[str]:
        program = self._binaries / "pg_basebackup"
        if not program.exists():
            raise ServerUnavailable("pg_basebackup was not found: install the programs of a PostgreSQL server")
        source = f"host=127.0.0.1 port={self._primary.port} user=postgres"
        options = ("-d", source, "-D", str(self.data), "-R", "-X", "stream", "-c", "fast")
        return [*self._launcher, str(program), *options]


class PostgresPair(Pair):
    """A PostgreSQL primary and its streaming replica; if synchronous, a commit is acknowledged when both hold it."""

    @classmethod
    @contextlib.contextmanager
    def running(cls, *, synchronous: bool = True) -> Iterator[PostgresPair]:
        with PostgresServer.own() as primary, _Replica(primary) as replica:
            if synchronous:
                primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                primary.execute("SELECT pg_reload_conf()")
            try:
                yield cls(primary, replica)
            finally:
                signal_all(primary.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.primary.stop("immediate")

    def promote(self) -> None:
        self.replica.execute("SELECT pg_promote(true, 20)")

    def demote(self) -> None:
        self.primary.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        self.primary.execute("SELECT pg_reload_conf()")
        time.sleep(0.3)  # each session rereads its configuration before its next statement

    def detach(self) -> None:
        """End the replication: the replica stays as it is."""
        self.replica.execute("ALTER SYSTEM SET primary_conninfo = ''")
        self.replica.execute("SELECT pg_reload_conf()")
        until(lambda: not self.primary._run("fetchval", "SELECT count(*) FROM pg_stat_replication"), "detached")

    def settle(self) -> None:
        # A synchronous replica holds what was committed, and shows it a moment later.
        position = self.primary._run("fetchval", "SELECT pg_current_wal_lsn()::text")
        deadline = time.monotonic() + SECONDS
        while not self.replica._run("fetchval", "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position):
            if time.monotonic() > deadline:
                raise ServerUnavailable("the replica did not catch up")
            time.sleep(0.02)


class MariaDBPair(Pair):
    """A MariaDB primary and an asynchronous replica that is read-only."""

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[MariaDBPair]:
        # A root login has READ ONLY ADMIN, before which read_only gives way: the bot's user has not.
        primary = MariaDBServer.own(settings={"log-bin": "binlog", "server-id": "1"})
        replica = MariaDBServer.own(settings={"log-bin": "binlog", "server-id": "2", "read-only": "1"})
        with primary, replica:
            replica.execute(
                f"CHANGE MASTER TO master_host='127.0.0.1', master_port={primary.port}, master_user='root',"
                " master_use_gtid=slave_pos"
            )
            replica.execute("START SLAVE")
            primary.execute("CREATE USER bot@'127.0.0.1'")
            primary.execute(
                "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP ON *.* TO bot@'127.0.0.1'"
            )
            try:
                yield cls(primary, replica)
            finally:
                signal_all(primary.pid, signal.SIGCONT)

    def promote(self) -> None:
        self.replica.execute("STOP SLAVE")
        self.replica.execute("SET GLOBAL read_only = 0")

    def demote(self) -> None:
        self.primary.execute("SET GLOBAL read_only = 1")

    def settle(self) -> None:
        position = self.primary._run("SELECT @@gtid_binlog_pos")[0][0]
        found = self.replica._run(f"SELECT MASTER_GTID_WAIT('{position}', {SECONDS:g})")[0][0]
        if found != 0:
            raise ServerUnavailable("the replica did not catch up")


def _both(url: str, replica: PostgresServer | MariaDBServer) -> str:
    parsed = make_url(url)
    user = "bot" if parsed.drivername == "mysql" else parsed.username
    return f"{parsed.drivername}://{user}@127.0.0.1:{parsed.port},127.0.0.1:{replica.port}/{parsed.database}"


def signal_all(pid: int, how: signal.Signals) -> None:
    """Send a signal to a process and its children."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, how)
    time.sleep(0.05)
