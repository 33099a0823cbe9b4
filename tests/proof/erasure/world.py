"""Run a program on outboxes of one history store, with processes that are killed, copies of files, and restores."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import sqlalchemy as sa

from letopis import ConversationStore, Held, LetopisError
from letopis.ops.new_origin import assign_new_origin
from letopis.outbox import Relay
from letopis.outbox.event_log.known_erasures import carried_out
from letopis.outbox.history.erasing import repeat_erasures
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.operations.pending_events import Selection
from letopis.store.database.schema import events
from letopis.store.ops.move import move
from tests.campaigns.victims import kill_after
from tests.proof.erasure.acts import Hand
from tests.proof.erasure.book import ERASING, NUMBERED, Act, Book, Box, Chat, Entry, Hold, Outcome, Word
from tests.proof.erasure.places import copy_file, live, opened, put_store_back, saved
from tests.proof.erasure.program import FIRST_STEP, Step
from tests.support.store_changes import run_there

T = TypeVar("T")

OWNERS: Final = {"tea": "ann", "cocoa": "ben", "group": "others"}
"""The first conversations, and whose they are."""
PERSONS: Final = ("ann", "ben")
BOXES: Final = ("A", "B")
CHATS_MAX: Final = 8
KILL_SECONDS: Final = 0.05
REPEATED: Final = 85  # of a hundred acts that a kill left unknown
SETTLING_ROUNDS: Final = 6
LIFECYCLE: Final = ("copy", "replace", "twin", "backup", "restore", "move", "restart")


@dataclass
class Files:
    """Where an outbox is, and older copies of it.

    :ivar copies: paths, and the outbox as it was.
    """

    box: Box
    path: Path
    copies: list[tuple[Path, Box]] = field(default_factory=list)


@dataclass
class World:
    """A history store, outboxes, and all that was done.

    :ivar prefix: of names and words, of which no other program of the store has any.
    :ivar empty: returns the URL of an empty database, to move to.
    """

    folder: Path
    url: str
    prefix: str
    empty: Callable[[], str]
    chance: Any
    book: Book = field(default_factory=Book)
    files: list[Files] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    messages: dict[Chat, list[Act]] = field(default_factory=dict)
    replies: dict[str, Act] = field(default_factory=dict)
    registered: dict[int, UUID] = field(default_factory=dict)
    backup: tuple[Any, int, dict[int, UUID], list[Hold], int] | None = None
    kills: int = 0
    unknown: Act | None = None
    _runner: asyncio.Runner | None = None
    _store: ConversationStore | None = None
    _hands: dict[str, Hand] = field(default_factory=dict)
    _words: int = 0

    # A process: what is open in it.

    def run(self, work: Awaitable[T]) -> T:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(_awaited(work))

    def close(self) -> None:
        """End the process well: replies that are open are cut off."""
        if self._runner is None:
            return
        self.run(self._close())
        self._runner.close()
        self._runner = None
        self.replies.clear()

    async def _close(self) -> None:
        for hand in self._hands.values():
            await hand.history.close()
        self._hands.clear()
        if self._store is not None:
            await self._store.close()
            self._store = None

    async def store(self) -> ConversationStore:
        if self._store is None:
            self._store = ConversationStore(self.url)
            await self._store.prepare()
        return self._store

    async def hand(self, files: Files, **options: Any) -> Hand:
        name = files.box.name
        if name not in self._hands:
            self._hands[name] = Hand(await opened(files.path, await self.store(), **options))
        return self._hands[name]

    async def _origin(self, files: Files) -> UUID:
        return (await self.hand(files)).history.outbox.origin.origin_id

    # A program.

    def begin(self) -> None:
        for name, owner in OWNERS.items():
            chat = Chat(name=f"{self.prefix}{name}", owner=self.prefix + owner)
            self.book.chats[chat.name] = chat
        for name in BOXES:
            box = Box(name=f"{self.prefix}{name}")
            self.files.append(Files(box, self.folder / f"{box.name}.outbox.db"))
        # A new outbox begins with the erasures that there are by its first delivery.
        hello = Chat(name=f"{self.prefix}hello", owner=f"{self.prefix}nobody")
        self.book.chats[hello.name] = hello
        for files in self.files:
            self.do(self._said("say", files, hello))
            self.do(self._act("drain", files, hello))
        for name in OWNERS:
            a, b, c = (self.chance.randrange(10_000) for _ in range(3))
            chat, files = self.book.chats[self.prefix + name], self.chance.choice(self.files)
            self.do(self._said("say", files, chat, Step("", a, b, c, killed=False)))

    def step(self, step: Step) -> None:
        unknown, self.unknown = self.unknown, None
        if unknown is not None and step.c % 100 < REPEATED:
            self.do(unknown, again=True)
        if step.verb in LIFECYCLE:
            getattr(self, f"_{step.verb}")(step)
            return
        act = self._choose(step)
        if act is None:
            return
        # The end of a reply is of the process that began it.
        if (step.killed and act.verb != "end") or step.verb == "draft":
            self._do_killed(act, step)
        else:
            self.do(act)

    def do(self, act: Act, *, again: bool = False) -> None:
        """Do an act in this process, and note how it ended: as not known if one that may be done is refused again."""
        files = next(files for files in self.files if files.box is act.box)
        try:
            act.event = self.run(self._do(files, act)) or act.event
            act.outcome = Outcome.DONE
            if act.verb == "begin":
                self.replies[act.message] = act
        except LetopisError as refused:
            act.outcome = Outcome.UNKNOWN if again else Outcome.REFUSED
            act.error = f"{type(refused).__name__}: {refused}"
            if act.verb == "fork" and not again:
                del self.book.chats[act.chat.name]
        self.run(self._note(files, act))
        self._check_refusal(act)

    async def _do(self, files: Files, act: Act) -> Any:
        hand = await self.hand(files)
        return await hand.do(act)

    def _do_killed(self, act: Act, step: Step) -> None:
        """Do an act in a process that is killed."""
        self.close()
        self.kills += 1
        files = next(files for files in self.files if files.box is act.box)
        seconds = KILL_SECONDS * (step.c % 1000 / 1000)
        # A draft is there when its process says so.
        reports = kill_after(
            multiprocessing.get_context("fork"),
            live,
            self.url,
            files.path,
            act,
            reports=2 if step.verb == "draft" else 1,
            seconds=seconds,
        )
        for outcome, act.event, act.error in reports[1:]:
            act.outcome = Outcome(outcome)
        act.box.carried = (act.box.carried[0], max(act.box.carried[1], max(self.registered, default=0) + 1))
        self.run(self._note(files, act, killed=True))
        if act.outcome is Outcome.UNKNOWN:
            self.unknown = act

    async def _note(self, files: Files, act: Act, *, killed: bool = False) -> None:
        """Read from the store what it has recorded, and which outboxes have carried it out."""
        register = (await self.store()).erasures
        if act.verb in NUMBERED:
            rows = [row for row in await register.after(0) if row.number not in self.registered]
            self.registered |= {row.number: row.erasure_id for row in rows}
            act.number = max((row.number for row in rows if row.subject == act.subject), default=act.number)
            act.erasure = self.registered.get(act.number)
            if act.number and act.outcome is Outcome.REFUSED:
                act.outcome = Outcome.UNKNOWN  # a hold has spared a conversation of which the store knew nothing yet
        head = await (await self.store()).head()
        if act.verb == "hold" and act.outcome is Outcome.DONE:
            self.book.holds.append(Hold(kind=act.how, subject=act.subject, asked=act.head, since=head, act=act.index))
        elif act.verb == "release" and act.outcome is Outcome.DONE:
            for hold in self.book.holds:
                if (hold.kind, hold.subject) == (act.how, act.subject) and hold.until > head:
                    hold.until, hold.ended, hold.released = act.head, head, act.index
        if act.verb in ("drain", "trim") or killed:
            number = max(self.registered, default=0)
            behind = {late.origin_id: late.carried_out for late in await register.unacknowledged()}
            carried = behind.get(await self._origin(files), number)
            act.box.carried = (carried, number if killed else carried)
            act.box.carries.append((act.index, carried))

    def _check_refusal(self, act: Act) -> None:
        """Note an erasure that is recorded though what it is about is on hold."""
        kind = "conversation" if act.verb == "everywhere" else "owner"
        held = {(hold.kind, hold.subject) for hold in self.book.holds if hold.until == inf}
        if act.verb in NUMBERED and act.outcome is Outcome.DONE and (kind, act.subject) in held:
            self.problems.append(f"recorded in spite of a hold: {act}")

    # Choosing.

    def _act(self, verb: str, files: Files, chat: Chat, **more: Any) -> Act:
        act = Act(index=len(self.book.acts), verb=verb, box=files.box, chat=chat, carried=files.box.carried, **more)
        self.book.acts.append(act)
        if verb in (*ERASING, "hold", "release", "trim"):
            act.head = self.run(self._head())
        return act

    async def _head(self) -> int:
        return await (await self.store()).head()

    def _word(self, act: Act, kind: str, scope: str = "") -> Act:
        self._words += 1
        act.words.append(Word(text=f"{self.prefix}w{self._words}x", kind=kind, act=act, scope=scope))
        return act

    def _said(self, verb: str, files: Files, chat: Chat, step: Step = FIRST_STEP) -> Act:
        author = (*PERSONS, None)[step.a // 2 % 3]
        owner = chat.owner if step.c % 3 else None
        act = self._act(verb, files, chat, message=f"{chat.name}-{len(self.book.acts)}", owner=owner)
        if verb == "say":
            act.author = self.prefix + author if author else None
            act.how = "large" if step.a // 6 % 5 == 0 else ""
            act.subject = ("user", "assistant")[step.c // 3 % 2]
        self.messages.setdefault(chat, []).append(act)
        return self._word(act, "text")

    def _choose(self, step: Step) -> Act | None:
        files = self.files[step.a % len(self.files)]
        chats = list(self.book.chats.values())[: -1 if step.verb == "fork" else None]
        chats = [chat for chat in chats if not chat.name.endswith("hello")]
        chat = chats[step.b % len(chats)]
        messages = self.messages.get(chat, [])
        target = messages[step.c % len(messages)] if messages else None
        match step.verb:
            case "say" | "reply":
                return self._said(step.verb, files, chat, step)
            case "begin" | "draft":
                return self._said("begin", files, chat, step)
            case "end":
                for name, begun in self.replies.items():
                    if begun.box is files.box:
                        del self.replies[name]
                        return self._word(self._act("end", files, begun.chat, message=name), "more")
                return None
            case "edit" | "react" | "sent" | "rewind" | "redact":
                if target is None:
                    return None
                act = self._act(step.verb, files, chat, message=target.message, author=target.author)
                kinds = {"edit": "edit", "react": "reaction", "sent": "sent"}
                return self._word(act, kinds[step.verb]) if step.verb in kinds else act
            case "custom" | "title" | "note" | "tag":
                how = "pinned" if step.verb == "tag" and step.c % 4 == 0 else ""
                return self._word(self._act(step.verb, files, chat, how=how), step.verb)
            case "record" | "clear_records":
                scope = chat.name if step.c % 2 else chat.owner
                act = self._act(step.verb, files, chat, subject=scope, amount=step.c % 3)
                return self._word(act, "record", scope) if step.verb == "record" else act
            case "fork":
                return self._forked(files, chat, step)
            case "clear" | "undo" | "pop" | "reset" | "delete":
                return self._act(step.verb, files, chat, amount=1 + step.c % 3)
            case "everywhere":
                return self._act(step.verb, files, chat, subject=chat.name)
            case "owner" | "person":
                subject, how = self.prefix + PERSONS[step.b % 2], ("reset", "delete")[step.c % 3 == 0]
                return self._act(step.verb, files, chat, subject=subject, how=how)
            case "hold":
                how = ("owner", "conversation")[step.c % 2]
                return self._act(step.verb, files, chat, subject=chat.owner if how == "owner" else chat.name, how=how)
            case "release":
                held = [hold for hold in self.book.holds if hold.released == inf]
                if not held:
                    return None
                hold = held[step.c % len(held)]
                return self._act(step.verb, files, chat, subject=hold.subject, how=hold.kind)
            case "drain" | "trim":
                return self._act(step.verb, files, chat, amount=1 + step.c % 3)
            case _:
                raise AssertionError(step.verb)

    def _forked(self, files: Files, parent: Chat, step: Step) -> Act | None:
        if len(self.book.chats) > CHATS_MAX:
            return None
        owner = parent.owner if step.c % 3 else f"{self.prefix}others"
        name = f"{self.prefix}fork-{len(self.book.chats)}"
        chat = self.book.chats[name] = Chat(name=name, owner=owner, parent=parent)
        # It begins a conversation, so its title goes by its beginning.
        return self._word(self._act("fork", files, chat, owner=owner), "title")

    # Files and stores.

    def _restart(self, step: Step) -> None:
        self.close()

    def _copy(self, step: Step) -> None:
        self.close()
        files = self.files[step.a % len(self.files)]
        path = self.folder / f"copy-{len(self.book.acts)}"
        copy_file(files.path, path)
        files.copies.append((path, replace(files.box, carries=list(files.box.carries), copied_at=len(self.book.acts))))

    def _twin(self, step: Step) -> None:
        files = self.files[step.a % len(self.files)]
        if files.copies and len(self.files) == len(BOXES):
            self._renamed(files, self.folder / f"{self.prefix}C.outbox.db", f"{self.prefix}C", kept=True)

    def _replace(self, step: Step) -> None:
        files = self.files[step.a % len(self.files)]
        if files.copies:
            self._renamed(files, files.path, f"{files.box.name}'", kept=False)

    def _renamed(self, files: Files, path: Path, name: str, *, kept: bool) -> None:
        """Put a copy in a place, under a new identity."""
        self.close()
        act = self._act("twin" if kept else "replace", files, next(iter(self.book.chats.values())))
        act.outcome = Outcome.DONE
        copy, then = files.copies[-1]
        copy_file(copy, path)
        self.run(assign_new_origin(path))
        box = replace(then, name=name, carries=list(then.carries), copied=files.box)
        if kept:
            self.files.append(Files(box, path))
        else:
            files.box.replaced, files.box = act.index, box

    def _backup(self, step: Step) -> None:
        self.close()
        self.backup = (
            self.run(saved(self.url)),
            len(self.book.acts),
            dict(self.registered),
            [replace(hold) for hold in self.book.holds],
            self.run(self._head()),
        )

    def _restore(self, step: Step) -> None:
        if self.backup is None:
            return
        self.close()
        act = self._act("restore", self.files[0], next(iter(self.book.chats.values())))
        act.outcome = Outcome.DONE
        copy, _, registered, holds, head = self.backup
        self.run(put_store_back(self.url, copy))
        self.book.restored, self.registered = act.index, dict(registered)
        self.book.restored_head = min(self.book.restored_head, head)
        self.book.holds = [replace(hold) for hold in holds]

    def _move(self, step: Step) -> None:
        self.close()
        target = self.empty()
        self.run(move(self.url, target))
        self.url, self.backup = target, None

    # The end.

    async def settle(self) -> None:
        """Deliver and carry out everything."""
        store, refused = await self.store(), list[Held]()
        for _ in range(SETTLING_ROUNDS):
            for files in self.files:
                hand = await self.hand(files)
                await Relay(hand.history.outbox, store).drain()
                while await self._skip_erased(files):
                    await Relay(hand.history.outbox, store).drain()
                await repeat_erasures(hand.history, held=refused.append)
            while await store.run_pending_tasks():
                pass
            pending = [(await (await self.hand(files)).history.status()).pending for files in self.files]
            origins = {await self._origin(files) for files in self.files}
            behind = origins & {late.origin_id for late in await store.erasures.unacknowledged()}
            if not any(pending) and not behind and not (await store.pending_tasks()).tasks:
                break
        else:
            self.problems.append(
                f"it does not settle: {pending} events are pending, {behind} have erasures to carry out"
            )
        while await store.catch_up_search():
            pass
        recorded = {row.erasure_id for row in await store.erasures.after(0)}
        for files in self.files:
            forgotten = (await (await self.hand(files)).history.outbox.read(carried_out)).keys() - recorded
            if forgotten and not refused:
                self.problems.append(f"{files.box.name} has carried out what the store has forgotten: {forgotten}")

    async def _skip_erased(self, files: Files) -> bool:
        """Skip what a copy would say again after it was erased, as an operator does who is told. Return True if any."""
        admin = OutboxAdmin((await self.hand(files)).history.outbox)
        blocked = await admin.pending(Selection(states=("blocked",), fronts=True))
        erased = [event for event in blocked if "was erased in the history store" in (event.fault or "")]
        for event in erased:
            await admin.skip(event.event_id, reason="it was erased elsewhere")
            files.box.skipped.add(event.event_id)
        return bool(erased)

    async def log(self) -> list[Entry]:
        rows = await run_there(self.url, sa.select(events).where(events.c.conversation_id.startswith(self.prefix)))
        return [
            Entry(
                row.position,
                row.conversation_id,
                row.version,
                row.event_id,
                row.origin_id,
                row.type,
                json.loads(row.data),
            )
            for row in rows
        ]


async def _awaited(work: Awaitable[T]) -> T:
    return await work
