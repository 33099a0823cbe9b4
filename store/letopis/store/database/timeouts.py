"""Limit how long a history store may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from letopis.store.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits in seconds, each above 0.

    They do not limit a whole transaction: put a deadline of your own around it. A connection that is cancelled leaves
    the pool.

    :ivar connect: to connect and log in, for each host of the URL.
    :ivar statement: one statement on the server, idle time inside a transaction, and the wait for a free connection of
        the pool. SQLite does not limit a statement.
    :ivar lock: the wait for one lock that another transaction holds; on SQLite for the lock of the file.
    """

    connect: float = 5.0
    statement: float = 30.0
    lock: float = 10.0

    def __post_init__(self) -> None:
        for name in ("connect", "statement", "lock"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ConfigurationError(f"the timeout {name!r} is a number of seconds above 0")

    def pool_options(self, pool_size: int) -> dict[str, Any]:
        """Return the options of an engine's pool that opens at most ``pool_size`` connections."""
        return {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": self.statement}
