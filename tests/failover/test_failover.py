"""The command's own rule, with no server: what is a violation."""

from types import SimpleNamespace
from typing import cast

from letopis.outbox.relay.outcome import RelayStats
from tests.failover.__main__ import PARTS
from tests.proof.network.bots import Bot, strange
from tests.proof.page import TITLES


def test_events_that_are_sent_again_are_a_violation() -> None:
    """Outboxes retain everything here, so that a loss would be repaired before it is looked for."""
    stats = RelayStats(rewound=3)
    bot = cast(Bot, SimpleNamespace(relay=SimpleNamespace(stats=stats)))

    assert strange([bot]) == ["3 events were sent again because the store had lost them"]
    assert PARTS.keys() <= TITLES.keys()
