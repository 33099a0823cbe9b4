"""Examine an outbox and a history store: nothing lost, nothing doubled, nothing out of order, nothing changed.

It reads with plain SQL and shares no code with the library but the digest, so that a fault of the library cannot hide
in its own check. :func:`examine` is pure; :func:`read_outbox` and :func:`read_store` fetch what it looks at.

    verdict = await check(["bot.outbox.db"], "postgresql://...", acknowledged=acks)
    assert verdict.ok, verdict
"""

import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from letopis.store.model.codec import digest_of
from tests.campaigns.record_invariants import (
    MARK,
    TURNS,
    RecordAck,
    RecordOutbox,
    RecordStore,
    examine_records,
    read_record_outbox,
    read_record_store,
)
from tests.campaigns.rules import (
    examine_erasure,
    examine_owners,
    examine_path,
    examine_replayed,
    examine_verdicts,
    examine_wholeness,
)
from tests.campaigns.states import (
    SHOWN,
    Ack,
    OutboxEvent,
    OutboxLane,
    OutboxState,
    StoredConversation,
    StoredEvent,
    StoredMessage,
    StoreState,
    snapshot,
    uuid_of,
)

_OURS: Final = "letopis."
_BARE: Final = frozenset(
    {"message_id", "role", "tokens", "usage", "status", "platform_ids", "sent_as", "owner_id", "forked_from"}
    | {"to_message_id", "erase", "upto", "undone", "author"}
)
_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "mysql": "mysql+asyncmy",
    "mariadb": "mysql+asyncmy",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found: the counts, and every problem (the first ones in words)."""

    conversations: int
    stored: int
    pending: int
    retained: int
    acknowledged: int
    problem_count: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Return True if no invariant is broken."""
        return self.problem_count == 0

    def __str__(self) -> str:
        counts = (
            f"{self.conversations} conversations, {self.stored} stored, {self.pending} pending, "
            f"{self.acknowledged} acknowledged, {self.problem_count} problems"
        )
        return "\n  ".join((counts, *self.problems))


async def check(
    outboxes: Iterable[Path | str],
    store_url: str,
    *,
    acknowledged: Iterable[Ack] = (),
    records: Iterable[RecordAck] = (),
    drained: bool = False,
) -> Verdict:
    """Read the outbox files and the store, and examine them.

    The outboxes are read first: what they hold as pending may have reached the store by the time it is read.

    :param acknowledged: what appends have returned; each must be stored, or pending.
    :param records: what changes of records have returned.
    :param drained: whether the outboxes must be empty of pending events.
    """
    paths = [Path(path) for path in outboxes]
    states, kept = [read_outbox(path) for path in paths], [read_record_outbox(path) for path in paths]
    store, stored = await read_whole_store(store_url)
    verdict = examine(store, states, acknowledged=acknowledged, drained=drained)
    return with_records(verdict, store, states, stored, kept, acknowledged=records, drained=drained)


async def read_whole_store(url: str) -> tuple[StoreState, RecordStore]:
    """Read a history store and its records; nothing should write to it meanwhile."""
    async with _connected(url) as connection:
        return await _read_store(connection), await read_record_store(connection)


def with_records(
    verdict: Verdict,
    store: StoreState,
    outboxes: Sequence[OutboxState],
    stored: RecordStore,
    kept: Sequence[RecordOutbox],
    *,
    acknowledged: Iterable[RecordAck],
    drained: bool,
) -> Verdict:
    """Return a verdict on messages together with what is found of records."""
    turns = {
        event.event_id
        for event in chain(store.events, *(outbox.events for outbox in outboxes))
        if event.conversation_id.startswith(TURNS) and event.type == "message.appended"
    }
    problems = examine_records(stored, kept, acknowledged=acknowledged, turns=turns, drained=drained)
    shown = (*verdict.problems, *problems)[:SHOWN]
    return replace(verdict, problem_count=verdict.problem_count + len(problems), problems=shown)


def examine(
    store: StoreState, outboxes: Sequence[OutboxState], *, acknowledged: Iterable[Ack] = (), drained: bool = False
) -> Verdict:
    """Return every invariant that is broken."""
    acks = list(acknowledged)
    conversations = {event.conversation_id for event in store.events}
    problems = list(_problems(store, outboxes, acks, drained=drained))
    return _verdict(conversations, outboxes, acks, problems, stored=len(store.events))


