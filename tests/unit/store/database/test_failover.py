"""Which of several hosts a connector takes, what it closes, and what it says when it can take none."""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.store import StoreFault
from letopis.store.database import failover
from letopis.store.database.failover import HostConnector, HostRole
from letopis.store.database.faults import FaultClass
from letopis.store.database.hosts import HostAddress

PRIMARY, STANDBY = HostRole(read_only=False, standby=False), HostRole(read_only=True, standby=True)
REFUSED = ConnectionRefusedError("refused")
PASSWORD = StoreFault(fault_class=FaultClass.MISCONFIGURED, code="28P01", reason="wrong password")
SILENT, LATE = "says nothing", "answers when it is too late to stop it"
PREFER_STANDBY = "&target_session_attrs=prefer-standby"


class Connection:
    def __init__(self, host: str, role: HostRole) -> None:
        self.host, self.role, self.is_open = host, role, True

    def terminate(self) -> None:
        self.is_open = False


class Hosts:  # one that is given a list answers so many times
    def __init__(self, *answers: Any) -> None:
        given = (answer if isinstance(answer, list) else [answer] for answer in answers)
        self.left = dict(zip("ab", given, strict=True))
        self.connections: list[Connection] = []

    async def connect(self, address: HostAddress, **_: Any) -> Connection:
        answer = self.left[address.host].pop(0)
        if answer in (SILENT, LATE):
            with suppress(*[asyncio.CancelledError] * (answer is LATE)):
                await asyncio.sleep(3600)
            answer = PRIMARY
        if isinstance(answer, BaseException):
            raise answer
        self.connections.append(Connection(address.host, answer))
        return self.connections[-1]

    def connector(self, query: str = "") -> HostConnector:
        async def role_of(connection: Connection) -> HostRole:
            return connection.role

        url = sa.make_url(f"postgresql+asyncpg://bot@/h?host=a,b{query}")
        return HostConnector(url, connect=self.connect, role_of=role_of)

    @property
    def open(self) -> list[str]:
        return [connection.host for connection in self.connections if connection.is_open]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEXT_HOST_SECONDS", "SUSPECT_AFTER_SECONDS", "SILENCE_SECONDS"):
        monkeypatch.setattr(failover, name, 0.01)
    monkeypatch.setattr(random, "shuffle", list.reverse)


@pytest.mark.parametrize(
    ("answers", "query", "chosen"),
    [
        *(((first, PRIMARY), "", "b") for first in (REFUSED, SILENT, LATE, STANDBY)),
        ((STANDBY, PRIMARY), "&target_session_attrs=read-only", "a"),
        ((PRIMARY, STANDBY), "&target_session_attrs=standby", "b"),
        ((PRIMARY, STANDBY), "&target_session_attrs=any", "a"),
        ((PRIMARY, STANDBY), PREFER_STANDBY, "b"),
        ((PRIMARY, PRIMARY), PREFER_STANDBY, "a"),
        ((PRIMARY, REFUSED), PREFER_STANDBY, "a"),
        ((PRIMARY, PRIMARY), "&load_balance_hosts=random", "b"),
    ],
)
async def test_one_host_of_the_wanted_role_is_taken_and_no_other(answers: Any, query: str, chosen: str) -> None:
    hosts = Hosts(*answers)
    connection = await hosts.connector(query).connect()
    assert (connection.host, hosts.open) == (chosen, [chosen])


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((REFUSED, REFUSED), r"can be used: a:5432 \(refused\), b:5432 \(refused\) \[unavailable refused"),
        ((REFUSED, PASSWORD), r"b:5432 \(28P01\) \[unavailable no-host"),
        ((PASSWORD, PASSWORD), r"wrong password; hosts: a:5432 .* \[misconfigured 28P01"),
        ((STANDBY, STANDBY), r"role that the URL asks for.* \[unavailable no-matching-server"),
        ((LookupError("a defect"), SILENT), "^a defect$"),
    ],
)
async def test_fault_says_what_each_host_answered(answers: Any, says: str) -> None:
    hosts = Hosts(*answers)
    with pytest.raises((StoreFault, LookupError), match=says):
        await hosts.connector().connect()
    assert hosts.open == []


async def test_connections_to_a_silent_host_are_aborted(caplog: pytest.LogCaptureFixture) -> None:
    # The driver's own timeout counts, and any other answer begins anew.
    hosts = Hosts([PRIMARY, REFUSED, SILENT, PASSWORD, TimeoutError(), SILENT], PRIMARY)
    connector = hosts.connector("&target_session_attrs=any")
    await connector.connect()
    await connector._try(HostAddress("b", 5432), {})
    assert hosts.open == ["a", "b"]
    await connector._probe_until_silent(HostAddress("a", 5432))
    assert (hosts.open, hosts.left["a"]) == (["b"], [])
    assert "host a:5432 of the history store does not answer" in caplog.text
