"""Prove upgrades and rollbacks of all stores and the outbox: interrupted, concurrent, and beside older code.

No release has a second revision yet, so all of it is run by the code of a next release: this one's, with a second
revision of both ends. This release, and tagged ones if there are any, are the earlier ones.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Final
from unittest.mock import patch

from tests.proof.harness import Experiment, prove_by_kind
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.proof.stores import KINDS
from tests.proof.upgrade import releases
from tests.proof.upgrade.migrating import cut_off, down_and_up, race
from tests.support.next_release import write_next_release


def prove(options: Options) -> Iterator[Row]:
    """Run them with the next release first on the path; Alembic keeps what it works on in globals of a process."""
    roots = write_next_release(options.folder / "next-release").roots
    # Spawned processes take over `sys.path`, a fork server does not.
    named = os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
    with patch.object(sys, "path", [*roots, *sys.path]), patch.dict(os.environ, PYTHONPATH=named):
        yield from prove_by_kind(options, TABLE)


def table() -> Iterator[Experiment]:
    one = partial(Experiment, short=("sqlite",))
    run = partial(releases.at_each_release, play=releases.run_on)
    yield one("code of earlier releases runs on while the tables change under it", run, "events", 30)
    run = partial(releases.at_each_release, play=releases.start_on)
    yield one("code of earlier releases starts on tables of this one", run, "refusals", 2)
    for what, play in (
        ("an earlier release's bot and the next one's daemon on one file: the daemon killed", releases.kill_daemon),
        ("the next release's bot and an earlier one's daemon on one file: the bot killed", releases.kill_bot),
    ):
        yield one(what, partial(releases.on_one_file, play=play), "kills", releases.KILLS)
    yield one("down to each revision and up again", down_and_up, "migrations", 2)
    what = "a migration killed before or after each of its statements, and run again"
    yield one(what, cut_off, "kills")
    yield Experiment(what, cut_off, "kills", on=(), where="outbox")
    what = "four processes migrate at once"
    one = partial(Experiment, run=race, unit="migrations", short=KINDS[:2])
    yield one(what, least=48)
    yield Experiment(what, race, "migrations", 48, on=(), where="outbox")
    yield one(f"{what}, without the lock of migrations", control=True)


TABLE: Final = tuple(table())
