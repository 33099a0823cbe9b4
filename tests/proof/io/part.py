"""Let a disk fail in each way, with controls that show that a loss would be seen."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from tests.proof.harness import Experiment, Setting, Tally, prove_table
from tests.proof.io import disks, gone, live
from tests.proof.io.failing import fail_each
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.fix_disk import strace

AT_A_TIME: Final = 3  # experiments at a time: most of them mostly wait
MOST: Final = 170  # calls of one kind that fail one by one, drawn by chance where the script makes more
LEAST: Final = {"pwrite64": 75, "fdatasync": 15, "ftruncate": 3}
ERRORS: Final = ("EIO", "ENOSPC")


def once(setting: Setting, call: str, error: str) -> Tally:
    def choose(count: int) -> Sequence[int]:
        each, most = range(1, count + 1), setting.many(MOST, 3)
        return each if count <= most else sorted(random.Random(setting.seed).sample(each, most))

    return fail_each(setting, call, error, choose, once=True)


def from_then_on(setting: Setting, call: str, error: str) -> Tally:
    def choose(count: int) -> Sequence[int]:
        return [max(1, count * share // 9) for share in ((4,) if setting.options.short else range(1, 9))]

    return fail_each(setting, call, error, choose, once=False)


def table(options: Options) -> Iterator[Experiment]:
    for call, least in LEAST.items():
        for error in ERRORS:
            what, short = f"each {call} of a script fails once, in turn", (call, error) == ("pwrite64", "EIO")
            run = partial(once, call=call, error=error)
            yield Experiment(what, run, "faults", least, on=(), where=error, short=short)
    what = "each {} of a script fails, from the K-th on"
    for call in ("pwrite64", "fdatasync"):
        for error in ERRORS:
            run = partial(from_then_on, call=call, error=error)
            yield Experiment(what.format(call), run, "faults", on=(), where=error, short=False)
    run = partial(from_then_on, call="pwrite64", error="EIO")
    careless = f"{what.format('pwrite64')}; the bot takes a refused append for a successful one"
    yield Experiment(careless, run, "faults", on=(), where="EIO", control=True)

    what = f"each flush takes {1000 * live.DELAY:.0f} ms, the event loop goes on"
    no_strace = partial(lambda: "" if strace() else "needs strace, and the right to trace")
    slow = partial(Experiment, run=live.slow_flushes, unit="slow appends", on=(), missing=no_strace)
    yield slow(what)
    yield slow(f"{what}; writes in the loop's own thread", control=True)

    what = "taken away under a running bot, which is killed then"
    for way in gone.WAYS:
        where = way.name if way.suffix else f"outbox {way.name}"
        run, short = partial(gone.take, way=way), way is gone.WAL_REMOVED
        yield Experiment(what, run, "appends refused", on=(), where=where, short=short)
    run = partial(gone.take, way=gone.WAL_REMOVED)
    yield Experiment(f"{what}; nobody looks", run, "files", on=(), where=gone.WAL_REMOVED.name, control=True)
    commands = len(disks.COMMANDS[: options.many(len(disks.COMMANDS), 1)])
    full = (
        f"file system of {disks.MEBIBYTES} MB filled to the last byte; the relay goes on, appends do when there is room"
        f" and {commands} command{'s' * (commands > 1)} at the start explained"
    )
    for what, fill in (
        (full, disks.on_a_full_disk),
        ("files may not grow any further (RLIMIT_FSIZE), later they may", disks.under_a_limit),
        ("ext4 stops writing, as after an error of the disk, and is mounted again", disks.gone_read_only),
        ("file system read-only at the start, then writable", disks.read_only_at_start),
    ):
        yield Experiment(what, fill, "refused", on=())
    what = "SQLite history removed, or replaced by an older copy, under a running bot"
    yield Experiment(what, gone.take_store, "files", on=())
    yield Experiment(f"{what}; nobody looks", gone.take_store, "files", on=(), control=True)


def prove(options: Options) -> Iterator[Row]:
    yield from prove_table(options, list(table(options)), at_a_time=AT_A_TIME)
