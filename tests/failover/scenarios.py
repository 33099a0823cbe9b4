"""List what happens to each cluster, and do it under load."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from functools import partial
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Final

from tests.failover.galera import GaleraTrio
from tests.failover.load import Cluster, Fault, play
from tests.failover.patroni import PatroniTrio
from tests.proof.harness import streamed
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.required import PATH

PACKAGES: Final = {"etcd": "etcd-server", "mariadbd": "mariadb-server", "libgalera_smm.so": "galera-4"}
FOLDERS: Final = f"{PATH}:/usr/lib/galera"
PATRONI, WIRED, PROXIED, GALERA = "three nodes", "the same, over wires", "the same, behind HAProxy", "three nodes"


def patroni(options: Options) -> Iterator[Row]:
    if needs := missing("patroni", "etcd"):
        yield Row(what="primary lost", where=PATRONI, missing=needs)
        return
    yield from streamed(_patroni(options))


async def _patroni(options: Options) -> AsyncIterator[Row]:
    async with PatroniTrio.running(options.folder) as trio:
        killed = Fault("primary killed with kill -9", partial(trio.send, SIGKILL), trio.start, options.many(2, 1))
        frozen = Fault("primary stopped with SIGSTOP", partial(trio.send, SIGSTOP), partial(trio.send, SIGCONT), 2)
        switched = Fault("switchover", trio.switch_over, lambda _: None, 2)
        parted = Fault("primary parted from all others", partial(trio.connect, False), partial(trio.connect, True))
        faults = (killed,) if options.short else (killed, frozen, switched)
        async for row in play(options, trio, trio.url(await _database(trio)), faults, where=PATRONI):
            yield row
        if options.short:
            return
        wired = trio.url(await _database(trio), wired=True)
        async for row in play(options, trio, wired, (parted,), where=WIRED):
            yield row
        if needs := missing("haproxy"):
            yield Row(what=killed.what, where=PROXIED, missing=needs)
            return
        proxied = await asyncio.to_thread(trio.proxied, await _database(trio))
        async for row in play(options, trio, proxied, (killed._replace(times=1), switched), where=PROXIED):
            yield row


def galera(options: Options) -> Iterator[Row]:
    if needs := missing("mariadbd", "rsync", "libgalera_smm.so"):
        yield Row(what="node lost", where=GALERA, missing=needs)
        return
    with GaleraTrio.running() as trio:
        node, kill = trio.nodes, partial(trio.send, SIGKILL)
        faults = (
            Fault("node written to killed with kill -9", kill, lambda n: node[n].start(), options.many(2, 1)),
            Fault("another node killed with kill -9", lambda n: kill(n - 1), lambda n: node[n - 1].start()),
            Fault("node written to stopped with SIGSTOP", partial(trio.send, SIGSTOP), partial(trio.send, SIGCONT), 2),
            Fault("node written to restarted", lambda n: node[n].stop(), lambda n: node[n].start()),
        )
        url = trio.url(asyncio.run(_database(trio)))
        yield from streamed(play(options, trio, url, faults[: options.many(4, 1)], where=GALERA))


def missing(*programs: str) -> str:
    """Return how to install the programs that are not there; nothing if all are."""
    packages = [PACKAGES.get(name, name) for name in programs if not shutil.which(name, path=FOLDERS, mode=0)]
    return f"apt-get install {' '.join(packages)}" if packages else ""


async def _database(cluster: Cluster) -> str:
    """Create a database, in a thread: what stops the loop stops the wires, and Patroni changes the primary."""
    node = cluster.nodes[await asyncio.to_thread(cluster.writer)]
    return (await asyncio.to_thread(node.create_database, "letopis_failover")).rpartition("/")[2]
