"""Check what must hold between a conversation's log and what is derived from it: paths, verdicts, redaction, owners."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final
from uuid import UUID

from tests.campaigns.states import OutboxEvent, OutboxState, StoredConversation, StoredEvent, StoreState


def examine_path(store: StoreState) -> Iterator[str]:
    """A message leaves the path by an event that takes messages off it, or never was on it."""
    log = {(event.conversation_id, event.version): event for event in store.events}
    for row in store.messages:
        where = f"{row.conversation_id!r} version {row.version}"
        event = log.get((row.conversation_id, row.version))
        aside = event is not None and event.verdict is not None
        if aside != (row.left_at == row.version):
            yield f"{where}: {'put aside, but on the path' if aside else 'aside, without a verdict'}"
        if row.left_at is not None and row.left_at != row.version:
            cause = log.get((row.conversation_id, row.left_at))
            if (
                row.left_at < row.version
                or cause is None
                or cause.verdict is not None
                or cause.type not in ("conversation.rewound", "conversation.deleted")
            ):
                yield f"{where}: left the path at {row.left_at}, where nothing takes it off"
    deleted = {name for name, row in store.conversations.items() if row.state == "deleted"}
    asked = {
        event.conversation_id for event in store.events if event.type == "conversation.deleted" and not event.verdict
    }
    for conversation_id in deleted ^ asked:
        yield f"{conversation_id!r}: deleted in the log or in the list, not in both"
    for row in store.messages:
        if row.conversation_id in deleted and row.left_at is None:
            yield f"{row.conversation_id!r} version {row.version}: on the path of what was deleted"


def examine_verdicts(conversation_id: str, log: Mapping[int, StoredEvent]) -> Iterator[str]:
    """Of two answers to one read, one wins: a superseded event had a rival, and one with a rival was superseded."""
    by_id = {event.event_id: event for event in log.values()}
    deleted = next((v for v, event in log.items() if event.type == "conversation.deleted" and not event.verdict), None)
    for version, event in log.items():
        where = f"{conversation_id!r} version {version}"
        expects, verdict = event.noted.get("expects"), event.verdict
        gone = deleted is not None and version > deleted
        if gone:
            if verdict is None:
                yield f"{where}: came after the deletion, and stands"
            continue
        if verdict is not None:
            rival = log.get(verdict["actual"])
            if event.type == "message.edited" and verdict["expected"] == 0 and _erases(rival, event):
                continue  # no reader would use it
            if verdict.get("held"):
                continue  # an erasure that a hold forbade
            if expects is None:
                yield f"{where}: put aside without a condition"
            elif (
                rival is None or rival.origin_id == event.origin_id or not verdict["expected"] < rival.version < version
            ):
                yield f"{where}: put aside for {verdict}, which is no rival"
        leader = by_id.get(UUID(expects["turn"])) if expects and "turn" in expects else None
        if leader is not None and leader.origin_id == event.origin_id:
            if leader.verdict != verdict:
                yield f"{where}: {verdict}, and its turn {leader.verdict}"
        elif expects and "version" in expects and verdict is None:
            for rival in (log[between] for between in range(expects["version"] + 1, version) if between in log):
                types = expects.get("types")
                in_the_way = rival.origin_id != event.origin_id and (types is None or rival.type in types)
                if in_the_way and rival.verdict is None:
                    yield f"{where}: stands, although version {rival.version} was there before"


def _erases(cause: StoredEvent | None, event: StoredEvent) -> bool:
    """Return True if an event took away the content of the message that another one edits."""
    if cause is None:
        return False
    if cause.type == "message.appended":  # it came without its content, and its redaction is still to come
        return cause.message_id == event.message_id and cause.digest is None
    return cause.resets or (cause.type == "message.redacted" and cause.message_id == event.message_id)


_CONTENT: Final = ("message.appended", "message.edited", "message.sent", "message.failed")


def examine_erasure(
    store: StoreState, conversation_id: str, log: Mapping[int, StoredEvent], pending: set[tuple[UUID, str]]
) -> Iterator[str]:
    row = store.conversations.get(conversation_id, StoredConversation(0, 0))
    redacted: dict[str, int] = {}
    said: dict[str, int] = {}
    for version, event in log.items():
        if event.type == "message.appended" and event.message_id is not None:
            said.setdefault(event.message_id, version)
        if event.type == "message.redacted" and event.verdict is None and event.message_id in said:
            redacted[event.message_id] = version
    resets = sorted(event.resets_upto + 1 for event in log.values() if event.resets and event.verdict is None)
    trimmed = max((event.trims_upto for event in log.values() if event.verdict is None), default=0)
    whose = {conversation_id, row.owner_id} & {*store.erased}
    earlier, reset = [0, 0, *resets][-2:]
    earlier = reset if row.state == "deleted" else earlier
    rows = {one.version: one for one in store.messages if one.conversation_id == conversation_id} if redacted else {}
    for version, event in log.items():
        where = f"{conversation_id!r} version {version}"
        at = redacted.get(event.message_id or "")
        of_message = event.type in _CONTENT and at is not None
        if event.type == "message.appended":
            of_message = of_message and at is not None and version < at
            if of_message and version in rows and rows[version].redacted_at is None:
                yield f"{where}: redacted in the log, not in the list of messages"
        of_deleted = row.state == "deleted" or version < reset
        of_deleted = of_deleted or (version <= trimmed and not event.type.startswith("conversation."))
        of_deleted = of_deleted and version > row.retained and event.type != "conversation.deleted"
        late = event.type == "message.edited" and event.message_id in said and said[event.message_id] < reset
        late = late or (event.type == "conversation.deleted" and event.verdict is not None)
        if (of_message or of_deleted) and (event.digest is not None or not event.bare):
            yield f"{where}: to be erased, and still there"
        if (
            event.digest is None
            # What forks make a reset keep, an earlier one may have erased.
            and not (of_message or of_deleted or late or version < earlier)
            and (event.origin_id, conversation_id) not in pending
            # A numbered erasure takes what an outbox still holds, and no event of the conversation says so.
            and not ("arrived_erased" in event.noted and (whose or event.author in store.erased))
        ):
            yield f"{where}: its content is gone, and nobody asked for that"


def examine_owners(store: StoreState) -> Iterator[str]:
    for owner_id, conversation_id in store.active.items():
        row = None if conversation_id is None else store.conversations.get(conversation_id)
        if conversation_id is not None and (row is None or row.state != "active" or row.owner_id != owner_id):
            yield f"owner {owner_id!r}: the active conversation {conversation_id!r} is none that lives"


def examine_replayed(store: StoreState) -> Iterator[str]:
    """The messages on a path are those, and in the order, that the log leads to: also after resets."""
    paths: dict[str, list[tuple[str | None, int]]] = defaultdict(list)
    for event in sorted(store.events, key=lambda one: one.version):
        path = paths[event.conversation_id]
        if event.verdict is not None:
            continue
        match event.type:
            case "message.appended":
                path.append((event.message_id, event.version))
            case "conversation.rewound" if event.to_message_id is not None:
                stays = max((place for place, (one, _) in enumerate(path, 1) if one == event.to_message_id), default=0)
                if stays:  # otherwise its target is off the path itself
                    del path[stays:]
            case "conversation.rewound" | "conversation.deleted":
                path.clear()
            case _:
                pass  # it moves nothing
    rows: dict[str, list[int]] = defaultdict(list)
    for row in store.messages:
        if row.left_at is None:
            rows[row.conversation_id].append(row.version)
    forks = {event.conversation_id for event in store.events if event.forked}
    for conversation_id in (paths.keys() | rows.keys()) - forks:
        found, replayed = sorted(rows[conversation_id]), [version for _, version in paths[conversation_id]]
        if found != replayed:
            yield f"{conversation_id!r}: its path ends with {found[-8:]}, its log leads to {replayed[-8:]} (versions)"


def examine_wholeness(outbox: OutboxState, places: Mapping[tuple[object, str, int], StoredEvent]) -> Iterator[str]:
    """Of an append with one condition, the store holds all events or none, unless one of them is refused."""
    appends: dict[tuple[str, object], list[OutboxEvent]] = defaultdict(list)
    held = {(name, event.event_id): (origin, sequence) for (origin, name, sequence), event in places.items()}
    for event in outbox.events:
        if event.batch is not None:
            appends[event.conversation_id, event.batch].append(event)
    for (conversation_id, _), events in appends.items():
        sequences = [one.sequence for one in events]
        repaired = sequences != list(range(sequences[0], sequences[-1] + 1))
        if repaired or events[0].event_id != events[0].batch or outbox.lanes[conversation_id].state != "ready":
            continue  # a part was pruned, or skipped, or cannot be delivered
        # What was there before, under another place, is not stored again.
        new = [
            one
            for one in events
            if held.get((conversation_id, one.event_id), place := (outbox.origin_id, one.sequence)) == place
        ]
        there = [one for one in new if (outbox.origin_id, conversation_id, one.sequence) in places]
        if there and len(there) < len(new):
            yield (
                f"{conversation_id!r}: of one append, {sequences[0]}..{sequences[-1]}, the store holds"
                f" {len(there)} events of {len(new)}"
            )
