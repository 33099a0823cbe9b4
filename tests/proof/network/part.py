"""Run the experiments with the network and the servers in processes of their own, two at a time."""

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from typing import Final

from tests.proof.harness import Experiment, in_processes
from tests.proof.network.bots import FAULTS, Hasty, storm
from tests.proof.network.servers import harm
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.defects import DUPLICATES_TAKEN
from tests.support.servers import ServerUnavailable

WHERE: Final = {"postgresql": "PostgreSQL, asyncpg", "mariadb": "MariaDB, asyncmy"}
STORM: Final = "connections broken under relays at work"
DOUBLES: Final = "an apply without its duplicate check"
HASTY: Final = "a relay that is answered before the store knows"
OFTEN: Final = 5
"""Times that a control meets what it is about, so that its violations do not depend on which faults chance drew."""


def table(kind: str) -> list[Experiment]:
    """Return what is done over the driver of one kind of server; a short proof shows each control once."""
    over = partial(Experiment, unit="faults", on=(kind,), where=WHERE[kind])
    doubled = partial(storm, what=DOUBLES, enough=lambda sky, _: sky.ambiguous >= OFTEN)
    lost = partial(storm, what=HASTY, store=Hasty, enough=lambda _, stores: stores[0].false_promises >= OFTEN)
    return [
        over(STORM, partial(storm, what=STORM), least=FAULTS),
        over(DOUBLES, doubled, defect=DUPLICATES_TAKEN, short=("postgresql",)),
        over(HASTY, lost, control=True, short=("mariadb",)),
    ]


def prove(options: Options) -> Iterator[Row]:
    """Break what lies between relays and their stores, then the servers, then show that it would be seen."""
    storms = [partial(stormed, options, kind, 0) for kind in WHERE]
    harms = [partial(harmed, options, kind) for kind in WHERE]
    chosen = [(kind, number) for number in (1, 2) for kind in WHERE]
    chosen = [(kind, number) for kind, number in chosen if table(kind)[number].chosen(kind, short=options.short)]
    controls = [partial(stormed, options, kind, number) for kind, number in chosen]
    yield from in_processes([*storms, *harms, *controls], at_a_time=2)


def stormed(options: Options, kind: str, number: int) -> list[Row]:
    logging.disable()
    return [table(kind)[number].prove(options, kind, folder=f"{kind} {number}")]


def harmed(options: Options, kind: str) -> list[Row]:
    logging.disable()
    folder = options.folder / f"{kind} harmed"
    folder.mkdir()
    try:
        return asyncio.run(harm(kind, folder, short=options.short, seed=f"{options.seed} harmed"))
    except ServerUnavailable as missing:
        return [Row(what="a server is harmed", where=kind, missing=str(missing))]
