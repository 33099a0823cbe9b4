"""Kill a bot, its relay, or both, at moments that chance draws, while the bot talks as fast as it can."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from letopis.outbox import History
from letopis.store import ConversationStore
from tests.campaigns.invariants import Ack, Verdict, check
from tests.campaigns.record_invariants import RecordAck
from tests.campaigns.victims import BOT, RELAY, Context, Victims
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.proof.stores import each, fresh
from tests.support.defects import IN_PARTS, NEVER, PUT_BACK_DROPPED, RESET_KEEPS

KILLS: Final = 110  # of each store; more than 300 in all
PROMISES: Final = 1_800  # of each store; more than 5,000 in all
TIMEOUT_SECONDS: Final = 60.0
_BLOWS: Final = ((BOT,), (RELAY,), (BOT, RELAY), (RELAY, BOT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a number of kills."""

    killed: Counter[str]
    looks: int
    changes: int
    wrong: tuple[str, ...]
    last: Verdict
    verdicts: tuple[Verdict, ...]

    @property
    def kills(self) -> int:
        return sum(count * (2 if name == "both" else 1) for name, count in self.killed.items())


def prove(options: Options, context: Context) -> Iterator[Row]:
    """Kill on each store, and once without the promise."""
    what = "bot, relay or both killed at random"
    for place, store in enumerate(each(options.folder, "random")):
        if store.missing:
            yield Row(what=what, where=store.kind, missing=store.missing)
            continue
        outcome = asyncio.run(
            kill(
                options.folder / f"random-{store.kind}.outbox.db",
                store.url,
                context,
                kills=options.many(KILLS, 4),
                promises=options.many(PROMISES, 50),
                seed=options.seed + place,
            )
        )
        yield _row(what, store.kind, outcome)
    for name, defect, records_every, paths_every in (
        ("promised before it is written", "an append returns before it is written", 3, NEVER),
        ("records promised before they are written", "a record is promised before it is written", 1, NEVER),
        (PUT_BACK_DROPPED, PUT_BACK_DROPPED, NEVER, 1),
        (IN_PARTS, IN_PARTS, NEVER, 1),
        (RESET_KEEPS, RESET_KEEPS, NEVER, 1),
    ):
        if options.short and defect in (IN_PARTS, RESET_KEEPS):
            continue  # one look in eight finds an append half delivered, and few changes are resets
        with fresh("sqlite", options.folder, f"early-{records_every}-{paths_every}-{defect}") as store:
            outcome = asyncio.run(
                kill(
                    options.folder / f"early-{records_every}-{paths_every}-{defect}.outbox.db",
                    store.url,
                    context,
                    kills=options.many(100 if defect == IN_PARTS else 20, 4),
                    promises=20,
                    seed=options.seed,
                    defects=(defect,),
                    records_every=records_every,
                    paths_every=paths_every,
                )
            )
        yield _row(f"{name}, {what}", store.kind, outcome, control=True)


async def kill(
    outbox: Path,
    url: str,
    context: Context,
    *,
    kills: int,
    promises: int,
    seed: int,
    defects: Sequence[str] = (),
    records_every: int = 3,
    paths_every: int = 4,
) -> Outcome:
    """Kill until there were so many kills and so many promises; look whenever both are dead, and at the end."""
    chance = random.Random(seed)
    killed: Counter[str] = Counter()
    looks, done = 0, 0
    found: list[Verdict] = []
    wrong: list[str] = []
    async with ConversationStore.open(url, migrate=True):
        pass  # its tables are there before the first kill
    victims = Victims(
        outbox, url, context=context, defects=defects, records_every=records_every, paths_every=paths_every
    )
    try:
        while done < kills or victims.promised < promises:
            victims.ensure()
            await victims.until_promised(victims.promised + chance.randrange(1, 40), patience=TIMEOUT_SECONDS)
            await asyncio.sleep(chance.uniform(0, 0.04))
            blow = chance.choice(_BLOWS)
            hit = [name for name in blow if victims.kill(name)]
            if hit:
                killed["both" if len(hit) > 1 else hit[0]] += 1
                done += len(hit)
            if not victims.alive:
                verdict = await settled([outbox], url, victims.acks, victims.record_acks)
                looks += 1
                if not verdict.ok:
                    found.append(verdict)
    except AssertionError as error:  # one ended by itself, or got nowhere
        wrong.append(str(error))
    finally:
        victims.close()
    async with History(outbox, store=url, watch=False) as history:
        if not await history.drained(TIMEOUT_SECONDS):
            wrong.append(f"not drained in {TIMEOUT_SECONDS:g} s")
    last = await settled([outbox], url, victims.acks, victims.record_acks, drained=True)
    return Outcome(
        killed=killed,
        looks=looks,
        changes=len(victims.record_acks),
        wrong=tuple(wrong),
        last=last,
        verdicts=(*found, last),
    )


async def settled(
    outboxes: list[Path], url: str, acks: list[Ack], records: list[RecordAck], *, drained: bool = False
) -> Verdict:
    """Return what is found once nobody writes.

    A server may just be committing for a relay that is dead already. What is wrong when that is over stays wrong.
    """
    verdict = await check(outboxes, url, acknowledged=list(acks), records=list(records), drained=drained)
    if not verdict.ok:
        await asyncio.sleep(0.5)
        verdict = await check(outboxes, url, acknowledged=list(acks), records=list(records), drained=drained)
    return verdict


def _row(what: str, kind: str, outcome: Outcome, *, control: bool = False) -> Row:
    last = outcome.last
    problems = [*outcome.wrong]
    problems += [one for verdict in outcome.verdicts for one in verdict.problems]
    # What is lost once is found again by each later look: the last one counts, and the others where that is well.
    violations = last.problem_count or max((one.problem_count for one in outcome.verdicts), default=0)
    killed = outcome.killed
    notes = (
        f"{killed[BOT]} times the bot, {killed[RELAY]} the relay, {killed['both']} both;"
        f" {last.acknowledged:,} events acknowledged, {last.stored:,} stored;"
        f" {outcome.changes:,} changes of records acknowledged; examined {outcome.looks} times in the middle"
    )
    violations += len(outcome.wrong)
    given = (what, kind, outcome.kills, KILLS, "kills", problems, notes)
    return row_of(*given, violations=violations, control=control)
