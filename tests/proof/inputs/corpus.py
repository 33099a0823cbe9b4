"""Put the named hostile values at every place of an append: each is stored equal or refused by its field."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from letopis.outbox import History
from letopis.store import ConversationStore
from tests.acceptance.test_bad_input import Attempt, compare, keep, refuse
from tests.proof.inputs.judging import Tally
from tests.proof.inputs.running import BLOCK_AT_ONCE, blocked
from tests.support.values.places import Case, cases


async def tried(url: str, folder: Path, *, random: Random, many: int | None) -> Tally:
    tally = Tally()
    whole = list(enumerate(cases()))
    some: list[tuple[int, Case]] = whole if many is None else random.sample(whole, many)
    async with (
        ConversationStore.open(url, migrate=True) as store,
        History(folder / "corpus.outbox.db", store=store, policy=BLOCK_AT_ONCE) as history,
    ):
        for number, case in some:
            tally.tried += 1
            if not case.kept:
                tally.refused += 1
                tally.problems += await refuse(history, case, number)
        kept: list[tuple[Case, Attempt] | str] = await asyncio.gather(
            *(keep(history, case, number) for number, case in some if case.kept)
        )
        if not await history.drained(timeout=60):
            tally.blame("not everything is delivered")
        tally.problems += [f"blocked at delivery: {words}" for words in await history.outbox.read(blocked)]
        for outcome in kept:
            tally.accepted += 1
            if isinstance(outcome, str):
                tally.blame(outcome)
            else:
                tally.compared += 1
                await compare(store, *outcome, tally.problems)
    return tally
