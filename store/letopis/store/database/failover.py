"""Connect to the host that serves, and abort the connections to a host that has stopped answering."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from letopis.store.database.fault_classification import classify
from letopis.store.database.fault_rules import GARBLED, LOST
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.hosts import HostAddress
from letopis.store.database.server_pool import ServerPool
from letopis.store.database.timeouts import Timeouts
from letopis.store.database.urls import hosts_of
from letopis.store.errors import ConfigurationError

logger = logging.getLogger("letopis.store.failover")

NEXT_HOST_SECONDS: Final = 1.0
"""Time after which the next host is tried as well, while the first one keeps its whole timeout."""
SUSPECT_AFTER_SECONDS: Final = 2.0
"""Time in use after which a connection's host is probed."""
SILENCE_SECONDS: Final = 3.0
"""Time after which a login counts as unanswered."""
MAX_SILENT_LOGINS: Final = 2
"""Unanswered logins in a row after which a host's connections are aborted."""
MAX_PAUSE_SECONDS: Final = 30.0
"""Longest pause between two probes while a connection stays in use. Pauses double."""

READ_WRITE: Final = "read-write"
_NO_MATCH: Final = "no-matching-server"
_PROBE: Final = "letopis_host_watch"


class HostRole(NamedTuple):
    """The role of a server: whether it takes writes, and whether it follows another."""

    read_only: bool
    standby: bool

    def meets(self, target: str) -> bool:
        """Return True if the server is what ``target_session_attrs`` asks for."""
        primary = {"read-write": not self.read_only, "read-only": self.read_only, "primary": not self.standby}
        return {"any": True, **primary, "standby": self.standby, "prefer-standby": self.standby}[target]


class HostConnector:
    """Connects to the first host that answers and is what ``target`` asks for."""

    # Each host has the driver's whole connect timeout, and the next one is tried as well after a second of silence. One
    # that is down, refuses the login or is read-only is skipped.
    def __init__(
        self, url: URL, *, connect: Callable[..., Awaitable[Any]], role_of: Callable[[Any], Awaitable[HostRole]]
    ) -> None:
        addresses = hosts_of(url)
        self._addresses = addresses or (None,)
        self._arguments: dict[str, Any] = {}
        # Of several hosts, the default is the one that takes writes.
        default = READ_WRITE if len(addresses) > 1 else "any"
        self._target = str(url.query.get("target_session_attrs", default))
        self._shuffle = url.query.get("load_balance_hosts") == "random"
        self._connect = connect
        self._role_of = role_of
        self._open: WeakKeyDictionary[Any, HostAddress | None] = WeakKeyDictionary()
        self._probes: set[asyncio.Task[None]] = set()

    async def connect(self, **arguments: Any) -> Any:
        self._arguments = arguments
        order = list(self._addresses)
        if len(order) == 1:  # errors of a single host are raised unchanged
            return (await self._try(order[0], arguments))[0]
        if self._shuffle:
            random.shuffle(order)
        untried = order[::-1]
        trying: dict[asyncio.Task[tuple[Any, bool]], HostAddress | None] = {}
        faults: dict[HostAddress | None, StoreFault] = {}
        chosen = second_choice = None
        try:
            while chosen is None and (untried or trying):
                if untried:
                    address = untried.pop()
                    trying[asyncio.create_task(self._try(address, arguments))] = address
                timeout = NEXT_HOST_SECONDS if untried else None
                done, _ = await asyncio.wait(trying, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    address = trying[task]
                    if (error := task.exception()) is not None:
                        fault = classify(error)
                        unclassified = fault is not error and fault.fault_class is FaultClass.UNCLASSIFIED
                        if unclassified or not isinstance(error, Exception):
                            raise error
                        faults[address] = fault
                        del trying[task]
                    elif chosen is None:
                        del trying[task]
                        connection, fits = task.result()
                        if fits:
                            chosen = connection
                        elif second_choice is None:
                            second_choice = connection
                        else:
                            connection.terminate()
            if chosen is None and second_choice is not None:
                chosen, second_choice = second_choice, None
        finally:
            if second_choice is not None:
                second_choice.terminate()
            # Cancel the remaining tries, and close the connections they have opened.
            for task in trying:
                task.cancel()
            for outcome in await asyncio.gather(*trying, return_exceptions=True):
                if not isinstance(outcome, BaseException):
                    outcome[0].terminate()
        if chosen is None:
            raise _none_of(faults, order)
        return chosen

    @property
    def _accepts_any(self) -> bool:
        return self._target == "prefer-standby"

    async def _try(self, address: HostAddress | None, arguments: dict[str, Any]) -> tuple[Any, bool]:
        connection = await self._connect(address, **arguments)
        try:
            limit_silence(connection)
            fits = self._target == "any" or (await self._role_of(connection)).meets(self._target)
        except BaseException:  # cancellation too: no one else could close the socket
            connection.terminate()
            raise
        if fits or self._accepts_any:
            self._open[connection] = address
            return connection, fits
        connection.terminate()
        raise StoreFault(fault_class=FaultClass.UNAVAILABLE, code=_NO_MATCH, reason=f"the host is not {self._target}")

    def watch(self, engine: sa.Engine) -> None:
        """Abort the engine's connections to a host that no longer answers."""
        # A host that works on a slow statement answers a login, if only to refuse it, and keeps its connections. Two
        # logins without an answer end them, so that the next attempt finds another host.
        if len(self._addresses) < 2:
            return

        def checked_out(connection: Any, record: Any, _proxy: Any) -> None:
            if (address := self._open.get(connection.driver_connection)) is not None:
                loop = asyncio.get_running_loop()
                record.info[_PROBE] = probe = _Probe()
                probe.later = loop.call_later(SUSPECT_AFTER_SECONDS, self._start_probing, probe, address)

        def checked_in(_connection: Any, record: Any) -> None:
            if (probe := record.info.pop(_PROBE, None)) is not None:
                probe.end()

        event.listen(engine, "checkout", checked_out)
        event.listen(engine, "checkin", checked_in)  # codespell:ignore checkin

    def _start_probing(self, probe: _Probe, address: HostAddress) -> None:
        probe.task = task = asyncio.create_task(self._probe_until_silent(address))
        self._probes.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._probes.discard)

    async def _probe_until_silent(self, address: HostAddress) -> None:
        pause, silent = SUSPECT_AFTER_SECONDS, 0
        while silent < MAX_SILENT_LOGINS:
            if await self._is_silent(address):
                silent += 1
            else:
                silent = 0
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
        logger.warning("host %s of the history store does not answer: its connections are aborted", address)
        for connection, where in list(self._open.items()):
            if where == address:
                connection.terminate()

    async def _is_silent(self, address: HostAddress) -> bool:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                (await self._connect(address, **self._arguments)).terminate()
        except TimeoutError:
            return True
        except Exception as error:  # any other error is an answer
            return classify(error).code == "timeout"  # the driver's own was shorter
        return False