def _problems(
    store: StoreState, outboxes: Sequence[OutboxState], acks: Iterable[Ack], *, drained: bool
) -> Iterator[str]:
    yield from _examine_log(store)
    yield from _examine_projections(store)
    pending = {
        (outbox.origin_id, name)
        for outbox in outboxes
        for name, lane in outbox.lanes.items()
        if lane.delivered < lane.head
    }
    by_conversation: dict[str, list[StoredEvent]] = defaultdict(list)
    for event in store.events:
        by_conversation[event.conversation_id].append(event)
    for conversation_id, events in by_conversation.items():
        log = {event.version: event for event in sorted(events, key=lambda event: event.version)}
        yield from examine_verdicts(conversation_id, log)
        yield from examine_erasure(store, conversation_id, log, pending)
    yield from examine_path(store)
    yield from examine_replayed(store)
    yield from examine_owners(store)
    places = {(event.origin_id, event.conversation_id, event.sequence): event for event in store.events}
    for outbox in outboxes:
        yield from _examine_outbox(outbox)
        yield from _examine_transfer(store, outbox, places, drained=drained)
        yield from examine_wholeness(outbox, places)
    yield from _examine_acknowledged(store, outboxes, acks)


def examine_outbox(outbox: OutboxState, *, acknowledged: Iterable[Ack] = ()) -> Verdict:
    """Return every invariant that an outbox breaks whatever the store holds, with nothing pruned yet."""
    acks = list(acknowledged)
    kept = {(event.conversation_id, event.event_id): (event.sequence,) for event in outbox.events}
    problems = [*_examine_outbox(outbox), *_examine_promised(kept, acks)]
    return _verdict(outbox.lanes, [outbox], acks, problems)


def _verdict(
    conversations: Collection[str],
    outboxes: Sequence[OutboxState],
    acks: Sequence[Ack],
    problems: Sequence[str],
    *,
    stored: int = 0,
) -> Verdict:
    return Verdict(
        conversations=len(conversations),
        stored=stored,
        pending=sum(lane.head - lane.delivered for outbox in outboxes for lane in outbox.lanes.values()),
        retained=sum(len(outbox.events) for outbox in outboxes),
        acknowledged=len(acks),
        problem_count=len(problems),
        problems=tuple(problems[:SHOWN]),
    )


def _examine_log(store: StoreState) -> Iterator[str]:
    positions: dict[int, list[int]] = defaultdict(list)
    conversations: dict[str, list[StoredEvent]] = defaultdict(list)
    for event in store.events:
        positions[event.partition].append(event.position)
        conversations[event.conversation_id].append(event)
        if event.digest is not None and event.digest != event.content:
            yield f"{event.conversation_id!r} version {event.version}: the content does not match its digest"
    for partition, given in positions.items():
        yield from _expect_run(f"positions of partition {partition}", given)
    for partition, head in store.log_heads.items():
        if head != max(positions.get(partition, [0])):
            yield f"partition {partition}: the counter is at {head}, the log at {max(positions[partition], default=0)}"
    lanes: dict[tuple[UUID, str], list[int]] = defaultdict(list)
    for conversation_id, events in conversations.items():
        events.sort(key=lambda event: event.version)
        yield from _expect_run(f"{conversation_id!r}: versions", [event.version for event in events])
        if len({event.partition for event in events}) > 1:
            yield f"{conversation_id!r}: lies in several partitions"
        for event_id, times in Counter(event.event_id for event in events).items():
            if times > 1:
                yield f"{conversation_id!r}: event {event_id} is stored {times} times"
        for event in events:
            lanes[event.origin_id, conversation_id].append(event.sequence)
    for key, sequences in lanes.items():
        # In the order of versions: a gap, a double and a swap all show as a sequence out of place.
        if not store.duplicates.get(key):
            yield from _expect_run(f"{key[1]!r}: sequences from {key[0]}", sequences)
        elif sorted(set(sequences)) != sequences:
            yield f"{key[1]!r}: sequences from {key[0]} are out of order"
    for key, head in store.lanes.items():
        # What was there before is not in the log a second time, and the lane has counted it.
        if head != len(lanes.get(key, ())) + store.duplicates.get(key, 0) or head < max(lanes.get(key, [0])):
            yield f"{key[1]!r}: the lane of {key[0]} is at {head}, its events at {max(lanes.get(key, [0]))}"
    for origin_id, conversation_id in lanes.keys() - store.lanes.keys():
        yield f"{conversation_id!r}: events from {origin_id}, but no lane"


