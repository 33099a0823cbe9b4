"""Say what a cluster can do, and what happens to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from signal import Signals
from typing import NamedTuple

from tests.support.servers import MariaDBServer, PostgresServer
from tests.support.servers.replicas import signal_all


class Cluster(ABC):
    """Three nodes, known by number."""

    nodes: Sequence[PostgresServer | MariaDBServer]

    @abstractmethod
    def writer(self) -> int:
        """Return the node that is written to."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until all nodes take part."""

    @abstractmethod
    def pids(self, number: int) -> Sequence[int]: ...

    def send(self, how: Signals, number: int) -> None:
        """Send a signal to all processes of a node."""
        for pid in self.pids(number):
            signal_all(pid, how)


class Fault(NamedTuple):
    """What happens to a cluster, and how it ends; both are given the node that is written to."""

    what: str
    do: Callable[[int], object]
    undo: Callable[[int], object]
    times: int = 1
