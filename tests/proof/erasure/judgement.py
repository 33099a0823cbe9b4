"""Say of each planted word whether it must be gone, must be readable, or may be either. Knows nothing of the product.

The fate of a word follows from what was done, and from the order that the history store has given the events.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from enum import IntEnum
from math import inf
from typing import Final, NamedTuple
from uuid import UUID

from tests.proof.erasure.book import ERASING, NUMBERED, Act, Book, Box, Chat, Entry, Outcome, Word

OF_MESSAGES: Final = ("text", "more", "edit", "sent")
"""Kinds of words that go with a redaction of their message."""
STATE: Final = ("title", "note", "tag")
"""Kinds of words that retention leaves."""


class Fate(IntEnum):
    ALIVE = 0
    EITHER = 1
    GONE = 2


class Effect(NamedTuple):
    """What an erasure does to a word.

    :ivar store: what becomes of it for readers, and in the store.
    :ivar file: whether the outbox that it was said through may not hold it either.
    :ivar since: the position of the log since which forks alone may read it; ``None`` if not even they may.
    :ivar act: the number of the act, if that is known: what was appended before it may be delivered with it.
    :ivar authored: it is of a person in a conversation of others; what that retains for forks since an end stays.
    :ivar trimmed: it goes by a trim, after which a reply is still to be confirmed.
    :ivar until: the position by which the store had it carried out; a fork in between may have come in time.
    """

    store: Fate
    file: bool = False
    since: int | None = None
    act: float = inf
    until: float = 0
    authored: bool = False
    trimmed: bool = False


class Judgement:
    """What must have become of each word.

    :ivar lost: words that had been acknowledged and are not in the log, for no reason.
    """

    def __init__(self, book: Book, log: Iterable[Entry], registered: Collection[UUID]) -> None:
        self.book = book
        self.log = sorted(log)
        self.lost: list[str] = []
        self._registered = registered
        self._acts = [act for act in book.acts if act.verb in ERASING and act.outcome is not Outcome.REFUSED]
        self._by_event = {entry.event: entry for entry in self.log}
        self._by_message = {
            (entry.chat, entry.data.get("message_id")): entry for entry in self.log if entry.type == "message.appended"
        }
        self._by_chat: dict[str, list[Entry]] = {}
        for entry in self.log:
            self._by_chat.setdefault(entry.chat, []).append(entry)
        self._verbs = {act.event: act for act in book.acts if act.event is not None}
        self._boxes = {
            self._by_event[act.event].origin: act.box for act in self._verbs.values() if act.event in self._by_event
        }
        self.entries = {word: self.entry(word) for word in book.words}
        self.effects: dict[Word, list[Effect]] = {}
        self.fates: dict[Word, Fate] = {}
        self._texts: dict[tuple[Chat, str], Word] = {}
        for word in book.words:
            self.effects[word] = [effect for effect in self._effects(word) if effect is not None]
            self.fates[word] = self._fate(word)
            if word.kind == "text":
                self._texts[word.act.chat, word.act.message] = word

    def entry(self, word: Word) -> Entry | None:
        entry = None if word.act.event is None else self._by_event.get(word.act.event)
        if entry is None and word.kind == "text":
            entry = self._by_message.get((word.act.chat.name, word.act.message))
        return entry

    def events(self, chat: Chat, *types: str) -> list[Entry]:
        """Return the events of a conversation, of some types or all."""
        return [entry for entry in self._by_chat.get(chat.name, ()) if not types or entry.type in types]

    def in_file(self, box: Box) -> set[str]:
        """Return the words that the file of an outbox may hold."""
        said = {word for word in self.book.words if box.stems_from(word.act.box)}
        stays = {word for word in said if not any(effect.file for effect in self.effects[word])}
        return {word.text for word in said if word in stays or word.act.event in box.skipped}

    # What was erased.

    def _fate(self, word: Word) -> Fate:
        act, fate = word.act, max((effect.store for effect in self.effects[word]), default=Fate.ALIVE)
        if word.kind == "record":
            # A file that was put back from a copy may have had it pending.
            return max(fate, Fate(act.outcome), Fate.ALIVE if act.box.replaced == inf else Fate.EITHER)
        if act.outcome is Outcome.REFUSED or self.entries[word] is not None:
            return fate
        if act.outcome is Outcome.DONE and fate is Fate.ALIVE and act.box.replaced == inf:
            self.lost.append(f"{word.text} is not in the log: {act}")
        return max(fate, Fate.EITHER)

    def _effects(self, word: Word) -> Iterator[Effect | None]:
        if word.act.outcome is Outcome.REFUSED:
            yield Effect(Fate.GONE, file=True)
        for act in self._acts:
            if act.verb in NUMBERED:
                yield self._numbered(act, word)
            elif act.verb == "redact":
                yield self._redaction(act, word)
            elif act.verb == "clear_records" or word.scope in ("", act.chat.name):
                yield self._reset(act, word)
        if word.kind == "record":
            if word.scope == word.act.chat.name and self.events(word.act.chat, "conversation.deleted"):
                yield Effect(Fate.EITHER)
            yield from self._replaced(word)
            return
        yield from self._deletions(word)
        yield from self._trims(word)
        text = self._texts.get((word.act.chat, word.act.message))
        if word.kind in ("edit", "sent", "reaction") and text is not None and self.fates[text] is not Fate.ALIVE:
            yield Effect(Fate.EITHER)

    def _redaction(self, act: Act, word: Word) -> Effect | None:
        if word.kind not in OF_MESSAGES or (word.act.chat, word.act.message) != (act.chat, act.message):
            return None
        earlier = act.box is word.act.box and word.act.index < act.index
        entry = self._by_event.get(act.event) if act.event is not None else None
        said = (other for other in self.book.acts if (other.chat, other.message) == (act.chat, act.message))
        aside = None if entry is None else self._is_aside(act.chat, entry.position, said)
        if aside is False and entry is not None:
            ends = self.events(act.chat, "conversation.deleted")
            if any(end.version < entry.version and not self._is_aside(act.chat, end.position) for end in ends):
                return Effect(Fate.EITHER)  # nothing has an effect in a deleted conversation: forks go on reading it
            return Effect(Fate.GONE, file=earlier)
        # A note that comes after the redaction leaves at once, and does not come back where a hold sets that aside.
        return Effect(Fate.EITHER) if aside is None or act.box is word.act.box else None

    def _reset(self, act: Act, word: Word) -> Effect | None:
        """A reset, a deletion as far as it is one, or a clear of records."""
        if word.scope != act.subject if act.verb == "clear_records" else word.act.chat is not act.chat:
            return None
        own = act.box is word.act.box
        if own and word.act.index > act.index:
            return None
        if word.kind == "record":
            known = own and act.outcome is Outcome.DONE and not self._was_held(act.chat)
            return Effect(Fate.GONE if known else Fate.EITHER, file=known)
        entry = self._by_event.get(act.event) if act.event is not None else None
        aside = None if entry is None else self._is_aside(act.chat, entry.position)
        if entry is None or aside is None:
            return Effect(Fate.EITHER)
        there = self.entries[word]
        if aside or (not own and there is not None and there.version > entry.version):
            return None
        if there is None and not own:
            return Effect(Fate.EITHER)
        return Effect(Fate.GONE, file=own, since=entry.position, act=act.index)

    def _deletions(self, word: Word) -> Iterator[Effect]:
        there = self.entries[word]
        for entry in self.events(word.act.chat, "conversation.deleted"):
            aside = self._is_aside(word.act.chat, entry.position)
            if aside is None:
                yield Effect(Fate.EITHER, since=entry.position)
            elif not aside:
                late = there is not None and there.version > entry.version
                own = self._boxes.get(entry.origin) is word.act.box
                yield Effect(Fate.GONE, file=own or late, since=entry.position)

    def _trims(self, word: Word) -> Iterator[Effect]:
        there = self.entries[word]
        if word.kind in STATE or there is None:
            return
        for entry in self.events(word.act.chat, "conversation.trimmed"):
            upto = entry.data["upto"]
            texts = ((text.act, self.entries[text]) for text in self.book.words if text.kind == "text")
            said = (act for act, at in texts if act.chat is word.act.chat and at is not None and at.version <= upto)
            aside = self._is_aside(word.act.chat, entry.position, said)
            if not aside and there.version <= upto:
                # In a store that was set back, the versions of a trim from before may be of other events.
                own = self._boxes.get(entry.origin) is word.act.box and self.book.restored < 0
                fate, at = Fate.GONE if aside is False else Fate.EITHER, entry.position
                yield Effect(fate, file=own and not aside, since=at, trimmed=True)

    def _replaced(self, word: Word) -> Iterator[Effect]:
        """A record's value goes when the same outbox puts another; each puts its own keys."""
        for act in self.book.acts:
            later = act.index > word.act.index and act.box is word.act.box and act.outcome is not Outcome.REFUSED
            if later and act.verb == "record" and (act.words[0].scope, act.amount) == (word.scope, word.act.amount):
                yield Effect(Fate.EITHER)

    def _numbered(self, act: Act, word: Word) -> Effect | None:
        scope = self._scope(act, word)
        if not act.number or scope is False:
            return None
        box, carried = word.act.box, word.act.carried
        here = box is act.box or (box.stems_from(act.box) and box.copied_at > act.index)
        before = word.act.index < act.index if here else carried[0] < act.number
        if not before:
            # Records are cleared as they are when the clear arrives, from whatever outbox.
            new = act.verb == "everywhere" or box is not act.box or carried[0] >= act.number
            return None if new and word.kind != "record" else Effect(Fate.EITHER)
        there = self.entries[word]
        pending = there is None or there.position > act.head
        unsure = act.outcome is Outcome.UNKNOWN or carried[1] >= act.number or act.erasure not in self._registered
        if self.book.restored > act.index:  # it is repeated
            unsure = unsure or pending or there is None or there.position > self.book.restored_head
        # Nobody knows whose it is when it arrives later, and whether it was said before.
        if unsure or scope is None or (scope == "late" and pending):
            return Effect(Fate.EITHER)
        carries = act.index if box is act.box else box.carried_at(act.number)
        for hold in self.book.holds:
            if hold.released < act.index or not (hold.protects(word.act.chat) or hold.subject == act.subject):
                continue
            if hold.act < carries < hold.released and (there is None or there.position > hold.since > act.head):
                # It was pending when the hold began, and is spared; a clear of records may come after the hold.
                return Effect(Fate.EITHER) if word.kind == "record" else None
            return Effect(Fate.EITHER)
        until = self._carried_out(act, word)
        if not pending and until == inf and act.box.replaced < inf:
            return Effect(Fate.EITHER)  # what carries it out in the store was lost with the file of whoever asked
        if pending or scope == "authored":
            return Effect(Fate.GONE, file=scope != "late", authored=scope == "authored")
        return Effect(Fate.GONE, file=scope != "late", since=act.head, act=act.index, until=until)

    def _carried_out(self, act: Act, word: Word) -> float:
        """Return the position by which the store had carried out an erasure; those of other outboxes may not."""
        ends = (
            entry.position
            for entry in self.events(word.act.chat, "conversation.rewound", "conversation.deleted")
            if entry.position > act.head and self._erases(entry) and self._boxes.get(entry.origin) is act.box
        )
        return min(ends, default=inf)

    def _erases(self, entry: Entry) -> bool:
        return entry.type == "conversation.deleted" or entry.data.get("erase") is True

    def _scope(self, act: Act, word: Word) -> bool | str | None:
        """Whether an erasure is about a word; ``"late"`` if only another outbox could tell whose it is,
        ``"authored"`` if it is a person's in a conversation of others."""
        chat, subject = word.act.chat, act.subject
        if act.verb == "everywhere":
            return chat.name == subject and word.scope in ("", subject)
        if word.scope and word.scope != chat.name:
            return word.scope == subject
        authored = act.verb == "person" and word.act.author == subject and word.kind in OF_MESSAGES
        if chat.owner != subject:
            return "authored" if authored else False
        asked = act.index if word.act.box is act.box else word.act.box.carried_at(act.number)
        known = set[bool | str | None]()
        for other in self.book.acts:
            if other.chat is not chat or other.owner != subject or other.outcome is Outcome.REFUSED:
                continue
            entry = self._by_event.get(other.event) if other.event is not None else None
            if (entry is not None and entry.position <= act.head) or (
                other.box is word.act.box and other.index < asked
            ):
                known.add(True if other.outcome is Outcome.DONE else None)
            elif entry is None and other.verb == "begin":
                known.add(None)  # it is erased with the draft that named it
            elif other.index < (act.index if other.box is act.box else other.box.carried_at(act.number)):
                known.add("late" if other.outcome is Outcome.DONE and other.box is not word.act.box else None)
            else:
                known.add(None)
        if True not in known and authored:
            return "authored"
        return True if True in known else "late" if "late" in known else None if known else False

    def _is_aside(self, chat: Chat, position: int, said: Iterable[Act] = ()) -> bool | None:
        """Whether an erasure that arrived then met a hold, be it on the author of one of some messages."""
        authors, aside = {act.author for act in said}, False
        for hold in self.book.holds:
            authored = hold.kind == "owner" and hold.subject in authors
            if not (authored or hold.protects(chat)) or not hold.asked < position <= hold.ended:
                continue
            sure = authored or hold.kind == "conversation" or self._named_by(chat, position)
            if sure and hold.since < position <= hold.until:
                return True
            aside = None
        return aside

    def _named_by(self, chat: Chat, position: int) -> bool:
        entries = (
            self._by_event.get(act.event) for act in self.book.acts if act.chat is chat and act.owner and act.event
        )
        return any(entry is not None and entry.position < position for entry in entries)

    def _was_held(self, chat: Chat) -> bool:
        return any(hold.protects(chat) for hold in self.book.holds)

    # What forks read.

    def start(self, chat: Chat) -> Entry | None:
        """Return the event that began a fork."""
        started = self.events(chat, "conversation.started")
        return next((entry for entry in started if entry.data.get("forked_from")), None)

    def ends(self, chat: Chat) -> Iterator[tuple[Entry, bool]]:
        """Yield the events that end what a fork inherits, and whether that is sure."""
        for entry in self.events(chat, "conversation.deleted", "conversation.trimmed", "conversation.rewound"):
            aside = self._is_aside(chat, entry.position)
            if aside or entry.data.get("to_message_id") is not None:
                continue
            act = self._verbs.get(entry.event)
            if entry.type != "conversation.rewound" or entry.data.get("erase"):
                yield entry, aside is False
            elif act is None or act.verb == "clear":
                yield entry, act is not None and aside is False

    def chain(self, chat: Chat) -> dict[Chat, int]:
        """Return up to which version a fork reads each of its ancestors, as long as it inherits."""
        start = self.start(chat)
        if start is None or chat.parent is None:
            return {}
        fork = start.data["forked_from"]
        upto = fork.get("version")
        if upto is None:
            entry = self._by_event.get(UUID(fork["event_id"]))
            upto = 0 if entry is None else entry.version
        above = self.chain(chat.parent)
        if any(entry.version <= upto for entry, _ in self.ends(chat.parent)):
            above = {}
        return {chat.parent: upto, **above}

    def kept(self, word: Word) -> bool | None:
        """Whether forks keep a word that was erased; ``None`` if that is not known."""
        there, gone = self.entries[word], [effect for effect in self.effects[word] if effect.store is Fate.GONE]
        gone = [effect for effect in gone if not effect.authored]
        if there is None or not gone or any(effect.since is None for effect in gone):
            return False
        sure = self.book.restored < 0 and len(gone) == len(self.effects[word])
        first = min(gone, key=lambda effect: effect.since or 0)
        spans = []
        for fork in self.book.acts:
            start = self.start(fork.chat) if fork.verb == "fork" else None
            if start is not None and self.chain(fork.chat).get(word.act.chat, 0) >= there.version:
                ends = list(self.ends(fork.chat))
                late = start.position > (first.since or 0) and (fork.index < first.act or start.position < first.until)
                sure = sure and all(known for _, known in ends) and not late
                spans.append((start.position, min((entry.position for entry, _ in ends), default=inf)))
        if not spans:
            return False
        place: float = first.since or 0
        while place < inf and (reach := max((end for start, end in spans if start <= place < end), default=0)):
            place = reach
        return place == inf if sure else None