def _examine_projections(store: StoreState) -> Iterator[str]:
    said = {(event.conversation_id, event.version) for event in store.events if event.type == "message.appended"}
    listed = Counter((row.conversation_id, row.version) for row in store.messages)
    for conversation_id, version in said - listed.keys():
        yield f"{conversation_id!r} version {version}: a message of the log that the list of messages lacks"
    for conversation_id, version in listed.keys() - said:
        yield f"{conversation_id!r} version {version}: a message that the log lacks"
    versions = Counter(event.conversation_id for event in store.events)
    counts = Counter(row.conversation_id for row in store.messages if row.left_at is None)
    for conversation_id in versions.keys() | store.conversations.keys():
        row = store.conversations.get(conversation_id, StoredConversation(0, 0))
        if row.version != versions[conversation_id]:
            yield f"{conversation_id!r}: at version {row.version}, with {versions[conversation_id]} events"
        if row.message_count != counts[conversation_id]:
            yield f"{conversation_id!r}: counts {row.message_count} messages, {counts[conversation_id]} on its path"


def _examine_outbox(outbox: OutboxState) -> Iterator[str]:
    if outbox.integrity != "ok":
        yield f"{outbox.name}: integrity check says {outbox.integrity}"
    for event_id, times in Counter(event.event_id for event in outbox.events).items():
        if times > 1:
            yield f"{outbox.name}: event {event_id} is kept {times} times"
    kept: dict[str, list[int]] = defaultdict(list)
    for event in outbox.events:
        kept[event.conversation_id].append(event.sequence)
        if event.digest != event.content:
            yield f"{outbox.name}: {event.conversation_id!r} {event.sequence}: content does not match its digest"
        lane = outbox.lanes.get(event.conversation_id)
        gone = lane is not None and 0 < lane.deleted <= lane.delivered and event.type != "conversation.deleted"
        if (event.redacted and not event.bare) or (gone and not event.redacted and not event.resets):
            yield f"{outbox.name}: {event.conversation_id!r} {event.sequence}: to be erased, and still there"
    for conversation_id, sequences in kept.items():
        lane = outbox.lanes.get(conversation_id)
        if lane is None:
            yield f"{outbox.name}: {conversation_id!r} has events, but no lane"
        elif sorted(sequences) != list(range(lane.pruned + 1, lane.head + 1)):
            yield f"{outbox.name}: {conversation_id!r} keeps {_span(sequences)}, not {lane.pruned + 1}..{lane.head}"
    for conversation_id, lane in outbox.lanes.items():
        if not lane.pruned <= lane.delivered <= lane.head:
            yield f"{outbox.name}: {conversation_id!r} has marks out of order: {lane}"
        if conversation_id not in kept and lane.pruned < lane.head:
            yield f"{outbox.name}: {conversation_id!r} has lost {lane.pruned + 1}..{lane.head}"


def _examine_transfer(
    store: StoreState, outbox: OutboxState, places: Mapping[tuple[UUID, str, int], StoredEvent], *, drained: bool
) -> Iterator[str]:
    for conversation_id, lane in outbox.lanes.items():
        stored = store.lanes.get((outbox.origin_id, conversation_id), 0)
        # A store ahead of the outbox's mark is a lost acknowledgement, which is harmless; one behind it is a loss.
        if stored < lane.delivered:
            yield f"{conversation_id!r}: {outbox.name} counts {lane.delivered} delivered, the store has {stored}"
        if stored > lane.head:
            yield f"{conversation_id!r}: the store has {stored} of {outbox.name}, which ends at {lane.head}"
        if drained and (lane.delivered < lane.head or lane.state != "ready"):
            yield f"{conversation_id!r}: {lane.head - lane.delivered} still pending, lane {lane.state}: {lane.fault}"
    for event in outbox.events:
        twin = places.get((outbox.origin_id, event.conversation_id, event.sequence))
        if twin is None:
            continue
        # What was erased, here or there, cannot be compared any more; its id has to do.
        comparable = twin.digest is not None and not event.redacted
        if twin.event_id != event.event_id or (comparable and twin.digest != event.digest):
            yield f"{event.conversation_id!r} sequence {event.sequence}: stored as another event than was appended"
    aside = {(event.conversation_id, event.event_id) for event in store.events if event.verdict is not None}
    held = {(event.conversation_id, event.event_id): (event.origin_id, event.sequence) for event in store.events}
    for (conversation_id, sequence), event_id in outbox.superseded.items():
        # Or it was there before, under another place, and is not read any more.
        again = held.get((conversation_id, event_id)) not in (None, (outbox.origin_id, sequence))
        if (conversation_id, event_id) not in aside and not again:
            yield f"{conversation_id!r} sequence {sequence}: put aside in {outbox.name}, not in the store"
    for (origin_id, conversation_id, sequence), stored_event in places.items():
        known = outbox.lanes.get(conversation_id)
        if origin_id != outbox.origin_id or stored_event.verdict is None or known is None or sequence > known.delivered:
            continue
        if outbox.superseded.get((conversation_id, sequence)) != stored_event.event_id:
            yield f"{conversation_id!r} sequence {sequence}: put aside in the store, and {outbox.name} is not told"
    for origin_id, conversation_id in store.lanes:
        if origin_id == outbox.origin_id and conversation_id not in outbox.lanes:
            yield f"{conversation_id!r}: stored from {outbox.name}, which does not know it"


