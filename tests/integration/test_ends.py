"""No connection, task or future survives an event loop, a login or a pool that ends in the middle of its work."""

import asyncio
import json
import socket
import subprocess
import sys
from typing import Any

import pytest

from letopis.store.database.mariadb import _connection_class
from tests.support.child import command
from tests.support.ends import end_all

SERVERS = pytest.mark.parametrize("store_url", ["postgresql", "mariadb"], indirect=True)
SEED = 20_261_130
READS = {"read", "cancelled", "TimeoutError"}
NOTHING = {"sockets": 0, "tasks": 0, "connections": 0}


@SERVERS
def test_nothing_is_left_of_18_ends(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    report = end_all(store_url, 18, SEED)

    assert (report["left"], caplog.text) == (NOTHING, "")
    assert report["reads"].keys() >= {"read", "cancelled"}


def ended(url: str, ends: int, **options: Any) -> tuple[dict[str, Any], str]:
    """Return the report of a process of its own, and what it wrote to stderr."""
    _, *words = command(end_all, url, ends, SEED, **options)
    python = [sys.executable, "-W", "always::ResourceWarning"]  # with -X dev, asyncio tells what was slow, too
    done = subprocess.run([*python, *words], capture_output=True, text=True, timeout=600, check=True)
    return json.loads(done.stdout), done.stderr


@SERVERS
def test_nothing_is_left_of_500_ends(store_url: str) -> None:
    report, errors = ended(store_url, 500)

    assert (report["left"], errors) == (NOTHING, "")
    assert report["reads"].keys() == READS


@SERVERS
def test_control_without_the_pool_leaves_connections(store_url: str) -> None:
    report, errors = ended(store_url, 60, without="pool")

    assert report["left"]["sockets"] and report["left"]["connections"]
    assert "ResourceWarning: unclosed transport" in errors


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_control_without_the_login_leaves_futures(store_url: str) -> None:
    report, errors = ended(store_url, 200, without="login")

    assert report["left"] == NOTHING
    assert "Future exception was never retrieved" in errors


async def test_a_mariadb_server_that_reads_nothing_keeps_no_closed_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.getsockname())
        connection = _connection_class()()
        connection._transport = transport
        transport.write(bytes(50_000_000))
        connection.close()
        await asyncio.sleep(0.01)

        assert transport.get_extra_info("socket").fileno() == -1
