"""Create engines whose connections go to the hosts of a server's URL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from letopis.store.database.failover import READ_WRITE, HostConnector, HostRole
from letopis.store.database.fault_classification import classify
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.timeouts import Timeouts
from letopis.store.database.urls import hosts_of
from letopis.store.errors import ConfigurationError

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


def host_connector(
    url: URL, *, connect_to: Callable[..., Awaitable[Any]], role_of: Callable[[Any], Awaitable[HostRole]]
) -> HostConnector:
    """Return the connector to the URL's hosts. Of several, the default is the one that takes writes."""
    addresses = hosts_of(url)
    default = READ_WRITE if len(addresses) > 1 else "any"
    return HostConnector(
        addresses or (None,),
        target=str(url.query.get("target_session_attrs", default)),
        shuffle=url.query.get("load_balance_hosts") == "random",
        connect=connect_to,
        role_of=role_of,
        abort=lambda connection: connection.terminate(),
    )


async def diagnose_connecting(connect: Callable[..., Awaitable[Any]], *args: Any, **arguments: Any) -> Any:
    """Connect, and raise errors that are about the server: none may pass for the fault of an event."""
    try:
        return await connect(*args, **arguments)
    except Exception as error:  # a peer of another kind makes a driver fail on a length, an index, an encoding
        found = classify(error)
        if found.fault_class is FaultClass.UNCLASSIFIED:
            reason = "the peer does not speak the protocol of the history store; check host and port"
            raise StoreFault(fault_class=FaultClass.UNAVAILABLE, code="protocol", reason=reason) from error
        if found.fault_class is FaultClass.POISON or found.code == "42704":
            reason = "the server refuses a setting of the connection: check the options of the URL"
            raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code=found.code, reason=reason) from error
        raise
