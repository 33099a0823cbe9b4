"""Follow the path of a conversation by its log, event by event, sharing no code with the library."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.campaigns.states import OutboxEvent, OutboxState, StoredEvent, StoreState


@dataclass(slots=True)
class ReplayedPath:
    """The messages on a path, after the events that were replayed."""

    shown: list[tuple[str | None, int]] = field(default_factory=list)
    known: set[str | None] = field(default_factory=set)
    forked: bool = False

    def take(
        self,
        kind: str,
        version: int,
        *,
        message_id: str | None = None,
        to: str | None = None,
        back: bool = False,
        forked: bool = False,
    ) -> None:
        """Replay the next event, unless it was put aside."""
        self.forked = self.forked or forked
        match kind:
            case "message.appended":
                self.known.add(message_id)
                if not (back and any(one == message_id for one, _ in self.shown)):
                    self.shown.append((message_id, version))
            case "conversation.rewound" if to is None:
                self.shown.clear()
            case "conversation.rewound":
                stays = max((place for place, (one, _) in enumerate(self.shown, 1) if one == to), default=0)
                if stays:  # otherwise its target is off the path itself
                    del self.shown[stays:]
            case "conversation.deleted":
                self.shown.clear()
            case _:
                pass  # it moves nothing


def examine_replayed(store: StoreState) -> Iterator[str]:
    """The messages on a path are those, and in the order, that the log leads to: also after put-backs and resets."""
    paths: dict[str, ReplayedPath] = defaultdict(ReplayedPath)
    for event in sorted(store.events, key=lambda one: one.version):
        if event.verdict is None:
            paths[event.conversation_id].take(
                event.type,
                event.version,
                message_id=event.message_id,
                to=event.to_message_id,
                back="puts_back" in event.noted,
                forked=event.forked,
            )
    rows: dict[str, list[int]] = defaultdict(list)
    for row in store.messages:
        if row.left_at is None:
            rows[row.conversation_id].append(row.version)
    for conversation_id in paths.keys() | rows.keys():
        path = paths[conversation_id]
        replayed = [version for _, version in path.shown]
        if not path.forked and sorted(rows[conversation_id]) != replayed:
            yield (
                f"{conversation_id!r}: its path is {sorted(rows[conversation_id])[-8:]}, its log leads to"
                f" {replayed[-8:]} (the last versions)"
            )


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
