"""Run a random program on two outboxes of one store and on the plain model, and compare what each read returns.

A program is a list of steps, each a name and some numbers, from which it chooses among what there is. So a shorter list
of the same steps is a program too.
"""

import random
from collections.abc import Awaitable, Sequence
from typing import Any, Final, NamedTuple

from letopis.outbox import Receipt
from letopis.store import (
    ConversationAnnotated,
    ConversationGone,
    CustomEvent,
    IdReused,
    InvalidInput,
    Message,
    Seen,
    StoreUnavailable,
    VersionConflict,
)
from tests.model.lanes import TURNS, Event, Expects, Outbox
from tests.model.plain import Chat, Said
from tests.model.reads import WORDS, Bot, Reads, Wrong, view_of
from tests.model.world import World

_OFTEN: Final = {
    1: "unreact clear reset restore delete rename annotate custom outage restart",
    2: "undo regenerate archive activate start",
    3: "say_several reply redact deliver rewind pop fork look back",
    4: "again edit react replace answer",
    10: "drain",
    12: "say",
}
KINDS: Final = {kind: often for often, kinds in _OFTEN.items() for kind in kinds.split()}
ANYWHERE: Final = (
    *("say", "again", "answer", "start", "fork"),
    *("drain", "outage", "back", "restart", "move"),
)
"""Steps that do not need a conversation that is there."""
WHEN_UP: Final = ("drain", "outage", "move")
WHEN_DOWN: Final = ("back",)
CHANGES: Final = ("edit", "redact", "deliver", "react", "unreact")
PUTS: Final = ("archive", "restore", "activate", "delete", "reset", "clear", "rename", "annotate", "custom")
CHATS: Final = 3
MOODS: Final = (None, "warm", "cold")
READ_EVERY: Final = 8  # steps between two comparisons of all that can be read


class Step(NamedTuple):
    """What to do through an outbox, and numbers to choose by."""

    kind: str
    box: int
    a: int
    b: int
    c: int


class Impossible(Exception):
    """There is nothing to do a step with."""


def program(seed: int) -> list[Step]:
    chance = random.Random(seed)
    kinds = chance.choices(list(KINDS), list(KINDS.values()), k=chance.randint(20, 60))
    if chance.random() < 0.05:
        kinds[chance.randrange(len(kinds))] = "move"
    return [Step(kind, chance.randrange(2), *(chance.randrange(10_000) for _ in range(3))) for kind in kinds]


