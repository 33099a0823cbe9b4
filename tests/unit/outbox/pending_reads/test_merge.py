"""The merge rules of reads, without a file and without a store: a slice, a view, and the result."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import orjson
import pytest

from letopis import Conversation, Message, MessageAppended, Page, RecordedMessage, Saved, Seen
from letopis.outbox.event_log.lanes import Lane
from letopis.outbox.event_log.retention import StoredRow
from letopis.outbox.pending_reads.active_conversation import Activation, PendingActive, active_alone, merge_active
from letopis.outbox.pending_reads.merge import (
    AlreadyDelivered,
    last_event_at,
    left_on_path,
    may_inherit,
    merge_conversation,
    merge_events,
    merge_messages,
    merge_newest_events,
    place_of,
)
from letopis.outbox.pending_reads.merge_listing import ListingKey, PendingKeys, merge_list
from letopis.outbox.pending_reads.pending_slice import PendingSlice
from letopis.store import Body, Conflict, ConversationDeleted, ConversationRewound, ConversationStarted, MessageEdited
from letopis.store.model.events import NO_UPCASTERS, to_microseconds
from letopis.store.read.paging import Window
from letopis.store.read.reader import EMPTY_VIEW, StoreView
from letopis.store.rules.fold import PathPosition
from tests.support.sayings import present

START = datetime(2026, 11, 26, tzinfo=UTC)
ORIGIN = UUID(int=1)
UNTROUBLED: Any = {"attempts": 0, "due_at_us": 0, "pending_since_us": 0, "fault_class": None, "fault": None, "key": 1}


def moment(number: int) -> datetime:
    return START + timedelta(seconds=number)


def row(sequence: int, body: Body) -> StoredRow:
    data, at = orjson.dumps(body.to_data()).decode(), to_microseconds(moment(sequence))
    event_id = UUID(int=sequence).bytes
    values = (sequence, event_id, body.type, body.schema_version, data, None, b"digest", b"salt", at, False)
    return StoredRow(sequence, body.type, values)


def say(name: str) -> MessageAppended:
    return MessageAppended(message=Message.user(name, id=name))


def back(name: str | None) -> ConversationRewound:
    return ConversationRewound(to_message_id=name)


def pending(
    *said: tuple[int, Body], since: int | None = None, delivered: int | None = None, **more: Any
) -> PendingSlice:
    """A slice of these events, all of them pending."""
    start, head = said[0][0] - 1 if since is None else since, said[-1][0]
    delivered = start if delivered is None else delivered
    pruned, state = more.pop("pruned", 0), more.pop("state", "ready")
    lane = Lane(
        conversation_id="c", owner_id="42", head=head, delivered=delivered, pruned=pruned, state=state, **UNTROUBLED
    )
    rows = tuple(row(sequence, body) for sequence, body in said)
    return PendingSlice(
        conversation_id="c", origin_id=ORIGIN, lane=lane, head=lane.head, since=start, rows=rows, **more
    )


def stored(sequence: int, name: str) -> RecordedMessage:
    return RecordedMessage(
        conversation_id="c",
        message=Message.user(name, id=name),
        event_id=UUID(int=sequence),
        origin_id=ORIGIN,
        sequence=sequence,
        occurred_at=moment(sequence),
        version=sequence,
        recorded_at=moment(sequence),
    )


def view(*names: str, places: dict[str, PathPosition] | None = None, **more: Any) -> StoreView:
    """A view of a conversation of which these messages, and nothing else, are in the store."""
    messages = tuple(stored(number, name) for number, name in enumerate(names, 1))
    conversation = Conversation(
        conversation_id="c",
        version=len(names),
        message_count=len(names),
        created_at=START,
        updated_at=moment(len(names)),
        **more,
    )
    return StoreView(
        conversation=conversation, messages=messages, sequence=len(names), version=len(names), places=places or {}
    )


def texts(page: Page[RecordedMessage]) -> list[str]:
    return [one.text for one in page]


def merged(slice_: PendingSlice, found: StoreView | None, **window: Any) -> Page[RecordedMessage]:
    return merge_messages(slice_, found, Window(**window), upcasters=NO_UPCASTERS)


def test_what_is_in_both_is_there_once_and_what_is_in_the_slice_alone_comes_after() -> None:
    slice_ = pending((3, say("c")), (4, say("d")), (5, say("e")))
    page = merged(slice_, view("a", "b", "c", "d"))
    assert texts(page) == ["a", "b", "c", "d", "e"]
    assert [one.saved for one in page][3:] == [Saved.SAVED, Saved.PENDING]
    assert (page.seen, page.complete) == (Seen(sequence=5, version=4), True)


def test_a_rewind_that_was_delivered_in_between_cuts_nothing_off_that_came_after_it() -> None:
    """The hole of old: what was read of the store up to the rewind's target, though the store was past the rewind."""
    slice_ = pending((3, back("a")), (4, say("d")))
    there = replace(view("a"), sequence=5, version=5)
    beyond = replace(there, messages=(stored(1, "a"), stored(4, "d"), stored(5, "e")))
    assert left_on_path(slice_, beyond) == (0, None)
    assert texts(merged(slice_, beyond)) == ["a", "d", "e"]


