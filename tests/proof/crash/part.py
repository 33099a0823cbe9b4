"""Run everything that is killed, one row after the other."""

import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Final

from tests.proof.crash import at_random, contents, exact, sending, steps
from tests.proof.crash.exact import every
from tests.proof.crash.field import Field
from tests.proof.crash.gate import missing
from tests.proof.crash.moments import COMMITTED, MOMENTS, Moment, Who
from tests.proof.harness import Tally, prove_table, streamed
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.proof.stores import KINDS, fresh
from tests.support.store_changes import drop_event_id_index
from tests.support.webhook import serve

TIMES: Final = 3
CALLS: Final = 20
TIMES_ALERTS: Final = 2  # each waits for a reminder


def prove(options: Options) -> Iterator[Row]:
    yield from prove_table(options, [*at_random.table(), *steps.TABLE, *contents.TABLE, *sending.TABLE])
    yield from streamed(_at_each_moment(options))
    yield from exact.prove(options)


async def _at_each_moment(options: Options) -> AsyncIterator[Row]:
    """Have processes die at each moment, and once at one of them without the promise."""
    fields: dict[str, Field] = {}
    async with AsyncExitStack() as stack:
        hook = stack.enter_context(serve())
        for kind in KINDS:
            store = stack.enter_context(fresh(kind, options.folder, "matrix"))
            if store.missing:
                yield Row(what="killed at each moment that has a name", where=kind, missing=store.missing)
                continue
            opened = Field.open(options.folder / f"matrix-{kind}.outbox.db", store.url, hook)
            fields[kind] = await stack.enter_async_context(opened)
        for place, moment in enumerate(MOMENTS):
            kinds = list(fields) if not options.short else [list(fields)[place % len(fields)]]
            yield await _row(moment, {kind: fields[kind] for kind in kinds}, options)
        for kind, field in fields.items():
            if kind != "sqlite":
                yield await _calls(kind, field, options)
    (committed,) = (one for one in MOMENTS if one.name == COMMITTED)
    with serve() as hook:
        for kind in KINDS[:1] if options.short else KINDS:
            with fresh(kind, options.folder, "double") as store:
                if store.missing:
                    continue
                outbox = options.folder / f"double-{kind}.outbox.db"
                async with Field.open(outbox, store.url, hook, without=True) as field:
                    await drop_event_id_index(store.url)
                    what = f"applied without a look, killed at {COMMITTED}"
                    yield _told(what, kind, [await field.die(committed, 1)], least=1, control=True)


async def _row(moment: Moment, fields: Mapping[str, Field], options: Options) -> Row:
    times = options.many(TIMES_ALERTS if moment.who is Who.WATCH else TIMES, 1)
    chance = random.Random(f"{options.seed} {moment.name}")
    deaths: list[Tally] = []
    for field in fields.values():
        # The first time it comes there, where what is left behind shows that it was there; and at some other times.
        numbers = [1, *(chance.randint(1, moment.most) for _ in range(times - 1))]
        deaths += [await field.die(moment, number) for number in numbers]
    return _told(f"killed at {moment.name}", ", ".join(fields), deaths, least=len(deaths))


async def _calls(kind: str, field: Field, options: Options) -> Row:
    what = "a delivery killed at a call to the server"
    if reason := missing():
        return Row(what=what, where=kind, missing=reason)
    await field.say()
    calls, _ = await field.deliver_gated()
    numbers = every(len(calls), options.many(CALLS, 1), options.seed)
    deaths = [await field.die_at_call(number) for number in numbers]
    return _told(f"{what}: {len(numbers)} of the {len(calls)}", kind, deaths, least=CALLS // 2)


def _told(what: str, where: str, deaths: list[Tally], *, least: int, control: bool = False) -> Row:
    whole = Tally()
    for death in deaths:
        whole.add(death)
    stored, doubled = whole.figures["stored"], whole.figures["doubled"]
    if stored:
        whole.notes = f"{stored} left something stored and not written off; {doubled} events recognised when sent again"
    return whole.row(what, where, "kills", least, control=control)
