# pyright: reportMissingImports=false
"""Store the bytes that Strands keeps under keys in a history."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from strands.storage import Storage
from strands.types.exceptions import StorageError

from letopis.outbox import History
from letopis.store import InvalidInput, LetopisError
from letopis.store.cancellation import run_to_completion

ROOT: Final = "strands"
_AT_ONCE = 500


class LetopisStorage(Storage):
    """A Strands ``Storage``: session snapshots, memory and everything else that the SDK stores as bytes under keys.

    ::

        storage = LetopisStorage(History("bot.outbox.db", own_thread=True))
        agent = Agent(session_manager=SnapshotSessionManager("chat-1", storage=storage))

    A write is durable when it returns, whether or not the history store can be reached. A read never returns ``None``
    for a key that may exist, because the agent would then start its session over.

    Keys are interpreted as in Strands' own storages: slashes separate labels, several count as one, and ``..`` is
    refused.

    :param history: not closed by the storage. Strands runs an event loop for each synchronous call: open it with
        ``own_thread=True``.
    :param space: a name for the records that hold the bytes. One history can hold several storages.
    """

    def __init__(self, history: History, *, space: str = ROOT) -> None:
        if not isinstance(history, History):
            raise InvalidInput("history", f"must be a History, not {type(history).__name__}")
        self._records = history.records(space=space)

    async def write(self, key: str, data: bytes) -> None:
        """Store bytes under a key, at most 64 MiB, replacing any existing ones.

        :raises StorageError: the key is not valid, or the outbox is full or cannot be written; nothing was written.
        """
        with _errors_of("write", key):
            namespace, name = place_of(key)
            await run_to_completion(self._records.put(namespace, name, bytes(data)))

    async def read(self, key: str) -> bytes | None:
        """Return the bytes under a key; ``None`` only if there certainly are none.

        :raises StorageError: the history store is unreachable, and the outbox does not know the key; or the key is not
            valid.
        """
        with _errors_of("read", key):
            record = await self._records.get(*place_of(key))
        return None if record is None else bytes(record.value)

    async def delete(self, key: str) -> None:
        """Delete the bytes under a key, if there are any.

        :raises StorageError: the key is not valid, or the outbox is full or cannot be written.
        """
        with _errors_of("delete", key):
            await run_to_completion(self._records.delete(*place_of(key)))

    async def list(self, query: str = "") -> builtins.list[str]:
        """Return all keys with a prefix, in order.

        :raises StorageError: the history store is unreachable.
        """
        found: builtins.list[str] = []
        with _errors_of("list", query):
            below, beginning = range_of(query)
            after: str | None = None
            while True:
                page = await self._records.list(below, limit=_AT_ONCE, after=after, values=False)
                keys = (key_at((one.namespace, one.key)) for one in page)
                found += [key for key in keys if key.startswith(beginning)]
                after = page.next
                if after is None:
                    return sorted(found)


@contextmanager
def _errors_of(deed: str, key: str) -> Iterator[None]:
    """Raise the framework's error for one of ours."""
    try:
        yield
    except (LetopisError, ValueError) as error:
        raise StorageError(f"cannot {deed} {key!r}: {error}") from error


_DEEPEST: Final = 2
"""How many labels of a key form its namespace. Records of one namespace, as of a session, are delivered in order."""

Place = tuple[tuple[str, ...], str]
"""Namespace and key of a record."""


def place_of(key: str) -> Place:
    """Return the place of a key. Slashes are interpreted as in Strands' own storages.

    :raises ValueError: the key is empty, or contains a backslash or ``..``.
    """
    labels = [label for label in _checked(key).split("/") if label]
    if not labels:
        raise ValueError("the key is empty")
    deep = min(_DEEPEST, len(labels) - 1)
    return (ROOT, *labels[:deep]), "/".join(labels[deep:])


def key_at(place: Place) -> str:
    """Return the key of a place."""
    namespace, key = place
    return "/".join((*namespace[1:], key))


def range_of(prefix: str) -> tuple[tuple[str, ...], str]:
    """Return the namespace that contains all keys with a prefix, and the prefix in its normal form.

    :raises ValueError: the prefix contains a backslash or ``..``.
    """
    labels = _checked(prefix).split("/")
    whole = [label for label in labels[:-1] if label]
    return (ROOT, *whole[:_DEEPEST]), "/".join((*whole, labels[-1]))


def _checked(text: str) -> str:
    if "\\" in text:
        raise ValueError("a key has no backslashes")
    if ".." in text.split("/"):
        raise ValueError("a key has no segment that is '..'")
    return text
