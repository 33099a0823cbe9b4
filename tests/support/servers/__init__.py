"""Find or start real database servers for tests, campaigns and benchmarks."""

from tests.support.servers.base import Server, ServerUnavailable
from tests.support.servers.mariadb import MariaDBServer, OwnMariaDBServer
from tests.support.servers.postgresql import OwnPostgresServer, PostgresServer

__all__ = ("MariaDBServer", "OwnMariaDBServer", "OwnPostgresServer", "PostgresServer", "Server", "ServerUnavailable")
