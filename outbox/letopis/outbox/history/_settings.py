"""Check whether histories on one file were given the same."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from sqlalchemy.engine import URL

from letopis.outbox.file.inspection import outbox_path
from letopis.outbox.history.options import Options
from letopis.outbox.history.store_location import check_apart, store_beside
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.urls import check_path, normalise_url
from letopis.store.errors import ConfigurationError

_ALWAYS_SAME: Final = frozenset({"relay", "watch"})
"""Options of which the default is a wish too: a history that is to deliver must not join one that does not."""
_COMPARED_APART: Final = frozenset({"path", "store", "create"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """What to open: the outbox, the history store, and how.

    :ivar path: absolute.
    :ivar store: the caller's own store, or the address of one; ``None`` if none was given.
    """

    path: Path
    store: URL | ConversationStore | None
    options: Options

    @classmethod
    def of(cls, options: Options) -> HistorySettings:
        """Check what a history was given, without any I/O.

        :raises ConfigurationError: the path or the URL is wrong, or they are the same file.
        """
        where = outbox_path(check_path(options.path, "the outbox"))
        store = options.store
        if store is not None and not isinstance(store, ConversationStore):
            store = normalise_url(store)
        settings = cls(path=where, store=store, options=options)
        check_apart(where, settings.url)
        return settings

    @property
    def url(self) -> URL:
        """The address of the history store, by default a file beside the outbox."""
        if self.store is None:
            return normalise_url(store_beside(self.path))
        return self.store.url if isinstance(self.store, ConversationStore) else self.store

    def check_same(self, other: HistorySettings) -> None:
        """Check that another history may share what was opened by these settings.

        An option that the other one was not given is taken from these.

        :raises ConfigurationError: it was given something else.
        """
        differ = [
            option.name
            for option in fields(Options)
            if option.name not in _COMPARED_APART
            and (given := getattr(other.options, option.name)) != getattr(self.options, option.name)
            and (option.name in _ALWAYS_SAME or given != option.default)
        ]
        if isinstance(other.store, ConversationStore):
            same_store = other.store is self.store
        else:
            same_store = other.store is None or other.store == self.url
        if not same_store:
            differ.insert(0, "store")
        if differ:
            raise ConfigurationError(
                f"{other.path.name!r} is open in this process with another value of {', '.join(differ)}: histories on"
                " one file share one outbox, so give them the same options"
            )