def _examine_acknowledged(
    store: StoreState, outboxes: Sequence[OutboxState], acknowledged: Iterable[Ack]
) -> Iterator[str]:
    sequences: dict[tuple[str, UUID], set[int]] = defaultdict(set)
    for event in store.events:
        sequences[event.conversation_id, event.event_id].add(event.sequence)
    for outbox in outboxes:
        for event in outbox.events:
            if event.sequence > outbox.lanes[event.conversation_id].delivered:
                sequences[event.conversation_id, event.event_id].add(event.sequence)
    # One that is there before has no event at the place where it was said again.
    there = {(event.conversation_id, event.sequence) for event in store.events}
    again = {name for (_, name), count in store.duplicates.items() if count}
    return _examine_promised(
        sequences,
        acknowledged,
        again=lambda ack: ack.conversation_id in again and (ack.conversation_id, ack.sequence) not in there,
    )


def _examine_promised(
    sequences: Mapping[tuple[str, UUID], Collection[int]],
    acknowledged: Iterable[Ack],
    *,
    again: Callable[[Ack], bool] = lambda _: False,
) -> Iterator[str]:
    for ack in acknowledged:
        places = sequences.get((ack.conversation_id, ack.event_id))
        if not places:
            yield f"{ack.conversation_id!r}: event {ack.event_id} was acknowledged and is LOST"
        elif ack.sequence is not None and ack.sequence not in places and not again(ack):
            yield f"{ack.conversation_id!r}: event {ack.event_id} is at {places}, acknowledged at {ack.sequence}"


def _expect_run(what: str, numbers: Sequence[int]) -> Iterator[str]:
    """Expect 1, 2, 3 ... in this order; positions arrive sorted from the database."""
    for place, number in enumerate(numbers, 1):
        if number != place:
            yield f"{what}: {number} where {place} belongs"
            return


def _span(sequences: Sequence[int]) -> str:
    return f"{len(sequences)} events of {min(sequences)}..{max(sequences)}"


