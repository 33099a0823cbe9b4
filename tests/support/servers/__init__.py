"""Find or start real database servers for tests, campaigns and benchmarks."""

from tests.support.servers.base import Server
from tests.support.servers.citus import CitusServer
from tests.support.servers.mariadb import MariaDBServer, OwnMariaDBServer
from tests.support.servers.postgresql import OwnPostgresServer, PostgresServer
from tests.support.servers.processes import ServerUnavailable

__all__ = (
    "CitusServer",
    "MariaDBServer",
    "OwnMariaDBServer",
    "OwnPostgresServer",
    "PostgresServer",
    "Server",
    "ServerUnavailable",
)