PLACES = {name: PathPosition(version=number, on_path=True, count=number) for number, name in enumerate("abc", 1)}


def test_a_pending_rewind_bounds_what_is_read_of_the_store() -> None:
    slice_ = pending((4, back("a")), (5, say("d")))
    there = view("a", "b", "c", places=PLACES)
    assert slice_.names == {"a", "d"}
    assert left_on_path(slice_, there) == (0, 1)
    assert texts(merged(slice_, replace(there, messages=(stored(1, "a"),)), last=5)) == ["a", "d"]
    found = present(merge_conversation(slice_, there, upcasters=NO_UPCASTERS))
    assert (found.message_count, found.pending) == (2, 2)


@pytest.mark.parametrize(
    ("bodies", "bound"),
    [
        ([back("a"), back("b")], 1),  # the rewind that goes back furthest
        ([back("b"), back("a")], 1),
        ([back(None)], 0),
        ([ConversationDeleted()], 0),
        ([back("gone")], None),
        ([back("pending")], None),
    ],
)
def test_what_cuts_the_path(bodies: list[Body], bound: int | None) -> None:
    slice_ = pending((4, say("pending")), *enumerate(bodies, 5))
    assert left_on_path(slice_, view("a", "b", "c", places=PLACES)) == (0, bound)


def test_a_rewind_into_what_a_fork_inherits_takes_all_of_its_own_off_the_path() -> None:
    slice_ = pending((3, back("inherited")), (4, say("d")))
    fork = view("a", "b", inherits=True)
    assert left_on_path(slice_, fork) == (0, 0)
    assert texts(merged(slice_, replace(fork, messages=()))) == ["d"]


def test_a_rewind_that_came_too_late_cuts_nothing() -> None:
    slice_ = pending((3, back(None)), (4, say("d")), conflicts={3: Conflict(expected=1, actual=2)})
    assert left_on_path(slice_, view("a", "b")) == (0, None)
    assert texts(merged(slice_, view("a", "b"))) == ["a", "b", "d"]


def test_an_edit_that_the_store_has_already_is_not_applied_over_a_later_one() -> None:
    slice_ = pending((2, MessageEdited(message_id="a", content="older")))
    newer = replace(stored(1, "a"), message=Message.user("newest", id="a"), edited=True)
    assert texts(merged(slice_, replace(view("a"), messages=(newer,), sequence=3, version=3))) == ["newest"]
    assert texts(merged(slice_, view("a"))) == ["older"]