def read_outbox(path: Path) -> OutboxState:
    """Read the conversations of an outbox file in one snapshot."""
    with snapshot(path) as (connection, origin):
        lanes = connection.execute(
            "SELECT conversation_id, head, delivered, pruned, state, deleted_at, fault FROM letopis_outbox_lanes"
            " WHERE conversation_id > char(2)"  # lanes of records are checked by `record_problems`
        ).fetchall()
        rows = connection.execute(
            "SELECT conversation_id, sequence, event_id, digest, type, schema_version, data, metadata, redacted, salt"
            " FROM letopis_outbox_log WHERE conversation_id > char(2) ORDER BY position"
        )
        events = [
            OutboxEvent(
                row[0],
                row[1],
                UUID(bytes=row[2]),
                row[3],
                row[3] if row[9] is None else digest_of(row[0], *row[4:8], row[9]),
                bool(row[8]),
                bool(row[8]) and _is_bare(row[6], row[7]),
                row[4],
                _batch(UUID(bytes=row[2]), row[7]),
                row[4] == "conversation.rewound" and bool(json.loads(row[6]).get("erase")),
            )
            for row in rows
        ]
        superseded = connection.execute(
            "SELECT conversation_id, sequence, event_id FROM letopis_outbox_superseded WHERE conversation_id > char(2)"
        ).fetchall()
        connection.execute("COMMIT")
        ((integrity,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
    return OutboxState(
        name=path.name,
        origin_id=origin,
        events=events,
        lanes={row[0]: OutboxLane(*row[1:]) for row in lanes},
        superseded={(row[0], row[1]): UUID(bytes=row[2]) for row in superseded},
        integrity=integrity,
    )


def open_engine(url: str) -> AsyncEngine:
    """Open a store with SQLAlchemy alone: none of the library's own settings."""
    parsed = sa.make_url(url)
    return create_async_engine(parsed.set(drivername=_DRIVERS[parsed.get_backend_name()]))


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[AsyncConnection]:
    engine = open_engine(url)
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


async def read_store(url: str) -> StoreState:
    """Read a history store; nothing should write to it meanwhile."""
    async with _connected(url) as connection:
        return await _read_store(connection)


async def _read_store(connection: AsyncConnection) -> StoreState:
    quote = connection.dialect.identifier_preparer.quote
    partition, position, key = quote("partition"), quote("position"), quote("type")

    async def rows(statement: str) -> Any:
        return (await connection.execute(sa.text(statement))).all()

    stream = await connection.stream(
        sa.text(
            f"SELECT {partition}, {position}, conversation_id, version, event_id, origin_id, sequence, {key},"
            f" digest, schema_version, data, metadata, salt FROM letopis_events ORDER BY {partition}, {position}"
        )
    )
    events = [_stored(row) async for part in stream.partitions(1000) for row in part]
    counted = await rows("SELECT origin_id, conversation_id, sequence, duplicates FROM letopis_lanes")
    lanes = [lane for lane in counted if not lane[1].startswith(MARK)]  # the others have a ledger
    conversations = await rows(
        "SELECT conversation_id, version, message_count, state, owner_id, retained FROM letopis_conversations"
    )
    messages = await rows("SELECT conversation_id, version, left_at, redacted_at FROM letopis_messages")
    return StoreState(
        events=events,
        lanes={(uuid_of(row[0]), row[1]): row[2] for row in lanes},
        conversations={row[0]: StoredConversation(*row[1:]) for row in conversations},
        messages=[StoredMessage(*row) for row in messages],
        log_heads=dict(await rows(f"SELECT {partition}, {position} FROM letopis_log_heads")),
        active=dict(await rows("SELECT owner_id, active_conversation_id FROM letopis_owners")),
        duplicates={(uuid_of(row[0]), row[1]): row[3] for row in lanes},
        erased={subject for (subject,) in await rows("SELECT subject FROM letopis_erasures")},
    )


def _stored(row: Sequence[Any]) -> StoredEvent:
    data = json.loads(row[10])
    rewound, started = row[7] == "conversation.rewound", row[7] == "conversation.started"
    return StoredEvent(
        partition=row[0],
        position=row[1],
        conversation_id=row[2],
        version=row[3],
        event_id=uuid_of(row[4]),
        origin_id=uuid_of(row[5]),
        sequence=row[6],
        type=row[7],
        digest=None if row[12] is None else bytes(row[8]),
        content=bytes(row[8]) if row[12] is None else digest_of(row[2], row[7], *row[9:12], bytes(row[12])),
        message_id=data.get("message_id") if row[7].startswith("message.") else None,
        bare=row[12] is None and _is_bare(row[10], row[11]),
        resets=rewound and bool(data.get("erase")),
        resets_upto=min(data.get("upto", row[3]), row[3] - 1) if rewound and data.get("erase") else 0,
        noted=_noted(row[11]),
        to_message_id=data.get("to_message_id") if rewound else None,
        forked=started and "forked_from" in data,
        trims_upto=min(data["upto"], row[3] - 1) if row[7] == "conversation.trimmed" else 0,
        author=data.get("author"),
    )


def _noted(metadata: str | None) -> Mapping[str, Any]:
    if metadata is None or f'"{_OURS}' not in metadata:
        return {}
    found = json.loads(metadata)
    return {key.removeprefix(_OURS): value for key, value in found.items() if key.startswith(_OURS)}


def _batch(event_id: UUID, metadata: str | None) -> UUID | None:
    """Return the event that decides for the append of an event; ``None`` if it has no condition."""
    expects = _noted(metadata).get("expects")
    return None if expects is None else UUID(expects["turn"]) if "turn" in expects else event_id


def _is_bare(data: str, metadata: str | None) -> bool:
    """Return True if there are only ids, roles and figures in an event."""
    content = {key: value for key, value in json.loads(data).items() if key not in _BARE and value not in ("", {})}
    return not content and all(key.startswith(_OURS) for key in json.loads(metadata or "{}"))
