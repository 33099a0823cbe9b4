"""Fail over under load, with clusters from packages: PostgreSQL under Patroni and etcd, and MariaDB Galera.

And Citus, of which there is no package: where PostgreSQL has it, by itself with ``--part citus``.

It ends within ten minutes. What cannot be run on a machine is skipped, with what to install. Exits with 0 if nothing
was lost, doubled or out of order, and each control failed as it has to.
"""

import argparse
import asyncio
import logging
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Final

from tests.failover import citus, controls
from tests.failover.galera import GaleraTrio
from tests.failover.load import Cluster, Fault, play
from tests.failover.patroni import PatroniTrio
from tests.proof.__main__ import conclude, prove_here
from tests.proof.harness import streamed
from tests.proof.options import Options
from tests.proof.page import published
from tests.proof.rows import Row
from tests.support.reports import ROOT, refusal, report_of, write
from tests.support.required import PATH
from tests.support.servers.postgresql import find_binaries

LIMIT_SECONDS: Final = 590  # should the limits of the parts not do
PUBLISHED: Final = ROOT / "docs" / "howto" / "replicated-store.md"
SPREAD: Final = ROOT / "docs" / "explanation" / "beyond-one-machine.md"
BEGIN: Final = "<!-- figures: made by `python -m tests.failover --publish`, not by hand -->"
SEED: Final = 20261129
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
    packages = [PACKAGES.get(name, name) for name in programs if not shutil.which(name, path=FOLDERS, mode=0)]
    return f"apt-get install {' '.join(packages)}" if packages else ""


async def _database(cluster: Cluster) -> str:
    """Create a database, in a thread: what stops the loop stops the wires, and Patroni changes the primary."""
    node = cluster.nodes[await asyncio.to_thread(cluster.writer)]
    return (await asyncio.to_thread(node.create_database, "letopis_failover")).rpartition("/")[2]


PARTS: Final = {"citus": citus.prove, "controls": controls.prove, "galera": galera, "patroni": patroni}


def version_of(program: str | Path) -> str:
    if shutil.which(program) is None:
        return "none"
    return "".join(re.findall(r"[\d.]+", subprocess.check_output([program, "--version"], text=True))[:1])


def main() -> int:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.failover", description=__doc__, formatter_class=how)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=[name for name in PARTS if name != "citus"])
    parser.add_argument("--short", action="store_true", help="one scenario of each kind")
    parser.add_argument("--publish", action="store_true", help="write what held into the documentation")
    given = parser.parse_args()
    if given.publish and given.short:
        parser.error("what is published is not short")
    if given.publish and (reason := refusal()):
        parser.error(reason)
    logging.disable()
    # As Ctrl-C does it: every cluster is ended on the way out.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.alarm(LIMIT_SECONDS)
    parts = [prove_here(name, short=given.short, seed=SEED, work=PARTS[name]) for name in given.part]
    programs: dict[str, str | Path] = {"PostgreSQL": find_binaries() / "postgres", "Patroni": "patroni", "etcd": "etcd"}
    versions = {"Linux": platform.release(), **{name: version_of(program) for name, program in programs.items()}}
    report = report_of(parts, versions=versions, seed=SEED, short=given.short)
    for page in (PUBLISHED, SPREAD) if given.publish else ():
        ours = [part for part in report["parts"] if (part["part"] == "citus") == (page == SPREAD)]
        text = published({**report, "parts": ours}, page.read_text(encoding="utf-8"), begin=BEGIN)
        page.write_text(text, encoding="utf-8")
    return conclude(report, write(report, ROOT / "build" / "failover", "failover"))


if __name__ == "__main__":
    raise SystemExit(main())
