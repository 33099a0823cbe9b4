"""PgBouncer in transaction pooling: deliveries through it arrive once, in order, with the limits in force."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass
from letopis.store.database.timeouts import Timeouts
from tests.campaigns.invariants import check
from tests.support.bench import fault_at
from tests.support.relays import drained, end, relay_on, say
from tests.support.required import program
from tests.support.sayings import NewStore
from tests.support.servers import PostgresServer
from tests.support.servers.postgresql import as_plain_user
from tests.support.servers.processes import accepts, free_port, spawn, wait_until_ready
from tests.support.servers.processes import end as end_process

SETTINGS = """
[databases]
{url.database} = host=127.0.0.1 port={url.port} dbname={url.database} user={url.username} password={url.password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_prepared_statements = 0
default_pool_size = 3
max_client_conn = 100
"""


@pytest.fixture
def through(postgresql_server: PostgresServer, new_store_url: NewStore) -> Iterator[tuple[str, str]]:
    """A database, and the same behind a PgBouncer that knows no prepared statements and has three connections."""
    pgbouncer, (launcher, user) = program("pgbouncer", "pgbouncer"), as_plain_user()  # it refuses to run as root
    url, port = make_url(new_store_url("postgresql")), free_port()
    with tempfile.TemporaryDirectory(prefix="letopis-pgbouncer-") as place:
        folder = Path(place)
        if user is not None:
            shutil.chown(folder, user)
        (folder / "ini").write_text(SETTINGS.format(url=url.set(password=url.password or "none"), port=port))
        words = [*launcher, pgbouncer, str(folder / "ini")]
        process = spawn(words, log=folder / "out", death_signal="INT", user=user)
        try:
            wait_until_ready(process, lambda: accepts("127.0.0.1", port), log=folder / "out", timeout=20)
            pooled = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
            yield url.render_as_string(hide_password=False), pooled
        finally:
            end_process(process, signal.SIGINT)


async def test_relays_deliver_through_transaction_pooling(through: tuple[str, str], tmp_path: Path) -> None:
    """Three relays, two connections each, share three of the server: no two transactions in a row on one session."""
    url, pooled = through
    async with ConversationStore.open(url, migrate=True):
        pass
    outboxes = [await OutboxFile.open(tmp_path / f"bot-{number}.outbox.db") for number in range(3)]
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(ConversationStore.open(f"{pooled}?pgbouncer=true", pool_size=2))
            for _ in outboxes
        ]
        relays = [relay_on(outbox, store, batch=20) for outbox, store in zip(outboxes, stores, strict=True)]
        tasks = [asyncio.create_task(relay.run()) for relay in relays]
        for turn in range(60):
            for number, outbox in enumerate(outboxes):
                await say(outbox, f"{number}-{turn % 7}", 3)
            # Reads take their turn between them, on whichever session is free.
            await stores[turn % 3].messages(f"0-{turn % 7}", last=5)
        for outbox in outboxes:
            await drained(outbox)
        for task in tasks:
            await end(task)
    verdict = await check([outbox.path for outbox in outboxes], url, drained=True)
    for outbox in outboxes:
        await outbox.close()

    assert verdict.ok, verdict
    assert verdict.stored == 3 * (60 * 3 + 7)
    for relay in relays:
        assert not relay.stats.faults
        assert relay.breaker.trips == 0


async def test_limits_hold_behind_transaction_pooling(through: tuple[str, str]) -> None:
    _, pooled = through
    timeouts = Timeouts(connect=5, statement=0.5, lock=1)
    fault = await fault_at(f"{pooled}?pgbouncer=true", "SELECT pg_sleep(10)", timeouts=timeouts)

    assert (fault.fault_class, fault.code) == (FaultClass.UNAVAILABLE, "57014")


async def test_a_url_that_does_not_say_so_is_a_matter_of_configuration(through: tuple[str, str]) -> None:
    """PgBouncer refuses the settings of a plain connection; no event is charged for that."""
    _, pooled = through
    assert (await fault_at(pooled)).fault_class in {FaultClass.MISCONFIGURED, FaultClass.UNAVAILABLE}
