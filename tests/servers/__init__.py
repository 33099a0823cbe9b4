"""Real database servers for tests, campaigns and benchmarks: found if one answers, else started."""

from __future__ import annotations

from tests.servers.base import Server, ServerUnavailable
from tests.servers.mariadb import MariaDBServer, OwnMariaDBServer
from tests.servers.postgresql import OwnPostgresServer, PostgresServer

__all__ = (
    "MariaDBServer",
    "OwnMariaDBServer",
    "OwnPostgresServer",
    "PostgresServer",
    "Server",
    "ServerUnavailable",
)
