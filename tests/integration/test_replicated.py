"""A store of several hosts: the one that takes writes is found, lost and found again, on real servers."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.ops.doctor.check_hosts import check_hosts
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.engines import create_store_engine
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.hosts import HostAddress
from letopis.store.database.urls import hosts_of, normalise_url
from tests.integration.test_migrations import alembic
from tests.support.bench import ask, fault_at
from tests.support.relays import drained, running, say, until
from tests.support.required import missing
from tests.support.sayings import NewStore
from tests.support.servers import ServerUnavailable
from tests.support.servers.processes import free_port
from tests.support.servers.replicas import MariaDBPair, Pair, PostgresPair

SERVERS = ("postgresql", "mariadb")
WHICH = {"postgresql": "SELECT inet_server_port()", "mysql": "SELECT @@port", "mariadb": "SELECT @@port"}
SLEEP = {"postgresql": "SELECT pg_sleep(9)", "mariadb": "SELECT SLEEP(9)"}


@pytest.fixture(params=SERVERS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    try:
        with {"postgresql": PostgresPair, "mariadb": MariaDBPair}[request.param].running() as found:
            yield found
    except ServerUnavailable as reason:
        missing(request.param, reason)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port whose connections are taken, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as ear:
        yield int(ear.getsockname()[1])


def with_hosts(url: str, *first: int, **options: str) -> str:
    """The URL with other ports of this machine before its own."""
    parsed = normalise_url(url)
    (address,) = hosts_of(url)
    hosts = tuple(str(HostAddress("127.0.0.1", port)) for port in (*first, address.port))
    return parsed.set(host=None, port=None, query={"host": hosts, **options}).render_as_string(hide_password=False)


async def port_of(url: str) -> int:
    return int(await ask(url, WHICH[url.partition(":")[0].partition("+")[0]]))


# --- which host -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERVERS)
async def test_hosts_that_do_not_answer_are_passed_over(kind: str, new_store_url: NewStore, silent_port: int) -> None:
    url = new_store_url(kind)
    started = time.monotonic()

    assert await port_of(with_hosts(url, free_port(), silent_port)) == hosts_of(url)[0].port
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize("kind", SERVERS)
async def test_when_none_can_be_used_each_is_named_without_secrets(kind: str) -> None:
    one, other = free_port(), free_port()

    fault = await fault_at(f"{kind}://u:hush@127.0.0.1:{one},127.0.0.1:{other}/db")

    assert (fault.fault_class, fault.code) == (FaultClass.UNAVAILABLE, "refused")
    assert f"127.0.0.1:{one} (refused), 127.0.0.1:{other} (refused)" in str(fault)
    assert "hush" not in str(fault)


@pytest.mark.parametrize("kind", SERVERS)
async def test_what_every_host_refuses_is_misconfigured(kind: str, new_store_url: NewStore) -> None:
    """And where one of them is down it may be the one that takes the login: that is waited for."""
    url = normalise_url(new_store_url(kind)).set(database="no_such_database").render_as_string(hide_password=False)
    port = hosts_of(url)[0].port
    everywhere = with_hosts(url, int(port or 0)).replace("127.0.0.1", "localhost", 1)

    assert (await fault_at(everywhere)).fault_class is FaultClass.MISCONFIGURED
    assert (await fault_at(with_hosts(url, free_port()))).fault_class is FaultClass.UNAVAILABLE


async def test_a_failover_step_by_step(pair: Pair) -> None:
    primary, replica = (address.port for address in hosts_of(pair.url))

    assert await port_of(pair.url) == primary
    assert await port_of(f"{pair.url}?target_session_attrs=any") == primary
    waits = "synchronous" if isinstance(pair, PostgresPair) else "asynchronous"
    first, second = [finding.said for finding in await check_hosts(normalise_url(pair.url))]
    assert f":{primary}, primary" in first
    assert second.endswith(f":{replica}, standby, {waits}")
    assert await port_of(f"{pair.url}?target_session_attrs=primary") == primary
    assert await port_of(f"{pair.url}?target_session_attrs=standby") == replica
    assert await port_of(f"{pair.url}?target_session_attrs=read-only") == replica
    assert await port_of(f"{pair.url}?target_session_attrs=prefer-standby") == replica
    found = {await port_of(f"{pair.url}?target_session_attrs=any&load_balance_hosts=random") for _ in range(12)}
    assert found == {primary, replica}

    await asyncio.to_thread(pair.kill)
    fault = await fault_at(pair.url)
    assert (fault.fault_class, fault.code) == (FaultClass.UNAVAILABLE, "no-host")
    assert f":{primary} (refused)" in str(fault)
    assert f":{replica} (no-matching-server)" in str(fault)
    dead, left, _ = [finding.said for finding in await check_hosts(normalise_url(pair.url))]
    assert f":{primary} is not reachable" in dead
    assert "protocol" not in dead
    assert f":{replica}, standby" in left

    await asyncio.to_thread(pair.promote)
    assert await port_of(pair.url) == replica
    assert await port_of(f"{pair.url}?target_session_attrs=prefer-standby") == replica


async def test_a_refused_write_has_the_writable_host_looked_for_anew(pair: Pair) -> None:
    """Though the connections to the old primary are all alive."""
    _, replica = (address.port for address in hosts_of(pair.url))
    async with ConversationStore.open(pair.url, migrate=True) as store:
        engine = store.runtime.engine
        await asyncio.to_thread(pair.settle)
        await asyncio.to_thread(pair.promote)
        await asyncio.to_thread(pair.demote)
        with pytest.raises(StoreFault) as caught, translated():
            async with engine.begin() as connection:
                await connection.execute(sa.text("DELETE FROM letopis_lanes"))
        async with engine.begin() as connection:
            await connection.execute(sa.text("DELETE FROM letopis_lanes"))
            port = (await connection.exec_driver_sql(WHICH[engine.dialect.name])).scalar_one()

    assert caught.value.code in ("25006", "1290")
    assert caught.value.fault_class is FaultClass.UNAVAILABLE
    assert port == replica


# --- a host that stopped answering ----------------------------------------------------------------------------------


async def test_a_frozen_primary_is_given_up(pair: Pair, tmp_path: Path) -> None:
    """The kernel keeps acknowledging for a stopped process: only a new login shows the truth."""
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    async with ConversationStore.open(pair.url, migrate=True, pool_size=2) as store:
        relay = Relay(outbox, store, holder="test")
        async with running(relay):
            await say(outbox, "before")
            await drained(outbox)
            await asyncio.to_thread(pair.settle)
            await asyncio.to_thread(pair.freeze)
            await say(outbox, "after")
            await asyncio.sleep(0.5)
            await asyncio.to_thread(pair.promote)
            promoted = time.monotonic()
            await until(lambda: relay.stats.delivered == 4, patience=30.0)
            took = time.monotonic() - promoted
    await outbox.close()

    # 8.5 s where nothing else runs; without the watch it is the 35 s of a statement.
    assert took < 20.0


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_slow_statement_is_left_in_peace(kind: str, new_store_url: NewStore) -> None:
    engine = create_store_engine(with_hosts(new_store_url(kind), free_port()), pool_size=1)
    try:
        async with engine.connect() as connection:
            started = time.monotonic()
            await connection.exec_driver_sql(SLEEP[kind])
    finally:
        await engine.dispose()

    assert time.monotonic() - started > 8.5


# --- the commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.usefixtures("elsewhere")
def test_commands_and_migrations_take_several_hosts(
    kind: str, new_store_url: NewStore, letopis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = with_hosts(new_store_url(kind), free_port())
    alembic("upgrade", "head", url=url)
    monkeypatch.setenv("LETOPIS_STORE", url)
    for words in (("db", "check"), ("init",), ("relay", "--once")):
        done = letopis(*words)
        assert done.code == 0, done

    assert f"127.0.0.1:{hosts_of(url)[0].port},127.0.0.1:{hosts_of(url)[1].port}/" in letopis("doctor").out