def test_the_newest_of_a_slice_are_enough_for_a_window_on_the_newest() -> None:
    slice_ = pending((8, say("h")), (9, say("i")), since=2, left_out=True)
    page = merged(slice_, view("a", "b"), last=2)
    assert (texts(page), page.next) == (["h", "i"], "8")
    assert texts(merged(slice_, view("a", "b", "c", "d", "e", "f", "g"), last=2)) == ["h", "i"]


def test_events_that_the_store_holds_otherwise_come_after_its_own() -> None:
    slice_ = pending((2, say("mine")), delivered=1, state="blocked", diverged=True)
    there = replace(view("a", "other"), messages=(stored(1, "a"), stored(22, "other")))
    page = merged(slice_, there)
    assert texts(page) == ["a", "other", "mine"]
    assert page[2].saved is Saved.BLOCKED


def test_without_a_store_the_tail_answers_and_says_so() -> None:
    slice_ = pending((3, say("c")), (4, say("d")), since=2, delivered=3, pruned=2)
    page = merged(slice_, None, last=5)
    assert (texts(page), page.complete, page.next) == (["c", "d"], False, "3")
    assert [one.saved for one in page] == [Saved.SAVED, Saved.PENDING]
    assert page.seen == Seen(sequence=4, version=None)
    found = present(merge_conversation(slice_, None, upcasters=NO_UPCASTERS))
    assert (found.owner_id, found.version, found.pending) == ("42", 3, 1)
    assert merge_conversation(PendingSlice.nothing("c", ORIGIN, 0), None, upcasters=NO_UPCASTERS) is None


def test_up_to_an_event_means_not_beyond_it() -> None:
    slice_ = pending((2, say("b")), (3, say("c")), (4, back("a")))
    page = merge_messages(slice_, view("a"), Window(), upcasters=NO_UPCASTERS, upto=2)
    assert texts(page) == ["a", "b"]
    assert left_on_path(slice_, view("a"), upto=3) == (0, None)
    with pytest.raises(AlreadyDelivered):
        merge_messages(slice_, view("a", "b"), Window(), upcasters=NO_UPCASTERS, upto=2)
    with pytest.raises(AlreadyDelivered):
        merge_conversation(slice_, view("a", "b", "c"), upcasters=NO_UPCASTERS, upto=2)


def test_places_go_on_where_the_store_ends() -> None:
    slice_ = pending((2, say("b")), (3, say("c")))
    there = replace(view("a"), version=10)  # other outboxes wrote nine events
    assert [place_of(slice_, there, one) for one in merged(slice_, there)] == [1, 11, 12]
    of_store = replace(there, conversation=replace(present(there.conversation), version=10))
    for found, version in ((of_store, 10), (None, 1)):
        assert present(merge_conversation(slice_, found, upcasters=NO_UPCASTERS)).version == version
    assert texts(merged(slice_, replace(there, messages=()), last=1, before=12)) == ["b"]
    assert texts(merged(slice_, replace(there, messages=()), first=5, after=11)) == ["c"]


def test_events_are_filled_up_with_the_pending_ones() -> None:
    slice_ = pending((2, say("b")), (3, say("c")), (4, say("d")))
    one = replace(row(1, say("a")).event("c", ORIGIN), version=1)
    page = merge_events(slice_, view("a"), Page((one,)), after=0, limit=3)
    assert ([event.sequence for event in page], page.next) == ([1, 2, 3], "3")
    rest = merge_events(slice_, view("a"), Page(()), after=3, limit=3)
    assert ([event.sequence for event in rest], rest.next) == ([4], None)
    full = merge_events(slice_, view("a"), Page((one,), next="1"), after=0, limit=1)
    assert (len(full), full.next) == (1, "1")
    newest = partial(merge_newest_events, slice_, view("a"), Page((one,)), limit=9, types=None)
    assert [event.sequence for event in newest(before=4, after=2)] == [1, 3]  # the store's page as it is


