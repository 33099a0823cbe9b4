"""The published contract on stores whose tables PostgreSQL or MariaDB divides by hash into sixteen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest

from letopis.store import ConversationStore
from letopis.store.testing import DestinationStoreConformance
from tests.conformance.tables import LooksIntoTables
from tests.support.native_partitions import PARTITIONS, make_divided_store
from tests.support.servers import MariaDBServer, PostgresServer
from tests.support.servers.store_pool import MariaDBPool, PostgresPool, StorePool

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def divided_postgresql(postgresql_server: PostgresServer) -> Iterator[StorePool]:
    with closing(PostgresPool(postgresql_server, make_divided_store)) as pool:
        yield pool


@pytest.fixture(scope="module")
def divided_mariadb(mariadb_server: MariaDBServer) -> Iterator[StorePool]:
    with closing(MariaDBPool(mariadb_server, make_divided_store)) as pool:
        yield pool


class TestDividedStores(LooksIntoTables, DestinationStoreConformance):
    """The published contract."""

    @pytest.fixture(params=["postgresql", "mariadb"])
    async def store(self, request: pytest.FixtureRequest) -> AsyncIterator[ConversationStore]:
        pool: StorePool = request.getfixturevalue(f"divided_{request.param}")
        url = pool.take()
        async with ConversationStore.open(url) as opened:
            assert await opened.partitions() == PARTITIONS
            yield opened
        pool.give_back(url)
