"""Searching: find what was said, what is not saved yet included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from letopis.outbox.embedded import Embedded
from letopis.outbox.unsaved import Key, Snapshot, Waiting, snapshot, waiting_of
from letopis.store.asking import check_count
from letopis.store.codec import INTEGER_MAX
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.history import ConversationStore
from letopis.store.identifiers import check_identifier
from letopis.store.search.finding import hit_of
from letopis.store.search.hits import HITS_MAX, Hit, no_place, pack, unpack
from letopis.store.search.query import Query, parse

DELETED: Final = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is looked for, where, and from which place on."""

    typed: str
    query: Query
    owner: str | None
    conversation: str | None
    limit: int
    place: _Place | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a search goes on.

    :ivar queue: positions in the outbox of what was found there when the search began, in order.
    :ivar shown: how many of them were on a page.
    :ivar store: the ``next`` of the store's page; ``None`` before the first one, ``""`` after the last.
    """

    queue: tuple[int, ...]
    shown: int
    store: str | None

    @property
    def left(self) -> bool:
        """Whether there may be more."""
        return self.shown < len(self.queue) or self.store != ""

    def pack(self) -> str:
        """Return the ``next`` of a page."""
        return pack([list(self.queue), self.shown, self.store])

    @classmethod
    def unpack(cls, cursor: object) -> Self:
        """Return the place that the ``next`` of a page names.

        :raises InvalidInput: it names none.
        """
        value = unpack(cursor)
        match value:
            case [list(queue), int(shown), None | str() as store] if (
                len(queue) <= HITS_MAX
                and 0 <= shown <= len(queue)
                and all(type(one) is int and 0 <= one <= INTEGER_MAX for one in queue)
            ):
                return cls(queue=tuple(queue), shown=shown, store=store)
        raise no_place()


class Searching(Embedded):
    """The part of a history that searches."""

    async def search(
        self,
        query: str,
        *,
        owner: str | None = None,
        conversation: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> Page[Hit]:
        """Return a page of messages that have all words of ``query``, in any form of them, the best ones first.

        ``"quoted words"`` are to stand there as they are, next to each other; what a word with ``-`` before it names is
        not to be there. There is no other syntax. Case, accents and the dots of ``ё`` make no difference; Russian and
        English words are found in their other forms.

        What is not saved yet is found too, and comes first, newest first. What was edited, redacted, rewound over or
        deleted here counts as that at once, before the history store has it.

        Pages show what was there when the first one was made, and nothing twice. A page may hold fewer than ``limit``,
        so go on while there is a ``next``. ``complete`` is ``False`` where not all could be looked through: while the
        history store is away (then what the outbox still holds is searched), while its index is far behind, or with
        more than 10,000 pending events.

        :param owner: only in the conversations of this owner. ``conversation``: only in this one.
        :param after: the ``next`` of the page before, of the same search.
        :raises InvalidInput: there is no word in ``query``, or it has more than 1,000 characters or 32 words, or
            another argument is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        check_count(limit, "limit")
        for name, value in (("owner", owner), ("conversation", conversation)):
            if value is not None:
                check_identifier(value, name)
        asked = _Asked(
            typed=query,
            query=parse(query),
            owner=owner,
            conversation=conversation,
            limit=limit,
            place=None if after is None else _Place.unpack(after),
        )
        # The outbox first: what is delivered in between is found in both, and shown once.
        held = await self._snapshot(asked)
        found = await self._reach.read(lambda store: self._found(store, asked, held))
        return await self._retained(asked) if found is None else found

    async def _snapshot(self, asked: _Asked, *, retained: bool = False) -> Snapshot:
        return await self.outbox.read(
            lambda connection: snapshot(
                connection,
                origin_id=self.outbox.origin.origin_id,
                conversation=asked.conversation,
                retained=retained,
                queued=() if asked.place is None else asked.place.queue,
            )
        )

    def _queue(self, asked: _Asked, held: Snapshot) -> tuple[_Place, dict[int, Key]]:
        """Return where the search stands, and the messages of the queue."""
        if asked.place is not None:
            return asked.place, dict(held.queued)
        found = held.candidates(asked.query, owner=asked.owner, upcasters=self._upcasters)[:HITS_MAX]
        return _Place(queue=tuple(position for position, _ in found), shown=0, store=None), dict(found)

    async def _found(self, store: ConversationStore, asked: _Asked, held: Snapshot) -> Page[Hit]:
        place, keys = self._queue(asked, held)
        turn = place.queue[place.shown : place.shown + asked.limit]
        over = _Over(self, store, asked, held)
        hits = await over.of_outbox([keys[position] for position in turn if position in keys])
        room, going_on, complete = asked.limit - len(turn), place.store, held.complete
        if going_on is None:
            going_on = await store.search_place(asked.conversation)
        if room and going_on != "":
            page = await store.search(
                asked.typed, owner=asked.owner, conversation=asked.conversation, limit=room, after=going_on
            )
            hits += await over.of_store(page, besides=frozenset(keys.values()))
            going_on, complete = page.next or "", complete and page.complete
        ahead = _Place(queue=place.queue, shown=place.shown + len(turn), store=going_on)
        return Page(tuple(hits), next=ahead.pack() if ahead.left else None, complete=complete)

    async def _retained(self, asked: _Asked) -> Page[Hit]:
        """Return hits of what the outbox still holds, while the store is away."""
        held = await self._snapshot(asked, retained=True)
        place, keys = self._queue(asked, held)
        turn = place.queue[place.shown : place.shown + asked.limit]
        hits = []
        for position in turn:
            key = keys.get(position)
            waiting = None if key is None else held.waiting.get(key.conversation_id)
            if key is None or waiting is None or asked.owner not in (None, waiting.lane.owner_id):
                continue
            there = waiting.over((), conversation=None, elsewhere=None, upcasters=self._upcasters)
            hits += _hits(there, [key], asked.query)
        ahead = _Place(queue=place.queue, shown=place.shown + len(turn), store=place.store)
        more = ahead.shown < len(ahead.queue)
        return Page(tuple(hits), next=ahead.pack() if more else None, complete=False)

    async def _waiting(self, held: Snapshot, names: Iterable[str]) -> Mapping[str, Waiting]:
        """Return what waits of conversations, also of those that a snapshot had no room for."""
        wanted = {name: held.lanes[name] for name in names if name in held.lanes}
        left = [lane for name, lane in wanted.items() if name not in held.waiting]
        more: Mapping[str, Waiting] = {}
        if left:
            origin_id = self.outbox.origin.origin_id
            more = await self.outbox.read(lambda connection: waiting_of(connection, left, origin_id=origin_id))
        return {name: held.waiting[name] if name in held.waiting else more[name] for name in wanted}


