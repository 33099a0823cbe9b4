"""Take the Citus cluster that the environment names: no package has one, so none is started."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from letopis import ConversationStore
from letopis.store.database.schema import metadata
from tests.support.servers.postgresql import PostgresServer, over
from tests.support.servers.processes import ServerUnavailable
from tests.support.servers.store_pool import PostgresPool, Rows, insert_rows

ENVIRONMENT: Final = "LETOPIS_TEST_CITUS"
SCRIPT: Final = Path(__file__).parents[3] / "docs/explanation/distribute.sql"
PARTITIONS: Final = 16
SHARDS: Final = 4
Host = tuple[str, int]
_EXISTS: Final = "SELECT 1 FROM pg_database WHERE datname = $1"
_HOSTS: Final = "SELECT nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid"


class CitusServer(PostgresServer):
    """The coordinator of a cluster: the hosts that its own database knows get the databases of the tests."""

    environment = ENVIRONMENT

    @classmethod
    def find(cls) -> Self:
        if not os.environ.get(ENVIRONMENT):
            raise ServerUnavailable(f"set {ENVIRONMENT} to the URL of a coordinator's database that knows its workers")
        server = cls.running()
        if server is None or not server.hosts():
            raise ServerUnavailable(f"the database of {ENVIRONMENT} knows no workers")
        return server

    def hosts(self) -> list[Host]:
        """Return the coordinator and the workers."""
        return [(row[0], row[1]) for row in self.rows(_HOSTS)]

    def move_partition(self, database: str, partition: int) -> None:
        """Have another worker take over the shard of a partition."""

        async def work(connection: Any) -> None:
            shard = "get_shard_id_for_distribution_column('letopis_lanes', $1::integer)"
            placed = f"SELECT shardid, nodename, nodeport FROM citus_shards WHERE shardid = {shard}"
            number, *place = await connection.fetchrow(placed, partition)
            other = next(host for host in self.hosts()[1:] if host != tuple(place))
            move = "SELECT citus_move_shard_placement($1, $2, $3, $4, $5, 'block_writes')"
            await connection.execute(move, number, *place, *other)

        over(self.database_url(database), work)

    def _create_database(self, name: str) -> None:
        add_hosts(name, self.hosts())

    def _drop_database(self, name: str) -> None:
        for host in self.hosts():
            over(
                url_of(host, "postgres"),
                lambda connection: connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'),
            )


def add_hosts(database: str, hosts: Sequence[Host]) -> None:
    """Create a database on hosts that lack it, and add all but the first, the coordinator, as workers."""
    for host in hosts:
        if not over(url_of(host, "postgres"), lambda connection: connection.fetch(_EXISTS, database)):
            over(
                url_of(host, "postgres"),
                lambda connection: connection.execute(f'CREATE DATABASE "{database}" TEMPLATE template0'),
            )
            over(url_of(host, database), lambda connection: connection.execute("CREATE EXTENSION citus"))
    added = "; ".join(f"SELECT citus_add_node('{host}', {port})" for host, port in hosts[1:])
    coordinator = "SELECT citus_set_coordinator_host('{}', {})".format(*hosts[0])
    over(url_of(hosts[0], database), lambda connection: connection.execute(f"{coordinator}; {added}"))


def url_of(host: Host, database: str) -> str:
    return f"postgresql://postgres@{host[0]}:{host[1]}/{database}"


class CitusPool(PostgresPool):
    """Databases that hold a spread, empty store; no test may change its tables."""

    def _describe(self, url: str) -> tuple[str, Rows]:
        async def work(connection: Any) -> Rows:
            names = [table.name for table in metadata.sorted_tables]
            return {name: [tuple(row) for row in await connection.fetch(f"SELECT * FROM {name}")] for name in names}

        return "", over(url, work)

    def _reset(self, url: str, schema: str, rows: Rows) -> bool:
        async def work(connection: Any) -> None:
            async with connection.transaction():
                for name in rows:
                    await connection.execute(f"DELETE FROM {name}")
                await insert_rows(connection, rows)

        over(url, work)
        return True


async def make_spread_store(url: str, *, partitions: int = PARTITIONS) -> None:
    """Make a store in an empty database of a cluster, and spread its tables by the script of the docs."""
    async with ConversationStore.open(url, migrate=True, partitions=partitions):
        pass

    few = re.sub(r"shard_count = \d+", f"shard_count = {SHARDS}", SCRIPT.read_text(encoding="utf-8"))
    over(url, lambda connection: connection.execute(few))
