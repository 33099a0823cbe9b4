"""Kill a bot, its relay, or both, at moments that chance draws, while the bot talks as fast as it can."""

import asyncio
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from tests.campaigns.victims import BOT, RELAY, Victims
from tests.proof.crash.moments import context
from tests.proof.harness import Experiment, Setting, Tally, migrated
from tests.proof.stores import KINDS
from tests.support.defects import IDS_KEPT, IN_PARTS, NEVER, RESET_KEEPS

KILLS: Final = 110  # of each store, in each round; more than 300 in all
PROMISES: Final = 1_800  # of each store, in each round; more than 5,000 in all
TIMEOUT_SECONDS: Final = 60.0
_BLOWS: Final = ((BOT,), (RELAY,), (BOT, RELAY), (RELAY, BOT))
CAUGHT_WITHIN: Final = 60  # kills of a control; chance may spare it for a while
WHAT: Final = "bot, relay or both killed at random"


def table() -> Iterator[Experiment]:
    run: Any = partial(kill_in_rounds, kills=(KILLS, 2), promises=(PROMISES, 20))
    yield Experiment(WHAT, run, "kills", KILLS)
    for what, defect, records_every, paths_every in (
        ("promised before it is written", "an append returns before it is written", 3, NEVER),
        ("records promised before they are written", "a record is promised before it is written", 1, NEVER),
        (IDS_KEPT, IDS_KEPT, NEVER, 1),
        (IN_PARTS, IN_PARTS, NEVER, 1),
        (RESET_KEEPS, RESET_KEEPS, NEVER, 1),
    ):
        how: Any = {"records_every": records_every, "paths_every": paths_every}
        kills = (100 if defect == IN_PARTS else 20, 4)
        run = partial(kill_in_rounds, kills=kills, promises=(20, 20), **how)
        # One look in eight finds an append half delivered, and few changes are resets.
        short = defect not in (IN_PARTS, RESET_KEEPS)
        yield Experiment(f"{what}, {WHAT}", run, "kills", on=("sqlite",), defect=defect, short=short)


def kill_in_rounds(setting: Setting, **how: Any) -> Tally:
    """Kill in rounds until one finds a violation: the log stays short, and so does each look at all of it."""
    whole = Tally()
    for number in range(1 if setting.defect else setting.options.rounds):
        options = replace(setting.options, seed=setting.seed + number)
        with setting.apart(f"{number}") as here:
            tally = asyncio.run(kill(replace(here, options=options), **how))
        whole.add(tally, where=f"seed {options.seed}" if number else "")
        if whole.violations:
            break
        shutil.rmtree(here.folder)
    figures = whole.figures
    whole.notes = (
        f"{figures[BOT]:,} times the bot, {figures[RELAY]:,} the relay, {figures['both']:,} both;"
        f" {whole.acknowledged:,} events acknowledged, {whole.stored:,} stored;"
        f" {figures['changes']:,} changes of records acknowledged; examined {figures['looks']:,} times in the middle"
        + (f"; in {number + 1} rounds, from seed {setting.seed} on" if number else "")
    )
    return whole


async def kill(setting: Setting, *, kills: tuple[int, int], promises: tuple[int, int], **every: int) -> Tally:
    """Kill until there were so many kills and promises, or a defect shows; look whenever both are dead."""
    chance, world, looked = random.Random(setting.seed + KINDS.index(setting.kind)), setting.world(), Tally()
    await migrated(world.url)  # its tables are there before the first kill
    victims = Victims(world.outbox, world.url, context=context(), defects=[setting.defect], **every)
    world.acks, world.records, tally = victims.acks, victims.record_acks, world.tally
    try:
        while (
            tally.count < setting.many(*kills)
            or victims.promised < setting.many(*promises)
            or (setting.defect and tally.count < CAUGHT_WITHIN and not looked.violations)
        ):
            victims.ensure()
            await victims.until_promised(victims.promised + chance.randrange(1, 40), patience=TIMEOUT_SECONDS)
            await asyncio.sleep(chance.uniform(0, 0.04))
            _count(tally, [name for name in chance.choice(_BLOWS) if victims.kill(name)])
            if not victims.alive:
                looked.take(await world.examine(drained=False, settling=True))
                looked.count += 1
    except AssertionError as error:  # one ended by itself, or got nowhere
        tally.problems.append(str(error))
    finally:
        _count(tally, victims.close())
    async with world.open() as history:
        await world.drain(history, f"not drained in {TIMEOUT_SECONDS:g} s", patience=TIMEOUT_SECONDS)
    last = await world.examine(settling=True)
    tally.take(last)
    if last.ok:  # what is lost once is found again by each later look: those count where the last one is well
        tally.problems += looked.problems
    tally.figures["changes"], tally.figures["looks"] = len(world.records), looked.count
    return tally


def _count(tally: Tally, killed: list[str]) -> None:
    tally.figures["both" if len(killed) > 1 else killed[0] if killed else "neither"] += 1
    tally.count += len(killed)