class _Over:
    """Lays what waits in the outbox over what the store has of the same conversations, for one page."""

    def __init__(self, history: Searching, store: ConversationStore, asked: _Asked, held: Snapshot) -> None:
        self._history = history
        self._store = store
        self._asked = asked
        self._held = held
        self._upcasters = history._upcasters

    async def of_outbox(self, keys: Sequence[Key]) -> list[Hit]:
        """Return the hits among messages whose content is, or was when the search began, in the outbox."""
        names = list(dict.fromkeys(key.conversation_id for key in keys))
        waiting = await self._history._waiting(self._held, names)
        messages = list[RecordedMessage]()
        for name in names:
            ids = {key.message_id for key in keys if key.conversation_id == name}
            messages += await self._messages(name, ids, waiting.get(name))
        return _hits(messages, keys, self._asked.query)

    async def of_store(self, page: Page[Hit], *, besides: frozenset[Key]) -> list[Hit]:
        """Return the hits of the store's page that still are some.

        :param besides: messages that come from the outbox.
        """
        waiting = await self._history._waiting(self._held, {hit.conversation_id for hit in page})
        now = dict[object, RecordedMessage]()
        for name, one in waiting.items():
            stored = [hit.message for hit in page if hit.conversation_id == name]
            conversation = await self._store.conversation(name)
            targets = one.targets()
            places = await self._store.path_of(name, targets) if targets else {}
            there = one.over(stored, conversation=conversation, elsewhere=places, upcasters=self._upcasters)
            now.update({message.event_id: message for message in there})
        hits = []
        for hit in page:
            if Key(hit.conversation_id, hit.message.id) in besides:
                continue
            if hit.conversation_id not in waiting:
                hits.append(hit)
            elif (message := now.get(hit.message.event_id)) is not None:  # else the conversation is deleted here
                found = hit_of(message, self._asked.query, hit.score)
                hits += () if found is None else (found,)
        return hits

    async def _messages(self, name: str, ids: set[str], waiting: Waiting | None) -> Sequence[RecordedMessage]:
        """Return messages of a conversation as they stand, those of the store read from there."""
        conversation = await self._store.conversation(name)
        if not self._is_here(conversation, waiting):
            return ()
        missing = ids - (waiting.appended() if waiting is not None else frozenset())
        targets = waiting.targets() if waiting is not None else frozenset[str]()
        places = await self._store.path_of(name, missing | targets) if missing or targets else {}
        stored = list[RecordedMessage]()
        for message_id in sorted(missing):
            if message_id in places:
                version = places[message_id].version
                stored += await self._store.messages(name, after=version - 1, before=version + 1)
        if waiting is None:
            return stored
        return waiting.over(stored, conversation=conversation, elsewhere=places, upcasters=self._upcasters)

    def _is_here(self, conversation: Conversation | None, waiting: Waiting | None) -> bool:
        """Whether a conversation is one of those that are searched; the store knows best whose it is."""
        if conversation is not None and conversation.state == DELETED:
            return False
        if self._asked.owner is None:
            return True
        known = None if conversation is None else conversation.owner_id
        if known is None and waiting is not None:
            known = waiting.lane.owner_id
        return known == self._asked.owner


def _hits(messages: Iterable[RecordedMessage], keys: Sequence[Key], query: Query) -> list[Hit]:
    """Return the hits among messages, in the order of the keys; of several with one id the last one."""
    found: dict[Key, Any] = {Key(message.conversation_id, message.id): message for message in messages}
    hits = (hit_of(found[key], query) for key in dict.fromkeys(keys) if key in found)
    return [hit for hit in hits if hit is not None]
