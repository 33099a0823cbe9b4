"""Model outboxes that write to one history store: what each reads, and what the store decides on delivery.

An operation is the events that it appends. What an outbox reads of a conversation is what its events lead to, after
those that the store holds: both are replayed on the plain model, each time from nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.model.plain import Chat, Plain

TURNS: Final = frozenset({"say", "again", "edit", "redact", "rewind", "reset"})
"""The kinds of events that stand against an answer to what was read before them."""
SAYS: Final = ("say", "again")
UNKNOWN: Final = "?"
"""The active conversation of an owner whose active one was put away: one of the others, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expects:
    """The condition of an event: that nothing has come since this was seen."""

    sequence: int
    version: int | None
    leader: Event | None = None


@dataclass(eq=False, slots=True, kw_only=True)
class Event:
    """An event of a lane.

    :ivar kind: a method of the plain model that takes ``values``, or ``start``, ``fork`` or ``again``.
    :ivar seen: once the store has put it aside: the version that its writer had seen.
    """

    chat: str
    kind: str
    values: dict[str, Any]
    time: int = 0
    box: Outbox | None = None
    sequence: int = 0
    expects: Expects | None = None
    version: int | None = None
    aside: bool = False
    told: bool = False
    """Whether it was put aside because its message was erased, so that its outbox has erased its own copy."""
    seen: int = 0

    def appends(self, message_id: str) -> bool:
        return self.kind in SAYS and self.values["message_id"] == message_id


@dataclass(eq=False, slots=True)
class Lane:
    owner: str | None = None
    events: list[Event] = field(default_factory=list)
    delivered: int = 0

    @property
    def pending(self) -> list[Event]:
        return self.events[self.delivered :]

    @property
    def deleted(self) -> bool:
        return any(one.kind == "delete" for one in self.events)


@dataclass(eq=False)
class Outbox:
    name: str
    lanes: dict[str, Lane] = field(default_factory=lambda: defaultdict(Lane))
    activated: dict[str, Event] = field(default_factory=dict)
    """By owner, the last activation here."""

    def holds(self, chat: str, message_id: str) -> bool:
        return any(one.appends(message_id) for one in self.lanes[chat].events)

    def redacted(self, chat: str, message_id: str) -> bool:
        """Whether a message was redacted here, or it was told that another outbox has redacted it."""
        named = [one for one in self.lanes[chat].events if one.values.get("message_id") == message_id]
        return any(one.kind == "redact" or one.told for one in named)


