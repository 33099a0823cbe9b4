"""Compare what is read through each of two outboxes with what the model says."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import orjson

from letopis.outbox import History, Receipt
from letopis.outbox.history.exporter import Exporter
from letopis.store import RecordedMessage, Seen
from tests.model.lanes import SAYS, UNKNOWN, Event, Lanes, Outbox
from tests.model.plain import Chat, Plain
from tests.model.world import World
from tests.support.sayings import all_pages, catch_up_index

BOXES: Final = ("A", "B")
OWNERS: Final = ("anna", "борис")
WORDS: Final = ("чай", "coffee", "milk")


class Wrong(AssertionError):
    """Something is not as the model says."""

    def __init__(self, name: str, detail: object = "") -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


@dataclass
class Bot:
    box: Outbox
    world: World
    number: int
    waiting: list[tuple[Receipt, list[Event]]] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)
    compared: dict[str, object] = field(default_factory=dict)
    """By conversation, what it was read from when it was compared last."""

    @property
    def history(self) -> History:
        return self.world.histories[self.number]


class Reads:
    def __init__(self, world: World, *, prefix: str) -> None:
        self.world = world
        self.prefix = prefix
        self.lanes = Lanes(*BOXES)
        self.bots = [Bot(box, world, number) for number, box in enumerate(self.lanes.boxes)]

    @property
    def down(self) -> bool:
        return self.world.down

    def read(self, bot: Bot) -> Plain:
        return self.lanes.read(bot.box, alone=self.down)

    def _owner(self, pick: int) -> str:
        return f"{self.prefix}-{OWNERS[pick % len(OWNERS)]}"

    @property
    def _owners(self) -> list[str]:
        return [self._owner(number) for number in range(len(OWNERS))]

    async def _owners_view(self, bot: Bot, owner: str) -> str | None:
        active = await bot.history.active(owner, create=False)
        return None if active is None else active.conversation_id

    async def _compare(self, bot: Bot, pick: int, *, some: int | None = None, whole: bool = False) -> None:
        plain = self.read(bot)
        chats = list(plain.chats.values())
        if some is not None:
            chats = [chats[(pick + number) % len(chats)] for number in range(min(some, len(chats)))]
        for chat in chats:
            now = [self._source(bot, one) for one in (chat, *chat.ancestors)]
            if now == bot.compared.get(chat.id) and not whole:
                continue
            bot.compared[chat.id] = now
            await (self._compare_alone if self.down else self._compare_chat)(bot, chat, pick)
        if self.down or some is not None:
            return
        for owner in self._owners:
            await self._compare_owner(bot, plain, owner)
            await self._compare_figures(bot, plain, owner)
        if whole:
            await catch_up_index(self.world.store)
            for word in WORDS:
                await self._compare_search(bot, plain, word)

    def _source(self, bot: Bot, chat: Chat) -> tuple[object, ...]:
        """What a conversation is read from; while it is the same, so is what is read."""
        lane = bot.box.lanes.get(chat.id)
        return self.down, len(self.lanes.stored[chat.id]), lane and (len(lane.events), lane.delivered)

    def _same(self, what: str, chat: Chat | str, found: object, wanted: object) -> None:
        if found != wanted:
            name = chat if isinstance(chat, str) else chat.id
            raise Wrong(what, f"{name} reads\n  {found}, not\n  {wanted}")

    async def _compare_chat(self, bot: Bot, chat: Chat, pick: int) -> None:
        history = bot.history
        found = await history.chat(chat.id).conversation()
        if found is None:
            raise Wrong("conversation", f"{chat.id} is not there")
        metadata = tuple(sorted(found.metadata.items()))
        view = (found.owner_id, found.title, found.state, metadata, found.message_count, found.tokens)
        self._same("conversation", chat, view, chat.view())
        page = await history.messages(chat.id, last=None)
        if page.complete is chat.lost:
            raise Wrong("complete", chat.id)
        if chat.lost:
            return
        self._same("messages", chat, [view_of(one) for one in page], [one.view() for one in chat.path])
        if not chat.inherits and chat.parent is None and not chat.deleted:
            every = await history.messages(chat.id, every=True, last=None)
            # Whether erased messages off the path keep reactions depends on when they were delivered.
            shown = [view_of(replace(one, reactions=()) if one.redacted and not one.on_path else one) for one in every]
            said = [replace(one, reactions={}) if one.redacted and not one.on_path else one for one in chat.said]
            self._same("every message", chat, _once(shown), _once([one.view() for one in said]))
        ids = [one.id for one in chat.path]
        match pick % 7:
            case 0:
                self._same("count", chat, await history.chat(chat.id).count(), len(ids))
            case 1:
                last = await history.messages(chat.id, last=len(ids) // 2 + 1)
                self._same("last", chat, [one.id for one in last], ids[-(len(ids) // 2 + 1) :])
                backward = await all_pages(partial(history.messages, chat.id, last=2), by="before", most=2)
                self._same("pages", chat, [one.id for one in backward], ids)
            case 2:
                texts = [one.text for one in (await history.context(chat.id)).messages]
                self._same("context", chat, texts, [one.shown for one in chat.path if not one.redacted])
            case 3:
                events = self.lanes.of(bot.box, chat.id)
                there = {one.values["message_id"] for one in self.lanes.stored[chat.id] if one.kind in SAYS}
                events = [
                    one for one in events if one.version or one.kind != "again" or one.values["message_id"] not in there
                ]
                self._same("events", chat, len(await history.chat(chat.id).events()), len(events))
            case 4:
                lines = [orjson.loads(line) async for line in Exporter(history).of_one(chat.id)]
                exported = [(line["id"], line["content"]) for line in lines]
                self._same("export", chat, exported, [(one.id, one.shown) for one in chat.path])
            case 5 if chat.said:
                named = chat.every(chat.said[pick // 7 % len(chat.said)].id)
                target = next((one for one in named if one.on_path), named[-1])
                one = await history.chat(chat.id).message(target.id)
                text = None if one is None else (one.id, one.text, one.on_path)
                self._same("message", chat, text, (target.id, target.shown, target.on_path))
            case _:
                stored = self.lanes.stored[chat.id]
                whole = not chat.deleted and not any(one.wiped for one in chat.said) and chat.parent is None
                if stored and whole:
                    version = pick % len(stored) + 1
                    then = await history.messages(chat.id, as_of=version, last=None)
                    wanted = [one.id for one in chat.moments[version].path]
                    self._same("as_of", chat, [one.id for one in then], wanted)

    async def _compare_alone(self, bot: Bot, chat: Chat, pick: int) -> None:
        if chat.lost or chat.deleted or any(one.deleted or one.lost for one in chat.ancestors):
            return
        page = await bot.history.messages(chat.id, last=None)
        if page.complete:
            raise Wrong("complete while down", chat.id)
        shown = [view_of(one) for one in page]
        gone = any(one.kind == "delete" and not one.aside for one in self.lanes.stored[chat.id])
        if gone:  # another outbox has deleted it; this one erases its copy once it is told
            if shown and any(one.aside for one in bot.box.lanes[chat.id].events):
                raise Wrong("deleted elsewhere, readable while down", chat.id)
            return
        self._same("messages while down", chat, shown, [one.view() for one in chat.path])

    async def _compare_owner(self, bot: Bot, plain: Plain, owner: str) -> None:
        pages = partial(bot.history.conversations, owner=owner, limit=3)
        listed = [one.conversation_id for one in await all_pages(pages, most=3)]
        mine = [chat for chat in plain.chats.values() if chat.owner == owner and chat.state == "active"]
        order = [chat.id for chat in sorted(mine, key=lambda chat: -chat.touched)]
        active = self.lanes.active_of(bot.box, owner, plain)
        leaders = order if active == UNKNOWN else order[:1] if active is None else [active]
        orders = [] if active != UNKNOWN else [order]
        orders += [[leader, *(one for one in order if one != leader)] for leader in leaders] or [[]]
        if listed not in orders:
            raise Wrong("list", f"{owner}: {listed}, not {orders[0]} (active: {active})")
        found = await self._owners_view(bot, owner)
        if found not in ([None, *order] if active == UNKNOWN else [active]):
            raise Wrong("active", f"{owner}: {found}, not {active} of {order}")

    async def _compare_figures(self, bot: Bot, plain: Plain, owner: str) -> None:
        found = await bot.history.statistics(owner=owner, by="mood")
        *wanted, moods = self.lanes.figures(bot.box, owner, plain)
        figures = [found.questions, found.answers, found.messages, found.tokens, found.conversations]
        self._same("statistics", owner, figures, wanted)
        by = {label: one.messages for label, one in found.by.items() if one.messages}
        self._same("statistics by a key", owner, by, dict(moods))

    async def _compare_search(self, bot: Bot, plain: Plain, word: str) -> None:
        for owner in self._owners:
            pages = partial(bot.history.search, word, owner=owner)
            found = [(one.conversation_id, one.message.id) for one in await all_pages(pages)]
            mine = (chat for chat in plain.chats.values() if chat.owner == owner)
            wanted = [(chat.id, one.id) for chat in mine for one in chat.own if word in one.shown.split()]
            self._same("search", owner, sorted(found), sorted(wanted))


def _once(views: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Leave out what an erased message off the path repeats: appended again, it is a row of its own once delivered."""
    kept: list[tuple[Any, ...]] = []
    erased: set[str] = set()
    for view in views:
        name, on_path, redacted = view[0], view[4], view[5]
        if on_path or not redacted or name not in erased:
            kept.append(view)
        if redacted and not on_path:
            erased.add(name)
    return kept


def view_of(one: RecordedMessage) -> tuple[Any, ...]:
    return (
        one.id,
        one.role,
        one.text,
        one.message.tokens,
        one.on_path,
        one.redacted,
        one.edited,
        one.delivery.value,
        tuple(sorted(one.delivery_data.items(), key=str)),
        tuple((reaction.key, reaction.actor, reaction.value) for reaction in one.reactions),
        one.interrupted,
    )
