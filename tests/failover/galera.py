"""Run three MariaDB servers as a Galera cluster."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, Self

import pymysql

from tests.failover.load import Cluster
from tests.support.daemons import until
from tests.support.servers import OwnMariaDBServer, ServerUnavailable
from tests.support.servers.postgresql import as_plain_user
from tests.support.servers.processes import free_port

STATE: Final = (
    "SELECT group_concat(variable_value ORDER BY variable_name) FROM information_schema.global_status"
    " WHERE variable_name IN ('wsrep_cluster_size', 'wsrep_ready')"
)
CONNECTED: Final = "SELECT count(*) FROM information_schema.processlist WHERE db LIKE 'letopis%'"


class GaleraNode(OwnMariaDBServer):
    """One node. With no address to join, it makes a cluster."""

    def __init__(self, name: str) -> None:
        self.address, increments, copies = (f"127.0.0.1:{free_port()}" for _ in range(3))
        options = f"gmcast.listen_addr=tcp://{self.address};ist.recv_addr={increments};gcache.size=64M"
        wsrep = {"on": "ON", "provider": "/usr/lib/galera/libgalera_smm.so", "provider-options": options}
        wsrep |= {"node-name": name, "node-address": self.address, "cluster-address": "gcomm://"}
        wsrep |= {"sst-method": "rsync", "sst-receive-address": copies}
        settings = {f"wsrep-{key}": value for key, value in wsrep.items()}
        super().__init__(settings={**settings, "binlog-format": "ROW", "innodb-autoinc-lock-mode": "2"})
        # The rsync of a state transfer takes another user if it is started by root.
        script = self._root() / "mariadbd"
        script.write_text(f'#!/bin/sh\nexec {shlex.join((*as_plain_user()[0], self._server))} "$@"\n')
        script.chmod(0o755)
        self._server = str(script)

    def start(self) -> Self:
        if not self.running and (self.data / "grastate.dat").exists():
            self._settings.pop("wsrep-start-position", None)
            self._settings["wsrep-start-position"] = self._recovered()
        return super().start()

    def join(self, nodes: Sequence[GaleraNode]) -> None:
        """Join these nodes at each start from now on."""
        self._settings["wsrep-cluster-address"] = f"gcomm://{','.join(node.address for node in nodes)}"

    def state(self) -> str:
        """Return how many nodes it sees, and whether it takes statements, as in ``3,ON``."""
        with suppress(pymysql.Error):
            return str(self.rows(STATE)[0][0])
        return ""

    def _recovered(self) -> str:
        """Return where a killed node was, which it does not know: otherwise the others would send it everything."""
        words = [self._server, "--no-defaults", f"--datadir={self.data}", f"--tmpdir={self._own_tmpdir()}"]
        words += ["--wsrep-recover", "--skip-networking", f"--socket={self._root() / 's'}"]
        words += (f"--{key}={value}" for key, value in self._settings.items())
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        position = re.search(r"Recovered position: (\S+)", done.stderr + done.stdout)
        if position is None:
            raise ServerUnavailable(f"no position was recovered:\n{done.stderr[-2000:]}")
        return position[1]


class GaleraTrio(Cluster):
    """Each of the three takes writes."""

    def __init__(self) -> None:
        self.nodes: list[GaleraNode] = [GaleraNode(name) for name in ("node1", "node2", "node3")]

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[GaleraTrio]:
        trio = cls()
        with ExitStack() as stack:
            for node in trio.nodes:
                stack.enter_context(node)
                for member in trio.nodes:
                    member.join(trio.nodes)
            trio.settle()
            yield trio

    def url(self, database: str) -> str:
        return f"mysql://root@{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}/{database}"

    def writer(self) -> int:
        return max(range(3), key=lambda number: int(self.nodes[number].rows(CONNECTED)[0][0]))

    def settle(self) -> None:
        until(lambda: all(node.state() == "3,ON" for node in self.nodes), "three nodes in one cluster")

    def pids(self, number: int) -> Sequence[int]:
        return (self.nodes[number].pid,)
