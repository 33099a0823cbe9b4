"""Run the experiments with the network and the servers in processes of their own, two at a time."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Final

from tests.proof.network.bots import Enough, Hasty, speech_of, storm
from tests.proof.network.servers import harm
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.defects import DUPLICATES_TAKEN, planted
from tests.support.servers import ServerUnavailable

KINDS: Final = ("postgresql", "mariadb")
FAULTS: Final = 1_000  # faults that have to fire, a driver
STORM: Final = "connections broken under relays at work"
TIMEOUT_SECONDS: Final = 1200.0
"""Seconds that one experiment may take; on a machine that is not busy it takes less than a tenth of that."""
Work = Callable[[Options, str], list[Row]]
DOUBLES: Final = "an apply without its duplicate check"
HASTY: Final = "a relay that is answered before the store knows"
OFTEN: Final = 5
"""Times that a control meets what it is about, so that its violations do not depend on which faults chance drew."""


def prove(options: Options) -> Iterator[Row]:
    """Break what lies between relays and their stores, then the servers, then show that it would be seen."""
    jobs: list[tuple[Work, str]] = [(work, kind) for work in (storms, harms) for kind in KINDS]
    # A short one shows each control once.
    jobs += [(doubles, kind) for kind in KINDS[: options.many(2, 1)]]
    jobs += [(hasty, kind) for kind in KINDS[options.many(0, 1) :]]
    with ThreadPoolExecutor(2) as pool:
        for rows in pool.map(lambda job: _apart(options, *job), jobs):
            yield from rows


def _apart(options: Options, work: Work, kind: str) -> list[Row]:
    """Do it in a process of its own: what a control takes away is gone in no other experiment."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, options, work, kind), daemon=True)
    process.start()
    theirs.close()
    with ours:
        try:
            rows: list[Row] | None = ours.recv() if ours.poll(TIMEOUT_SECONDS) else None
        except EOFError:
            rows = None
    process.join(10)
    if process.exitcode is None:
        process.kill()
        process.join()
    if rows is None:
        words = f"the process ended with {process.exitcode}, or took longer than {TIMEOUT_SECONDS:g} s"
        return [Row(what=work.__name__, where=kind, violations=1, problems=(words,))]
    return rows


def _send(pipe: Connection, options: Options, work: Work, kind: str) -> None:
    with pipe:
        pipe.send(work(options, kind))


def storms(options: Options, kind: str) -> list[Row]:
    """The real thing, over the driver of one kind of server."""
    return [_run(options, kind, STORM, faults=options.many(FAULTS, 50), seconds=options.many(180, 4))]


def harms(options: Options, kind: str) -> list[Row]:
    logging.disable()
    folder = options.folder / f"{kind} harmed"
    folder.mkdir()
    try:
        return asyncio.run(harm(kind, folder, short=options.short, seed=f"{options.seed} harmed"))
    except ServerUnavailable as missing:
        return [Row(what="a server is harmed", where=kind, missing=str(missing))]


def doubles(options: Options, kind: str) -> list[Row]:
    """A control: what is sent again is stored again."""
    with planted(DUPLICATES_TAKEN):
        return _control(options, kind, DOUBLES, lambda sky, _: sky.ambiguous >= OFTEN, unguarded=True)


def hasty(options: Options, kind: str) -> list[Row]:
    """A control: what was acknowledged too early is lost."""
    return _control(options, kind, HASTY, lambda _, stores: stores[0].false_promises >= OFTEN, store=Hasty)


def _control(options: Options, kind: str, what: str, enough: Enough, **how: Any) -> list[Row]:
    return [_run(options, kind, what, faults=options.many(60, 20), seconds=60, patience=3, enough=enough, **how)]


def _run(options: Options, kind: str, what: str, **how: Any) -> Row:
    logging.disable()
    whole, control = what == STORM and not options.short, what != STORM
    where = {"postgresql": "PostgreSQL, asyncpg", "mariadb": "MariaDB, asyncmy"}[kind]
    try:
        server, speech = speech_of(kind)
    except ServerUnavailable as missing:
        return Row(what=what, where=where, control=control, missing=str(missing))
    folder = options.folder / f"{kind} {what}"
    folder.mkdir()
    with server:
        how |= {"seed": f"{options.seed} {what}", "stores": 4 if whole else 1, "pace": 0.25 if whole else 0.05}
        tally = asyncio.run(storm(server, speech, folder, **how))
    return tally.row(what, where, "faults", FAULTS, control=control)
