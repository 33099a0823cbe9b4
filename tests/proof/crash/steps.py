"""Kill a process in each step of a numbered erasure and of retention; whoever comes next completes what it left."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

from letopis import ContentRetention, ConversationStore, History, Message, OutboxFile
from letopis.outbox import Relay
from letopis.outbox.event_log import erasures
from letopis.store.maintenance import task_steps
from letopis.store.model.events import utc_now
from letopis.store.write import erasing as store_erasing
from letopis.store.write import row_writer
from tests.proof.crash.moments import AFTER, BEFORE, Moment, Side, Who, context, plant
from tests.proof.harness import Experiment, Setting, Tally, World, migrated
from tests.proof.stores import KINDS
from tests.support.child import start
from tests.support.defects import COUNTED_TOO_SOON, PLACES_TOO_SOON, planted
from tests.support.sayings import differences
from tests.support.store_changes import copied

TIMEOUT_SECONDS: Final = 120.0
SECOND: Final = "second.outbox.db"
WORDS: Final = "gheldrimmer"
OLD, YOUNG = "quetzalcoatlus", "young words"
POLICY: Final = ContentRetention(max_age_days=30)
RELAYS: Final = 10
"""Relays that come after the last kill, at most: a server may hold the locks of a killed client for a moment."""

Counts = Callable[[tuple[Any, ...], Any], bool]


def _step(name: str, function: str, side: Side = AFTER, number: int = 1, counts: Counts = lambda *_: True) -> Moment:
    return Moment(name, Who.RELAY, function, side, "", number, counts)


def _writes(function: str) -> Counts:
    """Count the transactions of an outbox file that do this."""
    return lambda given, _: function in {getattr(getattr(one, "func", one), "__name__", "") for one in given[1]}


_COMMIT: Final = "letopis.outbox.file.committer:Committer._transact"
_APPLY: Final = "letopis.store.conversation_store:ConversationStore.apply"
_ERASER: Final = "letopis.store.write.erasing:Eraser"
_RETENTION: Final = "letopis.outbox.relay.content_retention"
FIRST_STEPS: Final = (
    _step("recorded", "letopis.store.erasures:ErasureRegister.register"),
    _step("appended", "letopis.outbox.history.erasing:_erase_owned"),
)
"""Of the outbox that is asked to erase."""
SECOND_STEPS: Final = (
    _step("begun", _COMMIT, counts=_writes("carry_out_step")),
    _step("halfway", _COMMIT, number=2, counts=_writes("carry_out_step")),
    _step("carried out", _COMMIT, counts=_writes("end_erasures")),
    _step("acknowledged", _APPLY, counts=lambda given, _: not given[2]),
    _step("noted", _COMMIT, counts=_writes("note_acknowledged")),
)
"""Of the outbox that was away at the time."""
TRIM_STEPS: Final = (
    _step("found", f"{_RETENTION}:due_content", counts=lambda _, found: bool(found.due)),
    _step("appended", f"{_RETENTION}:append_trims"),
    _step("applying", f"{_ERASER}.carry_out"),
    _step("applied", _APPLY),
    _step("erasing the tail", "letopis.outbox.event_log.acknowledge:erase_delivered", BEFORE),
    _step("in a step", f"{_ERASER}.step"),
    _step("after a step", "letopis.store.maintenance.task_steps:TaskSteps.step"),
    _step("places kept", f"{_RETENTION}:keep_places"),
)


async def _ended(target: Callable[..., None], *given: str) -> int | None:
    process = start(context(), target, *given)
    await asyncio.to_thread(process.join, TIMEOUT_SECONDS)
    process.kill()
    process.join()
    return process.exitcode


async def _die(tally: Tally, where: str, target: Callable[..., None], *given: str) -> None:
    code = await _ended(target, *given)
    tally.count += code == -9
    tally.require(code == -9, f"{where}: did not die there, but ended with {code}")


async def erase(setting: Setting, *, kind: str) -> Tally:
    """Kill whoever erases at each step, let both outboxes deliver, and search every file and table for the words."""
    await migrated(setting.url)
    one = setting.world()
    two = replace(one, name=SECOND)
    steps = SECOND_STEPS[:1] if setting.defect else (*FIRST_STEPS, *SECOND_STEPS)
    for number, (how, step) in enumerate(product(("reset", "delete"), steps)):
        if number % 5 == 0 or not setting.options.short:
            await _erase_once(one, two, kind, how, step.name, number, setting.defect)
    return await one.judge(two.outbox)


async def _erase_once(one: World, two: World, kind: str, how: str, step: str, number: int, defect: str) -> None:
    tally, subject, words, where = one.tally, f"{kind}-{number}", f"{WORDS}-{number:03}", f"{step}, {how}"
    shared, new, group, third = (f"{name}-{number}" for name in ("shared", "new", "group", "third"))
    author = subject if kind == "person" else None

    async def say(world: World, chat: str, *texts: str, deliver: bool = False) -> None:
        async with world.open(relay=False) as history:
            for text in texts:
                message = Message.user(text, author=author)
                world.keep(await history.append(chat, message, owner="others" if chat == group else subject))
            if deliver:
                await Relay(history.outbox, history.store).drain()

    await say(one, shared, words, deliver=True)
    await say(two, shared, words, deliver=True)
    await say(two, shared, *[words] * 3)
    await say(two, new, *[words] * 3)
    if kind == "person":
        await say(one, group, words, deliver=True)
        await say(two, group, words, words)
    await _die(tally, where, erasing, str(one.folder), one.url, kind, subject, how, step, defect)
    if settled := step == "halfway" and how == "reset":  # how far it reaches is settled, so this is new
        await say(two, third, "said since")
    # After these the command has not appended all that it has to.
    again = step == "recorded" or (step, kind) == ("appended", "person")
    for world in (two, one, two):
        async with world.open(relay=False) as history:
            if again and world is one:
                await _ask(history, kind, subject, how)
            await Relay(history.outbox, history.store).drain()
    async with ConversationStore.open(one.url) as store:
        tally.require(await store.erasures.unacknowledged() == [], f"{where}: it is not acknowledged")
        shown = [message.text for message in await store.messages(third)] if settled else []
        tally.require(not settled or shown == ["said since"], f"{where}: what was said since is {shown}")
    tally.blame((f"{name} holds what was erased" for name in one.holding(words)), where=where)
    tally.require(words not in repr(await copied(one.url)), f"{where}: the store holds what was erased")


async def _ask(history: History, kind: str, subject: str, how: Any) -> None:
    await history.erase(**{kind: subject}, how=how, reason="asked")


def erasing(folder: str, store: str, kind: str, subject: str, how: str, step: str, defect: str) -> None:
    """Erase through one outbox and let both deliver, until killed at a step."""
    by_name = {moment.name: moment for moment in SECOND_STEPS}

    async def live() -> None:
        async with History(Path(folder, "bot.outbox.db"), store=store, relay=False, watch=False) as one:
            await _ask(one, kind, subject, how)
            await Relay(one.outbox, one.store).drain()
        if step in by_name:
            plant(by_name[step], by_name[step].most)
        async with History(Path(folder, SECOND), store=store, relay=False, watch=False) as two:
            await Relay(two.outbox, two.store).drain()

    logging.disable()
    erasures.MAX_ERASED_PER_TRANSACTION = 2  # type: ignore[attr-defined]
    for moment in FIRST_STEPS:
        if moment.name == step:
            plant(moment, 1)
    with planted(defect):
        asyncio.run(live())


async def trim(setting: Setting) -> Tally:
    """Kill one relay after the other, each a step further; then what is old is gone, and what is young as it was."""
    await migrated(setting.url)
    world, names = setting.world(), ("a", "b")
    tally = world.tally
    for days, text, count in ((40, OLD, 12), (1, YOUNG, 5)):
        now = partial(_ago, days)
        async with (
            ConversationStore.open(world.url, now=now) as store,
            History(world.outbox, store=store, relay=False, watch=False, now=now) as history,
        ):
            for name in names:
                for number in range(count):
                    world.keep(await history.append(name, Message.user(f"{text} {number}")))
            await Relay(history.outbox, store, now=now).drain()
            before = {name: (await store.messages(name)).items[12:] for name in names}
    bot = (str(world.outbox), world.url)
    for step in TRIM_STEPS[:: setting.many(1, 3)] if not setting.defect else TRIM_STEPS[:1]:
        await _die(tally, step.name, trimming, *bot, step.name, setting.defect)
    for _ in range(RELAYS):
        code = await _ended(trimming, *bot, "", "")
        tally.require(code == 0, f"a relay after the kills ended with {code}")
        async with ConversationStore.open(world.url) as store:
            if not (await store.pending_tasks()).tasks:
                break
    async with ConversationStore.open(world.url) as store:
        for name in names:
            shown = (await store.messages(name)).items
            tally.require([message.redacted for message in shown[:12]] == [True] * 12, f"{name}: old content is shown")
            tally.require(shown[12:] == before[name], f"{name}: young content is not as it was")
        tally.blame(await differences(store), where="rows and log differ")
    rows = repr(await copied(world.url))
    tally.require(OLD not in rows, "the store holds old content")
    tally.blame(f"{name} holds old content" for name in world.holding(OLD))
    return await world.judge()


def trimming(outbox: str, store: str, step: str, defect: str) -> None:
    """Deliver, and take old content away in small steps, until killed at one of them."""

    async def live() -> None:
        file = await OutboxFile.open(Path(outbox))
        async with ConversationStore.open(store) as history_store:
            await Relay(file, history_store, retention=POLICY).drain()
        await file.close()

    logging.disable()
    store_erasing.MAX_ROWS_PER_TRANSACTION = row_writer.MAX_ROWS_PER_TRANSACTION = 3  # type: ignore[attr-defined]
    task_steps.PIECE_VERSIONS, task_steps.STEP_SECONDS = 4, 0.0  # type: ignore[misc]
    with planted(defect):
        for moment in TRIM_STEPS:
            if moment.name == step:
                plant(moment, 1)
        asyncio.run(live())


def _ago(days: int) -> Any:
    return utc_now() - timedelta(days=days)


ERASED: Final = "an erasure of {} killed in each step, carried out by an outbox that was away"
ERASING: Final = 2 * len((*FIRST_STEPS, *SECOND_STEPS))
ON_A_FILE: Final = partial(Experiment, unit="kills", on=("sqlite",))
TABLE: Final = (
    Experiment(ERASED.format("owner"), partial(erase, kind="owner"), "kills", ERASING),
    Experiment(ERASED.format("person"), partial(erase, kind="person"), "kills", ERASING, short=KINDS[:1]),
    ON_A_FILE(f"{COUNTED_TOO_SOON}, killed", partial(erase, kind="owner"), defect=COUNTED_TOO_SOON),
    Experiment("retention of content killed in each step", trim, "kills", len(TRIM_STEPS)),
    ON_A_FILE(f"{PLACES_TOO_SOON}, killed", trim, defect=PLACES_TOO_SOON),
)
