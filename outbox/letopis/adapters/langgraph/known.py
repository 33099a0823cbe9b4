"""Remember which values a process's checkpoints have stored, so that the next one need not store them again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from letopis.adapters.langgraph.splitting import Reference, references

if TYPE_CHECKING:
    from letopis.outbox import History

_MOST: Final = 512

Place = tuple[str, str, str]
"""Conversation, checkpoint namespace and checkpoint id."""


@dataclass(frozen=True, slots=True)
class Known:
    """The values that a stored checkpoint names.

    :ivar inline: the values stored in the checkpoint itself.
    """

    channels: Mapping[str, Reference]
    inline: Mapping[str, bytes]
    versions: Mapping[str, Any]
    keys: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, channels: Mapping[str, Reference], inline: Mapping[str, bytes], versions: Mapping[str, Any]) -> Known:
        """Return what a checkpoint names."""
        return cls(channels, inline, versions, frozenset(references(channels)))


class KnownCheckpoints:
    """The checkpoints that a process has put or read last. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: OrderedDict[Place, Known] = OrderedDict()

    def get(self, place: Place) -> Known | None:
        """Return a checkpoint, if it is known."""
        with self._lock:
            found = self._held.get(place)
            if found is not None:
                self._held.move_to_end(place)
            return found

    def add(self, place: Place, known: Known) -> None:
        """Remember a checkpoint, and forget the least recently used one."""
        with self._lock:
            self._held[place] = known
            self._held.move_to_end(place)
            if len(self._held) > _MOST:
                self._held.popitem(last=False)

    def forget(self, conversation: str) -> None:
        """Forget the checkpoints of a thread, before some of them are deleted."""
        with self._lock:
            for place in [place for place in self._held if place[0] == conversation]:
                del self._held[place]


_BY_HISTORY: Final[WeakKeyDictionary[History, KnownCheckpoints]] = WeakKeyDictionary()
_LOCK: Final = Lock()


def forget_everywhere(conversation: str) -> None:
    """Have all histories of this process forget the checkpoints of a thread, before some of them are deleted."""
    with _LOCK:
        known = list(_BY_HISTORY.values())
    for one in known:
        one.forget(conversation)


def known_checkpoints(history: History) -> KnownCheckpoints:
    """Return what is known of a history, for all savers on it."""
    with _LOCK:
        return _BY_HISTORY.setdefault(history, KnownCheckpoints())