class Machine(Reads):
    def __init__(self, world: World, *, prefix: str) -> None:
        super().__init__(world, prefix=prefix)
        self.messages: dict[str, Message] = {}
        self.did: list[str] = []
        self._made = 0
        self._steps = 0

    async def run(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                await self._step(step)
            await self._settle()
        finally:
            if self.world.down:
                await self.world.back()

    async def _step(self, step: Step) -> None:
        self._steps += 1
        bot = self.bots[step.box]
        self.did.append(f"{bot.box.name} {step.kind}")
        try:
            if step.kind in (WHEN_DOWN if not self.down else WHEN_UP):
                raise Impossible
            chosen: Any = step.a if step.kind in ANYWHERE else self._chat(bot, step.a)
            if step.kind in CHANGES:
                await self._change(bot, chosen, step.kind, step.b, step.c)
            elif step.kind in PUTS:
                await self._put(bot, chosen, step.kind, step.b, step.c)
            else:
                await getattr(self, f"_{step.kind}")(bot, chosen, step.b, step.c)
        except Impossible:
            self.did.pop()
            return
        if self._steps % READ_EVERY == 0:
            for one in self.bots:
                await self._compare(one, step.c)
        elif step.kind not in ("outage", "move"):
            await self._compare(bot, step.c, some=1)

    def _note(self, *words: object) -> None:
        self.did[-1] = " ".join([self.did[-1], *(str(one).removeprefix(f"{self.prefix}-") for one in words)])

    def _chat(self, bot: Bot, pick: int) -> Chat:
        living = [one for one in self.read(bot).living() if not (self.down and self._told_gone(bot, one.id))]
        if not living:
            raise Impossible
        return living[pick % len(living)]

    def _told_gone(self, bot: Bot, chat: str) -> bool:
        """Whether an outbox was told on delivery that another one has deleted a conversation."""
        gone = any(one.kind == "delete" and not one.aside for one in self.lanes.stored[chat])
        return gone and any(one.aside for one in bot.box.lanes[chat].events)

    def _name(self, bot: Bot, pick: int) -> tuple[str, str | None]:
        """Return a conversation that may not exist yet, and its owner."""
        names = {f"{self.prefix}-c{number}": None for number in range(CHATS)} | dict.fromkeys(self.read(bot).chats)
        name = list(names)[pick % len(names)]
        there = self.read(bot).chats.get(name)
        if there is not None:
            return name, there.owner
        number = int(name.rsplit("c", 1)[1]) if "-c" in name else 0
        return name, self._owner(number) if number < 2 else None

    def _target(self, chat: Chat, pick: int) -> str:
        if pick % 9 == 0 or not chat.said:
            return "nowhere"
        return chat.said[pick % len(chat.said)].id

    def _message(self, pick: int, role: str | None = None) -> tuple[Message, dict[str, Any]]:
        self._made += 1
        mood = MOODS[pick // 9 % 3]
        message = Message(
            role=role or ("user", "assistant")[pick % 2],
            content=f"{WORDS[pick % 3]} {self._made}",
            id=f"{self.prefix}-m{self._made}",
            tokens=(None, 0, 7)[pick // 3 % 3],
            metadata={} if mood is None else {"mood": mood},
        )
        self.messages[message.id] = message
        return message, _values(message)

    def _expects(self, bot: Bot, chat: str) -> Expects:
        version = None if self.down else len(self.lanes.stored[chat])
        return Expects(sequence=len(bot.box.lanes[chat].events), version=version)

    def _append(
        self,
        bot: Bot,
        chat: str,
        *kinds: tuple[str, dict[str, Any]],
        receipt: Receipt | None = None,
        owner: str | None = None,
        expects: Expects | None = None,
    ) -> None:
        drafts = [Event(chat=chat, kind=kind, values=values) for kind, values in kinds]
        events = self.lanes.append(bot.box, chat, *drafts, owner=owner, expects=expects)
        if receipt is not None:
            if receipt.sequence != events[-1].sequence:
                raise Wrong("sequence of a receipt", (receipt.sequence, events[-1].sequence))
            bot.waiting.append((receipt, events))

    async def _refused(self, work: Awaitable[Any], *errors: type[Exception]) -> None:
        try:
            done = await work
        except errors:
            return
        raise Wrong("accepted", f"{done}, and not refused with {[one.__name__ for one in errors]}")

    async def _settle(self) -> None:
        """Deliver everything, and compare what each outbox and the store read, and what they say of themselves."""
        self.did.append("A settle")
        if self.down:
            await self._back(self.bots[0], 0, 0, 0)
        for bot in self.bots:
            await self._drain(bot, 0, 0, 0)
        for bot in self.bots:
            await self._compare(bot, 0, whole=True)
            status = await bot.history.status()
            if status.pending or status.incidents or status.lanes.get("blocked"):
                raise Wrong("status", status)
        plain = self.lanes.read(None)
        for chat in plain.chats.values():
            page = await self.world.store.messages(chat.id)
            self._same("messages of the store", chat, [view_of(one) for one in page], [one.view() for one in chat.path])

    # Say.

    async def _say(self, bot: Bot, a: int, b: int, c: int) -> None:
        name, owner = self._name(bot, a)
        message, values = self._message(b)
        self._note(name, message.id, message.role)
        work = bot.history.append(name, message, owner=owner)
        if bot.box.lanes[name].deleted:
            await self._refused(work, ConversationGone)
            return
        try:
            receipt = await work
        except ConversationGone:
            chat = self.lanes.read(None).chats.get(name)
            if chat is None or not chat.deleted:
                raise
            return  # it has learned that another outbox has deleted it
        self._append(bot, name, ("say", values), receipt=receipt, owner=owner)

    async def _say_several(self, bot: Bot, chat: Chat, b: int, c: int) -> None:
        messages = [self._message(b + place) for place in range(2 + c % 2)]
        more = ConversationAnnotated(metadata={"n": b})
        self._note(chat.id, *(one.id for one, _ in messages))
        first, *rest = (one for one, _ in messages)
        receipt = await bot.history.append(chat.id, first, *rest, more, owner=chat.owner)
        kinds = [("say", values) for _, values in messages]
        self._append(bot, chat.id, *kinds, ("annotate", {"metadata": {"n": b}}), receipt=receipt, owner=chat.owner)

    async def _reply(self, bot: Bot, chat: Chat, b: int, c: int) -> None:
        self._made += 1
        name, text, broken = f"{self.prefix}-m{self._made}", f"{WORDS[b % 3]} {self._made}", c % 3 == 0
        self._note(chat.id, name, "cut off" if broken else "")
        try:
            async with bot.history.reply(chat.id, owner=chat.owner, message_id=name, every=None) as reply:
                await reply.add(text)
                if broken:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        values = {"message_id": name, "role": "assistant", "text": text, "interrupted": broken}
        self._append(bot, chat.id, ("say", values), receipt=reply.receipt, owner=chat.owner)
        await reply.sent(platform_ids={"telegram": c})
        sent = {"message_id": name, "delivery": "sent", "data": {"platform_ids": {"telegram": c}}}
        self._append(bot, chat.id, ("deliver", sent))

    async def _again(self, bot: Bot, a: int, b: int, c: int) -> None:
        """Append a message again, which may have left the path, through this outbox or another."""
        chat = self._chat(bot, a)
        known = [] if self.down else [one for one in chat.said if one.id in self.messages]
        if not known:
            raise Impossible
        said = known[b % len(known)]
        message, box = self.messages[said.id], bot.box
        first = next((one for one in box.lanes[chat.id].events if one.appends(said.id)), None)
        self._note(chat.id, said.id)
        if first is None and (said.redacted or self._is_pending(chat.id, said.id, "redact", "reset")):
            raise Impossible  # the store would refuse the lane: nobody but a human can decide
        work = bot.history.append(chat.id, message, owner=chat.owner)
        if first is not None and self._is_erased(box, chat.id, first):
            await self._refused(work, IdReused)
            return
        receipt = await work
        if first is None:
            self._append(bot, chat.id, ("again", _values(message)), receipt=receipt, owner=chat.owner)
        elif receipt.sequence != first.sequence:
            raise Wrong("sequence of an event that is there", (receipt.sequence, first.sequence))
        left = not any(one.on_path for one in self.read(bot).chats[chat.id].every(said.id))
        if await receipt.superseded(0) is not left:
            raise Wrong("superseded", f"{not left}, for {said.id}")

    def _is_erased(self, box: Outbox, chat: str, first: Event) -> bool:
        """Whether an outbox has erased its own copy of a message."""
        lane = box.lanes[chat]
        resets = [one for one in lane.events[: lane.delivered] if one.kind == "reset" and not one.aside]
        return box.redacted(chat, first.values["message_id"]) or any(one.sequence > first.sequence for one in resets)

    def _is_pending(self, chat: str, message_id: str | None, *kinds: str) -> bool:
        """Whether an event of a message, or of the whole conversation, is pending in some outbox."""
        return any(
            one.kind in kinds and message_id in (None, one.values.get("message_id", message_id))
            for box in self.lanes.boxes
            if chat in box.lanes
            for one in box.lanes[chat].pending
        )

    async def _shows(self, bot: Bot, chat: str, message_id: str) -> bool:
        return any(one.id == message_id for one in await bot.history.messages(chat, last=None))

    async def _look(self, bot: Bot, chat: Chat, b: int, c: int) -> None:
        page = await bot.history.messages(chat.id, last=5)
        expects = self._expects(bot, chat.id)
        if page.seen != Seen(sequence=expects.sequence, version=expects.version):
            raise Wrong("seen", f"{page.seen}, not {expects}")
        bot.seen[chat.id] = page.seen
        self._note(chat.id)

    async def _answer(self, bot: Bot, a: int, b: int, c: int) -> None:
        names = [chat.id for chat in self.read(bot).living() if chat.id in bot.seen]
        if not names:
            raise Impossible
        name = names[a % len(names)]
        seen = bot.seen.pop(name)
        messages = [self._message(b + place, "assistant") for place in range(1 + c % 2)]
        self._note(name, "after", seen.sequence, seen.version, *(one.id for one, _ in messages))
        first, *rest = (one for one, _ in messages)
        work = bot.history.append(name, first, *rest, after=seen)
        if any(one.kind in TURNS for one in bot.box.lanes[name].events[seen.sequence :]):
            await self._refused(work, VersionConflict)
            return
        receipt = await work
        expects = Expects(sequence=seen.sequence, version=seen.version)
        self._append(bot, name, *(("say", values) for _, values in messages), receipt=receipt, expects=expects)
        if c % 4 == 0:
            bot.seen[name] = receipt.seen

    # Change messages.

    async def _change(self, bot: Bot, chat: Chat, kind: str, b: int, c: int) -> None:
        target, box, told = self._target(chat, b), bot.box, bot.history.chat(chat.id)
        if kind == "redact" and self._is_pending(chat.id, target, "again"):
            raise Impossible
        key, actor = ("👍", "rating")[c % 2], (None, "mod")[c // 2 % 2]
        match kind:
            case "edit":
                self._made += 1
                values: dict[str, Any] = {"text": f"{WORDS[c % 3]} edited {self._made}"}
                work = told.edit(target, values["text"])
            case "redact":
                values, work = {}, told.redact(target)
            case "deliver" if c % 3 == 0:
                values = {"delivery": "failed", "data": {"reason": "blocked"}}
                work = told.failed(target, **values["data"])
            case "deliver":
                values = {"delivery": "sent", "data": {"platform_ids": {"t": c}}}
                work = told.sent(target, **values["data"])
            case "react":
                values = {"key": key, "actor": actor, "value": c % 5 or None}
                work = told.react(target, key, actor=actor, value=values["value"])
            case _:
                values = {"key": key, "actor": actor}
                work = told.unreact(target, key, actor=actor)
        self._note(chat.id, target, *values.values())
        there = box.holds(chat.id, target) or any(one.id == target for one in chat.said)
        erased = kind == "edit" and (box.redacted(chat.id, target) or self._reset_here(box, chat, target))
        if (not there and not self.down) or erased:
            await self._refused(work, InvalidInput)
            return
        self._append(bot, chat.id, (kind, {"message_id": target, **values}), receipt=await work)

    def _reset_here(self, box: Outbox, chat: Chat, target: str) -> bool:
        lane = box.lanes[chat.id]
        resets = [one.sequence for one in lane.events[: lane.delivered] if one.kind == "reset" and not one.aside]
        return any(one.appends(target) and one.sequence < max(resets) for one in lane.events if resets)

    # Change the path.

    async def _rewind(self, bot: Bot, chat: Chat, b: int, c: int) -> None:
        path = [one.id for one in chat.path]
        target = path[b % len(path)] if path else self._target(chat, b)
        self._note(chat.id, target)
        work = bot.history.chat(chat.id).rewind(to=target)
        if target not in path:
            if self.down:
                work.close()
                raise Impossible
            await self._refused(work, InvalidInput)
            return
        self._append(bot, chat.id, ("rewind", {"target": target}), receipt=await work)

    async def _cut(
        self, bot: Bot, chat: Chat, work: Awaitable[Any], target: tuple[str | None] | None, known: bool
    ) -> Any:
        """Take the end of the path off, where there is something to take off."""
        self._note(chat.id, *(target or ()))
        if self.down and not known:
            await self._refused(work, StoreUnavailable)
            return None
        expects = self._expects(bot, chat.id)
        done = await work
        if target is not None:
            self._append(bot, chat.id, ("rewind", {"target": target[0], "undone": target[0] is None}), expects=expects)
        return done

    async def _undo(self, bot: Bot, chat: Chat, b: int, c: int) -> None:
        turns, path = 1 + b % 2, chat.path
        starts = _starts(path)[-turns:]
        target = None if not starts else (path[starts[0] - 1].id if starts[0] else None,)
        whole = len(_starts(path)) >= turns and starts[0] > 0
        done = await self._cut(bot, chat, bot.history.chat(chat.id).undo(turns), target, whole)
        if not self.down and (done is None) != (target is None):
            raise Wrong("undo", done)

    async def _pop(self, bot: Bot, chat: Chat, b: int, c: int) -> None:
        path = chat.path
        target = None if not path else (path[-2].id if len(path) > 1 else None,)
        done = await self._cut(bot, chat, bot.history.chat(chat.id).pop(), target, len(path) > 1)
        if done is not None and done.id != path[-1].id:
            raise Wrong("pop", done.id)

    async def _regenerate(self, bot: Bot, chat: Chat, b: int, c: int) -> None:
        path, starts = chat.path, _starts(chat.path)
        asked: list[Said] = []
        for one in path[starts[-1] :] if starts else ():
            if one.role != "user":
                break
            asked.append(one)
        target = (asked[-1].id,) if asked and asked[-1] is not path[-1] else None
        known = bool(starts) and starts[-1] > 0
        done = await self._cut(bot, chat, bot.history.chat(chat.id).regenerate(), target, known)
        if done is not None and [one.id for one in done] != [one.id for one in asked]:
            raise Wrong("regenerate", done)

    async def _replace(self, bot: Bot, chat: Chat, b: int, c: int) -> None:
        page = await bot.history.messages(chat.id, last=None)
        if [one.id for one in page] != [one.id for one in chat.path]:
            return  # the comparison tells
        own = {one.id for one in chat.own}
        kept = next((place for place, one in enumerate(page) if one.redacted or place == b % 4), len(page))
        if self.down and any(one.id not in own for one in page[:kept]):
            raise Impossible
        back = [one for one in page[kept:] if one.id in own and not one.redacted][: c % 3][::-1]
        new, values = self._message(c)
        expects = self._expects(bot, chat.id)
        self._note(chat.id, "keep", kept, new.id, "back", *(one.id for one in back))
        wanted = [*(one.message for one in page[:kept]), new, *(one.message for one in back)]
        receipt = await bot.history.chat(chat.id).replace(wanted, owner=chat.owner)
        if self.down:
            back, kept = [*page[:kept], *back], 0
        kinds: list[tuple[str, dict[str, Any]]] = []
        if len(page) > kept or self.down:
            kinds.append(("rewind", {"target": page[kept - 1].id if kept else None, "undone": not kept}))
        # What the path has held already comes under new ids.
        texts = {one.id: _values(one.message, interrupted=one.interrupted) for one in back}
        for one, name in zip(wanted[kept:], receipt.message_ids, strict=True):
            kinds.append(("say", {**texts.get(one.id, values), "message_id": name}))
        self._append(bot, chat.id, *kinds, receipt=receipt, owner=chat.owner, expects=expects)

    # Change conversations.

    async def _put(self, bot: Bot, chat: Chat, kind: str, b: int, c: int) -> None:
        if (
            (kind == "activate" and chat.owner is None)
            or (kind in ("delete", "reset") and self._forking(chat.id))
            or (kind == "reset" and self._is_pending(chat.id, None, "again"))
        ):
            raise Impossible
        told, owner, values = bot.history.chat(chat.id), None, dict[str, Any]()
        match kind:
            case "rename":
                values = {"title": f"title {b}"}
                work = told.rename(values["title"])
            case "annotate":
                values = {"metadata": {"xy"[b % 2]: c % 4 or None}}
                work = told.annotate(values["metadata"])
            case "clear":
                kind, values, work = "rewind", {"target": None}, told.rewind(to=None)
            case "custom":
                kind, work = "touch", bot.history.append(chat.id, CustomEvent(name="paid", data={"cents": b}))
            case _:
                owner, work = chat.owner, getattr(told, kind)()
        self._note(chat.id, *values.values())
        self._append(bot, chat.id, (kind, values), receipt=await work, owner=owner)

    async def _start(self, bot: Bot, a: int, b: int, c: int) -> None:
        self._made += 1
        name, owner, active = f"{self.prefix}-s{self._made}", self._owner(a), b % 2 == 0
        title, metadata = f"title {b}", {"x": c % 4} if c % 2 else None
        self._note(name, "of", owner)
        receipt = await bot.history.start(owner, conversation_id=name, title=title, activate=active, metadata=metadata)
        more = [("annotate", {"metadata": metadata})] * (metadata is not None) + [("activate", {})] * active
        self._append(bot, name, ("start", {"owner": owner, "title": title}), *more, receipt=receipt, owner=owner)

    async def _fork(self, bot: Bot, a: int, b: int, c: int) -> None:
        parent = self._chat(bot, a)
        if parent.lost or self._erasing(parent):
            raise Impossible
        lane = bot.box.lanes.get(parent.id)
        if lane is not None and (lane.pending or self.down):
            point = lane.events[-1]
        else:
            point = self.lanes.stored[parent.id][-1]
        if point.kind == "again":
            raise Impossible
        path = [one.id for one in parent.path]
        at = path[b % len(path)] if b % 2 and path else None
        self._made += 1
        name, active = f"{self.prefix}-f{self._made}", c % 3 == 0 and parent.owner is not None
        self._note(name, "of", parent.id, "at", at)
        receipt = await bot.history.chat(parent.id).fork(name, at=at, activate=active)
        values = {"owner": parent.owner, "title": None, "point": point}
        more = [("rewind", {"target": at})] * (at is not None) + [("activate", {})] * active
        self._append(bot, name, ("fork", values), *more, receipt=receipt, owner=parent.owner)

    def _forking(self, chat: str) -> bool:
        """Whether a fork that reads a conversation is on its way to the store: it protects nothing yet."""
        return any(
            chat in self._lineage(event)
            for box in self.lanes.boxes
            for lane in list(box.lanes.values())
            for event in lane.pending
            if event.kind == "fork"
        )

    def _lineage(self, fork: Event) -> set[str]:
        names = {fork.values["point"].chat}
        for box in self.lanes.boxes:
            for event in box.lanes[fork.values["point"].chat].events[:1]:
                names |= self._lineage(event) if event.kind == "fork" else set()
        return names

    def _erasing(self, parent: Chat) -> bool:
        """Whether a conversation, or one that it reads, is about to be erased or was erased, heard of or not."""
        names = {parent.id, *(one.id for one in parent.ancestors)}
        # While the store is away, an outbox may not know what another one has delivered: the erasure came first.
        gone = ("delete", "reset") if self.down else ("delete",)
        return any(event.kind in gone for name in names for event in self.lanes.stored.get(name, ())) or any(
            event.kind in ("delete", "reset")
            for box in self.lanes.boxes
            for name in names
            for event in box.lanes[name].pending
        )

    # The world.

    async def _drain(self, bot: Bot, a: int, b: int, c: int) -> None:
        before = [await self._owners_view(bot, owner) for owner in self._owners]
        await self.world.relays[bot.number].drain()
        if not await bot.history.drained(0):
            status = await bot.history.status()
            raise Wrong("not delivered", f"{status.pending} pending, {status.lanes}")
        pending = [one for lane in bot.box.lanes.values() for one in lane.pending]
        self.lanes.deliver(bot.box)
        for receipt, events in bot.waiting:
            aside = any(one.aside for one in events)
            if await receipt.saved(0) is aside:
                raise Wrong("saved", f"{not aside} of {[(one.kind, one.values) for one in events]}")
        bot.waiting.clear()
        if not any(one.aside for one in pending):
            after = [await self._owners_view(bot, owner) for owner in self._owners]
            if before != after:
                raise Wrong("active by delivery", f"{before}, and {after} after it")

    async def _outage(self, bot: Bot, a: int, b: int, c: int) -> None:
        await self.world.outage()

    async def _back(self, bot: Bot, a: int, b: int, c: int) -> None:
        await self.world.back()

    async def _restart(self, bot: Bot, a: int, b: int, c: int) -> None:
        await self.world.restart(bot.number)
        bot.waiting.clear()

    async def _move(self, bot: Bot, a: int, b: int, c: int) -> None:
        await self.world.move()
        for one in self.bots:
            one.waiting.clear()


def _starts(path: Sequence[Said]) -> list[int]:
    """Where turns begin: with the first of consecutive user messages."""
    return [at for at, one in enumerate(path) if one.role == "user" and not (at and path[at - 1].role == "user")]


def _values(message: Message, **more: Any) -> dict[str, Any]:
    said = {"message_id": message.id, "role": message.role, "text": message.content, "tokens": message.tokens}
    return {**said, "mood": message.metadata.get("mood"), **more}