def test_the_last_event_at_a_moment_is_one_beyond_the_view() -> None:
    slice_ = pending((2, say("b")), (3, say("c")))
    assert last_event_at(slice_, view("a"), moment(2)) == UUID(int=2)
    assert last_event_at(slice_, view("a"), moment(9)) == UUID(int=3)
    assert last_event_at(slice_, view("a"), moment(1)) is None
    assert last_event_at(slice_, view("a", "b", "c"), moment(9)) is None


def test_a_fork_is_told_by_the_store_or_by_what_is_pending() -> None:
    fork = pending((1, ConversationStarted(forked_from={"conversation_id": "p", "version": 3})))
    assert may_inherit(fork, EMPTY_VIEW)
    assert may_inherit(fork, None)
    assert not may_inherit(pending((1, ConversationStarted(owner_id="42"))), EMPTY_VIEW)
    assert not may_inherit(pending((2, say("b"))), view("a"))


def listed(name: str, at: int) -> Conversation:
    return Conversation(conversation_id=name, created_at=START, updated_at=moment(at))


def key(name: str, at: int) -> ListingKey:
    return ListingKey(updated_at=to_microseconds(moment(at)), conversation_id=name)


def keys(**at: int) -> dict[str, ListingKey]:
    return {name: key(name, when) for name, when in at.items()}


def test_a_conversation_that_is_delivered_while_the_list_is_read_is_on_it_once() -> None:
    """Chats in pages of two missed what was delivered between the store's page and the look into the file."""
    before = merge_list(keys(new=5), Page((listed("a", 3), listed("b", 1))), after=None, limit=5)
    after = merge_list(keys(new=5), Page((listed("new", 5), listed("a", 3), listed("b", 1))), after=None, limit=5)
    assert [name for name, _ in before.items] == [name for name, _ in after.items] == ["new", "a", "b"]
    assert dict(after.items)["new"] is None  # read again, with what is pending


def test_a_conversation_is_not_listed_again_at_its_place_of_old() -> None:
    page = merge_list(keys(moved=9), Page((listed("moved", 2), listed("b", 1))), after=key("x", 5), limit=5)
    assert [name for name, _ in page.items] == ["b"]


def test_pages_of_a_list_leave_out_what_the_store_has_yet_to_show() -> None:
    page = merge_list(keys(late=1), Page((listed("a", 5), listed("b", 3)), next="more"), after=None, limit=2)
    assert [name for name, _ in page.items] == ["a", "b"]
    assert page.next == key("b", 3).cursor


def test_whose_it_is_may_be_known_by_the_store_alone() -> None:
    pending = PendingKeys(keys=keys(mine=9, known=1, theirs=8), unknown=frozenset({"mine", "theirs"}))
    updated = {"mine": key("mine", 2).updated_at, "known": key("known", 4).updated_at}
    assert pending.owned(updated) == keys(mine=9, known=4)  # where they will be once all is delivered, or are already


def test_the_active_conversation_is_the_one_activated_last_unless_it_was_left_since() -> None:
    activation = Activation(conversation_id="new", sequence=4, delivered=False)
    mine = PendingActive(activation=activation, left={})
    theirs = replace(view("a", "b"), sequence=2)

    assert mine.lane == "new"
    assert merge_active(mine, theirs, head=3).conversation_id == "new"  # type: ignore[union-attr]
    assert merge_active(mine, theirs, head=4).conversation_id == "c"  # type: ignore[union-attr]
    assert merge_active(replace(mine, left={"new": (5, 50)}), theirs, head=3).left_at == 50  # type: ignore[union-attr]
    assert merge_active(replace(mine, left={"new": (3, 30)}), theirs, head=3).left_at is None  # type: ignore[union-attr]
    assert merge_active(replace(mine, left={"c": (3, 30)}), theirs, head=4).left_at == 30  # type: ignore[union-attr]
    assert merge_active(PendingActive(activation=None, left={}), EMPTY_VIEW, head=0) is None
    assert active_alone(mine).conversation_id == "new"  # type: ignore[union-attr]
