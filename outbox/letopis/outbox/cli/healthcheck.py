"""``letopis healthcheck``: whether the daemon is well, for containers that have nothing else to ask with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import given_outboxes, settings, with_options
from letopis.outbox.cli.relay import LISTEN

if TYPE_CHECKING:
    from pathlib import Path

    from letopis.outbox.listening import Address

PATIENCE: Final = 3.0
"""Seconds for an answer."""


@click.command()
@LISTEN
@with_options
def healthcheck(listen: str | None) -> None:
    """Exit with 0 if a relay is at work on the outbox, and with 1 and the reason if not.

    Asks the daemon over HTTP (/healthz/ready) where --listen says that it answers there, and looks at the outbox files
    otherwise. A history store that is away is no reason: the outbox is there for that.
    """
    from letopis.store.errors import LetopisError

    # 0 and 1 are the only codes that a container's health check may end with.
    try:
        reason = _reason(listen)
    except LetopisError as error:
        reason = str(error)
    if reason is not None:
        raise Ended(Exit.FAILED, reason)


def _reason(listen: str | None) -> str | None:
    """Return why the relay is not well; ``None`` if it is."""
    from letopis.outbox.listening import parse_address

    found = settings(several=True)
    address = listen or found.daemon.get("listen")
    if address:
        return _ask(parse_address(str(address)))
    return _look_at(given_outboxes() or (str(found.outbox),))


def _ask(address: Address) -> str | None:
    """Return why the daemon is not well, by its own word; ``None`` if it is."""
    import http.client

    # What listens everywhere is asked on the loopback interface.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 # nosec B104 - compared, not bound
    connection = http.client.HTTPConnection(host, address.port, timeout=PATIENCE)
    try:
        connection.request("GET", "/healthz/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from {address} ({type(error).__name__})"
    finally:
        connection.close()
    return None if status == 200 else f"{address} answers {status}"


def _look_at(names: tuple[str, ...]) -> str | None:
    """Return why an outbox is not served, by what its relay leaves in the file; ``None`` if all are."""
    from letopis.outbox.outboxes import find, holds_outbox

    paths = [one.path for one in find(names) if not one.matched or holds_outbox(one.path)]
    for path in paths:
        if not path.is_file():
            return f"there is no outbox {str(path)!r}"
        try:
            running = asyncio.run(_running(path))
        except TimeoutError:
            return f"{path.name!r} could not be read in {PATIENCE:g} s"
        if not running:
            return f"no relay is at work on {path.name!r}"
    return None


async def _running(path: Path) -> bool:
    from letopis.outbox.file import look
    from letopis.outbox.status import read_status
    from letopis.store.events import to_microseconds, utc_now

    async with asyncio.timeout(PATIENCE):
        found = await look(path, lambda connection: read_status(connection, now_us=to_microseconds(utc_now())))
    return found.relay.running
