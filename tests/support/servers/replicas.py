"""Run two servers of which one replicates the other; the primary can be stopped and the replica promoted."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy.engine import make_url

from tests.support.daemons import until
from tests.support.servers.mariadb import MariaDBServer
from tests.support.servers.postgresql import OwnPostgresServer, PostgresServer
from tests.support.servers.processes import ServerUnavailable

SECONDS = 20.0  # for a replica to catch up


class Pair(ABC):
    """A primary and its replica.

    :cvar promotes: statements that make the replica writable.
    :cvar demotes: statements that make the primary refuse writes, on the connections that it has as well.
    """

    promotes: ClassVar[tuple[str, ...]]
    demotes: ClassVar[tuple[str, ...]]
    user = "postgres"

    def __init__(self, primary: Any, replica: Any) -> None:
        self.primary, self.replica = primary, replica
        url = make_url(primary.create_database())
        hosts = f"127.0.0.1:{url.port},127.0.0.1:{replica.port}"
        self.url = f"{url.drivername}://{self.user}@{hosts}/{url.database}"
        self.settle()

    @classmethod
    @contextmanager
    def of(cls, primary: Any, replica: Any) -> Iterator[Any]:
        try:
            yield cls(primary, replica)
        finally:
            signal_all(primary.pid, signal.SIGCONT)

    def freeze(self) -> None:
        """Stop the primary with SIGSTOP, all its processes: the kernel keeps accepting connections for it."""
        signal_all(self.primary.pid, signal.SIGSTOP)

    def kill(self) -> None:
        self.primary.kill()

    def promote(self) -> None:
        for statement in self.promotes:
            self.replica.execute(statement)

    def demote(self) -> None:
        for statement in self.demotes:
            self.primary.execute(statement)
        time.sleep(0.3)  # each session of PostgreSQL rereads its configuration before its next statement

    @abstractmethod
    def settle(self) -> None:
        """Wait until the replica holds what the primary holds."""


class Replica(OwnPostgresServer):
    """A streaming replica, made by ``pg_basebackup`` from a server that runs."""

    def __init__(self, primary: OwnPostgresServer, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(settings=settings)
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

    promotes = ("SELECT pg_promote(true, 20)",)
    demotes = ("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")

    @classmethod
    @contextmanager
    def running(cls, *, synchronous: bool = True) -> Iterator[PostgresPair]:
        with PostgresServer.own() as primary, Replica(primary) as replica:
            if synchronous:
                primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                primary.execute("SELECT pg_reload_conf()")
            with cls.of(primary, replica) as pair:
                yield pair

    def kill(self) -> None:
        self.primary.stop("immediate")

    def detach(self) -> None:
        """End the replication: the replica stays as it is."""
        self.replica.execute("ALTER SYSTEM SET primary_conninfo = ''")
        self.replica.execute("SELECT pg_reload_conf()")
        until(lambda: not self.primary.rows("SELECT 1 FROM pg_stat_replication"), "detached")

    def settle(self) -> None:
        # A synchronous replica holds what was committed, and shows it a moment later.
        [(position,)] = self.primary.rows("SELECT pg_current_wal_lsn()::text")
        reached = f"SELECT 1 WHERE pg_last_wal_replay_lsn() >= '{position}'"
        until(lambda: self.replica.rows(reached), "the replica catches up", patience=SECONDS)


class MariaDBPair(Pair):
    """A MariaDB primary and an asynchronous replica that is read-only."""

    promotes = ("STOP SLAVE", "SET GLOBAL read_only = 0")
    demotes = ("SET GLOBAL read_only = 1",)
    user = "bot"  # a root login has READ ONLY ADMIN, before which read_only gives way

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[MariaDBPair]:
        primary = MariaDBServer.own(settings={"log-bin": "binlog", "server-id": "1"})
        replica = MariaDBServer.own(settings={"log-bin": "binlog", "server-id": "2", "read-only": "1"})
        with primary, replica:
            source = f"master_host='127.0.0.1', master_port={primary.port}, master_user='root'"
            replica.execute(f"CHANGE MASTER TO {source}, master_use_gtid=slave_pos")
            replica.execute("START SLAVE")
            primary.execute("CREATE USER bot@'127.0.0.1'")
            rights = "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP"
            primary.execute(f"GRANT {rights} ON *.* TO bot@'127.0.0.1'")
            with cls.of(primary, replica) as pair:
                yield pair

    def settle(self) -> None:
        [(position,)] = self.primary.rows("SELECT @@gtid_binlog_pos")
        [(found,)] = self.replica.rows(f"SELECT MASTER_GTID_WAIT('{position}', {SECONDS:g})")
        if found != 0:
            raise ServerUnavailable("the replica did not catch up")


def signal_all(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, how)
    time.sleep(0.05)