class _Probe:
    """The probing of one connection's host, which ends when the connection returns to the pool."""

    later: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None

    def end(self) -> None:
        for handle in (self.later, self.task):
            if handle is not None:
                handle.cancel()


def limit_silence(connection: Any) -> None:
    """Have the kernel end a connection whose peer's machine is gone: after 25 s in quiet, 20 s with data under way."""
    # A peer that lives acknowledges, however long it works on a statement.
    transport = getattr(connection, "_transport", None)  # no driver has a public way to its socket
    peer = None if transport is None else transport.get_extra_info("socket")
    if peer is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with suppress(OSError):  # a system that lacks an option keeps its own times
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        times = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
        for name, value in times.items():
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _none_of(faults: dict[HostAddress | None, StoreFault], order: Sequence[HostAddress | None]) -> StoreFault:
    """Return the fault that lists each host's answer. It is UNAVAILABLE if waiting may help with one of them."""
    listed = ", ".join(f"{address} ({faults[address].code})" for address in order)
    codes = {fault.code for fault in faults.values()}
    code = codes.pop() if len(codes) == 1 else "no-host"
    wrong = next((fault for fault in faults.values() if fault.fault_class is not FaultClass.UNAVAILABLE), None)
    if wrong is not None and all(fault.fault_class is wrong.fault_class for fault in faults.values()):
        return StoreFault(fault_class=wrong.fault_class, code=code, reason=f"{wrong.reason}; hosts: {listed}")
    summary = "no host of the history store can be used"
    if code == _NO_MATCH:
        summary = "no host of the history store has the role that the URL asks for, as during a failover"
    return StoreFault(fault_class=FaultClass.UNAVAILABLE, code=code, reason=f"{summary}: {listed}")


PROGRAM: Final = "letopis"
RECYCLE_SECONDS: Final = 1800.0
"""Age at which an idle connection is replaced: below what firewalls and servers commonly allow."""
ANSWER_MARGIN_SECONDS: Final = 5.0
"""How much longer the client waits than the server's own limit, so that the server's answer comes first."""


def create_server_engine(url: URL, timeouts: Timeouts, pool_size: int, *, driver: str, **options: Any) -> AsyncEngine:
    """Create an engine that connects by the creator in ``options``."""
    # SQLAlchemy cannot parse every address, and does not need to: the creator connects.
    bare = url.set(query={})
    try:
        engine = create_async_engine(
            bare,
            **timeouts.pool_options(pool_size),
            poolclass=ServerPool,
            pool_recycle=int(RECYCLE_SECONDS),
            isolation_level="READ COMMITTED",
            hide_parameters=True,
            **options,
        )
    except ModuleNotFoundError as error:
        extra = url.get_backend_name()
        if error.name != driver:
            raise
        raise ConfigurationError(f"the driver is not installed: pip install 'letopis[{extra}]'") from None
    engine.sync_engine.url = url.set(query={name: url.query[name] for name in ("host", "port") if name in url.query})
    return engine


def unreadable(path: str) -> str | None:
    """Return what is wrong with a file that a driver has to read, or ``None``."""
    try:
        with open(path, "rb"):  # noqa: PTH123
            return None
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError):  # a path with a NUL is a ValueError
        return "cannot be read"


async def diagnose_connecting(connect: Callable[..., Awaitable[Any]], *args: Any, **arguments: Any) -> Any:
    """Connect, and raise errors that are about the server: none may pass for the fault of an event."""
    try:
        return await connect(*args, **arguments)
    except Exception as error:  # a peer of another kind makes a driver fail on a length, an index, an encoding
        fault = classify(error)
        if fault.fault_class is FaultClass.UNCLASSIFIED:
            # A driver whose connection is lost in the middle of the login fails on what it has closed itself.
            lost = isinstance(error, (AttributeError, TypeError, RuntimeError, asyncio.InvalidStateError))
            code, rule = ("disconnected", LOST) if lost else ("protocol", GARBLED)
            raise StoreFault(fault_class=FaultClass.UNAVAILABLE, code=code, reason=rule.reason) from error
        if fault.fault_class is FaultClass.POISON or fault.code == "42704":
            reason = "the server refuses a setting of the connection: check the options of the URL"
            raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code=fault.code, reason=reason) from error
        raise
