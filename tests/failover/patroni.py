"""Run three PostgreSQL servers under Patroni and etcd, with HAProxy before them."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final

from tests.failover.load import Cluster
from tests.support.daemons import ask, until
from tests.support.peers import Wire
from tests.support.required import PATH
from tests.support.servers import PostgresServer
from tests.support.servers.postgresql import LOCAL, as_plain_user, find_binaries
from tests.support.servers.processes import accepts, free_port, spawn, wait_until_ready

ME: Final = "127.0.0.1"
TTL_SECONDS: Final = 20  # of the leader's key in etcd: the least that Patroni takes
STANDBYS: Final = (
    "SELECT count(*) FILTER (WHERE state = 'streaming') || ' ' || count(*) FILTER (WHERE sync_state = 'sync')"
    " FROM pg_stat_replication"
)
HAPROXY: Final = """\
defaults
  mode tcp
  timeout connect 2s
  timeout client 60s
  timeout server 60s
listen store
  bind 127.0.0.1:{port}
  option httpchk GET /primary
  http-check expect status 200
  default-server check inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions
"""


@dataclass(slots=True, kw_only=True)
class Node:
    """One server and its Patroni.

    :ivar wires: to etcd, and from the other nodes to its server and to its Patroni; ``ways`` are their ports.
    """

    name: str
    folder: Path
    sql: int
    rest: int
    wires: Sequence[Wire]
    ways: Sequence[int]
    process: subprocess.Popen[bytes] | None = None


class PatroniTrio(Cluster):
    """Three nodes, of which one standby is synchronous, and one etcd."""

    def __init__(self, folder: Path, etcd: int, nodes: Sequence[Node]) -> None:
        self._folder, self._etcd, self._members = folder, etcd, nodes
        self._launcher, self._user = as_plain_user()
        self._loop = asyncio.get_running_loop()
        self._helpers: list[subprocess.Popen[bytes]] = []
        self.nodes = [PostgresServer(LOCAL.set(port=node.sql)) for node in nodes]

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[PatroniTrio]:
        etcd = free_port()
        async with AsyncExitStack() as stack:
            nodes = []
            for name in ("node1", "node2", "node3"):
                sql, rest = free_port(), free_port()
                wires = (Wire(etcd), Wire(sql), Wire(rest))
                ways = [await stack.enter_async_context(wire.open()) for wire in wires]
                nodes.append(Node(name=name, folder=folder / name, sql=sql, rest=rest, wires=wires, ways=ways))
            trio = cls(folder, etcd, nodes)
            try:
                await asyncio.to_thread(trio._start_all)
                yield trio
            finally:
                await asyncio.to_thread(trio._close)

    def url(self, database: str, *, wired: bool = False) -> str:
        """Return the URL that names all nodes, directly or over the wires that a partition stops."""
        hosts = ",".join(f"{ME}:{node.ways[1] if wired else node.sql}" for node in self._members)
        return f"postgresql://postgres@{hosts}/{database}"

    def proxied(self, database: str) -> str:
        """Start HAProxy before the nodes, and return the URL that names it."""
        port, config = free_port(), self._folder / "haproxy.cfg"
        servers = [f"  server {node.name} {ME}:{node.sql} port {node.rest}\n" for node in self._members]
        config.write_text("".join((HAPROXY.format(port=port), *servers)))
        self._help("haproxy", "-db", "-f", str(config), port=port)
        time.sleep(2)  # until it has checked, it takes every node for the primary
        return f"postgresql://postgres@{ME}:{port}/{database}"

    def writer(self) -> int:
        until(lambda: len(self._leaders()) == 1, "one primary")
        return self._leaders()[0]

    def _leaders(self) -> list[int]:
        return [number for number, node in enumerate(self._members) if _leads(node)]

    def settle(self) -> None:
        until(self._whole, "two standbys, one of them synchronous")

    def _whole(self) -> bool:
        with suppress(Exception):  # a node that is being started answers in many ways
            return bool(self.nodes[self.writer()].rows(STANDBYS)[0][0] == "2 1")
        return False

    def pids(self, number: int) -> Sequence[int]:
        """Return the processes of Patroni and of the server, which is not its child."""
        node = self._members[number]
        pids = [] if node.process is None else [node.process.pid]
        with suppress(OSError, ValueError):
            pids.append(int((node.folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0]))
        return pids

    def switch_over(self, number: int) -> None:
        """Have another primary chosen, which is not waited for."""
        until(lambda: _accepts_switchover(self._members[number]), "a switchover is accepted")

    def connect(self, connected: bool, number: int) -> None:
        """Part a node from etcd, the other nodes and those who come over its wire, or connect it again."""
        for wire in self._members[number].wires:
            self._loop.call_soon_threadsafe(wire.flowing.set if connected else wire.flowing.clear)

    def start(self, number: int) -> None:
        node = self._members[number]
        command = [*self._launcher, "patroni", str(node.folder / "patroni.json")]
        node.process = spawn(command, log=node.folder / "log", death_signal="TERM", user=self._user)

    def _start_all(self) -> None:
        url, peer = f"http://{ME}:{self._etcd}", f"http://{ME}:{free_port()}"
        urls = (f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}")
        peers = (f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}")
        self._help("etcd", f"--data-dir={self._folder / 'etcd'}", *urls, *peers, port=self._etcd)
        for number, node in enumerate(self._members):
            node.folder.mkdir()
            (node.folder / "patroni.json").write_text(json.dumps(self._config(node)))
            if self._user is not None:
                shutil.chown(node.folder, self._user)
            self.start(number)
            self.writer()  # the first initialises, the others copy it
        self.settle()

    def _config(self, node: Node) -> dict[str, Any]:
        """Return what Patroni reads: JSON is YAML."""
        etcd, sql, rest = (f"{ME}:{way}" for way in node.ways)
        postgresql = {"use_pg_rewind": True, "parameters": {"wal_log_hints": "on"}}
        times = {"ttl": TTL_SECONDS, "loop_wait": 2, "retry_timeout": 8}
        return {
            "scope": "letopis",
            "name": node.name,
            "restapi": {"listen": f"{ME}:{node.rest}", "connect_address": rest},
            # As through a proxy: otherwise Patroni asks etcd for its address, and goes past the wire.
            "etcd3": {"hosts": [etcd], "use_proxies": True},
            "bootstrap": {
                "dcs": {**times, "synchronous_mode": True, "postgresql": postgresql},
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}],
            },
            "postgresql": {
                "listen": f"{ME}:{node.sql}",
                "connect_address": sql,
                "data_dir": str(node.folder / "data"),
                "bin_dir": str(find_binaries()),
                "pgpass": str(node.folder / "pgpass"),
                "pg_hba": ["local all all trust", f"host all,replication all {ME}/32 trust"],
                "authentication": {kind: {"username": "postgres"} for kind in ("superuser", "replication")},
                "parameters": {"unix_socket_directories": str(node.folder)},
                "use_unix_socket": True,
            },
        }

    def _help(self, program: str, *words: str, port: int) -> None:
        log = self._folder / f"{program}.log"
        process = spawn([shutil.which(program, path=PATH) or program, *words], log=log, death_signal="KILL")
        self._helpers.append(process)
        wait_until_ready(process, lambda: accepts(ME, port), log=log)

    def _close(self) -> None:
        for number in range(len(self._members)):
            self.send(SIGKILL, number)
        for process in (*self._helpers, *(node.process for node in self._members)):
            if process is not None:
                process.kill()
                process.wait()


def _leads(node: Node) -> bool:
    with suppress(OSError, http.client.HTTPException):
        return ask(node.rest, "/primary")[0] == 200
    return False


def _accepts_switchover(node: Node) -> bool:
    connection = http.client.HTTPConnection(ME, node.rest, timeout=1.0)
    try:
        connection.request("POST", "/switchover", json.dumps({"leader": node.name}))
        return connection.getresponse().status == 200
    except TimeoutError:
        return True  # a refusal comes at once: it does not know its standby yet
