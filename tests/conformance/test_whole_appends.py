"""An append with one condition is one change for everybody who reads, and one verdict for all its events."""

from collections.abc import Sequence

import pytest

from letopis.outbox import History
from letopis.outbox.relay.relay import Relay
from letopis.store import ConversationStore, Message
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin
from tests.conformance.talk import lose_acknowledgements, path
from tests.support.defects import IN_PARTS, planted
from tests.support.sayings import Bots, drain

pytestmark = pytest.mark.same_sql

CHAT = "chat-1"
MANY = 520
"""More than one batch holds, and than a lane's share beside others."""


def said(prefix: str, count: int) -> list[Message]:
    return [Message.user(f"words {number}", id=f"{prefix}-{number}") for number in range(count)]


async def seen_by_another(bots: Bots, many: int) -> list[list[str]]:
    """Replace many messages by many, deliver that beside others, and return each path that the other outbox read."""
    one, two = bots
    await one.append(CHAT, *said("old", many))
    await drain(one)
    await one.append("beside-1", *said("m", many // 4))
    await one.chat(CHAT).replace([*said("old", 1), *said("new", many)])
    await one.append("beside-2", *said("n", many // 4))
    seen = [await path(two)]

    async def apply(origin: Origin, batches: Sequence[LaneBatch]) -> ApplyResult:
        result = await one.store.apply(origin, batches)
        if (found := await path(two)) != seen[-1]:
            seen.append(found)
        return result

    await Relay(one.outbox, one.store, apply=apply).drain()
    return seen


async def test_another_outbox_reads_the_old_path_or_the_new_one(bots: Bots) -> None:
    old, new = [[one.id for one in said(prefix, MANY)] for prefix in ("old", "new")]
    assert await seen_by_another(bots, MANY) == [old, ["old-0", *new]]
    assert await path(bots[0]) == ["old-0", *new]


async def test_a_relay_that_cuts_it_in_parts_is_noticed(bots: Bots) -> None:
    with planted(IN_PARTS):
        assert len(await seen_by_another(bots, 8)) > 2


@pytest.mark.parametrize("there", [True, False])
async def test_the_first_message_shares_the_verdict_unless_it_is_there(bots: Bots, *, there: bool) -> None:
    """The event that decides for all is written under another id where it puts a message back."""
    one, two = bots
    first, second = said("m", 2)
    await one.append(CHAT, first)
    if not there:
        await one.chat(CHAT).rewind(to=None)
    await drain(one)
    page = await one.messages(CHAT)
    await two.append(CHAT, Message.user("the other's", id="x"))
    await drain(two)
    late = await one.append(CHAT, first, second, after=page)
    await drain(one)
    assert await late.superseded(60)
    assert await path(one) == await path(two) == (["m-0", "x"] if there else ["x"])


@pytest.mark.parametrize("together", [True, False])
async def test_nothing_is_saved_from_behind_a_rewind(bots: Bots, store: ConversationStore, *, together: bool) -> None:
    """The outbox does not know the message, so the store decides: at its place, behind the rewind, it is not shown."""
    one, two = bots
    [message] = said("m", 1)
    await two.append(CHAT, message)
    await drain(two)
    await one.append(CHAT, Message.user("before", id="before"))
    await one.chat(CHAT).rewind(to=None)
    if not together:
        await drain(one)
    again = await one.append(CHAT, message)
    after = await one.append(CHAT, Message.user("after", id="after"))
    await drain(one)
    assert await after.saved(60)
    assert (await again.saved(5), await again.superseded(5)) == (False, True)
    assert await path(one) == await path(two) == ["after"]
    # The answer is the same when the acknowledgement was lost.
    await lose_acknowledgements(one)
    await drain(one)
    assert await again.superseded(60)
    assert [found.differences async for found in store.rebuild(check=True)] == [()]


async def test_a_replacement_shows_what_was_set_aside_before(one: History, two: History) -> None:
    """The outbox had forgotten the message, said it again, and holds the event that the store set aside."""
    first, second = said("m", 2)
    await two.append(CHAT, first, second)
    await two.chat(CHAT).rewind(to=None)
    await drain(two)
    again = await one.append(CHAT, first, Message.user("here", id="here"))
    await drain(one)
    assert await again.superseded(60) and await path(one) == ["here"]
    replaced = await one.chat(CHAT).replace([second, first])
    assert replaced is not None and await path(one) == ["m-1", "m-0"]
    await drain(one)
    assert await replaced.saved(60)
    assert await path(one) == await path(two) == ["m-1", "m-0"]
