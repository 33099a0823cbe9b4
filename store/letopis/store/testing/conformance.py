"""Give the classes of tests what they share: the capabilities, the backend, and a look at what is stored."""

from __future__ import annotations

from typing import ClassVar

import pytest

from letopis.store.testing.capabilities import REQUIRED_ATTRIBUTE, Capability
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import whole_log


@pytest.mark.anyio
class StoreConformance:
    """The base of all classes of tests here.

    Every test asks for a fixture ``store``: a prepared, empty :class:`DestinationStore`, closed after the test.

    :cvar capabilities: the optional parts that the store has; the tests of the others are skipped.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)

    @pytest.fixture
    def anyio_backend(self) -> str:
        """Return the event loop that the store runs on."""
        return "asyncio"

    @pytest.fixture(autouse=True)
    def _skip_what_is_not_supported(self, request: pytest.FixtureRequest) -> None:
        required = getattr(request.function, REQUIRED_ATTRIBUTE, None)
        if required is not None and required not in self.capabilities:
            pytest.skip(f"the store does not declare the capability {required.name}")

    async def stored_text(self, store: DestinationStore, conversation_id: str | None = None) -> str:
        """Return everything that the store holds as text, of one conversation or of all.

        The tests of redaction search it for words that must be gone. By default it is what the store's reads return:
        override it with a look into the tables, where a forgotten copy would lie.
        """
        names = {
            name for partition in range(await store.partitions()) for _, name, *_ in await whole_log(store, partition)
        }
        held: list[object] = []
        for name in sorted(names if conversation_id is None else names & {conversation_id}):
            after: int | str = 0
            while True:
                page = await store.events(name, after=after)
                held.extend((event.data, event.metadata) for event in page)
                if page.next is None:
                    break
                after = page.next
            held.append(await store.conversation(name))
            held.append((await store.messages(name, every=True)).items)
        return repr(held)