class Lanes:
    """Some outboxes, and the store that they deliver to."""

    def __init__(self, *names: str) -> None:
        self.boxes = [Outbox(name) for name in names]
        self.stored: dict[str, list[Event]] = defaultdict(list)
        self.active: dict[str, tuple[str, Outbox, int]] = {}
        """By owner, the conversation that was activated last as the store learned it, where, and when there."""
        self.clock = 0

    def append(
        self, box: Outbox, chat: str, *drafts: Event, owner: str | None = None, expects: Expects | None = None
    ) -> list[Event]:
        self.clock += 1
        lane, events = box.lanes[chat], list(drafts)
        for place, event in enumerate(events):
            if expects is not None:
                leader = None if place == 0 else events[0]
                event.expects = Expects(sequence=expects.sequence, version=expects.version, leader=leader)
        named = [one.values["owner"] for one in events if one.kind in ("start", "fork") and one.values["owner"]]
        settled = lane.owner or owner or next(iter(named), None)
        begins = bool(events) and events[0].kind in ("start", "fork")
        if (settled != lane.owner and not named) or (not lane.events and not begins):
            started = Event(chat=chat, kind="start", values={"owner": owner, "title": None})
            events.insert(1 if begins else 0, started)
        lane.owner = settled
        for event in events:
            event.box, event.time = box, self.clock
            lane.events.append(event)
            event.sequence = len(lane.events)
            if event.kind == "activate" and lane.owner is not None:
                box.activated[lane.owner] = event
        return list(drafts)

    def of(self, box: Outbox | None, chat: str, *, alone: bool = False) -> list[Event]:
        """Return the events that are read through an outbox, or of the store alone."""
        if alone and box is not None:
            return box.lanes[chat].events if chat in box.lanes else []
        pending = box.lanes[chat].pending if box is not None and chat in box.lanes else []
        return [*self.stored[chat], *pending]

    def read(self, box: Outbox | None, *, alone: bool = False) -> Plain:
        """Return all conversations as an outbox reads them, or as the store holds them."""
        plain = Plain()
        names = dict.fromkeys([*self.stored, *(() if box is None else box.lanes)])
        for name in names:
            self._build(plain, name, box, alone)
        return plain

    def _build(self, plain: Plain, name: str, box: Outbox | None, alone: bool) -> Chat | None:
        if name in plain.chats:
            return plain.chats[name]
        events = self.of(box, name, alone=alone)
        if not events:
            return None
        chat = plain.begin(name)
        for event in events:
            if event.kind == "fork":
                self._fork(plain, chat, event, box, alone)
            else:
                play(plain, chat, event)
        if alone and box is not None:
            chat.erased |= {one.values["message_id"] for one in box.lanes[name].events if one.told}
        chat.touched = max(one.time for one in events)
        return chat

    def _fork(self, plain: Plain, chat: Chat, event: Event, box: Outbox | None, alone: bool) -> None:
        point: Event = event.values["point"]
        parent = self._build(plain, point.chat, box, alone)
        before = self.of(box, point.chat, alone=alone)
        chat.lost = parent is None or point not in before or parent.lost
        version = 0 if chat.lost else before.index(point) + 1
        owner, title = event.values["owner"], event.values["title"]
        plain.start(chat, owner, title, parent=None if chat.lost else parent, version=version)

    # Delivery.

    def deliver(self, box: Outbox) -> None:
        marks: dict[str, list[Event]] = {}
        for name, lane in box.lanes.items():
            if pending := lane.pending:
                self._judge(box, name, pending)
                marks[name] = self._project(name, pending)
                lane.delivered = len(lane.events)
        for name, moves in marks.items():
            self._mark(box, name, moves)

    def _judge(self, box: Outbox, chat: str, pending: Sequence[Event]) -> None:
        """Put aside what came too late for its condition."""
        lane = box.lanes[chat]
        for event in pending:
            if (expects := event.expects) is None:
                continue
            if expects.leader is not None:
                event.aside, event.seen = expects.leader.aside, expects.leader.seen
                continue
            if expects.version is not None:
                seen = expects.version
            else:
                known = lane.events[: expects.sequence]
                if expects.sequence <= lane.delivered:
                    known = [one for one in known if one.version is not None]
                elif known and not known[-1].aside:
                    continue  # what it answers comes with this delivery, after everything that is stored
                last = known[-1] if known else None
                seen = 0 if last is None else last.seen if last.aside else last.version or 0
            rivals = self.stored[chat][seen:]
            if any(one.box is not box and not one.aside and one.kind in TURNS for one in rivals):
                event.aside, event.seen = True, seen

    def _project(self, name: str, pending: Sequence[Event]) -> list[Event]:
        stored = self.stored[name]
        moves: list[Event] = []
        plain = Plain()
        chat = self._build(plain, name, None, False) or plain.begin(name)
        for event in pending:
            known = chat.every(event.values.get("message_id", ""))
            if event.kind in SAYS and any(_same(one, event) for one in stored):
                # It is there already.
                event.aside = not any(one.on_path for one in known)
                continue
            event.told = not chat.deleted and event.kind == "edit" and _erased(chat, event)
            event.aside = event.aside or event.told or chat.deleted
            stored.append(event)
            event.version = len(stored)
            if event.kind == "fork":
                self._fork(plain, chat, event, None, False)
            else:
                play(plain, chat, event)
            if not event.aside and event.kind in ("activate", "archive", "delete"):
                moves.append(event)
        return moves

    def _mark(self, box: Outbox, name: str, moves: Sequence[Event]) -> None:
        owner = next((one.values["owner"] for one in self.stored[name] if one.kind in ("start", "fork")
                      and one.values["owner"] and not one.aside), None)  # fmt: skip
        if owner is None or not moves:
            return
        for one in moves:
            if one.kind == "activate":
                there = self.active.get(owner)
                if there is None or there[1] is not box or there[2] <= one.time:
                    self.active[owner] = (name, box, one.time)
        if moves[-1].kind != "activate" and owner in self.active and self.active[owner][0] in (name, UNKNOWN):
            self.active[owner] = (UNKNOWN, *self.active[owner][1:])

    def active_of(self, box: Outbox, owner: str, plain: Plain) -> str | None:
        """Return the owner's active conversation as an outbox reads it; ``None`` if none was ever activated."""
        last = box.activated.get(owner)
        name: str | None
        if last is not None and last in box.lanes[last.chat].pending:
            name, after = last.chat, last.sequence
        else:
            name, after = self.active[owner][0] if owner in self.active else None, 0
        if name is None or name == UNKNOWN:
            return name
        leaves = (
            [one for one in box.lanes[name].pending if one.kind in ("archive", "delete")] if name in box.lanes else []
        )
        gone = any(one.sequence > after for one in leaves) or plain.chats[name].state != "active"
        return UNKNOWN if gone else name

    def figures(
        self, box: Outbox, owner: str, plain: Plain
    ) -> tuple[int, int, int, int, int, Mapping[str | None, int]]:
        """Return questions, answers, messages, tokens and conversations of an owner, and the messages by mood."""
        counted: Counter[str] = Counter()
        moods: Counter[str | None] = Counter()
        some = 0
        for chat in plain.chats.values():
            if chat.owner != owner:
                continue
            there, gone = False, False
            for event in self.of(box, chat.id):
                gone = gone or (event.kind == "delete" and not event.aside)
                if event.kind not in SAYS:
                    continue
                if event.version is None and any(_same(one, event) for one in self.stored[chat.id]):
                    continue  # it is counted
                there = True
                counted["tokens"] += event.values.get("tokens") or 0
                if event.aside or gone:
                    continue
                counted[event.values["role"]] += 1
                counted["messages"] += 1
                kept = chat.find(event.values["message_id"])
                moods[None if kept is None or kept.redacted else event.values.get("mood")] += 1
            some += there
        return counted["user"], counted["assistant"], counted["messages"], counted["tokens"], some, moods


def _emptied(event: Event) -> bool:
    """Whether its own outbox has erased the content of an event before the delivery: there is nothing to put aside."""
    return any(
        one.kind == "redact" and one.values["message_id"] == event.values["message_id"]
        for one in (event.box.lanes[event.chat].events[event.sequence :] if event.box is not None else ())
    )


def _erased(chat: Chat, event: Event) -> bool:
    """Whether the message of an event was redacted, so that its new content is shown to nobody."""
    known = chat.every(event.values["message_id"])
    return bool(known) and all(one.redacted for one in known) and not _emptied(event)


def _same(one: Event, other: Event) -> bool:
    return one.kind in SAYS and one.values["message_id"] == other.values["message_id"]


def play(plain: Plain, chat: Chat, event: Event) -> None:
    values: dict[str, Any] = event.values
    if event.kind in SAYS:
        if chat.find(values["message_id"]) is not None:
            plain.touch(chat)  # it is there, and stays where it is
        else:
            plain.say(chat, **values, aside=event.aside)
    elif event.aside or chat.deleted:
        plain.touch(chat)
    else:
        getattr(plain, event.kind)(chat, **values)
