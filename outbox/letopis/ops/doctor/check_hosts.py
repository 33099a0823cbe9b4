"""Ask each host of a history store's URL whether it answers, which role it has, and whether it is synchronous."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.ops.doctor.finding import Finding, ok, warn
from letopis.store.database.engines import create_store_engine
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import StoreFault
from letopis.store.database.hosts import HostAddress, with_addresses
from letopis.store.database.timeouts import Timeouts
from letopis.store.database.urls import DEFAULT_PORTS, hosts_of

_CHECK: Final = "store_hosts"
_TIMEOUTS: Final = Timeouts(connect=5.0, statement=5.0, lock=5.0)
_STANDBYS: Final = "SELECT coalesce(host(client_addr), ''), coalesce(sync_state, '') FROM pg_stat_replication"
_VARIABLES: Final = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only', 'wsrep_on')"
_STATUS: Final = (
    "SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_cluster_status', 'wsrep_local_state_comment',"
    " 'Rpl_semi_sync_master_status', 'Rpl_semi_sync_slave_status')"
)

_SYNCHRONOUS: Final = {True: "synchronous", False: "asynchronous", None: "synchronous or not: not to be seen here"}


class Host(NamedTuple):
    """What a host says of itself."""

    fault: str = ""
    standby: bool = False
    names: str = ""
    standbys: tuple[tuple[str, str], ...] = ()  # a PostgreSQL primary's: address and sync_state, if it may be seen
    synchronous: bool | None = None  # of MariaDB; None where only the primary knows
    detail: str = ""


async def check_hosts(url: URL) -> list[Finding]:
    """Return a finding for each host of a URL that names several; none otherwise."""
    addresses = hosts_of(url)
    if len(addresses) < 2:
        return []
    hosts = await asyncio.gather(*(_ask(url, address) for address in addresses))
    resolved = await asyncio.gather(*(asyncio.to_thread(_resolve, address.host) for address in addresses))
    return judge_hosts(dict(zip(map(str, addresses), zip(hosts, resolved, strict=True), strict=True)))


def judge_hosts(hosts: Mapping[str, tuple[Host, frozenset[str]]]) -> list[Finding]:
    """Return what is to be said of each host, by name: what it says of itself, and its IP addresses."""
    primaries = [host for host, _ in hosts.values() if not host.fault and not host.standby]
    standbys = sum(host.standby for host, _ in hosts.values())
    findings = []
    for name, (host, addresses) in hosts.items():
        if host.fault:
            findings.append(warn(_CHECK, f"{name} is not reachable: {host.fault}", "check the host and its network"))
            continue
        synchronous = host.synchronous
        if host.standby and synchronous is None and primaries:
            synchronous = _is_synchronous(primaries[0].standbys, addresses, alone=standbys == 1)
        words = [name, "standby" if host.standby else "primary", *([host.detail] if host.detail else [])]
        if host.standby:
            words.append(_SYNCHRONOUS[synchronous])
        elif host.names or host.standbys:
            words.append(f"synchronous_standby_names is {host.names!r}")
        said = ", ".join(words)
        if host.standby and synchronous is False:
            hint = "a failover to it may lose commits that a relay resends: make it synchronous"
            findings.append(warn(_CHECK, said, hint))
        else:
            findings.append(ok(_CHECK, said))
    if not primaries:
        findings.append(warn(_CHECK, "no host is a primary", "promote one; deliveries wait until then"))
    return findings


def _is_synchronous(standbys: Sequence[tuple[str, str]], addresses: frozenset[str], *, alone: bool) -> bool | None:
    """Return whether the primary waits for a standby; ``None`` if its list does not tell this one from others."""
    states = {state for address, state in standbys if address in addresses}
    if not states and alone and len(standbys) <= 1:
        states = {state for _, state in standbys} or {"async"}  # not connected: the primary waits for none
    if len(states) != 1 or "" in states:
        return None
    return states <= {"sync", "quorum"}


async def _ask(url: URL, address: HostAddress) -> Host:
    single = with_addresses(url, [address], DEFAULT_PORTS[url.drivername])
    engine = create_store_engine(
        single.update_query_dict({"target_session_attrs": "any"}), timeouts=_TIMEOUTS, pool_size=1
    )
    try:
        with translated():
            async with engine.connect() as connection:
                return await (_ask_postgresql if engine.dialect.name == "postgresql" else _ask_mariadb)(connection)
    except StoreFault as fault:
        return Host(fault=str(fault))
    finally:
        await engine.dispose()


async def _ask_postgresql(connection: AsyncConnection) -> Host:
    asked = "SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names')"
    ((standby, names),) = await _rows(connection, asked)
    standbys = () if standby else tuple((address, state) for address, state in await _rows(connection, _STANDBYS))
    return Host(standby=standby, names=names, standbys=standbys)


async def _ask_mariadb(connection: AsyncConnection) -> Host:
    values: dict[str, Any] = {}
    for statement in (_VARIABLES, _STATUS):
        values |= {name.lower(): value for name, value in await _rows(connection, statement)}
    if values.get("wsrep_on") == "ON":
        state = values.get("wsrep_local_state_comment", "")
        return Host(detail=f"Galera {values.get('wsrep_cluster_status', '')} {state}".rstrip(), synchronous=True)
    standby = values.get("read_only", "OFF") != "OFF"
    side = "slave" if standby else "master"
    return Host(standby=standby, synchronous=values.get(f"rpl_semi_sync_{side}_status") == "ON")


async def _rows(connection: AsyncConnection, statement: str) -> list[Any]:
    return list((await connection.exec_driver_sql(statement)).all())


def _resolve(host: str) -> frozenset[str]:
    if host.startswith("/"):
        return frozenset()
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, None))
    except OSError:
        return frozenset()
