"""The published contract on the three databases; parts of it stand with the tests that know more of theirs."""

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest

from letopis.store import ConversationAnnotated, ConversationStore, Message, MessageAppended, ReactionAdded
from letopis.store.database import citus
from letopis.store.model.event_types import VOCABULARY
from letopis.store.ops.rebuild import rebuild
from letopis.store.testing import vocabulary
from letopis.store.testing.delivery import DeliveryConformance
from letopis.store.testing.erasure import ErasureConformance, ForkErasureConformance
from letopis.store.testing.forks import ForkConformance
from letopis.store.testing.identifiers import IdentifierConformance
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.reads import ReadConformance
from letopis.store.testing.records import RecordConformance
from letopis.store.testing.state import StateConformance
from letopis.store.testing.statistics import StatisticsConformance
from letopis.store.testing.time_travel import TimeTravelConformance
from letopis.store.testing.vocabulary import ConversationConformance, MessageConformance, OwnerConformance
from tests.conformance.tables import LooksIntoTables
from tests.support.native_partitions import PARTITIONS, make_divided_store
from tests.support.sayings import present, send
from tests.support.servers import MariaDBServer, PostgresServer
from tests.support.servers.store_pool import MariaDBPool, PostgresPool, StorePool


class TestIdentifiers(IdentifierConformance):
    """An id is its bytes: nothing is folded, trimmed, normalised or taken for a pattern, in any column."""


class TestState(StateConformance):
    """What the store keeps of conversations and messages is what folding its own log gives."""


class TestErasure(LooksIntoTables, ErasureConformance, ForkErasureConformance):
    """What was erased is gone for every reader of its conversation, and stays for the forks that read it."""


class TestTimeTravel(TimeTravelConformance):
    """A conversation as it was: what folding its events by hand gives, and what was read at that moment."""


class TestConversations(ConversationConformance):
    """The vocabulary of conversations."""


class TestMessages(MessageConformance):
    """The vocabulary of messages."""


class TestOwners(OwnerConformance):
    """Numbers and the active conversation of an owner."""


def test_every_type_is_tried_there() -> None:
    """A new type asks for a test on all stores."""
    source = inspect.getsource(vocabulary)
    # A tombstone is the outbox's; `message.appended` is what every message becomes.
    elsewhere = {"EventSkipped", MessageAppended.__name__}
    missing = {body.__name__ for body in VOCABULARY.values() if f"{body.__name__}(" not in source}
    assert missing == elsewhere


async def test_what_adds_up_to_more_than_a_statement_may_hold_stays_in_the_log_alone(store: ConversationStore) -> None:
    """MariaDB cuts the connection at 16 MB, which looked like an outage of the store and delayed every conversation."""
    outbox = Outbox()
    outbox.append("chat", Message.user("words", id="m"))
    for number in range(20):
        outbox.append("chat", ConversationAnnotated(metadata={f"key-{number}": "x" * 1_000_000}))
        await send(store, outbox, "chat", ReactionAdded(message_id="m", key=f"{number}", value="y" * 1_000_000))
    await send(store, outbox, "chat", ConversationAnnotated(metadata={"key-0": None, "small": 1}))
    found = present(await store.conversation("chat"))
    assert (found.version, set(found.metadata)) == (42, {"key-1", "key-2", "key-3", "small"})
    (message,) = await store.messages("chat")
    assert [one.key for one in message.reactions] == ["0"]
    assert [one async for one in rebuild(store, check=True) if one.difference_count] == []


@pytest.fixture(scope="module")
def divided_postgresql(postgresql_server: PostgresServer) -> Iterator[StorePool]:
    with closing(PostgresPool(postgresql_server, make_divided_store)) as pool:
        yield pool


@pytest.fixture(scope="module")
def divided_mariadb(mariadb_server: MariaDBServer) -> Iterator[StorePool]:
    with closing(MariaDBPool(mariadb_server, make_divided_store)) as pool:
        yield pool


@pytest.mark.slow
class TestDividedStores(
    LooksIntoTables,
    DeliveryConformance,
    ReadConformance,
    OwnerConformance,
    ForkConformance,
    StatisticsConformance,
    RecordConformance,
):
    """What finds rows in one part or in all, where PostgreSQL or MariaDB divides its tables by hash into sixteen.

    Once more with the statements for Citus, which any PostgreSQL runs.
    """

    @pytest.fixture(params=["postgresql", "mariadb", "citus"])
    async def store(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[ConversationStore]:
        if request.param == "citus":
            monkeypatch.setattr(citus, "INSTALLED", "SELECT 1")
        pool: StorePool = request.getfixturevalue(f"divided_{request.param.replace('citus', 'postgresql')}")
        url = pool.take()
        async with ConversationStore.open(url) as opened:
            assert await opened.partitions() == PARTITIONS
            yield opened
        pool.give_back(url)
