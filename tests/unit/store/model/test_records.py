"""Where the records of a conversation, an owner and a space are kept."""

import pytest

from letopis.store.model.identifiers import partition_of
from letopis.store.model.records import SPACE_LANES, Scope, lane_partition


@pytest.mark.parametrize("number", range(50))
def test_records_are_in_the_partition_of_their_conversation_or_owner(number: int) -> None:
    name = f"chat-{number}"
    for scope in (Scope.conversation(name), Scope.owner(name)):
        assert scope.partition(64) == partition_of(name, 64) == lane_partition(scope.lane(b"cp/"), 64)


def test_a_space_has_one_partition_for_all_its_lanes() -> None:
    scope = Scope.space("app")
    assert len(scope.lanes) == SPACE_LANES
    assert {lane_partition(lane, 1_024) for lane in scope.lanes} == {scope.partition(1_024)}
